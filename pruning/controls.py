"""Controls: what a method must beat; and the strategies of AdaptPrune's Table 5, arXiv:2503.08019.

Some look at nothing: random tokens, a uniform grid, down-sampling of the features or of the picture itself, pooling,
the last tokens, no image at all. The
others read FastV's score, the attention of the last prompt token in layer K-1, but do not simply take the best.

Paper and code: no code of Table 5 has been released, and the supplement has one line for each strategy. They are read
as follows. (a) is SingleFitPrune. (b) "Every other token" counts ranks, not places. (c) The draw is the same for every
prompt of one size. (d), (e) Cells do not overlap, and may be smaller at the rim; if there are fewer cells than tokens
to keep, the best of the other tokens are kept, too. (f) Scores are pooled, not features, over the patches that exist.
There is no Gaussian correction, since FastV is the table's baseline; correction=True is the other reading of "under our
framework".
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from pruning.adaptprune import gaussian
from pruning.base import Pruner, Reduction, UserError
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, Layer, Positions, early_positions, option
from pruning.grid import map_shape, over_all, per_tile
from pruning.ranked import Ranked, descending, top


@dataclass(frozen=True)
class Control(Ranked):
    """Base of the controls that have a budget."""

    layer: Layer = option(2, "K: the first layer that runs on the kept tokens, at the site 'decoder'")
    keep: Amount = option(0.1, "share, or number, of visual tokens kept")
    site: Literal["embed", "decoder"] = option("decoder", "'embed': before layer 0, where there is no attention yet")
    positions: Positions | None = early_positions(None)

    laws = frozenset({"select", "ordered", "budget", "scale"})
    reads_attention = False

    def __post_init__(self):
        super().__post_init__()
        if self.site == "embed" and self.reads_attention:
            raise UserError(f'{type(self).__name__} ranks by attention, which only the site "decoder" has')

    def reduce_at(self, layers):
        return (self.layer,) if self.site == "decoder" else ()


# --- Table 5 ----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class ByScore(Control):
    """Base of the strategies that read FastV's score; a subclass says in `choose` which tokens to keep."""

    correction: bool = option(False, "times AdaptPrune's Gaussian around the centre of the image")

    reads_attention = True

    def score(self, tokens):
        # the attention that each visual token receives from the last prompt token, mean over heads
        attention = tokens.before.mean_attention("last")[0, tokens.visual]         # (n,)
        return attention * gaussian(tokens.grid) if self.correction else attention

    def choose(self, tokens, score, k):
        """Indices (k,) of the tokens to keep, in any order, from the scores (n,)"""
        return top(score, k)

    def reduce(self, tokens):
        score = self.score(tokens)                                                 # (n,)
        keep = self.choose(tokens, score, self.budget(tokens.n))                   # (k,)
        return Reduction(keep.sort().values, score=score)


@dataclass(frozen=True)
class Skip(ByScore):
    """Table 5 (b): every other one of the best 2 k; if n < 2 k, also the best of the others."""

    laws = ByScore.laws | {"needle"}

    def choose(self, tokens, score, k):
        order = descending(score)                                                  # (n,)
        every_other = order[::2]
        left_out = order[1::2]
        return torch.cat([every_other, left_out])[:k]


@dataclass(frozen=True)
class Random(Control):
    """Table 5 (c): any tokens. They depend only on the number of tokens and on the seed."""

    seed: int = option(0, "of the draw")

    def reduce(self, tokens):
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(tokens.n, generator=generator)[:self.budget(tokens.n)]              # (k,)
        return Reduction(drawn.sort().values.to(tokens.visual.device))


@dataclass(frozen=True)
class Random3x3(ByScore):
    """Table 5 (d): one patch at random from each cell of 3 x 3; of these the best."""

    seed: int = option(0, "of the draw")

    def choose(self, tokens, score, k):
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.rand(tokens.n, generator=generator).to(score.device)         # (n,)
        return best(score, best_of_cell(tokens.grid, noise), k)


@dataclass(frozen=True)
class MaxPool3x3(ByScore):
    """Table 5 (e): the best patch of each cell of 3 x 3; of these the best."""

    laws = ByScore.laws | {"needle"}

    def choose(self, tokens, score, k):
        return best(score, best_of_cell(tokens.grid, score), k)


@dataclass(frozen=True)
class AverageScores(ByScore):
    """Table 5 (f): the best by their mean score over 3 x 3 patches."""

    def score(self, tokens):
        return neighbourhood_mean(tokens.grid, super().score(tokens))


@dataclass(frozen=True)
class Last(Control):
    """Table 5 (g): the last tokens of the image."""

    def reduce(self, tokens):
        k = self.budget(tokens.n)
        return Reduction(torch.arange(tokens.n - k, tokens.n, device=tokens.visual.device))


def best_of_cell(grid, score):
    """(n,) bool: the token with the highest score in each cell of 3 x 3 patches; of equals, the first."""
    # number the cells
    row_and_column = grid[:, 1:].div(3, rounding_mode="floor")                     # (n, 2)  of the cell in its tile
    place = torch.cat([grid[:, :1], row_and_column], dim=1)                        # (n, 3)
    cells, cell = place.unique(dim=0, return_inverse=True)                         # (cells, 3), (n,)
    # in each cell, the token with the lowest rank
    rank = descending(score).argsort()                                             # (n,)  0: the highest score
    worst = rank.new_full((len(cells),), len(rank))
    lowest = worst.scatter_reduce(0, cell, rank, "amin")                           # (cells,)
    return rank == lowest[cell]


def best(score, preferred, k):
    """Indices (k,): the preferred tokens (n,) bool by falling score (n,), then the others by falling score."""
    order = descending(score)                                                      # (n,)
    is_preferred = preferred[order]
    return torch.cat([order[is_preferred], order[~is_preferred]])[:k]


def neighbourhood_mean(grid, score):
    """(n,) the mean score (n,) of the patches that exist in each patch's 3 x 3 neighbourhood; newlines keep theirs."""
    on_grid = grid[:, 1] >= 0
    tile, row, column = grid[on_grid].T
    # maps of the tiles: the scores, and 1 where there is a patch
    size = (grid.amax(dim=0) + 1).tolist()
    scores = score.new_zeros(size)                                                 # (tiles, H, W)
    scores[tile, row, column] = score[on_grid]
    exists = score.new_zeros(size)                                                 # (tiles, H, W)
    exists[tile, row, column] = 1
    # both pooled maps are a ninth of a sum over nine places
    score_sum = F.avg_pool2d(scores, 3, stride=1, padding=1)[tile, row, column]
    count = F.avg_pool2d(exists, 3, stride=1, padding=1)[tile, row, column]
    return score.index_put((on_grid,), score_sum / count)


# --- what looks at nothing --------------------------------------------------------------------------------------------

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
    """Keeps nothing: the decoder reads only the text, as if there were no image."""

    positions: Positions | None = early_positions(None)

    site = "embed"
    laws = frozenset({"select", "ordered", "budget", "scale"})

    def budget(self, n):
        return 0

    def reduce(self, tokens):
        return Reduction(tokens.visual.new_empty(0))


@dataclass(frozen=True)
class Uniform(Control):
    """Patches in evenly spaced rows and columns of each tile.

    If a tile is not a whole grid, or has fewer patches than are to be kept (newlines are none), tokens are evenly
    spaced in the sequence.
    """

    def reduce(self, tokens):
        keep = []
        for tile, k in shares(tokens.grid, self.budget(tokens.n)):                 # (m,) indices of each tile's tokens
            is_patch = tokens.grid[tile, 1] >= 0
            patches = tile[is_patch]
            shape = map_shape(tokens.grid[patches]) if k <= len(patches) else None
            if shape:
                keep.append(patches[spaced(k, *shape)])
            else:
                keep.append(tile[spaced(k, 1, len(tile))])
        return Reduction(torch.cat(keep))


@dataclass(frozen=True)
class Resized(Control):
    """The feature map, resized to the largest map of its shape with at most `keep` patches: 24 x 24 to 11 x 11 for 128.
    """

    laws = frozenset({"convex", "ordered", "scale"})
    preconditions = frozenset({"grid"})

    def budget(self, n):
        """Exact for one square tile; several tiles are rounded separately."""
        side = math.isqrt(n)
        height, width = smaller(super().budget(n), side, side)
        return height * width

    def reduce(self, tokens):
        is_patch = tokens.grid[:, 1] >= 0
        patches = is_patch.nonzero().squeeze(1)            # without newlines
        keep = []
        merge = []
        for members, k in shares(tokens.grid[patches], super().budget(tokens.n)):
            tile = patches[members]                                                # (m,) indices of each tile's tokens
            place, weights = self.resized(tokens.grid[tile], k)                    # (h*w,), (h*w, m)
            keep.append(tile[place])
            merge.append(over_all(weights, tile, tokens.n))                        # (h*w, n)
        return Reduction(torch.cat(keep), torch.cat(merge))

    def resized(self, place, k):
        """One tile's places (m, 3) -> the tokens (h*w,) whose places the new ones take, and merge weights (h*w, m)."""
        shape = map_shape(place)
        if not shape:
            raise UserError(f"{type(self).__name__} needs the whole grid of patches: let no other method act before it")
        new_shape = smaller(k, *shape)
        # one map per token, 1 in its place and 0 elsewhere: the resized map holds the weights of this token
        one_hot = torch.eye(len(place), device=place.device).view(-1, 1, *shape)   # (m, 1, H, W)
        weights = self.resize(one_hot, new_shape)                                  # (m, 1, h, w)
        return lattice(*new_shape, *shape), weights.flatten(1).T

    def resize(self, maps, shape):
        """Maps (m, 1, H, W) resized to (m, 1, h, w)"""
        raise NotImplementedError


@dataclass(frozen=True)
class DownSample(Resized):
    """Bilinear interpolation, as for pictures."""

    antialias: bool = option(True, "False: below half the side some patches are not read")

    def resize(self, maps, shape):
        return F.interpolate(maps, shape, mode="bilinear", antialias=self.antialias)


@dataclass(frozen=True)
class AveragePool(Resized):
    """Means over blocks, which overlap if they do not divide the sides."""

    def resize(self, maps, shape):
        return F.adaptive_avg_pool2d(maps, shape)


@dataclass(frozen=True)
class DownSampleImage(Pruner):
    """The picture made smaller before the vision tower, so that it has at most `keep` patches. The hardest baseline of
    VTC-Bench, Liao et al., arXiv:2510.07143.

    There a picture that is to give a quarter of the tokens has half of each side, by bicubic interpolation, and the
    model reads any size. CLIP's tower does so with interpolated position embeddings. Of tiles each is made smaller.
    """

    keep: Amount = option(0.25, "share, or number, of each tile's patches that the smaller picture has, at most")

    site = "image"
    per = "tile"
    laws = frozenset({"convex", "ordered", "budget", "scale"})
    preconditions = frozenset({"grid"})

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # raises UserError if no tile is large enough for `keep`

    def budget(self, n):
        """Tokens of a square tile that had n."""
        side = math.isqrt(n)
        height, width = smaller(tokens_to_keep(self.keep, n), side, side)
        return height * width

    def reduce(self, tokens):
        """Which patches of the whole picture each token of the smaller one shows: the mean of them, as a picture has
        it. The model has the token's state from the tower."""
        keep = []
        merge = []
        for tile in per_tile(tokens.grid):                                         # (m,) indices of each tile's tokens
            place, weights = AveragePool().resized(tokens.grid[tile], self.budget(len(tile)))
            keep.append(tile[place])                                               # (k,)
            merge.append(over_all(weights, tile, tokens.n))                        # (k, n)
        return Reduction(torch.cat(keep), torch.cat(merge))


def shares(grid, k):
    """(indices (m,), number to keep) of each tile: in proportion to its tokens, k in all. Tiles that keep none are left
    out."""
    n = len(grid)
    parts = []
    end = 0
    for tile in per_tile(grid):
        start = end
        end = start + len(tile)
        share = k * end // n - k * start // n              # so rounded, the shares sum to k
        if share:
            parts.append((tile, share))
    return parts


def smaller(k, height, width):
    """Sides of the largest map of about this shape with at most k patches: smaller(128, 24, 24) -> (11, 11)"""
    h = math.isqrt(k * height // width)                    # h / w = height / width, h * w = k
    h = max(1, min(h, height, k))
    w = math.isqrt(k * width // height)
    w = max(1, min(w, width, k // h))
    return h, w


def lattice(h, w, height, width):
    """(h*w,) indices of the patches at the centres of h x w equal blocks of a grid: lattice(2, 1, 4, 3) -> [4, 10]"""
    row = (2 * torch.arange(h) + 1) * height // (2 * h)
    column = (2 * torch.arange(w) + 1) * width // (2 * w)
    return (row[:, None] * width + column).flatten()


def spaced(k, height, width):
    """(k,) indices in a grid, as far apart in a column as in a row: spaced(4, 4, 4) -> [5, 7, 13, 15]"""
    rows = round((k * height / width) ** .5)
    rows = min(rows, height, k)
    rows = max(rows, math.ceil(k / width))                 # at least as many as k tokens need
    index = []
    for i in range(rows):
        count = k * (i + 1) // rows - k * i // rows        # tokens in row i; the sum is k
        row = lattice(rows, count, height, width).view(rows, count)[i]
        index.append(row)
    return torch.cat(index)
