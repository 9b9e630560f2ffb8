"""Random tensors of four kinds, from which drawn prompts and their views are made.

    even    all different
    ties    only three different ones
    flat    all the same
    sharp   nearly all the attention on one token

Letters as in pruning/base.py.
"""

import torch

from pruning.base import LayerView

H, HK, DH = 4, 2, 4                    # query heads, key heads, their width
WIDTH = H * DH
KEY_WIDTH = HK * DH


class Noise:
    """Random tensors of one kind from one seed."""

    def __init__(self, seed, kind):
        self.generator = torch.Generator().manual_seed(seed)
        self.kind = kind

    def rows(self, *shape):
        """Hidden states, queries or keys: all different, copies of three, or all the same."""
        x = torch.randn(shape, generator=self.generator)
        most = {"ties": min(3, shape[0]), "flat": 1}
        if self.kind not in most:
            return x
        chosen = torch.randint(most[self.kind], shape[:1], generator=self.generator)
        return x[chosen]

    def logits(self, *shape):
        """Of attention, within limits in which the product of two weights is no denormal."""
        x = torch.randn(shape, generator=self.generator)
        if self.kind == "ties":
            return x.round()
        if self.kind == "flat":
            return torch.zeros_like(x)
        if self.kind == "sharp":
            return (30 * x).clamp(-12, 12)
        return x

    def heads(self, count, T):
        """(count, T, DH) queries or keys"""
        rows = self.rows(T, count * DH)
        return rows.unflatten(1, (-1, DH)).transpose(0, 1)


def decoder_view(tokens, noise, needle, dtype):
    """A decoder layer of random attention, logits, queries and keys on these tokens.

    The visual token `needle` gets nearly all the attention of every row that sees it; None: no token does.
    """
    T = len(tokens.hidden)
    allowed = torch.ones(T, T, dtype=torch.bool).tril()
    logits = noise.logits(H, T, T)
    attention = logits.masked_fill(~allowed, -torch.inf).softmax(dim=-1)           # (H, T, T)
    if needle is not None:
        # a row that does not see it looks at the first token
        row = tokens.visual[needle]
        sees = allowed[:, row]
        target = torch.where(sees, row, 0)                                         # (T,)
        attention = 0.01 * attention + 0.99 * torch.eye(T)[target]
        logits = attention.clamp(min=1e-9).log()
    view = LayerView.of(
        attention=attention,
        logits=logits.to(dtype),
        query=noise.heads(H, T).to(dtype),
        key=noise.heads(HK, T).to(dtype),
        projected_key=noise.rows(T, KEY_WIDTH).to(dtype),
        stream_key=noise.rows(T, KEY_WIDTH).to(dtype),
        unrotated_query=noise.heads(H, T).to(dtype),
        unrotated_key=noise.heads(HK, T).to(dtype),
        final_normed=noise.rows(T, WIDTH).to(dtype),
    )
    return view.on(tokens)


def watched_view(tokens, noise, dtype):
    """A layer that has run on these tokens: what its attention and its MLP read and give."""
    T = len(tokens.hidden)
    names = ("attention_in", "attention_out", "mlp_in", "mlp_out")
    matrices = {name: noise.rows(T, WIDTH).to(dtype) for name in names}
    return LayerView.of(**matrices).on(tokens)


class Tower(LayerView):
    """A block of a vision tower, the same one whichever is asked for: attention, queries and keys of all tiles."""

    def __init__(self, tokens, tiles, noise, needle, dtype):
        self.tokens = tokens
        self.tiles = tiles
        T = len(tokens.hidden)
        rows = T // tiles                                                          # 1+P
        attention = noise.logits(H, tiles, rows).softmax(dim=-1)                   # (H, tiles, 1+P)
        self.of_class_tokens = attention.flatten(1)[:, tokens.visual]              # (H, n)
        between = noise.logits(tiles, rows, rows).softmax(dim=-1)                  # (tiles, 1+P, 1+P)
        of_patches = between[:, 1:].mean(dim=1)                                    # (tiles, 1+P)
        self.of_patches = of_patches.flatten()[tokens.visual]                      # (n,)
        self.queries = noise.heads(H, T)
        self.keys = noise.heads(H, T)
        if needle is not None:
            self.aim_at(needle)
        self.queries = self.queries.to(dtype)
        self.keys = self.keys.to(dtype)

    def aim_at(self, needle):
        """Let the class token of its tile look at this visual token, and every query have the largest product with its
        key."""
        tile = self.tokens.grid[:, 0]
        is_same_tile = tile == tile[needle]                                        # (n,)
        self.of_class_tokens[:, is_same_tile] *= 0.01
        self.of_class_tokens[:, needle] = 0.99
        self.queries[:, :, 0] = 10.0
        self.keys[:, :, 0] = 0.0
        self.keys[:, self.tokens.visual[needle], 0] = 10.0

    def query(self, rows="all"):
        return self.queries[:, self.tokens.rows(rows)]

    def key(self):
        return self.keys

    def cls_rows(self):
        rows = len(self.tokens.hidden) // self.tiles
        return torch.arange(self.tiles) * rows

    def cls_attention(self):
        return self.of_class_tokens

    def received(self):
        return self.of_patches

    def block(self, l):
        return self

    def __repr__(self):
        return "the view of a block of the vision tower"
