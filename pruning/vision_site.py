"""VisionSite: methods that act after the vision tower, and rank its patches by the class token's attention."""

from dataclasses import dataclass

from pruning.base import Pruner
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, Positions, early_positions, option


@dataclass(frozen=True)
class VisionSite(Pruner):
    """A subclass reduces each tile by itself, or says per = "image". A convenience, as Ranked is."""

    keep: Amount = option(0.5, "share, or number, of each tile's tokens left")
    positions: Positions = early_positions()

    site = "vision"
    per = "tile"
    preconditions = frozenset({"cls"})

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # raises UserError if no tile is large enough for `keep`

    def budget(self, n):
        """Tokens left of a tile of n; per = "image": of an image of n."""
        return tokens_to_keep(self.keep, n)
