"""How many tokens: what `keep` means, how many enter each layer, and which budget gives an average."""

import math
from bisect import bisect_left
from dataclasses import replace

from pruning.errors import UserError
from pruning.fields import shown

ROUNDINGS = {"floor": math.floor, "round": round, "ceil": math.ceil}


def tokens_to_keep(keep, n, rounding="floor"):
    """How many of n tokens `keep` means: a float is a share in (0, 1], of at least one token; an int is a number.

    `rounding` of share * n in float64: "floor" (576 * 0.1 -> 57), "round" half to even (50 * 0.25 -> 12) or "ceil".
    Raises UserError if keep is not positive, or above 1 or n.
    """
    if rounding not in ROUNDINGS:
        raise UserError(f"rounding {shown(rounding)} is not known: use one of {', '.join(ROUNDINGS)}")
    is_share = isinstance(keep, float)
    most = 1 if is_share else n
    if not 0 < keep <= most:
        raise UserError(f"keep {keep} is out of range: give a share in (0, 1.0] or a number of tokens from 1 to {n}")
    if not is_share:
        return keep
    return min(n, max(1, ROUNDINGS[rounding](keep * n)))


def staged(stages, n, layers, rounding="floor"):
    """staged([(2, .5), (3, .25)], 576, 4) -> [576, 576, 288, 144]: tokens that enter each layer.

    stages: (layer, keep) of each cut: before this layer, this share or number of the n tokens is left.
    """
    entering = [n] * layers
    for layer, keep in stages:
        k = min(entering[-1], tokens_to_keep(keep, n, rounding))
        entering[layer:] = [k] * (layers - layer)
    return entering


def solve(method, values, average, n, layers):
    """Bisect `values` (sorted by tokens kept) for the first method(value) with at least `average` tokens per layer.

    FastV at K=2 of 32 layers, 576 tokens, average 192: keep 167, for (2 * 576 + 30 * 167) / 32 = 192.6.
    """
    def mean(value):
        entering = method(value).schedule(n, layers) or []
        return sum(entering) / layers

    name = type(method(values[0])).__name__
    least = mean(values[0])
    most = mean(values[-1])
    if not most:
        raise UserError(f"{name}: the prompt decides how many tokens are left, not a budget")
    in_reach = average > least - 1 and average <= most
    if not in_reach:
        raise UserError(f"an average of {average} visual tokens per layer is out of reach for {name}: "
                        f"it can be {least:.1f} to {most:.1f}")
    first = bisect_left(values, average, key=mean)
    return method(values[first])


class Budgeted:
    """What commands and the tower need to know of a method's budget; a base class of Pruner."""

    def with_average(self, average, n, layers):
        """This method with the smallest budget that lets `average` or more visual tokens enter a layer on average.

        Raises UserError if there is none.
        """
        if not hasattr(self, "keep"):
            raise UserError(f"{type(self).__name__} has no keep to solve for an average: set its own options")
        def method(k):
            return replace(self, keep=k)

        return solve(method, range(1, n + 1), average, n, layers)

    def tower_schedule(self, n, blocks):
        """How many of a tile's n tokens each of `blocks` blocks of the vision tower leaves; None: it merges none.

        A method that returns numbers also has merge(tokens, size, k): the Reduction to k tokens of each tile, in a
        block between attention and MLP, of tokens that are made of so many unpruned ones each, size (n,); and prop_attn
        (parts/merging.py).
        """
        return None

    def divided(self, parts):
        """This method with a `keep` for one part (image or tile), if `keep` is a number for the whole prompt.

        parts: {"tile": (how many, tokens of each), "image": ..}. The number is rounded down: 103 tokens on 5 tiles are
        20 of each. A share stays the same. Raises UserError if a part would keep nothing, or more than it has.
        """
        count, each = parts.get(self.per, (1, 0))
        keep = getattr(self, "keep", None)
        if count == 1 or not isinstance(keep, int):
            return self
        if not count <= keep <= count * each:
            raise UserError(f"keep {keep} is out of range: {type(self).__name__} divides it among {count} {self.per}s "
                            f"of {each} tokens, so give a share in (0, 1.0] or a number of tokens from {count} to "
                            f"{count * each}")
        return replace(self, keep=keep // count)

    def tokens_left(self, n, parts):
        """Visual tokens left of n in the whole prompt; parts: as in `divided`. None if the method does not fix it."""
        count, each = parts.get(self.per, (1, n))
        k = self.budget(each)
        return None if k is None else count * k
