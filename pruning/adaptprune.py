"""AdaptPrune. Luan et al., "Multi-Cue Adaptive Visual Token Pruning for Large Vision-Language Models", arXiv:2503.08019.

Attention alone keeps clusters of alike tokens near the end of the image. So correct it towards the centre of the image,
then pick tokens one by one, as non-maximum suppression does: the highest score is kept, and the scores of its
neighbours are lowered, the more so the nearer they are and the more alike their keys.

Paper and code: the paper gives no value for its sigmas and does not say which tokens are Neighbors(i): the released code
has 1.5 patches, 0.05 and, for the correction, 12 (half of the 24 x 24 grid: sigma_correction), and a disc of 5 patches,
its rim included. The paper's "key vectors" are in the code projections by layer K of its input without the norm and
without RoPE (keys="raw", the default; keys="normed" are layer K's own keys, before RoPE). "Pruning layer 3" counts from
one: K = 2. `ratio`, "the pruning ratio" of Alg. 1, is the share kept. A picked token is excluded from then on; the
released code only lowers its score to 0, so once all that is left is 0 it picks the same token again (repeat=True).
Its coordinates are floor(-m/2) .. floor(m/2) on a side of m patches: off centre where m is odd (7: -4 .. 3).
Supplement A, of which no code is public: each tile is a grid of its own, with its own correction; suppression never
crosses tiles; one budget. A grid need not be square: one sigma for both axes, half of the longer side. Newline tokens,
which are on no grid, compete uncorrected and without neighbours (newline="rank_plain") or are kept ("always_keep").
Table 4: (a) correction, distance and similarity off is FastV, (b) correction alone, (c) and distance, (d) all three.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from pruning.base import Pruner, Reduction, UserError, tokens_to_keep, top
from pruning.fields import Amount, Layer, NotNegative, Positive


@dataclass(frozen=True)
class AdaptPrune(Pruner):
    """Keep what the last token attends to, corrected to the centre, and suppress the neighbours of what is kept."""

    layer: Layer = 2                   # K: the first layer that runs on the kept tokens
    keep: Amount = 0.1                 # share, or number, of visual tokens kept
    correction: bool = True            # 4.1: weigh the attention by a Gaussian around the centre
    distance: bool = True              # 4.2: suppress by nearness; off: all neighbours count as near
    similarity: bool = True            # 4.2: suppress by likeness; off: all neighbours count as alike
    sigma_d: Positive = 1.5            # of Eq. 1, in patches
    sigma_s: Positive = 0.05           # of Eq. 2, in units of cosine
    distance_limit: NotNegative = 5.0  # Neighbors(i): tokens of the tile at most so many patches away
    sigma_correction: Positive | None = None  # of the Gaussian, in patches; None: half of the grid's longer side
    keys: Literal["raw", "normed"] = "raw"  # "raw": layer K's projection of its input without the norm; "normed": with it
    newline: Literal["rank_plain", "always_keep"] = "rank_plain"  # tokens on no grid: "rank_plain" or "always_keep"
    repeat: bool = False               # True: a kept token may be picked again, as in the released code
    rounding: str = "floor"            # of share * n

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # what no prompt can meet fails here, before the model runs

    @property
    def needs(self):
        return frozenset({"attn"} | ({"raw_key" if self.keys == "raw" else "key"} if self.similarity else set()))

    @property
    def laws(self):
        faint = self.correction and self.sigma_correction is not None          # may dim a needle at the rim to nothing
        return frozenset({"ordered", "budget", "scale"} | (set() if self.repeat else {"select"})
                         | (set() if faint or self.newline == "always_keep" else {"needle"}))

    def reduce_at(self, layers):
        return (self.layer,)

    def budget(self, n):
        return tokens_to_keep(self.keep, n, self.rounding)

    def reduce(self, tokens):
        score = tokens.attn.mean(dim=0)[-1, tokens.visual]                         # (n,)  mean over heads, last query
        if self.correction:
            score = score * gaussian(tokens.cell, self.sigma_correction)
        first = tokens.cell[:, 1] < 0 if self.newline == "always_keep" else torch.zeros_like(score, dtype=torch.bool)
        rank = score.masked_fill(first, float("inf"))                              # (n,)
        if not (self.distance or self.similarity):
            return Reduction(top(rank, self.budget(tokens.n)), score=score)
        order = adaptive_nms(rank, *self.suppression(tokens), self.budget(tokens.n), self.repeat)
        return Reduction(order.sort().values, score=score)

    def suppression(self, tokens):
        """Neighbors(i) of each token and D_spatial * D_similarity of each of them. (n, m), (n, m)"""
        near, d = neighbours(tokens.cell, self.distance_limit)                     # (n, m)  d: infinity for no neighbour
        suppression = d.isfinite().float()
        if self.distance:
            suppression *= torch.exp(-d ** 2 / (2 * self.sigma_d ** 2))                            # Eq. 1
        if self.similarity:
            key = (tokens.raw_key if self.keys == "raw" else tokens.key)[tokens.visual]            # (n, Hk*Dh)
            suppression *= torch.exp(-(1 - cosine(key, near)) ** 2 / (2 * self.sigma_s ** 2))      # Eq. 2
        return near, suppression


def gaussian(cell, sigma=None):
    """4.1 Distribution Correction: the weight of each token's place (n, 3) in its tile, at most 1; 1 off the grid. (n,)"""
    weight = torch.ones(len(cell), device=cell.device)
    for tile in cell[:, 0].unique():
        here = ((cell[:, 0] == tile) & (cell[:, 1] >= 0)).nonzero().squeeze(1)     # (m,)
        if len(here):
            place = cell[here, 1:]                                                 # (m, 2)  row, column
            side = place.amax(dim=0) + 1                                           # (2,)    H, W
            low, high = (-side / 2).floor(), (side / 2).floor()
            u = low + place * (high - low) / (side - 1).clamp_min(1)               # (m, 2)  from low to high, both included
            r2 = u.square().sum(dim=1)                                             # (m,)
            sg = side.amax() / 2 if sigma is None else sigma
            weight[here] = torch.exp(-(r2 - r2.min()) / (2 * sg ** 2))             # divided by its maximum
    return weight


def adaptive_nms(score, near, suppression, k, repeat=False):
    """Alg. 1: the tokens in the order in which they are picked, (k,). Of equal scores (n,), the first is picked."""
    if score.isnan().any() or suppression.isnan().any():
        raise UserError("the attention scores or the keys contain NaN: the model overflowed; load it in float32 or bfloat16")
    score, picked, order = score.clone(), torch.zeros_like(score, dtype=torch.bool), []
    for _ in range(k):                                     # i stays on the device: the loop never waits for its value
        i = (score if repeat else score.masked_fill(picked, float("-inf"))).argmax(dim=0, keepdim=True)        # (1,)
        order.append(i)
        picked.index_fill_(0, i, True)
        score.scatter_reduce_(0, near[i].squeeze(0), 1 - suppression[i].squeeze(0), "prod")        # Eq. 3
    return torch.cat(order)


def neighbours(cell, limit):
    """Neighbors(i): the tokens of its tile within `limit` patches, itself included. (n, 3) -> index and distance, (n, m)

    m is the number of places in the disc; a place that holds no token gives the index i and the distance infinity.
    """
    n, on_grid = torch.arange(len(cell), device=cell.device), cell[:, 1] >= 0      # (n,)
    tile, (row, column) = cell[:, 0], cell[:, 1:].where(on_grid[:, None], 0).T     # (n,) each
    side = int(torch.maximum(row, column).max()) + 1
    r = int(min(limit, side))
    step = torch.arange(-r, r + 1, device=cell.device)
    d = (step[:, None] ** 2 + step ** 2).float().sqrt()                            # (2r+1, 2r+1)
    down, right = (d <= limit).nonzero().T                                         # (m,)  the disc, row by row, from 0
    index = torch.full((int(tile.max()) + 1, side + 2 * r, side + 2 * r), -1, device=cell.device)
    index[tile[on_grid], row[on_grid] + r, column[on_grid] + r] = n[on_grid]       # the tiles, r empty places around each
    near = index[tile[:, None], row[:, None] + down, column[:, None] + right]      # (n, m)
    none = (near < 0) | ~on_grid[:, None]
    return near.where(~none, n[:, None]), d[down, right].expand(len(cell), -1).masked_fill(none, float("inf"))


def cosine(key, near, stretch=256):
    """The cosine of each token's key (n, C) with those of its neighbours (n, m). (n, m)

    Done for one stretch of the sequence at a time, and what lies near it there: a tenth of the n x n matrix.
    """
    unit, found = F.normalize(key.float(), dim=1), []                              # (n, C)
    for own, others in zip(unit.split(stretch), near.split(stretch)):
        low, high = int(others.min()), int(others.max()) + 1
        found.append((own @ unit[low:high].T).gather(1, others - low))
    return torch.cat(found)
