"""VTW: other positions, and a random control."""

from dataclasses import dataclass

import torch

from pruning.base import Pruner, Reduction
from pruning.fields import option
from pruning.vtw import VTW


@dataclass(frozen=True)
class VTWRenumbered(VTW):
    """An option of the released code: after the withdrawal the text gets position ids 0, 1, ..."""

    positions = "renumber"


@dataclass(frozen=True)
class VTWRandom(VTW):
    """The released control: n positions are drawn from the whole prompt, and the visual tokens among them are dropped.

    The code also drops the text among them. The choice depends on the length of the text.
    """

    seed: int = option(0, "of the draw")

    laws = frozenset({"select", "ordered", "scale"})

    def budget(self, n):
        return None                    # the draw decides

    def with_average(self, average, n, layers):
        return Pruner.with_average(self, average, n, layers)

    def reduce(self, tokens):
        T = len(tokens.hidden)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(T, generator=generator)[:tokens.n]                  # (n,)  rows
        is_drawn = torch.isin(tokens.visual.cpu(), drawn)                          # (n,)
        return Reduction((~is_drawn).nonzero().squeeze(1).to(tokens.visual.device))
