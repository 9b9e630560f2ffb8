"""PyramidDrop. Xing et al., CVPR 2025, arXiv:2410.17247.

The deeper the layer, the fewer visual tokens it needs: the decoder is divided into stages, and before each stage tokens
are dropped until a given share of the N original tokens is left. They are ranked by the attention of the last prompt
token in the layer that is about to run, computed by that layer's own projections on all tokens that are still there.

Paper and code: dropping "after" layers 8, 16 and 24 is, in the released code and here, dropping before the layers with
these indices, counted from 0. The remaining tokens are renumbered from 0 at each stage (PyramidDropKept in readings/
keeps the position ids). The code takes one image per prompt; here the tokens of several are ranked together.
"""

from dataclasses import dataclass, replace

from pruning.base import Reduction
from pruning.budget import solve
from pruning.fields import Amount, AnyLayer, option
from pruning.ranked import top
from pruning.staged import Staged


@dataclass(frozen=True)
class PyramidDrop(Staged):
    """Before each of `layers`, keep the visual tokens that the last token looks at most in that layer."""

    layers: tuple[AnyLayer, ...] = option((8, 16, 24), "the first layer of each stage")
    ratios: tuple[Amount, ...] = option((0.5, 0.25, 0.125), "share (or number) of the N tokens that enters it")

    positions = "renumber"
    laws = frozenset({"select", "ordered", "scale", "needle"})

    def with_average(self, average, n, layers):
        """Ratios r, r ** 2, r ** 3: the default ones are of this form, with r = 0.5."""
        stage = range(1, len(self.layers) + 1)

        def with_powers(k):
            r = k / n
            return replace(self, ratios=tuple(r ** i for i in stage))

        return solve(with_powers, range(1, n + 1), average, n, layers)

    def reduce(self, tokens):
        # the attention of the last prompt token in the layer that is about to run, mean over heads
        attention = tokens.here.mean_attention("last")                             # (1, T)
        score = attention[0, tokens.visual]                                        # (n,)
        keep = top(score, self.left_at(tokens))                                    # (k,)
        return Reduction(keep, score=score)
