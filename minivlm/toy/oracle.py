"""What no method can do: choose by what the picture shows. The table of what a model makes of such a choice is made with it."""

from dataclasses import dataclass

import torch

from minivlm.toy.benchmark import on_patches
from pruning.base import Reduction, top
from pruning.controls import Random


@dataclass(frozen=True)
class Oracle(Random):
    """Keeps the tokens on `things` first, or last; at random among equals."""

    things: tuple = ()                 # patches of the drawn picture
    first: bool = True

    def reduce(self, tokens):
        score = torch.rand(tokens.n, generator=torch.Generator().manual_seed(self.seed)).to(tokens.cell.device)
        score[on_patches(tokens.cell, self.things)] += 1 if self.first else -1
        return Reduction(top(score, self.budget(tokens.n)))
