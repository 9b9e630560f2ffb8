"""FEATHER: the softmax over the row."""

from dataclasses import dataclass

from pruning.feather import FEATHER, unrotated_logits


@dataclass(frozen=True)
class FEATHERRow(FEATHER):
    """The softmax is over the whole row, as in FastV: a head that looks at the text has a small vote."""

    def criterion(self, tokens):
        logits = unrotated_logits(tokens) + tokens.before.mask("last")             # (H, T)
        return logits.softmax(dim=1).mean(dim=0)[tokens.visual]
