"""DivPrune. Alvar et al., "Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025,
arXiv:2503.02175.

Keep the subset of visual tokens whose smallest pairwise distance is largest (the max-min diversity problem), found
greedily: begin with the token that is farthest from its nearest other, then add the token that is farthest from those
already kept, until k are kept. Distance is 1 - cosine of the projected features: no attention, no text, no norms.

Paper and code: the same greedy search. The released code may keep one index several times over once only copies of kept
tokens are left (a blank background); here a token is kept once. All visual tokens of the prompt compete in one set.
"""

from dataclasses import dataclass

import torch

from pruning.base import Pruner, Reduction
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, Positions, early_positions, option
from pruning.ranked import cosines, finite


@dataclass(frozen=True)
class DivPrune(Pruner):
    """Keep the visual tokens that lie farthest apart."""

    keep: Amount = option(0.098, "share, or number, of all visual tokens kept: 56 of 576")
    positions: Positions = early_positions()

    site = "embed"
    laws = frozenset({"select", "ordered", "budget"})
    rounding = "round"                 # of share * n

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # raises UserError if no prompt is long enough for `keep`

    def budget(self, n):
        return tokens_to_keep(self.keep, n, self.rounding)

    def reduce(self, tokens):
        feature = finite(tokens.hidden[tokens.visual], "the image features")       # (n, D)
        distance = 1 - cosines(feature)                                            # (n, n)
        order, score = max_min(distance, self.budget(tokens.n))
        return Reduction(order.sort().values, score=score)


def max_min(distance, k):
    """The greedy search: indices in the order of picking (k,), and a score (n,).

    Of equals, the first is picked. A smaller k gives the beginning of the same order. The score of a token is its
    distance to the nearest token picked before it; for the first pick, to its nearest other token.
    """
    # the first pick: the token whose nearest other is farthest
    to_others = distance.clone().fill_diagonal_(2)                                 # (n, n)  2: nothing is farther
    gain = to_others.min(dim=0).values                                             # (n,)
    nearest = torch.full_like(gain, float("inf"))                                  # (n,)  distance to the nearest pick
    order = []
    gains = []
    for _ in range(k):
        pick = gain.argmax(dim=0, keepdim=True)            # (1,)  a tensor: the GPU need not wait for the value
        order.append(pick)
        gains.append(gain[pick])
        nearest = torch.minimum(nearest, distance[pick].squeeze(0))
        nearest = nearest.index_fill(0, pick, float("-inf"))                       # no token is picked twice
        gain = nearest
    order = torch.cat(order)                                                       # (k,)
    score = nearest.index_copy(0, order, torch.cat(gains))                         # (n,)
    return order, score
