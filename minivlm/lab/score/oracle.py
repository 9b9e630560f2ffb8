"""What no method can do: choose by what the picture shows. The table of what a model makes of such a choice is made with it."""

from dataclasses import dataclass

import torch

from minivlm.toy.benchmark import on_patches
from pruning.base import Reduction
from pruning.controls import Random
from pruning.ranked import top


@dataclass(frozen=True)
class Oracle(Random):
    """Keeps the tokens on `things` first, or last; at random among the others."""

    things: tuple = ()                 # patches of the drawn picture, those first that show most of a thing
    first: bool = True

    def reduce(self, tokens):
        score, k = torch.rand(tokens.n, generator=torch.Generator().manual_seed(self.seed)).to(tokens.grid.device), self.budget(tokens.n)
        score[on_patches(tokens.grid, self.things[:k] if self.first else self.things)] += 1 if self.first else -1
        return Reduction(top(score, k))
