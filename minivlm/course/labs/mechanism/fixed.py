"""A method that is told what to keep, so that all else can be compared."""

from dataclasses import dataclass
from typing import Literal

import torch

from pruning.base import Pruner, Reduction
from pruning.budget import tokens_to_keep
from pruning.fields import Count, Layer, Positions


@dataclass(frozen=True)
class Fixed(Pruner):
    """Keeps these visual tokens."""

    kept: tuple[Count, ...]
    layer: Layer = 2                   # K, at the site "decoder"
    site: Literal["embed", "decoder"] = "decoder"
    positions: Positions = "keep"

    @classmethod
    def random(cls, n, keep, seed=0, **options):
        """Any share `keep` of n tokens."""
        drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        kept = drawn[:tokens_to_keep(keep, n)].sort().values
        return cls(tuple(kept.tolist()), **options)

    def reduce_at(self, layers):
        return (self.layer,) if self.site == "decoder" else ()

    def reduce(self, tokens):
        return Reduction(torch.tensor(self.kept, device=tokens.visual.device))
