"""AdaptPrune. Luan et al., "Multi-Cue Adaptive Visual Token Pruning for Large Vision-Language Models", arXiv:2503.08019.

Attention alone keeps clusters of similar tokens near the end of the image. So correct it towards the centre of the image, then
pick tokens one by one, as non-maximum suppression does: keep the highest score, and lower the scores of its neighbours, more
so the nearer they are and the more similar their keys.

Paper and code: the constants are the released code's (the paper gives none), and so are the keys, which are projections of the
stream without the norm; AdaptPruneNormedKeys in readings.py takes the layer's own. Several tiles: supplement A, of which no
code is public; each tile has its own correction, and suppression never crosses tiles.
"""

from dataclasses import dataclass

import torch

from pruning.base import Reduction
from pruning.fields import Amount, Layer, NotNegative, Positive
from pruning.ranked import Ranked, cosines, finite, top


@dataclass(frozen=True)
class AdaptPrune(Ranked):
    """Keep what the last token attends to, corrected to the centre, and suppress the neighbours of what is kept."""

    layer: Layer = 2                   # K: the first layer that runs on the kept tokens; "pruning layer 3" counts from one
    keep: Amount = 0.1                 # `ratio` of Alg. 1: share, or number, of visual tokens kept
    correction: bool = True            # 4.1: weigh the attention by a Gaussian around the centre
    distance: bool = True              # 4.2: suppress by nearness; off: all neighbours count as near
    similarity: bool = True            # 4.2: suppress by similarity; off: all neighbours count as similar
    sigma_d: Positive = 1.5            # of Eq. 1, in patches
    sigma_s: Positive = 0.05           # of Eq. 2, in units of cosine
    distance_limit: NotNegative = 5.0  # Neighbors(i): tokens of its tile at most so many patches away

    def reduce(self, tokens):
        score = self.score(tokens)                                                 # (n,)
        k = self.budget(tokens.n)
        if not (self.distance or self.similarity):                                 # Table 4 (a), (b)
            return Reduction(top(score, k), score=score)
        order = adaptive_nms(score, self.suppression(tokens), k)                   # (k,)
        return Reduction(order.sort().values, score=score)

    def score(self, tokens):
        attention = tokens.before.mean_attention("last")[0, tokens.visual]         # (n,)
        return attention * self.gaussian(tokens.grid) if self.correction else attention

    def gaussian(self, grid):
        """4.1 Distribution Correction, (n,) in (0, 1]; sigma is half of the longer side of the tile."""
        return gaussian(grid)

    def keys(self, tokens):
        """(T, Hk*Dh) the key vectors that Eq. 2 compares"""
        return tokens.here.projected_key(norm=False)

    def suppression(self, tokens):
        """D_spatial * D_similarity of every two tokens; 0 if they are no neighbours. (n, n)"""
        d = patch_distance(tokens.grid)                                            # (n, n)  infinity: not in one tile
        is_neighbour = d <= self.distance_limit
        suppression = is_neighbour.float()
        if self.distance:
            suppression *= torch.exp(-d ** 2 / (2 * self.sigma_d ** 2))            # Eq. 1
        if self.similarity:
            cosine = cosines(finite(self.keys(tokens)[tokens.visual], "the keys"))
            suppression *= torch.exp(-(1 - cosine) ** 2 / (2 * self.sigma_s ** 2))                 # Eq. 2
        return suppression


def adaptive_nms(score, suppression, k):
    """Alg. 1: the tokens in the order in which they are picked, (k,). Of equal scores (n,), the first is picked."""
    score = finite(score, "the attention scores").clone()                          # (n,)  line 3 has corrected it
    picked = torch.zeros_like(score, dtype=torch.bool)
    order = []                                                                     # line 1: R
    for _ in range(k):                                                             # line 4
        i = score.masked_fill(picked, float("-inf")).argmax(dim=0, keepdim=True)   # line 5; (1,): the loop waits for no value
        order.append(i)                                                            # line 6
        picked.index_fill_(0, i, True)
        score *= 1 - suppression[i].squeeze(0)                                     # lines 7 to 13: Eq. 3
    return torch.cat(order)


def gaussian(grid, sigma=None):
    """Weight of each token's place (n, 3) in its tile, at most 1; 1 off the grid. sigma None: half of the longer side. (n,)"""
    weight = torch.ones(len(grid), device=grid.device)
    on_grid = grid[:, 1] >= 0
    for tile in grid[on_grid, 0].unique():
        members = ((grid[:, 0] == tile) & on_grid).nonzero().squeeze(1)            # (m,)
        place = grid[members, 1:]                                                  # (m, 2)  row, column
        side = place.amax(dim=0) + 1                                               # (2,)    H, W
        # coordinates from floor(-side/2) to floor(side/2), both included, as in the released code
        low = (-side / 2).floor()
        high = (side / 2).floor()
        coordinate = low + place * (high - low) / (side - 1).clamp_min(1)          # (m, 2)
        r2 = coordinate.square().sum(dim=1)                                        # (m,)
        width = side.amax() / 2 if sigma is None else sigma
        weight[members] = torch.exp(-(r2 - r2.min()) / (2 * width ** 2))           # divided by its maximum
    return weight


def patch_distance(grid):
    """Distance in patches of every two tokens, infinity if they are not on the grid of one tile. (n, 3) -> (n, n)"""
    place = grid[:, 1:].float()                                                    # (n, 2)
    d = torch.cdist(place, place, compute_mode="donot_use_mm_for_euclid_dist")     # (n, n)
    on_grid = grid[:, 1] >= 0
    same_tile = (grid[:, None, 0] == grid[:, 0]) & on_grid[:, None] & on_grid
    return d.masked_fill(~same_tile, float("inf"))
