"""Random tokens for the laws: what hypothesis draws and shrinks, and the Tokens and views that are made of it."""

from dataclasses import dataclass, fields, replace
from functools import cache

import torch
from hypothesis import assume, strategies as st

from pruning import EVERY
from pruning.base import LayerView, Reduction, Tokens, whole_grid
from tiny import built, refusal

LAYERS, H, HK, DH = 32, 4, 2, 4                # a decoder as deep as the real one; heads, key heads, their width
COLUMNS = {1: 1, 2: 2, 3: 1, 4: 2, 7: 7, 9: 3, 12: 4, 40: 8}           # of an image with so many tokens
# Of an image of tiles with so many tokens the base tile's side and the map's rows and columns; each row ends with a newline.
TILED = {5: (2, 1, 0), 6: (1, 1, 4), 10: (2, 2, 2), 13: (1, 3, 3), 22: (2, 6, 2), 33: (3, 3, 7)}
EQUAL = {8: (2, 2), 20: (5, 2), 27: (3, 3)}            # InternVL: so many tiles, the thumbnail among them, and the side of each
KINDS, DTYPES = ("even", "ties", "flat", "sharp"), (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Case:
    """What hypothesis draws, and shrinks: sizes, a seed, words. `make` has the tensors."""

    seed: int
    kind: str
    dtype: torch.dtype
    sizes: list                        # text, image, text, .., text; at the vision site: tiles, side, class tokens skipped
    keep: float | int | None
    layer: int                         # which of the method's layers
    left: int | None                   # so many visual tokens are left by a reduction before an earlier layer
    needle: int | None                 # a visual token that gets nearly all the attention


@cache
def whole_numbers(least, most):
    """st.integers, built once: to build it again at each draw takes longer than to draw."""
    return st.integers(least, most)


@cache
def budgets(default, most):
    """What `keep` may be: a share, a number up to `most`, or None for a method that has it as its default."""
    shares = [1.0, .5, 1 / 3, .01]
    if default is None:
        shares.append(None)
    return st.sampled_from(shares) | whole_numbers(1, most)


@cache
def tokens_left(most):
    """Nothing is dropped before, or this number of visual tokens is left."""
    return st.none() | whole_numbers(1, most)


TOWERS = {least: st.tuples(whole_numbers(1, 3), whole_numbers(1, 5), whole_numbers(least, 1)) for least in (0, 1)}
IMAGES = st.lists(st.sampled_from([*COLUMNS, *TILED, *EQUAL]), min_size=1, max_size=3)
ANY_KIND = st.sampled_from(KINDS)
ANY_DTYPE = st.sampled_from(DTYPES)


@cache
@st.composite
def cases(draw, name, law=None):
    """A Case for a method that promises `law`."""
    site = EVERY[name].site
    at_vision = site in ("image", "vision")
    needle = law == "needle"
    if at_vision:
        sizes = draw(TOWERS[int(site == "image")])
        most = sizes[1] ** 2
    else:
        sizes = draw_prompt(draw, needle, bool(refusal(name)))
        most = sum(sizes[1::2])
    default = next((f.default for f in fields(EVERY[name]) if f.name == "keep"), None)
    keep = draw(budgets(default, most))
    assume(law is None or law in built(name, keep).laws)
    return Case(draw(whole_numbers(0, 999)), draw(ANY_KIND), draw(ANY_DTYPE), sizes, keep, draw(whole_numbers(0, 9)),
                draw(tokens_left(most)), draw(whole_numbers(0, 99)) if needle else None)


def draw_prompt(draw, needle, joined):
    """Sizes of one to three images, and of the text around them; without text between them if they are to be joined.

    A needle is seen by all text after the first image, and what comes before it has something else to look at.
    """
    images = draw(IMAGES)
    longest = 0 if needle or joined else 2
    between = [draw(whole_numbers(0, longest)) for _ in images[1:]]
    texts = [draw(whole_numbers(int(needle), 3)), *between, draw(whole_numbers(1, 4))]
    return sum(([text, image] for text, image in zip(texts, images)), []) + texts[-1:]


def make(name, case):
    """The method and the Tokens of a case."""
    pruner = built(name, case.keep)
    noise = Noise(case.seed, case.kind)
    if isinstance(getattr(pruner, "grid", None), tuple):
        # a reading that must know how the tiles after the base tile lie: in one row
        pruner = replace(pruner, grid=(1, max(1, case.sizes[0] - 1)))
    if pruner.site in ("image", "vision"):
        return pruner, tower_tokens(noise, case)
    tokens = prompt(noise, *case.sizes)
    tokens = replace(tokens, hidden=tokens.hidden.to(case.dtype))
    if pruner.site == "decoder":
        cuts = pruner.reduce_at(LAYERS) or pruner.mask_at(LAYERS)
        layer = cuts[case.layer % len(cuts)]
        tokens = replace(tokens, prompt=tokens, layer=layer)
        if layer != cuts[0] and case.left:
            order = torch.rand(tokens.n, generator=noise.generator).argsort()
            tokens = tokens.reduced(Reduction(order[:case.left].sort().values), pruner.positions)
        aim = None if case.needle is None else case.needle % tokens.n
        views = {side: decoder_view(tokens, noise, aim, case.dtype).on(tokens) for side in ("before", "here")}
        tokens = replace(tokens, **views)
    return pruner, tokens


class Noise:
    """Random tensors of one kind from one seed."""

    def __init__(self, seed, kind):
        self.generator, self.kind = torch.Generator().manual_seed(seed), kind

    def rows(self, *shape):
        """Hidden states, queries or keys: all different, copies of three, or all the same."""
        x = torch.randn(shape, generator=self.generator)
        different = {"ties": min(3, shape[0]), "flat": 1}.get(self.kind)
        return x if different is None else x[torch.randint(different, shape[:1], generator=self.generator)]

    def logits(self, *shape):
        """Of attention; within limits in which the product of two weights is no denormal."""
        x = torch.randn(shape, generator=self.generator)
        return {"even": x, "ties": x.round(), "flat": 0 * x, "sharp": (30 * x).clamp(-12, 12)}[self.kind]

    def heads(self, count, T):
        """(count, T, DH) queries or keys"""
        return self.rows(T, count * DH).unflatten(1, (-1, DH)).transpose(0, 1)


def prompt(noise, *sizes):
    """Text and images in turn, as they enter the decoder."""
    is_visual = torch.repeat_interleave(torch.arange(len(sizes)) % 2 == 1, torch.tensor(sizes))                # (T,)
    grid = torch.cat([image_grid(n) + torch.tensor([8 * i, 0, 0]) for i, n in enumerate(sizes[1::2])])
    return Tokens.start(noise.rows(len(is_visual), H * DH), is_visual.nonzero().squeeze(1), grid)


def image_grid(n):
    """(n, 3) of an image with n tokens: one grid, several of one size, or a base tile and a map."""
    if n in COLUMNS:
        return whole_grid(n // COLUMNS[n], COLUMNS[n])
    if n in EQUAL:
        return torch.cat([whole_grid(EQUAL[n][1], EQUAL[n][1], tile) for tile in range(EQUAL[n][0])])
    side, rows, columns = TILED[n]
    lines = [part for row in whole_grid(rows, columns, 1).view(rows, columns, 3) for part in (row, torch.tensor([[1, -1, -1]]))]
    return torch.cat([whole_grid(side, side), *lines])


def decoder_view(tokens, noise, needle, dtype):
    """A view of random attention, logits, queries and keys. The visual token `needle` gets nearly all the attention."""
    T = len(tokens.hidden)
    may_see = torch.ones(T, T, dtype=torch.bool).tril()
    logits = noise.logits(H, T, T)
    attention = logits.masked_fill(~may_see, -torch.inf).softmax(dim=-1)
    if needle is not None:
        # who cannot see it looks at the first token there is
        row = tokens.visual[needle]
        aim = torch.where(may_see[:, row], row, torch.zeros(T, dtype=torch.long))                              # (T,)
        attention = .01 * attention + .99 * torch.eye(T)[aim]
        logits = attention.clamp(min=1e-9).log()
    return LayerView.of(attention=attention, logits=logits.to(dtype), query=noise.heads(H, T).to(dtype),
                        key=noise.heads(HK, T).to(dtype), projected_key=noise.rows(T, HK * DH).to(dtype),
                        stream_key=noise.rows(T, HK * DH).to(dtype), unrotated_query=noise.heads(H, T).to(dtype),
                        unrotated_key=noise.heads(HK, T).to(dtype), final_normed=noise.rows(T, H * DH).to(dtype))


class Tower(LayerView):
    """A made-up block of a vision tower: attention of the class tokens, queries and keys."""

    def __init__(self, tokens, tiles, noise, needle, dtype):
        self.tokens, self.tiles = tokens, tiles
        T = len(tokens.hidden)
        attention = noise.logits(H, tiles, T // tiles).softmax(dim=-1)                                         # (H, tiles, 1+P)
        self.of_class_tokens = attention.flatten(1)[:, tokens.visual]
        between = noise.logits(tiles, T // tiles, T // tiles).softmax(dim=-1)                                  # (tiles, 1+P, 1+P)
        self.of_patches = between[:, 1:].mean(dim=1).flatten()[tokens.visual]                                  # (n,)
        self.queries, self.keys = noise.heads(H, T), noise.heads(H, T)
        if needle is not None:                     # of all products with a query, its own is the largest
            own = tokens.grid[:, 0] == tokens.grid[needle, 0]
            self.of_class_tokens[:, own] *= .01
            self.of_class_tokens[:, needle] = .99
            self.queries[:, :, 0], self.keys[:, :, 0] = 10., 0.
            self.keys[:, tokens.visual[needle], 0] = 10.
        self.queries, self.keys = self.queries.to(dtype), self.keys.to(dtype)

    def query(self, rows="all"):
        return self.queries[:, self.tokens.rows(rows)]

    def key(self):
        return self.keys

    def cls_rows(self):
        return torch.arange(self.tiles) * (len(self.tokens.hidden) // self.tiles)

    def cls_attention(self):
        return self.of_class_tokens

    def received(self):
        return self.of_patches

    def block(self, l):
        return self


def tower_tokens(noise, case):
    """An image of so many tiles of side x side patches, as the vision tower gives it; skip=0: class tokens are visual
    too."""
    tiles, side, skip = case.sizes
    index = torch.arange(tiles * (1 + side * side)).view(tiles, -1)                                            # (tiles, 1+P)
    of_class = torch.tensor([[0, -1, -1]])
    grid = torch.stack([torch.cat([of_class, whole_grid(side, side)]) + torch.tensor([tile, 0, 0]) for tile in range(tiles)])
    hidden = noise.rows(index.numel(), H * DH).to(case.dtype)
    tokens = Tokens.start(hidden, index[:, skip:].flatten(), grid[:, skip:].flatten(0, 1), layer=23)
    needle = None if case.needle is None else case.needle % tokens.n
    views = {side: Tower(tokens, tiles, noise, needle, case.dtype) for side in ("before", "here")}
    return replace(tokens, **views)
