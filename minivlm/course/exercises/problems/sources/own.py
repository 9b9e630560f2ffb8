"""A method of one's own: which visual tokens are kept, by a rule that no other exercise has.

`Ranked` (pruning/ranked.py) keeps the k best by `score`. What a method may read is in `tokens`: states, places, and
the attention, queries and keys of `tokens.before` and `tokens.here` (pruning/views.py).
"""

from dataclasses import dataclass

import torch.nn.functional as F

from pruning.fields import Amount, Layer, option
from pruning.ranked import Ranked


@dataclass(frozen=True)
class Mine(Ranked):
    """Say in a sentence what is kept, and why that should be enough."""

    layer: Layer = option(2, "K: the first layer that runs on the kept tokens")
    keep: Amount = option(0.25, "share, or number, of visual tokens kept")

    laws = frozenset({"select", "ordered", "budget"})      # what it promises: names of pruning/laws.py

    def score(self, tokens):
        """(n,) how important each visual token is"""
        # attention from the last token, times how unlike the mean of the image a token is
        attention = tokens.before.mean_attention("last")[0, tokens.visual]         # (n,)
        hidden = tokens.hidden[tokens.visual].float()                              # (n, D)
        mean = hidden.mean(dim=0, keepdim=True)                                    # (1, D)
        return attention * (1 - F.cosine_similarity(hidden, mean))                 # (n,)
