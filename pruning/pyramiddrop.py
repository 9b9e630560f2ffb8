"""PyramidDrop. Xing et al., CVPR 2025, arXiv:2410.17247.

The deeper the layer, the fewer visual tokens it needs: the decoder is cut into stages, and before each stage all but a
given share of the N original tokens is dropped. They are ranked by the attention of the last prompt token in the layer
that is about to run, computed by that layer's own projections on all tokens that are still there.

Paper and code: dropping "after" layers 8, 16 and 24 is, in the released code and here, dropping before the layers with
these indices, counted from 0. Survivors are numbered from 0 at each stage; PyramidDropKept in readings.py keeps the
position ids. The code ranks one image per prompt; here several are one set of tokens.
"""

from dataclasses import dataclass, replace

from pruning.base import Pruner, Reduction
from pruning.budget import solve, tokens_to_keep
from pruning.compose import check_stages, stages
from pruning.fields import Amount, AnyLayer, option
from pruning.ranked import top


@dataclass(frozen=True)
class PyramidDrop(Pruner):
    """Before each of `layers`, keep the visual tokens that the last token looks at most in that layer."""

    layers: tuple[AnyLayer, ...] = option((8, 16, 24), "the first layer of each stage")
    ratios: tuple[Amount, ...] = option((0.5, 0.25, 0.125), "share (or number) of the N tokens that enters it")

    positions = "renumber"
    laws = frozenset({"select", "ordered", "scale", "needle"})
    rounding = "floor"                 # of share * n

    def __post_init__(self):
        super().__post_init__()
        check_stages("PyramidDrop", self)

    def reduce_at(self, layers):
        return tuple(self.layers)

    def budget(self, n):
        """Visual tokens left of n in the last stage."""
        last = self.layers[-1]
        entering = stages(self, n, last + 1)
        return entering[last]

    def schedule(self, n, layers):
        return stages(self, n, layers)

    def with_average(self, average, n, layers):
        """Shares r, r ** 2, r ** 3, as 0.5, 0.25, 0.125 are."""
        stage = range(1, len(self.layers) + 1)

        def with_powers(k):
            r = k / n
            return replace(self, ratios=tuple(r ** i for i in stage))

        return solve(with_powers, range(1, n + 1), average, n, layers)

    def reduce(self, tokens):
        # the attention of the last prompt token in the layer that is about to run, mean over heads
        attention = tokens.here.mean_attention("last")                             # (1, T)
        score = attention[0, tokens.visual]                                        # (n,)
        # of all N tokens the share of this stage is kept
        ratio = self.ratios[self.layers.index(tokens.layer)]
        k = tokens_to_keep(ratio, tokens.N, self.rounding)
        return Reduction(top(score, k), score=score)
