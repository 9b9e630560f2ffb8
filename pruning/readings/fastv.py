"""FastV: the paper's text, and variants of the released code and of FEATHER's."""

from dataclasses import dataclass, replace

from pruning.fastv import FastV
from pruning.feather import FEATHER


@dataclass(frozen=True)
class FastVAllRows(FastV):
    """The paper's text: the attention received from all rows, on average. Later tokens are seen by fewer rows."""

    def score(self, tokens):
        return tokens.before.mean_attention("all")[:, tokens.visual].mean(dim=0)


@dataclass(frozen=True)
class FastVMask(FastV):
    """The released token-mask variant: all tokens stay, and from layer K on the keys of the dropped ones are masked."""

    drops = False

    def reduce(self, tokens):
        return replace(super().reduce(tokens), drop=False)


@dataclass(frozen=True)
class FastVRerank(FastVMask):
    """The released token-mask variant with a cache: it ranks again at each generated token."""

    rerank_each_step = True


@dataclass(frozen=True)
class FastVUnrotated(FastV):
    """FEATHER's criterion only, as a variant in its repository: attention without RoPE, softmax over the image only."""

    laws = frozenset({"select", "ordered", "budget"})
    score = FEATHER.criterion
