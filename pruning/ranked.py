"""Ranked: methods that score every visual token once, before layer K, and keep the k best. And helpers for scores."""

from dataclasses import dataclass

import torch.nn.functional as F

from pruning.base import Pruner, Reduction, UserError
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, Layer, option


@dataclass(frozen=True)
class Ranked(Pruner):
    """A subclass defines `score`; this class has the layer, the budget and the selection. Not all methods need it."""

    layer: Layer = option(2, "K: the first layer that runs on the kept tokens")
    keep: Amount = option(0.5, "share, or number, of visual tokens kept")

    laws = frozenset({"select", "ordered", "budget", "scale", "needle"})
    rounding = "floor"                 # of share * n

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # raises UserError if no prompt is long enough for `keep`

    def reduce_at(self, layers):
        return (self.layer,)

    def budget(self, n):
        return tokens_to_keep(self.keep, n, self.rounding)

    def score(self, tokens):
        """(n,) how important each visual token is"""
        raise NotImplementedError

    def reduce(self, tokens):
        score = self.score(tokens)                         # (n,)
        keep = top(score, self.budget(tokens.n))           # (k,)
        return Reduction(keep, score=score)


def top(score, k):
    """top([.1, .9, .5, .7], 2) -> [1, 3]: the k best, in sequence order; of equals, the first. (n,) -> (k,)"""
    return descending(score)[:k].sort().values


def descending(score):
    """Indices from the highest score to the lowest; of equals, the first. (n,) -> (n,)"""
    if score.isnan().any():            # infinity is allowed: a method may put a token first or last with it
        raise UserError("the attention scores contain NaN: the model overflowed; load it in float32 or bfloat16")
    return score.argsort(descending=True, stable=True)


def finite(x, what):
    """x unchanged; UserError if it has NaN or infinity, from which sums and products become NaN. `what` names it."""
    if not x.isfinite().all():
        raise UserError(f"{what} contain NaN or infinity: the model overflowed; load it in float32 or bfloat16")
    return x


def cosines(x):
    """Cosine of every two rows, in float32; 0 for a row of zeros. (n, D) -> (n, n)"""
    unit = F.normalize(x.float(), dim=1)                   # (n, D)
    return unit @ unit.T
