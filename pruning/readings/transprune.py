"""TransPrune: the released softmax, and transitions only."""

from dataclasses import dataclass

import torch

from pruning.transprune import TransPrune


@dataclass(frozen=True)
class TransPruneReleased(TransPrune):
    """The released code: the softmax over the changes of direction is over all tokens, the text too. So a longer system
    prompt changes the choice."""

    def direction(self, turn, visual):
        return turn.softmax(dim=0)[visual]


@dataclass(frozen=True)
class TransPruneTTV(TransPrune):
    """Token Transition Variation only, a variant of the paper: no attention is read."""

    preconditions = frozenset()

    def iga(self, tokens):
        return torch.zeros_like(tokens.visual, dtype=torch.float32)
