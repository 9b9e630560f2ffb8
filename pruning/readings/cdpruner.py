"""CDPruner: diversity only, each tile by itself, and how much relevance counts."""

from dataclasses import dataclass
from typing import Annotated

import torch

from pruning.cdpruner import CDPruner, most_diverse
from pruning.controls import shares
from pruning.fields import Range, option


@dataclass(frozen=True)
class CDPrunerUnconditioned(CDPruner):
    """Section 3.2: diversity only, whatever is asked (Eq. 4 with the kernel of Eq. 3)."""

    preconditions = frozenset()

    def relevances(self, tokens, feature):
        return torch.ones_like(feature[:, 0])


@dataclass(frozen=True)
class CDPrunerTiles(CDPruner):
    """The released code: each tile by itself. Its share of the budget is that of its tokens."""

    def picks(self, tokens, feature, r):
        picked = []
        for tile, k in shares(tokens.grid, self.budget(tokens.n)):                 # (m,) indices of each tile's tokens
            picked.append(tile[most_diverse(feature[tile], r[tile], k)])
        return torch.cat(picked)


@dataclass(frozen=True)
class CDPrunerTheta(CDPruner):
    """A comment in the released code: how much relevance counts against diversity, exp(theta / (2 (1 - theta)) r)."""

    theta: Annotated[float, Range(0, 0.99)] = option(0.5, "how much relevance counts; 0: diversity only")

    def relevances(self, tokens, feature):
        r = super().relevances(tokens, feature)                                    # (n,)
        return torch.exp(self.theta / (2 * (1 - self.theta)) * r)
