"""Staged: methods that cut before several layers, and keep a given share of the original tokens at each."""

from dataclasses import replace

from pruning.base import Pruner, UserError
from pruning.budget import solve, staged, tokens_to_keep


class Staged(Pruner):
    """A subclass has the fields `layers` and `ratios`, of the N visual tokens at first. A convenience, as Ranked is."""

    rounding = "floor"                 # of share * N

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        count = len(self.layers)
        if not count or count != len(self.ratios):
            raise UserError(f"{name}: give one ratio per layer; got {count} layers and {len(self.ratios)} ratios")
        rises = list(self.layers) == sorted(set(self.layers))
        if self.layers[0] < 1 or not rises:
            raise UserError(f"{name}: layers must rise from 1; got {self.layers}")
        self.schedule(2 ** 20, 1)      # raises UserError if no prompt is long enough for a ratio

    def reduce_at(self, layers):
        return tuple(self.layers)

    def left_at(self, tokens):
        """How many of the tokens to keep at this cut."""
        ratio = self.ratios[self.layers.index(tokens.layer)]
        return tokens_to_keep(ratio, tokens.N, self.rounding)

    def budget(self, n):
        """Visual tokens left of n after the last cut."""
        last = self.layers[-1]
        entering = self.schedule(n, last + 1)
        return entering[last]

    def schedule(self, n, layers):
        return staged(zip(self.layers, self.ratios), n, layers, self.rounding)

    def with_average(self, average, n, layers):
        """All ratios multiplied by one factor."""
        counts = [tokens_to_keep(ratio, n, self.rounding) for ratio in self.ratios]
        first = counts[0]

        def scaled(k):
            factor = k / first
            ratios = at_least_one(factor * count for count in counts)
            return replace(self, ratios=ratios)

        return solve(scaled, range(1, n + 1), average, n, layers)


def at_least_one(counts):
    """The counts rounded, and none of them 0."""
    rounded = map(round, counts)
    return tuple(max(1, count) for count in rounded)
