"""DivPrune. Alvar et al., "Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025, arXiv:2503.02175.

Keep the subset of visual tokens whose smallest pairwise distance is largest (the max-min diversity problem), found
greedily: begin with the token that is farthest from its nearest other, then add, again and again, the token that is
farthest from those already kept. Distance is 1 - cosine of the projected features: no attention, no text, no norms.

Paper and code: the same greedy search. The released code does not exclude what it has already kept, so that once only
copies of kept tokens are left (a blank background) it keeps the same index several times over; here a token is kept
once (repeat=True is the released behaviour). It also counts on a system prompt of 35 tokens and one image: here all
visual tokens of the prompt compete in one set (tiles, newline tokens, several images), for one budget. A zero vector,
undefined there, is at distance 1 from everything. The released share 0.098 keeps 56 of 576, rounded half to even.
"""

from dataclasses import dataclass

import torch

from pruning.base import Pruner, Reduction, UserError, cosines, tokens_to_keep
from pruning.fields import Amount


@dataclass(frozen=True)
class DivPrune(Pruner):
    """Keep the visual tokens that lie farthest apart."""

    keep: Amount = 0.098               # share, or number, of all visual tokens kept
    rounding: str = "round"            # of share * n: "round" half to even, "floor" or "ceil"
    repeat: bool = False               # True: a kept token may be kept again, as in the released code

    site = "embed"
    needs = frozenset()
    positions = "renumber"

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # what no prompt can meet fails here, before the model runs

    @property
    def laws(self):
        return frozenset({"ordered", "budget"} | (set() if self.repeat else {"select"}))

    def budget(self, n):
        return tokens_to_keep(self.keep, n, self.rounding)

    def reduce(self, tokens):
        distance = 1 - cosines(tokens.hidden[tokens.visual])                       # (n, n)
        if distance.isnan().any():
            raise UserError("the image features contain NaN: the model overflowed; load it in float32 or bfloat16")
        order, score = max_min(distance, self.budget(tokens.n), self.repeat)
        return Reduction(order.sort().values, score=score)


def max_min(distance, k, repeat=False):
    """The greedy search: indices in the order of picking (k,), and each token's distance to those picked before it (n,).

    Of equals, the first is picked. A smaller k gives the beginning of the same order. The score of a token that is not
    picked is its distance to the nearest that is; that of the very first pick, its distance to its nearest other.
    """
    gain = distance.clone().fill_diagonal_(2).min(dim=0).values                    # (n,)  2: nothing is farther
    nearest = torch.full_like(gain, float("inf"))                                  # (n,)  to the picked ones
    order, gains = [], []
    for _ in range(k):
        pick = gain.argmax(dim=0, keepdim=True)            # (1,)  kept on the device: the loop never waits for its value
        order.append(pick)
        gains.append(gain[pick])
        nearest = torch.minimum(nearest, distance[pick].squeeze(0))
        gain = nearest = nearest if repeat else nearest.index_fill(0, pick, float("-inf"))
    order = torch.cat(order)
    return order, nearest.index_put((order,), torch.cat(gains))
