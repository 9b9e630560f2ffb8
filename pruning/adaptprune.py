"""AdaptPrune. Luan et al., "Multi-Cue Adaptive Visual Token Pruning for Large Vision-Language Models", arXiv:2503.08019

By attention alone, clusters of similar tokens near the end of the image are kept. So weight the attention towards the
centre of the image, then pick tokens one by one, as non-maximum suppression does: keep the highest score, and lower the
scores of its neighbours, more so the nearer they are and the more similar their keys.

Paper and code: the paper gives no constants; these are the released code's. So are the keys, projected from the
residual stream without the layer's norm (AdaptPruneNormedKeys in readings/: with it). Several tiles follow supplement
A, which has no public code: each tile has its own centre, and no token suppresses one of another tile.
"""

from dataclasses import dataclass

import torch

from pruning.base import Reduction
from pruning.fields import Amount, Layer, NotNegative, Positive, option
from pruning.ranked import Ranked, cosines, finite


@dataclass(frozen=True)
class AdaptPrune(Ranked):
    """Keep what the last token attends to, corrected to the centre, and suppress the neighbours of what is kept."""

    layer: Layer = option(2, "K: the first layer that runs on the kept tokens (3 in the paper, from one)")
    keep: Amount = option(0.1, "`ratio` of Alg. 1: share, or number, of visual tokens kept")
    correction: bool = option(True, "4.1: weigh the attention by a Gaussian around the centre")
    distance: bool = option(True, "4.2: suppress by nearness; off: all neighbours count as near")
    similarity: bool = option(True, "4.2: suppress by similarity; off: all neighbours count as similar")
    sigma_d: Positive = option(1.5, "of Eq. 1, in patches")
    sigma_s: Positive = option(0.05, "of Eq. 2, in units of cosine")
    distance_limit: NotNegative = option(5.0, "Neighbors(i): tokens of the same tile, at most this many patches away")

    sigma_correction = None            # of the Gaussian of 4.1, in patches; None: half the longer side of the tile

    def reduce(self, tokens):
        if not self.distance and not self.similarity:              # Table 4 (a) and (b): the k best
            return super().reduce(tokens)
        score = self.score(tokens)                                 # (n,)
        suppression = self.suppression(tokens)                     # (n, n)
        order = self.adaptive_nms(score, suppression, self.budget(tokens.n))       # (k,)
        return Reduction(order.sort().values, score=score)

    def score(self, tokens):
        # the attention from the last token, mean over heads
        attention = tokens.before.mean_attention("last")[0, tokens.visual]         # (n,)
        if not self.correction:
            return attention
        # 4.1 Distribution Correction: times a Gaussian around the centre of the image
        return attention * gaussian(tokens.grid, self.sigma_correction)            # line 3

    def suppression(self, tokens):
        """4.2: D_spatial * D_similarity of every two tokens i and j; 0 if they are no neighbours. (n, n)"""
        d = patch_distance(tokens.grid)                            # (n, n)  line 8
        suppression = (d <= self.distance_limit).float()           # (n, n)  line 7: 1 for Neighbors(i)
        if self.distance:
            suppression *= decay(d, self.sigma_d)                  # line 10: Eq. 1
        if self.similarity:
            key = self.keys(tokens)[tokens.visual]                 # (n, Hk*Dh)
            cosine = cosines(finite(key, "the keys"))              # (n, n)  line 9
            suppression *= decay(1 - cosine, self.sigma_s)         # line 11: Eq. 2
        return suppression

    def keys(self, tokens):
        """(T, Hk*Dh) the key vectors that Eq. 2 compares"""
        return tokens.here.projected_key(norm=False)

    def adaptive_nms(self, score, suppression, k):
        """4.3, Alg. 1: indices in the order of picking; of equal scores (n,) the first. (k,)"""
        finite(score, "the attention scores")
        is_picked = torch.zeros_like(score, dtype=torch.bool)      # (n,)
        R = []                                                     # line 1
        for _ in range(k):                                         # line 4
            left = score.masked_fill(is_picked, float("-inf"))
            i = left.argmax(dim=0, keepdim=True)                   # line 5; a tensor (1,): the GPU need not wait for it
            R.append(i)                                            # line 6
            is_picked.index_fill_(0, i, True)
            score = score * (1 - suppression[i].squeeze(0))        # lines 7 to 13: Eq. 3
        return torch.cat(R)                                        # line 15


def decay(x, sigma):
    """The Gaussian decay of 4.1, Eq. 1 and Eq. 2: exp(-x^2 / (2 sigma^2))"""
    return torch.exp(-x ** 2 / (2 * sigma ** 2))


def gaussian(grid, sigma=None):
    """4.1: weight by the place (n, 3) in the tile: 1 at the centre, and for newlines; less towards the rim. (n,)"""
    weight = torch.ones(len(grid), device=grid.device)
    on_grid = grid[:, 1] >= 0
    for tile in grid[on_grid, 0].unique():
        members = on_grid & (grid[:, 0] == tile)                   # (n,)
        place = grid[members, 1:]                                  # (m, 2)  row, column
        side = place.amax(dim=0) + 1                               # (2,)    H, W
        # as in the released code: side coordinates, equally spaced from floor(-side/2) to floor(side/2)
        low = (-side / 2).floor()
        high = (side / 2).floor()
        last = (side - 1).clamp_min(1)
        coordinate = low + place * (high - low) / last             # (m, 2)  0: the centre
        bell = decay(coordinate.norm(dim=1), sigma or side.amax() / 2)             # (m,)
        weight[members] = bell / bell.max()
    return weight


def patch_distance(grid):
    """Distance in patches of every two tokens, infinity if they are not on the grid of one tile. (n, 3) -> (n, n)"""
    place = grid[:, 1:].float()                                    # (n, 2)
    d = torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist")     # exact: 5 is compared with 5.0
    tile = grid[:, 0]
    on_grid = grid[:, 1] >= 0
    in_one_tile = (tile[:, None] == tile) & on_grid                # (n, n)
    in_one_tile &= on_grid[:, None]
    return d.masked_fill(~in_one_tile, float("inf"))
