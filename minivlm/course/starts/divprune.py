"""A method of your own. It begins as a method like DivPrune, before the decoder: change `reduce`.

    python run.py check mine.py:Mine               which promises it keeps, what it costs, how well it does
    python run.py compare minivlm/toy/samples/00003.png "what shape is the red object ?" \
        --method divprune,mine.py:Mine --keep 0.25 --out mine.png
    python run.py score mine.py:Mine               a row of the leaderboard
"""

from dataclasses import dataclass

from pruning import Pruner, Reduction
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, Positions, early_positions, option
from pruning.ranked import cosines


@dataclass(frozen=True)
class Mine(Pruner):
    """Keep tokens that are far from each other, beginning with the first."""

    # Options: --keep 0.25. Add your own in the same way, like  power: float = option(1.0, "of the distance")
    keep: Amount = option(0.25, "share, or number, of visual tokens kept")
    positions: Positions = early_positions()

    # Where it acts: "vision" (after the tower), "embed" (before layer 0) or "decoder" (see the start `--like fastv`).
    site = "embed"
    # What it promises. `check` tests these; leave out what your method does not promise (pruning/laws.py has them all).
    laws = frozenset({"select", "ordered", "budget"})

    def budget(self, n):
        """How many of n visual tokens are left."""
        return tokens_to_keep(self.keep, n)

    def reduce(self, tokens):
        """Which visual tokens are left."""
        # What there is at this site (pruning/base.py): the states that enter the decoder, and where each patch lies.
        # No attention has been computed yet.
        feature = tokens.hidden[tokens.visual]             # (n, D)
        distance = 1 - cosines(feature)                    # (n, n)
        order = farthest_first(distance, self.budget(tokens.n))
        return Reduction(order.sort().values)              # indices of visual tokens, in sequence order


def farthest_first(distance, k):
    """Indices (k,): each the token that is farthest from those picked before it. distance: (n, n)"""
    nearest = distance[0].clone()                          # (n,)  distance to the nearest token picked so far
    picked = [nearest.new_zeros((), dtype=int)]
    nearest[0] = -1                                        # no token is picked twice
    for _ in range(k - 1):
        pick = nearest.argmax()
        nearest = nearest.minimum(distance[pick])
        nearest[pick] = -1
        picked.append(pick)
    return nearest.new_tensor(picked, dtype=int)
