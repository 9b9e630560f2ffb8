"""PyramidDrop. Xing et al., CVPR 2025, arXiv:2410.17247.

The deeper the layer, the fewer visual tokens it needs: the decoder is cut into stages, and before each stage all but a
given share of the original n tokens is dropped. They are ranked by the attention of the last prompt token in the layer
that is about to run, computed by that layer's own projections on all tokens that are still there.

Paper and code: dropping "after" layers 8, 16 and 24 is, in the released code, dropping before the layers with these
indices, counted from 0; that is followed here. Its ratios are shares of the original n, not of what the stage before left.
Survivors are numbered anew from 0 at each stage (positions="renumber"), so that in each layer the generated tokens go on
from that layer's own length; positions="keep" keeps the ids, as most other methods do. The code ranks one image a prompt;
here several make one set.
"""

from dataclasses import dataclass, replace
from typing import Literal

from pruning.base import Pruner, Reduction, solve, tokens_to_keep, top
from pruning.fields import Amount, AnyLayer
from pruning.schedule import check_stages, stages


@dataclass(frozen=True)
class PyramidDrop(Pruner):
    """Before each of `layers`, keep the visual tokens that the last token looks at most in that layer."""

    layers: tuple[AnyLayer, ...] = (8, 16, 24)  # the first layer of each stage
    ratios: tuple[Amount, ...] = (0.5, 0.25, 0.125)  # share (or number) of the original visual tokens that enters it
    positions: Literal["keep", "renumber"] = "renumber"  # the survivors 0.., or "keep" their ids
    rounding: str = "floor"            # of share * n

    needs = frozenset({"own_attn"})
    laws = frozenset({"select", "ordered", "scale", "needle"})

    def __post_init__(self):
        super().__post_init__()
        check_stages("PyramidDrop", self)

    def reduce_at(self, layers):
        return tuple(self.layers)

    def budget(self, n):
        """Visual tokens left of n in the last stage."""
        return stages(self, n, self.layers[-1] + 1)[-1]

    def schedule(self, n, layers):
        return stages(self, n, layers)

    def with_average(self, average, n, layers):
        """Shares r, r ** 2, r ** 3, as 0.5, 0.25, 0.125 are."""
        powers = lambda k: replace(self, ratios=tuple((k / n) ** (i + 1) for i in range(len(self.layers))))
        return solve(powers, range(1, n + 1), average, n, layers)

    def reduce(self, tokens):
        score = tokens.own_attn.mean(dim=0)[-1, tokens.visual]     # (n,)  mean over heads, last prompt token
        ratio = self.ratios[self.layers.index(tokens.layer)]
        return Reduction(top(score, tokens_to_keep(ratio, tokens.entered, self.rounding)), score=score)
