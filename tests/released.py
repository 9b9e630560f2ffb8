"""What released codes do that no reading of a paper does: only the recordings made with them need it."""

from dataclasses import dataclass

import torch

from pruning.adaptprune import AdaptPrune, gaussian
from pruning.fastv import FastV


@dataclass(frozen=True)
class FastVRounded(FastV):
    """The llava-hf code rounds n * (1 - R), half to even."""

    rounding = "round"


@dataclass(frozen=True)
class AdaptPruneOf24(AdaptPrune):
    """The released Gaussian is that of 24 x 24 patches, 12 = 24 / 2 wide, whatever the grid."""

    sigma_correction: float = 12.0     # in patches

    laws = AdaptPrune.laws - {"needle"}        # a narrow one may dim the rim to nothing

    def gaussian(self, grid):
        return gaussian(grid, self.sigma_correction)


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
