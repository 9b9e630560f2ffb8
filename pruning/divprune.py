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
from pruning.fields import Amount, option
from pruning.ranked import cosines, finite


@dataclass(frozen=True)
class DivPrune(Pruner):
    """Keep the visual tokens that lie farthest apart."""

    keep: Amount = option(0.098, "share, or number, of all visual tokens kept: 56 of 576")

    site = "embed"
    positions = "renumber"
    laws = frozenset({"select", "ordered", "budget"})
    rounding = "round"                 # of share * n

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # what no prompt can meet fails here, before the model runs

    def budget(self, n):
        return tokens_to_keep(self.keep, n, self.rounding)

    def reduce(self, tokens):
        feature = finite(tokens.hidden[tokens.visual], "the image features")       # (n, D)
        distance = 1 - cosines(feature)                                            # (n, n)
        order, score = max_min(distance, self.budget(tokens.n))
        return Reduction(order.sort().values, score=score)


def max_min(distance, k):
    """The greedy search: indices in the order of picking (k,), and each token's distance to those picked before it
    (n,).

    Of equals, the first is picked. A smaller k gives the beginning of the same order. The score of a token that is not
    picked is its distance to the nearest that is; that of the very first pick, its distance to its nearest other.
    """
    gain = distance.clone().fill_diagonal_(2).min(dim=0).values                    # (n,)  2: nothing is farther
    nearest = torch.full_like(gain, float("inf"))                                  # (n,)  distance to the picked ones
    order = []
    gains = []
    for _ in range(k):
        pick = gain.argmax(dim=0, keepdim=True)            # (1,)  stays on the device: the loop never waits for it
        order.append(pick)
        gains.append(gain[pick])
        nearest = torch.minimum(nearest, distance[pick].squeeze(0))
        nearest = nearest.index_fill(0, pick, float("-inf"))                       # picked once
        gain = nearest
    order = torch.cat(order)
    return order, nearest.index_put((order,), torch.cat(gains))
