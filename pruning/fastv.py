"""FastV. Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv:2403.06764.

After layer K, few visual tokens receive attention. So drop those that received the least in layer K (the paper counts
from one: layer K-1 here), and run the layers from K on without them. The others keep their position ids.

Paper and code: the paper's score is the attention received from all tokens (FastVAllRows in readings/); the released
code, and this file, read only the last prompt token's row. The code can also mask the keys instead of dropping the
tokens (FastVMask): text rows get the same values.
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
