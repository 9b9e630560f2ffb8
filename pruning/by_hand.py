"""Layer views of typed matrices: how an example or a test shows a method an attention matrix, without a model."""

from copy import copy

import torch

from pruning.base import LayerView, UserError


class GivenView(LayerView):
    """What LayerView.of(..) makes. Matrices with fewer than T rows hold the last rows; masks are causal; RoPE has theta 10000."""

    def __init__(self, attention=None, logits=None, query=None, key=None, projected_key=None, stream_key=None, cls_attention=None,
                 blocks=None):
        self.given = dict(attention=_heads(attention), logits=_heads(logits), query=_heads(query), key=_heads(key))
        self.projected = {True: projected_key, False: stream_key}
        self.given_cls_attention = cls_attention
        self.blocks = blocks or {}

    def _get(self, name):
        if self.given[name] is None:
            raise UserError(f"this view was made without {name}: give it to LayerView.of({name}=..)")
        return self.given[name]

    def _rows(self, x, rows):
        """The rows asked for, of x (H, R, ..), whose rows are the last R of the sequence."""
        missing = len(self.tokens.hidden) - x.shape[1]
        return x[:, self.tokens.rows(rows).clamp_min(missing) - missing]

    def query(self, rows="all"):
        return self._rows(self._get("query"), rows)

    def key(self):
        return self._get("key")

    def projected_key(self, norm=True):
        if self.projected[norm] is None:
            name = "projected_key" if norm else "stream_key"
            raise UserError(f"this view was made without {name}: give it to LayerView.of({name}=..)")
        return torch.as_tensor(self.projected[norm])

    def mask(self, rows=None):
        T = len(self.tokens.hidden)
        causal = torch.full((T, T), float("-inf"), device=self.tokens.visual.device).triu(1)
        return causal if rows is None else causal[self.tokens.rows(rows)]

    def logits(self, rows="all"):
        if self.given["logits"] is None:
            return super().logits(rows)
        return self._rows(self.given["logits"], rows)

    def attention(self, rows="all"):
        if self.given["attention"] is None:
            return super().attention(rows)
        return self._rows(self.given["attention"], rows)

    def each_head_logits(self, rows="all"):
        return iter(self.logits(rows))

    def each_head(self, rows="all"):
        return iter(self.attention(rows))

    def rotated(self, x):
        half = x.shape[1] // 2
        frequency = 10000.0 ** (-torch.arange(half, device=x.device) / half)       # (Dh/2,)
        angle = self.tokens.position[:, None] * frequency                          # (T, Dh/2)
        first, second = x.chunk(2, dim=1)
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=1)

    def cls_rows(self):
        tiles = len(self.tokens.grid[:, 0].unique())
        rows_per_tile = len(self.tokens.hidden) // tiles
        return torch.arange(tiles, device=self.tokens.visual.device) * rows_per_tile

    def cls_attention(self):
        if self.given_cls_attention is None:
            raise UserError("this view was made without cls_attention: give it to LayerView.of(cls_attention=..)")
        return torch.atleast_2d(torch.as_tensor(self.given_cls_attention))

    def block(self, l):
        if l not in self.blocks:
            raise UserError(f"this view was made without block {l}: give it to LayerView.of(blocks={{{l}: LayerView.of(..)}})")
        return self.blocks[l].on(self.tokens)

    def on(self, tokens):
        bound = copy(self)
        bound.tokens = tokens
        return bound

    def __repr__(self):
        return f"LayerView.of({', '.join(name for name, x in self.given.items() if x is not None)})"


def _heads(x):
    """A typed row (T,), or a matrix (R, T), as that of one head, (1, R, T)."""
    if x is None:
        return None
    x = torch.as_tensor(x)
    return x.reshape((1,) * (3 - x.ndim) + x.shape)
