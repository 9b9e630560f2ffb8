"""Ranked: methods that score every visual token once, before layer K, and keep the k best. And the top-k of all."""

from dataclasses import dataclass

import torch.nn.functional as F

from pruning.base import Pruner, Reduction, UserError
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, Layer, option


@dataclass(frozen=True)
class Ranked(Pruner):
    """A method writes `score`; layer, budget and selection are here. A convenience: other methods go without."""

    layer: Layer = option(2, "K: the first layer that runs on the kept tokens")
    keep: Amount = option(0.5, "share, or number, of visual tokens kept")

    laws = frozenset({"select", "ordered", "budget", "scale", "needle"})
    rounding = "floor"                 # of share * n

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # what no prompt can meet fails here, before the model runs

    def reduce_at(self, layers):
        return (self.layer,)

    def budget(self, n):
        return tokens_to_keep(self.keep, n, self.rounding)

    def score(self, tokens):
        """(n,) how much each visual token is worth"""
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
    if score.isnan().any():            # infinity is a rank: VisionZip and ATP put a token first by it
        raise UserError("the attention scores contain NaN: the model overflowed; load it in float32 or bfloat16")
    return score.argsort(descending=True, stable=True)


def finite(x, what):
    """x, if it is finite: of infinities, too, a sum or product may be NaN. Else a UserError that names `what`."""
    if not x.isfinite().all():
        raise UserError(f"{what} contain NaN or infinity: the model overflowed; load it in float32 or bfloat16")
    return x


def cosines(x):
    """Cosine of every two rows, in float32; with a row of zeros it is 0. (n, D) -> (n, n)"""
    unit = F.normalize(x.float(), dim=1)                   # (n, D)
    return unit @ unit.T
