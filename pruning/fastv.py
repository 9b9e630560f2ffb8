"""FastV. Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv:2403.06764.

After layer K the image is read through few tokens. So drop the visual tokens that received the least attention in
layer K (counted from one: layer K-1 here), and let layers K.. run on the rest. Original position ids are kept.

Paper and code: the paper's score is the attention received from all tokens (FastVAllRows in readings.py); the released
code, and this file, read the last prompt token's row alone. Dropping tokens and masking their keys (FastVMask) give the
text rows the same values.
"""

from dataclasses import dataclass

from pruning.fields import Amount, Layer, option
from pruning.ranked import Ranked


@dataclass(frozen=True)
class FastV(Ranked):
    """Keep the visual tokens that receive the most attention in layer K-1."""

    layer: Layer = option(2, "K: the first layer that runs on the kept tokens")
    keep: Amount = option(0.5, "1 - R: share, or number, of visual tokens kept")

    def score(self, tokens):
        # the attention that each visual token receives from the last prompt token, mean over heads
        attention = tokens.before.mean_attention("last")   # (1, T)
        return attention[0, tokens.visual]                 # (n,)
