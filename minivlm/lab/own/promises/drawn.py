"""Drawn prompts, from one visual token to several images and tiles, on which a method's promises are tried in turn.

The first prompt on which one breaks is the counter-example, so the smallest come first.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from minivlm.lab.own.promises.noise import WIDTH, Noise, Tower, decoder_view, watched_view
from pruning.base import Reduction, Tokens, whole_grid
from pruning.fields import annotations

LAYERS = 32                            # of the decoder
DEPTH = 23                             # of the tower, up to the features
# text, image, text, .., text
ONE_IMAGE = (
    (0, 1, 1),
    (1, 1, 1),
    (0, 2, 1),
    (1, 2, 1),
    (1, 3, 1),
    (2, 3, 2),
    (2, 4, 1),
    (3, 6, 2),
    (2, 12, 3),
)
SEVERAL = (
    (1, 2, 0, 2, 1),
    (1, 4, 0, 3, 2),
    (2, 4, 1, 6, 2),
)
# base tile, and the map with a newline after each row
TILED = (
    (1, "2x2 1x2", 2),
    (2, "2x2 2x3", 3),
)
# tiles, patches on a side
TOWERS = (
    (1, 1),
    (1, 2),
    (1, 3),
    (2, 2),
    (3, 3),
)
COLUMNS = {1: 1, 2: 2, 3: 3, 4: 2, 6: 3, 12: 4}
# noise and keep, for each prompt of one image
DRAWS = (
    ("even", 1),
    ("even", 0.5),
    ("even", 1.0),
    ("ties", 0.5),
    ("ties", 1),
    ("flat", 1 / 3),
    ("sharp", 0.5),
)


@dataclass(frozen=True)
class Case:
    """A prompt that is always drawn alike, and the method that is tried on it."""

    kind: type                         # of the method
    sizes: tuple
    noise: str = "even"
    keep: float | int | None = None    # None: the method's own
    last_cut: bool = False             # before the method's last layer, after others have left half
    dtype: torch.dtype = torch.float32
    needle: int | None = None          # the visual token that gets nearly all the attention
    aimed: tuple = ("before", "here")  # in these views
    seed: int = 0

    @cached_property
    def pruner(self):
        """The method."""
        return built(self.kind, self.keep)

    @cached_property
    def tokens(self):
        """What it is given."""
        noise = Noise(self.seed, self.noise)
        if self.pruner.site in ("image", "vision"):
            return tower_tokens(self, noise)
        tokens = prompt(self.sizes, noise)
        tokens = replace(tokens, hidden=tokens.hidden.to(self.dtype))
        if self.pruner.site == "embed":
            return tokens
        return before_layer(self, tokens, noise)

    @property
    def is_plain(self):
        """Whether it is one image on one grid, which every method takes."""
        if self.pruner.site in ("image", "vision"):
            return self.sizes[0] == 1
        return len(self.sizes) == 3 and isinstance(self.sizes[1], int)


def built(kind, keep=None):
    """The method with this `keep`, if it has one."""
    takes_keep = "keep" in annotations(kind)
    return kind(keep=keep) if takes_keep and keep is not None else kind()


def cases(kind):
    """[Case] for a method, the smallest first."""
    at_tower = kind.site in ("image", "vision")
    plain = TOWERS if at_tower else ONE_IMAGE
    drawn = [case for sizes in plain for case in of_sizes(kind, sizes)]
    if at_tower:
        return drawn
    for sizes in (*SEVERAL, *TILED):
        drawn.append(Case(kind, sizes, keep=0.5))
        drawn.append(Case(kind, sizes, "ties", keep=1))
    if len(built(kind).reduce_at(LAYERS)) > 1:
        drawn.append(Case(kind, ONE_IMAGE[-1], keep=0.5, last_cut=True))
    return drawn


def of_sizes(kind, sizes):
    """[Case] of one prompt: each kind of noise, and half precision."""
    takes_keep = "keep" in annotations(kind)
    drawn = []
    for seed, (noise, keep) in enumerate(DRAWS):
        drawn.append(Case(kind, sizes, noise, keep if takes_keep else None, seed=seed))
    half = replace(drawn[1], dtype=torch.bfloat16, seed=len(DRAWS))
    return [*drawn, half]


NEEDLES = (
    (1, 2, 1),
    (1, 3, 1),
    (2, 4, 1),
    (2, 12, 3),
)


def needles(kind, aimed):
    """[Case] for the law needle: each of a few visual tokens in turn gets nearly all the attention."""
    at_tower = kind.site in ("image", "vision")
    plain = TOWERS[1:4] if at_tower else NEEDLES
    drawn = []
    for sizes in plain:
        first, second = sizes[:2]
        n = first * second ** 2 if at_tower else second
        for needle in range(min(n, 4)):
            case = Case(kind, sizes, keep=1, needle=needle, aimed=aimed, seed=needle)
            drawn.append(case)
    return drawn


# --- prompts ----------------------------------------------------------------------------------------------------------

def prompt(sizes, noise):
    """Text and images in turn, as they enter the decoder."""
    grids = []
    first_tile = 0
    for size in sizes[1::2]:
        grid = image_grid(size)
        grid[:, 0] += first_tile
        first_tile = int(grid[:, 0].max()) + 1
        grids.append(grid)
    counts = list(sizes)
    counts[1::2] = map(len, grids)
    is_image = torch.arange(len(sizes)) % 2 == 1
    is_visual = is_image.repeat_interleave(torch.tensor(counts))                   # (T,)
    hidden = noise.rows(len(is_visual), WIDTH)                                     # (T, D)
    visual = is_visual.nonzero().squeeze(1)                                        # (n,)
    return Tokens.start(hidden, visual, torch.cat(grids))


def image_grid(size):
    """(n, 3) of an image: of 6 tokens on one grid, or "2x2 1x2", a base tile and a map with a newline after each row.
    """
    if isinstance(size, int):
        columns = COLUMNS[size]
        return whole_grid(size // columns, columns)
    base, image_map = size.split()
    height, width = map(int, base.split("x"))
    rows, columns = map(int, image_map.split("x"))
    newline = torch.tensor([[1, -1, -1]])
    parts = [whole_grid(height, width)]
    for row in whole_grid(rows, columns, 1).view(rows, columns, 3):
        parts += [row, newline]
    return torch.cat(parts)


def before_layer(case, tokens, noise):
    """The tokens as they enter the layer before which the decoder method acts, with its views."""
    pruner = case.pruner
    cuts = pruner.reduce_at(LAYERS) or pruner.mask_at(LAYERS) or (1,)
    first = cuts[0]
    layer = cuts[-1] if case.last_cut else first
    tokens = replace(tokens, prompt=tokens, layer=layer)
    watched = pruner.watch_at(LAYERS)
    entered = [tokens for l in watched if l < first]
    if layer != first:
        half = torch.arange(0, tokens.n, 2)
        tokens = tokens.reduced(Reduction(half), pruner.positions)
    entered += [tokens for l in watched if first <= l < layer]
    views = {}
    for side in ("before", "here"):
        needle = case.needle if side in case.aimed else None
        views[side] = decoder_view(tokens, noise, needle, case.dtype)
    views["watched"] = tuple(watched_view(then, noise, case.dtype) for then in entered)
    return replace(tokens, **views)


def tower_tokens(case, noise):
    """An image of some square tiles, as the vision tower gives it; the class tokens may be visual tokens, too."""
    tiles, side = case.sizes
    with_class = case.pruner.cls
    place = whole_grid(side, side)                                                 # (P, 3)
    if with_class:
        place = torch.cat([torch.tensor([[0, -1, -1]]), place])                    # (1+P, 3)
    of_tiles = []
    for tile in range(tiles):
        shift = torch.tensor([tile, 0, 0])
        of_tiles.append(place + shift)
    grid = torch.cat(of_tiles)                                                     # (n, 3)
    rows = 1 + side * side                                                         # 1+P
    index = torch.arange(tiles * rows).view(tiles, rows)                           # (tiles, 1+P)
    visual = index if with_class else index[:, 1:]
    hidden = noise.rows(index.numel(), WIDTH).to(case.dtype)
    tokens = Tokens.start(hidden, visual.flatten(), grid, layer=DEPTH)
    before = Tower(tokens, tiles, noise, case.needle, case.dtype)
    here = Tower(tokens, tiles, noise, case.needle, case.dtype)
    return replace(tokens, before=before, here=here)
