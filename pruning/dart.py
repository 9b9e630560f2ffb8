"""DART. Wen et al., "Stop Looking for "Important Tokens" in Multimodal Language Models: Duplication Matters More",
EMNLP 2025, arXiv:2502.11494.

A token that is like another one adds little, however important both are. So choose a few pivot tokens, of the image and
of the text, and retain the tokens that duplicate them least. No attention is computed: fused kernels stay in use.

Paper and code: the paper has a threshold for each pivot, which the reduction ratio decides. The code gives each pivot
the same number of tokens, as this file does. It leaves more tokens than it names, and visits the pivots in the order of
a Python set of row numbers, so that the length of the system prompt changes the choice: DARTReleased in readings/.
This file leaves exactly `keep`, and visits the pivots by falling strength, those of the image before those of the text.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Reduction, UserError
from pruning.fields import Amount, Count, Layer, option
from pruning.ranked import Ranked, descending, finite


@dataclass(frozen=True)
class DART(Ranked):
    """Keep a few pivots, and the visual tokens that are least similar to one of them."""

    layer: Layer = option(2, "K: the first layer that runs on the kept tokens")
    keep: Amount = option(2 / 9, "share, or number, of visual tokens kept: 128 of 576")
    image_pivots: Count = option(4, "visual tokens among the pivots")
    text_pivots: Count = option(4, "text tokens after the image among the pivots")

    laws = frozenset({"select", "ordered", "budget"})

    def __post_init__(self):
        super().__post_init__()
        if not self.image_pivots and not self.text_pivots:
            raise UserError("DART: image_pivots and text_pivots are both 0: give one of them at least 1")

    def reduce(self, tokens):
        # pivot tokens (Definition 1)
        k = self.budget(tokens.n)
        image, text = self.pivots(tokens, k)                                       # (p,) among the n, (q,) rows
        rows = torch.cat([tokens.visual[image], text])
        pivots = self.visited(rows)                                                # (P,)
        # how much each visual token duplicates each pivot: the cosine of their states (Definition 2)
        state = finite(tokens.here.final_normed(), "the hidden states").float()    # (T, D)
        unit = F.normalize(state, dim=1)
        duplication = unit[pivots] @ unit[tokens.visual].T                         # (P, n)
        # the retained set
        counts = self.additions(k, len(image), len(pivots))
        keep = retained(image, duplication, counts)                                # (k,)
        reason = (~torch.isin(keep, image)).long()
        return Reduction(keep, score=-duplication.amin(dim=0), reason=reason, reasons=("pivot", "unlike a pivot"))

    def pivots(self, tokens, k):
        """The visual tokens (p,), among the n, and the rows of text (q,) with the largest keys by L1 norm."""
        key = tokens.before.key().float()                                          # (Hk, T, Dh)
        strength = key.abs().sum(dim=(0, 2))                                       # (T,)
        by_strength = descending(strength[tokens.visual])
        image = by_strength[:min(k, self.image_pivots)]
        text = tokens.text()
        by_strength = descending(strength[text])
        text = text[by_strength[:self.text_pivots]]
        if not len(image) and not len(text):
            raise UserError("DART: image_pivots is 0, and no text follows the image: give it at least 1")
        return image, text

    def visited(self, pivots):
        """The rows of the pivots (P,) in the order in which they retain tokens."""
        return pivots

    def additions(self, k, image_pivots, pivots):
        """How many tokens each pivot adds: additions(10, 3, 5) -> [2, 2, 1, 1, 1]"""
        each, left_over = divmod(k - image_pivots, pivots)
        return [each + 1] * left_over + [each] * (pivots - left_over)


def retained(image, duplication, counts):
    """The image's pivots, and for each pivot in turn `counts` of the others, which duplicate it least. (k,)"""
    kept = image
    for of_pivot, count in zip(duplication, counts):
        of_others = of_pivot.index_fill(0, kept, float("inf"))
        least_first = of_others.argsort(stable=True)                               # (n,)
        kept = torch.cat([kept, least_first[:count]])
    return kept.unique()               # in sequence order
