"""DART: the released code."""

from dataclasses import dataclass

from pruning.dart import DART


@dataclass(frozen=True)
class DARTReleased(DART):
    """The released code: each pivot adds floor(keep / pivots) tokens, and the image's pivots come on top, so that keep
    128 leaves 132. Pivots are visited in the order of a Python set of row numbers: a longer system prompt changes the
    choice."""

    laws = frozenset({"select", "ordered"})

    def visited(self, pivots):
        rows = set(pivots.tolist())
        return pivots.new_tensor(list(rows))

    def budget(self, n):
        """If as many text tokens as text_pivots follow the image."""
        pivots = self.image_pivots + self.text_pivots
        each = super().budget(n) // pivots
        return min(n, self.image_pivots + pivots * each)

    def additions(self, k, image_pivots, pivots):
        each = (k - image_pivots) // (self.image_pivots + self.text_pivots)
        return [each] * pivots
