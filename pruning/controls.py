"""Controls: what a method must beat; and the strategies of AdaptPrune's Table 5, arXiv:2503.08019.

Some look at nothing (random, a uniform grid, down-sampling, pooling, the last tokens, no image at all); the others rank by
FastV's score, the attention of the last prompt token in layer K-1, and choose otherwise than by taking the best.

Paper and code: no code of Table 5 has been released, and the supplement gives one line a strategy. Read here as: (b) "every
other token" counts ranks, not places; (c) is drawn anew from the same seed for each prompt; (d), (e) cells do not overlap,
those at the rim may be smaller, and where there are fewer cells than tokens to keep the best of the others fill up; (f)
pools the scores, not the features, over the patches that exist; no Gaussian correction, since FastV is the table's baseline
(correction=True is the other reading of "under our framework"). (a) is SingleFitPrune.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Literal

import torch
import torch.nn.functional as F

from pruning.adaptprune import gaussian
from pruning.base import Pruner, Reduction, UserError
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, Layer
from pruning.ranked import descending, top


@dataclass(frozen=True)
class Unpruned(Pruner):
    """Keeps everything."""

    laws = frozenset({"select", "ordered", "budget", "scale", "needle"})

    def budget(self, n):
        return n

    def reduce(self, tokens):
        return Reduction(torch.arange(tokens.n, device=tokens.visual.device))


@dataclass(frozen=True)
class Blind(Pruner):
    """Keeps nothing: the decoder reads the text alone, as if no image had been given."""

    site = "embed"
    laws = frozenset({"select", "ordered", "budget", "scale"})

    def budget(self, n):
        return 0

    def reduce(self, tokens):
        return Reduction(tokens.visual.new_empty(0))


@dataclass(frozen=True)
class Control(Pruner):
    """What those below share: a place and a number."""

    layer: Layer = 2                   # K: the first layer that runs on the kept tokens, at the site "decoder"
    keep: Amount = 0.1                 # share, or number, of visual tokens kept
    site: Literal["embed", "decoder"] = "decoder"  # or "embed": before layer 0, which no ranking by attention can do
    rounding: str = "floor"            # of share * n

    laws = frozenset({"select", "ordered", "budget", "scale"})
    ranks = False                      # by attention

    def __post_init__(self):
        super().__post_init__()
        tokens_to_keep(self.keep, 2 ** 20, self.rounding)      # what no prompt can meet fails here
        if self.site == "embed" and self.ranks:
            raise UserError(f'{type(self).__name__} ranks by attention, which only the site "decoder" has')

    def reduce_at(self, layers):
        return (self.layer,) if self.site == "decoder" else ()

    def budget(self, n):
        return tokens_to_keep(self.keep, n, self.rounding)


@dataclass(frozen=True)
class Random(Control):
    """Table 5 (c): any tokens. The same for every prompt of the same size; another seed, other tokens."""

    seed: int = 0                      # of the draw

    def reduce(self, tokens):
        drawn = torch.randperm(tokens.n, generator=torch.Generator().manual_seed(self.seed))
        return Reduction(drawn[:self.budget(tokens.n)].sort().values.to(tokens.visual.device))


@dataclass(frozen=True)
class Last(Control):
    """Table 5 (g): the last tokens of the image."""

    def reduce(self, tokens):
        return Reduction(torch.arange(tokens.n - self.budget(tokens.n), tokens.n, device=tokens.visual.device))


@dataclass(frozen=True)
class Uniform(Control):
    """Rows and columns evenly spaced over each tile; over the sequence, where a tile is no whole grid, or less than `keep`.

    Line breaks are on no grid.
    """

    def reduce(self, tokens):
        keep = []
        for here, k in shares(tokens.grid, self.budget(tokens.n)):
            patches = here[tokens.grid[here, 1] >= 0]                              # (m,)
            grid = side(tokens.grid[patches]) if k <= len(patches) else None
            keep.append(patches[spaced(k, *grid)] if grid else here[spaced(k, 1, len(here))])
        return Reduction(torch.cat(keep))


@dataclass(frozen=True)
class Resized(Control):
    """The feature map made smaller: to the largest map of its shape that has at most `keep` cells, 11 x 11 for 128 of 24 x 24."""

    laws = frozenset({"convex", "ordered", "scale"})
    preconditions = frozenset({"grid"})

    def budget(self, n):
        """For one square tile; of several, each is rounded by itself."""
        height, width = smaller(super().budget(n), isqrt(n), isqrt(n))
        return height * width

    def reduce(self, tokens):
        keep, merge = [], []
        patches = (tokens.grid[:, 1] >= 0).nonzero().squeeze(1)                    # without line breaks
        for here, k in shares(tokens.grid[patches], super().budget(tokens.n)):
            here = patches[here]                                                   # (m,)
            grid = side(tokens.grid[here])
            if not grid:
                raise UserError(f"{type(self).__name__} needs the whole grid of patches: let no other method act before it")
            h, w = smaller(k, *grid)
            each = torch.eye(len(here), device=here.device).view(-1, 1, *grid)     # (m, 1, H, W)  a map for each token
            merge.append(torch.zeros(h * w, tokens.n, device=here.device))
            merge[-1][:, here] = self.resize(each, (h, w)).flatten(1).T            # (h*w, m)
            keep.append(here[lattice(h, w, *grid)])
        return Reduction(torch.cat(keep), torch.cat(merge))


@dataclass(frozen=True)
class DownSample(Resized):
    """Bilinear interpolation, as pictures are made smaller."""

    antialias: bool = True             # False: below half the side some patches are not read

    def resize(self, maps, size):
        return F.interpolate(maps, size, mode="bilinear", antialias=self.antialias)


@dataclass(frozen=True)
class AveragePool(Resized):
    """Means over blocks, which overlap where the sides are no multiples."""

    def resize(self, maps, size):
        return F.adaptive_avg_pool2d(maps, size)


@dataclass(frozen=True)
class Ranked(Control):
    """What the strategies of Table 5 share: FastV's score. They differ in what they `choose` by it."""

    correction: bool = False           # times AdaptPrune's Gaussian around the centre of the image

    ranks = True

    def score(self, tokens):
        attention = tokens.before.mean_attention("last")[0, tokens.visual]         # (n,)
        return attention * gaussian(tokens.grid) if self.correction else attention

    def reduce(self, tokens):
        score = self.score(tokens)
        return Reduction(self.choose(tokens, score, self.budget(tokens.n)).sort().values, score=score)


@dataclass(frozen=True)
class Skip(Ranked):
    """Table 5 (b): every other one of the best 2 k; where there are fewer than 2 k, then the best of those left out."""

    laws = Ranked.laws | {"needle"}

    def choose(self, tokens, score, k):
        order = descending(score)
        return torch.cat([order[::2], order[1::2]])[:k]


@dataclass(frozen=True)
class Random3x3(Ranked):
    """Table 5 (d): of each cell of 3 x 3 patches one at random; of these the best."""

    seed: int = 0                      # of the draw

    def choose(self, tokens, score, k):
        noise = torch.rand(tokens.n, generator=torch.Generator().manual_seed(self.seed)).to(score.device)
        return best(score, one_a_cell(tokens.grid, noise), k)


@dataclass(frozen=True)
class MaxPool3x3(Ranked):
    """Table 5 (e): of each cell of 3 x 3 patches the best; of these the best."""

    laws = Ranked.laws | {"needle"}

    def choose(self, tokens, score, k):
        return best(score, one_a_cell(tokens.grid, score), k)


@dataclass(frozen=True)
class AverageScores(Ranked):
    """Table 5 (f): the best by the mean of their score and their eight neighbours'."""

    def score(self, tokens):
        return neighbourhood(tokens.grid, super().score(tokens))

    def choose(self, tokens, score, k):
        return top(score, k)


def shares(cell, k):
    """(indices, number to keep) of each tile, in proportion to its tokens, k in all; not of tiles that get none."""
    sizes = cell[:, 0].unique_consecutive(return_counts=True)[1].tolist()
    for here in torch.arange(len(cell), device=cell.device).split(sizes):
        start, end = int(here[0]), int(here[-1]) + 1
        if mine := k * end // len(cell) - k * start // len(cell):
            yield here, mine


def side(cell):
    """(H, W) of a tile's cells (m, 3), or None where they are no whole grid."""
    height, width = (cell[:, 1:].amax(dim=0) + 1).tolist()
    return (height, width) if cell[:, 1].min() >= 0 and height * width == len(cell) else None


def smaller(k, height, width):
    """The largest map of about this shape with at most k cells: smaller(128, 24, 24) -> (11, 11)"""
    h = max(1, min(height, k, isqrt(k * height // width)))
    return h, max(1, min(width, isqrt(k * width // height), k // h))


def lattice(h, w, height, width):
    """(h*w,) indices of the cells of a grid on which the centres of h x w equal blocks lie."""
    row = (2 * torch.arange(h) + 1) * height // (2 * h)
    column = (2 * torch.arange(w) + 1) * width // (2 * w)
    return (row[:, None] * width + column).flatten()


def spaced(k, height, width):
    """(k,) indices in a grid, in rows that are as far apart as the tokens in them: spaced(4, 4, 4) -> [5, 7, 13, 15]"""
    rows = max(-(-k // width), min(height, k, round((k * height / width) ** .5)))
    ends = [k * (i + 1) // rows for i in range(rows)]
    return torch.cat([lattice(rows, end - start, height, width).view(rows, -1)[i]
                      for i, (start, end) in enumerate(zip([0, *ends], ends))])


def one_a_cell(cell, score):
    """(n,) bool: the token with the highest score in each cell of 3 x 3 patches."""
    block = torch.cat([cell[:, :1], cell[:, 1:].div(3, rounding_mode="floor")], dim=1).unique(dim=0, return_inverse=True)[1]
    rank = descending(score).argsort()                                             # (n,)  0: the highest
    first = torch.full_like(rank, len(rank)).scatter_reduce(0, block, rank, "amin")                # of each block
    return rank == first[block]


def best(score, first, k):
    """(k,) indices of the highest scores among those that are `first` (n,); then, among the others."""
    order = descending(score)
    return torch.cat([order[first[order]], order[~first[order]]])[:k]


def neighbourhood(cell, score):
    """(n,) mean of the scores (n,) in each token's 3 x 3 neighbourhood, of the patches that exist; its own off the grid."""
    on = cell[:, 1] >= 0
    grid = score.new_zeros(2, *(cell.amax(dim=0) + 1).tolist())                    # (2, tiles, H, W)  sums and counts
    tile, row, column = cell[on].T
    grid[0, tile, row, column], grid[1, tile, row, column] = score[on], 1
    total, count = F.avg_pool2d(grid, 3, stride=1, padding=1)[:, tile, row, column]
    return score.index_put((on,), total / count)
