"""What released codes do that no reading of a paper does: only the recordings made with them need it."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from pruning.adaptprune import AdaptPrune
from pruning.base import Reduction
from pruning.dart import DART
from pruning.divprune import DivPrune
from pruning.fastv import FastV
from pruning.feather import FEATHER
from pruning.hired import HiRED
from pruning.ranked import cosines
from pruning.readings import DARTReleased, SparseVLMRank
from pruning.sparsevlm import SparseVLM, clusters_around_peaks, densities, distances


@dataclass(frozen=True)
class FastVRounded(FastV):
    """The llava-hf code rounds n * (1 - R), half to even."""

    rounding = "round"


@dataclass(frozen=True)
class FEATHERToNothing(FEATHER):
    """The released code rounds its shares down to nothing: of a small image no token may be left."""

    def first(self, n):
        return int(self.keep * n)

    def second(self, n, N):
        return int(self.keep ** 2 * n)


@dataclass(frozen=True)
class DARTSetOrder(DARTReleased):
    """The pivots in the released order, but exactly `keep` tokens are left."""

    budget = DART.budget
    additions = DART.additions


def clip_relevance(image_embeds, text_embeds):
    """CDPruner's released relevance, (tiles, n): CLIP's cosine with each part of the text, negated, their mean brought
    to [0, 1] over all tiles, and a little above 0. If all are equal it divides by zero; they are 1 then."""
    image = F.normalize(image_embeds.double(), dim=-1)                             # (tiles, n, C)
    text = F.normalize(text_embeds.double(), dim=-1)                               # (M, C)
    r = -(image @ text.T).mean(dim=-1)                                             # (tiles, n)
    spread = r.max() - r.min()
    if spread <= 1e-9:
        return torch.ones_like(r)
    return (r - r.min() + 1e-6) / spread


@dataclass(frozen=True)
class AdaptPruneOf24(AdaptPrune):
    """The released Gaussian is that of 24 x 24 patches, 12 = 24 / 2 wide, whatever the grid."""

    sigma_correction: float = 12.0     # in patches

    laws = AdaptPrune.laws - {"needle"}        # a narrow one may dim the rim to nothing


@dataclass(frozen=True)
class AdaptPruneRepeats(AdaptPrune):
    """The released loop excludes no picked token. Once all that is left is 0, it picks the first again and again."""

    laws = AdaptPrune.laws - {"select", "ordered"}

    def adaptive_nms(self, score, suppression, k):
        R = []
        for _ in range(k):
            i = score.argmax()
            R.append(i)
            score = score * (1 - suppression[i])
        return torch.stack(R)


@dataclass(frozen=True)
class HiREDSwapped(HiRED):
    """The released code exchanges rows and columns of the grid of tiles: of a picture that is not square it cuts the
    wrong padding."""

    def output_order(self, grid, tile_grid):
        return super().output_order(grid, replace(tile_grid, grid=tile_grid.grid[::-1]))


@dataclass(frozen=True)
class DivPruneRepeat(DivPrune):
    """The released code may keep a token again: once only copies of kept tokens are left, it picks the first of
    them."""

    laws = frozenset({"ordered", "budget"})

    def reduce(self, tokens):
        distance = 1 - cosines(tokens.hidden[tokens.visual])                       # (n, n)
        gain = distance.clone().fill_diagonal_(2).min(dim=0).values                # (n,)
        nearest = torch.full_like(gain, float("inf"))                              # (n,)  distance to the picked ones
        order = []
        for _ in range(self.budget(tokens.n)):
            pick = int(gain.argmax())
            order.append(pick)
            nearest = torch.minimum(nearest, distance[pick])
            gain = nearest                                 # a picked token is 0 away, and may be the first of equals
        return Reduction(torch.tensor(sorted(order)))


def noisy_dpc_knn(x, count, noise, neighbours=None):
    """The released DPC-kNN: noise (q,) in [0, 1) is added to the densities in millionths, and equal ones are not
    denser.

    Without noise, the two nearest rows are equally dense and far from any denser one: both are centres.
    """
    distance = distances(x)                                                        # (q, q)
    density = densities(distance, neighbours or count) + 1e-6 * noise.float()      # (q,)
    is_denser = density[None, :] > density[:, None]                                # (q, q)
    return clusters_around_peaks(distance, density, is_denser, count)


@dataclass(frozen=True)
class SparseVLMWithoutNoise(SparseVLM):
    """v1.5 with zeros in the place of the noise."""

    def clustered(self, x, count):
        return noisy_dpc_knn(x, count, torch.zeros(len(x)))


@dataclass(frozen=True)
class SparseVLMRankWithoutNoise(SparseVLMRank):
    """v1.0 with zeros in the place of the noise."""

    clustered = SparseVLMWithoutNoise.clustered
