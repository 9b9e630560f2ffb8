"""CDPruner. Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in
MLLMs", NeurIPS 2025, arXiv:2506.10967.

The determinant of a kernel of similarities is a volume: it is small for tokens that are alike. With the kernel times
the relevance of the tokens to the instruction it is small for irrelevant ones, too. So keep the set with the largest
one, the most probable set of a determinantal point process, by a greedy search.

Paper and code: relevance is a cosine of CLIP's embeddings (negated in the code), which no LLaVA checkpoint holds. For
models without a text encoder, and in this file, it is one of projected features with the instruction's mean embedding
in the language model: all text after the image. With equal relevances, or more tokens than the kernel's rank, the code
computes with NaN; this file counts all as 1, and adds the most relevant. It takes all tokens as one set, the code each
tile by itself.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Pruner, Reduction, UserError
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, Positions, early_positions, option
from pruning.ranked import descending, finite


@dataclass(frozen=True)
class CDPruner(Pruner):
    """Keep the visual tokens that are diverse and relevant to the question."""

    keep: Amount = option(2 / 9, "m: share, or number, of all visual tokens kept: 128 of 576")
    positions: Positions = early_positions()

    site = "embed"
    laws = frozenset({"select", "ordered", "budget"})
    preconditions = frozenset({"text"})

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # raises UserError if no prompt is long enough for `keep`

    def budget(self, n):
        return tokens_to_keep(self.keep, n)

    def reduce(self, tokens):
        feature = finite(tokens.hidden[tokens.visual], "the image features")       # (n, D)
        r = self.relevances(tokens, feature)                                       # (n,)
        return Reduction(self.picks(tokens, feature, r).sort().values, score=r)

    def picks(self, tokens, feature, r):
        """Indices (k,) in the order of picking"""
        return most_diverse(feature, r, self.budget(tokens.n))

    def relevances(self, tokens, feature):
        """(n,) of each visual token to the instruction, from 0 to 1; 1 if all are equally relevant"""
        text = tokens.text()
        if not len(text):
            raise UserError("CDPruner: no text follows the image, so nothing is asked: put the question after <image>")
        instruction = tokens.hidden[text].double().mean(dim=0, keepdim=True)       # (1, D)
        r = F.cosine_similarity(feature.double(), instruction)                     # (n,)  Eq. 5
        r = r - r.min()
        return r / r.max() if r.max() > 1e-9 else torch.ones_like(r)               # (n,)  Eq. 6


def most_diverse(feature, r, k):
    """Indices (k,) in the order of picking, from features (n, D) and relevances (n,)"""
    unit = F.normalize(feature.double(), dim=1)            # (n, D)  late picks differ by little
    L = unit @ unit.T                                                              # (n, n)  Eq. 3
    L.diagonal().round_()              # exactly 1: rounding decides no tie
    conditional = r[:, None] * L * r                                               # (n, n)  Eq. 7
    picks = greedy_map(conditional, k)                                             # Eq. 4
    by_relevance = descending(r)                                                   # (n,)
    rest = by_relevance[~torch.isin(by_relevance, picks)]
    return torch.cat([picks, rest])[:k]


def greedy_map(L, k):
    """Indices in the order of picking, each that with the largest determinant of L; fewer than k if its rank ends."""
    gain = L.diagonal().clone()        # (n,)  the factor by which each would raise the determinant
    used_up = 1e-9 * gain.max()
    V = L.new_zeros(k, len(L))         # (k, n)  Cholesky factor: V^T V = L at the picked ones
    picks = []
    for i in range(k):
        j = int(gain.argmax())
        if gain[j] <= used_up:
            break
        of_others = V[:i, j] @ V[:i]   # (n,)
        V[i] = (L[j] - of_others) / gain[j].sqrt()
        gain = gain - V[i].square()    # of j nothing is left
        picks.append(j)
    return torch.tensor(picks, dtype=torch.long, device=L.device)
