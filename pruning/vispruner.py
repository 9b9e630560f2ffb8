"""VisPruner. Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
ICCV 2025, arXiv:2412.01818.

Before the projector, keep T patches of each tile: the few that receive the most attention from the class token
(important tokens), and out of the rest the least similar ones (diverse tokens). The latter are what remains after
removing duplicates: split the rest into two halves, drop from the first the tokens most similar to one of the second,
and repeat.

Paper and code: no difference is known. The released code removes 8 tokens per round; the halves are every other token
of a list, at first ordered by attention, later by similarity. T counts the tokens of each tile.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Reduction
from pruning.fields import Amount, FromOne, Share, option
from pruning.grid import per_tile
from pruning.ranked import descending, finite
from pruning.vision_site import VisionSite


@dataclass(frozen=True)
class VisPruner(VisionSite):
    """Keep the patches that the class token looks at, and the most diverse of the others."""

    keep: Amount = option(2 / 9, "T: number, or share, of the tokens of each tile kept: 128 of 576")
    important: Share = option(0.5, "r: share of T that is chosen by attention")
    removed: FromOne = option(8, "tokens removed from the rest in one round")

    laws = frozenset({"select", "ordered", "budget", "scale"})

    def reduce(self, tokens):
        # attention from the class token of each one's tile, mean over heads
        score = tokens.before.cls_attention().mean(dim=0)                          # (n,)
        feature = finite(tokens.hidden[tokens.visual], "the image features")       # (n, C)
        keep = []
        reason = []
        for tile in per_tile(tokens.grid):                                         # (m,) indices of each tile's tokens
            selected, is_diverse = self.selected(score[tile], feature[tile])       # (k,) twice
            keep.append(tile[selected])
            reason.append(is_diverse)
        reason = torch.cat(reason).long()
        return Reduction(torch.cat(keep), score=score, reason=reason, reasons=("important", "diverse"))

    def selected(self, score, feature):
        """One tile's attention (m,) and features (m, C) -> the kept tokens (k,) in sequence order, and which of them
        are diverse (k,)."""
        k = self.budget(len(score))                                                # T
        # important tokens: those with the most attention
        order = descending(score)                                                  # (m,)
        count = int(k * self.important)
        important = order[:count]
        rest = order[count:]
        # diverse tokens, out of the rest; in float64, since a rounding error in the order would change all later halves
        unit = F.normalize(feature.double(), dim=1)                                # (m, C)
        similarity = unit @ unit.T                                                 # (m, m)
        diverse = remove_duplicates(similarity, rest, k - len(important), self.removed)
        kept, order = torch.cat([important, diverse]).sort()
        return kept, order >= len(important)


def remove_duplicates(similarity, rest, k, removed):
    """k of the indices `rest`: in each round the `removed` tokens of the first half that are most similar to one of the
    second are dropped."""
    if k == 0:
        return rest[:0]
    while len(rest) > k:
        first = rest[0::2]
        second = rest[1::2]
        closest = similarity[first][:, second].amax(dim=1)                         # (len(first),)
        first = first[closest.argsort(descending=True, stable=True)]
        dropped = min(removed, len(rest) - k)
        rest = torch.cat([first[dropped:], second])        # its order decides the next halves
    return rest
