"""Layer views of typed matrices: how an example or a test shows a method an attention matrix, without a model."""

from copy import copy

import torch

from pruning.base import LayerView, UserError


class GivenView(LayerView):
    """What LayerView.of(..) makes. Matrices with fewer than T rows hold the last rows; masks are causal.

    attention, logits: (T,), (T, T) or (H, T, T). query, unrotated_query: (H, T, Dh). key, unrotated_key: (Hk, T, Dh),
    what key() and key(rope=False) give. projected_key, stream_key: (T, Hk*Dh), what projected_key(norm=True) and
    (norm=False) give. final_normed, and the four of modules(): (T, D). Of a tower: cls_attention, (n,) or (H, n), and
    blocks, {0: LayerView.of(..)}, the other views that a method may ask for.
    """

    def __init__(
        self,
        attention=None,
        logits=None,
        query=None,
        key=None,
        unrotated_query=None,
        unrotated_key=None,
        projected_key=None,
        stream_key=None,
        final_normed=None,
        attention_in=None,
        attention_out=None,
        mlp_in=None,
        mlp_out=None,
        cls_attention=None,
        blocks=None,
    ):
        by_head_given = {
            "attention": attention,
            "logits": logits,
            "query": query,
            "key": key,
            "unrotated_query": unrotated_query,
            "unrotated_key": unrotated_key,
        }
        others_given = {
            "projected_key": projected_key,
            "stream_key": stream_key,
            "final_normed": final_normed,
            "attention_in": attention_in,
            "attention_out": attention_out,
            "mlp_in": mlp_in,
            "mlp_out": mlp_out,
            "cls_attention": cls_attention,
        }
        self.given = {name: by_head(x) for name, x in by_head_given.items()}
        self.given |= {name: as_tensor(x) for name, x in others_given.items()}
        self.blocks = blocks or {}

    def _get(self, name):
        matrix = self.given[name]
        if matrix is None:
            raise UserError(f"this view was made without {name}: give it to LayerView.of({name}=..)")
        return matrix

    def _rows(self, x, rows):
        """These rows of x (H, R, ..), which holds the last R rows of the sequence."""
        T = len(self.tokens.hidden)
        missing = T - x.shape[1]
        rows = self.tokens.rows(rows).clamp_min(missing)
        return x[:, rows - missing]

    def query(self, rows="all", rope=True):
        return self._rows(self._get("query" if rope else "unrotated_query"), rows)

    def key(self, rope=True):
        return self._get("key" if rope else "unrotated_key")

    def projected_key(self, norm=True):
        return self._get("projected_key" if norm else "stream_key")

    def final_normed(self):
        return self._get("final_normed")

    def modules(self):
        attention = self._get("attention_in"), self._get("attention_out")
        mlp = self._get("mlp_in"), self._get("mlp_out")
        return attention, mlp

    def mask(self, rows=None):
        T = len(self.tokens.hidden)
        device = self.tokens.visual.device
        causal = torch.full((T, T), float("-inf"), device=device).triu(1)
        if rows is None:
            return causal
        return causal[self.tokens.rows(rows)]

    def logits(self, rows="all"):
        given = self.given["logits"]
        if given is None:
            return super().logits(rows)
        return self._rows(given, rows)

    def attention(self, rows="all"):
        given = self.given["attention"]
        if given is None:
            return super().attention(rows)
        return self._rows(given, rows)

    def each_head_logits(self, rows="all"):
        return iter(self.logits(rows))

    def each_head(self, rows="all"):
        return iter(self.attention(rows))

    def rotated(self, x):
        """With theta 10000, as LLaMA."""
        half = x.shape[1] // 2
        index = torch.arange(half, device=x.device)
        frequency = 10000.0 ** (-index / half)                                     # (Dh/2,)
        angle = self.tokens.position[:, None] * frequency                          # (T, Dh/2)
        cos = angle.cos()
        sin = angle.sin()
        first, second = x.chunk(2, dim=1)
        first_rotated = first * cos - second * sin
        second_rotated = second * cos + first * sin
        return torch.cat([first_rotated, second_rotated], dim=1)

    def cls_rows(self):
        tiles = len(self.tokens.grid[:, 0].unique())
        rows_per_tile = len(self.tokens.hidden) // tiles
        return torch.arange(tiles, device=self.tokens.visual.device) * rows_per_tile

    def cls_attention(self):
        return torch.atleast_2d(self._get("cls_attention"))

    def block(self, l):
        if l not in self.blocks:
            raise UserError(f"this view was made without block {l}: "
                            f"give it to LayerView.of(blocks={{{l}: LayerView.of(..)}})")
        return self.blocks[l].on(self.tokens)

    def on(self, tokens):
        bound = copy(self)
        bound.tokens = tokens
        return bound

    def __repr__(self):
        names = [name for name, matrix in self.given.items() if matrix is not None]
        return f"LayerView.of({', '.join(names)})"


def as_tensor(x):
    """A typed matrix as a tensor; None stays."""
    return None if x is None else torch.as_tensor(x)


def by_head(x):
    """A typed row (T,), or a matrix (R, T), as that of one head, (1, R, T); None stays."""
    if x is None:
        return None
    x = torch.as_tensor(x)
    while x.ndim < 3:
        x = x[None]
    return x
