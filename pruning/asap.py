"""ASAP. Pathak and Han, "ASAP: Attention-Shift-Aware Pruning for Efficient LVLM Inference", arXiv:2603.14549.

Rotary positions and the causal mask favour late visual tokens, whatever these show. SG-BiMask lets each visual token
see later ones, too: the more salient they are, the better. Of the k best tokens under that mask, redundant ones are
merged into more salient ones, and the best of the dropped ones take the places that this vacates.

Paper and code: no code is public, and the paper leaves open in which layers the mask acts and whose attention ranks.
Here it acts in all layers before the cut and FastV's last row ranks, so that each rung of Figure 4 changes one thing:
FastV, FastVBiMask, ASAP. The other readings are in readings.py and weighed in the card (README.md).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Pruner, Reduction
from pruning.fastv import FastV
from pruning.fields import Amount, Layer, ToOne, option
from pruning.ranked import cosines, descending, finite

EPS = 1e-6                             # epsilon of Eq. 3 and 4


@dataclass(frozen=True, kw_only=True)
class SGBiMask(Pruner):
    """4.1 Saliency-Guided Bidirectional Mask. A plug-in: `class Mine(SGBiMask, AnyDecoderMethod)` has it."""

    lambda_max: ToOne = option(1.0, "how visible the most salient later token is, in (0, 1]")

    def mask_at(self, layers):
        """All layers before the (last) cut."""
        return tuple(range(max(self.reduce_at(layers), default=0)))

    def mask(self, tokens):
        mask = tokens.here.mask().clone()                          # (T, T)  causal
        _, s_hat = masses(tokens, tokens.here)                     # (n,)
        log_lambda = self.discount(s_hat).clamp_min(EPS).log()     # (n,)
        # Eq. 4: a token i sees a later j of its own image, discounted by lambda_j
        image = image_of(tokens)                                   # (n,)
        is_later = (image[:, None] == image).triu(1)               # (n, n)  [i, j]
        visual_pairs = tokens.visual[:, None], tokens.visual
        mask[visual_pairs] = torch.where(is_later, log_lambda, mask[visual_pairs])
        return mask                                                # Eq. 5: the layer adds it to W

    def discount(self, s_hat):
        """lambda_j of each token (n,), where it is the later one. (n,)"""
        return self.lambda_max * s_hat


def masses(tokens, view):
    """Raw attention mass s_j and saliency s_hat_j of each visual token, among those of its image. (n,) twice"""
    _, counts = image_of(tokens).unique_consecutive(return_counts=True)
    s = [attention_mass(view, rows) for rows in tokens.visual.split(counts.tolist())]
    s_hat = [saliency(s_of_image) for s_of_image in s]
    return torch.cat(s), torch.cat(s_hat)


def attention_mass(view, rows):
    """Eq. 2: s_j, the sum of W_ij over the visual tokens i of one image, rows (m,). (m,)

    W = QK^T / sqrt(Dh), mean over heads: logits before the mask.
    """
    s = view.summed_logits(rows)[rows]                             # (m,)
    return finite(s, "the queries or keys")


def saliency(s):
    """Eq. 3: s_hat_j in [0, 1], of the masses of one image. (m,) -> (m,)"""
    s_min = s.min()
    s_max = s.max()
    return (s - s_min) / (s_max - s_min + EPS)


def image_of(tokens):
    """(n,) which image each visual token belongs to: how many text tokens there are between the first one and it."""
    return torch.searchsorted(tokens.text(), tokens.visual)


@dataclass(frozen=True)
class FastVBiMask(SGBiMask, FastV):
    """Appendix C.1: FastV with SG-BiMask, "Module 1" of Figure 4."""


@dataclass(frozen=True)
class ASAP(FastVBiMask):
    """Rank under SG-BiMask, merge what is redundant among the kept, refill."""

    layer: Layer = option(2, "K: the first layer that runs on the kept tokens; the paper's L is layer K-1")
    keep: Amount = option(0.17, "k: share, or number, of visual tokens kept (98 of 576: 128 on average)")
    lambda_max: ToOne = option(1.0, "how visible the most salient later token is, in (0, 1]")
    consolidate: bool = option(True, "Saliency-Weighted Consolidation")
    threshold: float = option(0.9, "t: cosine above which a token is redundant")
    salvage: bool = option(True, "Budget Reallocation")

    rounding = "round"

    @property
    def laws(self):
        if not self.consolidate:
            return super().laws
        merges = frozenset({"ordered", "scale", "convex", "disjoint"})
        refills = self.salvage and isinstance(self.keep, float) and self.keep <= 0.5
        return merges | {"budget"} if refills else merges

    def reduce(self, tokens):
        # 4.1: rank under the mask, as FastV does
        best = super().reduce(tokens)
        kept = best.keep                                           # (k,)    I_keep
        if not self.consolidate:
            return best
        # 4.2: the redundant ones are absorbed by more salient ones, the anchors
        s, s_hat = masses(tokens, tokens.before)                   # (n,) twice
        destination = self.routing(tokens, s_hat, kept)            # (n,)
        anchors = kept[destination[kept] == kept]                  # (k-a,)
        # and the best of the pruned pool take the vacated places
        salvaged = self.reallocation(tokens, s, kept, anchors)     # (a,)
        keep = torch.cat([anchors, salvaged]).sort().values        # (k,)
        absorbs = destination == keep[:, None]                     # (k, n)  each absorbs itself, too
        merge = self.consolidation(keep, absorbs, s_hat)           # (k, n)
        reason = torch.isin(keep, salvaged).long()                 # (k,)
        reason[absorbs.sum(dim=1) > 1] = 2
        return Reduction(keep, merge, best.score, reason=reason, reasons=("kept", "salvaged", "absorbs others"))

    def routing(self, tokens, s_hat, kept):
        """The token that absorbs each one; its own index if none does, or if it is not in I_keep (k,). (n,)"""
        # from the most salient on; ties by sequence index
        by_saliency = s_hat[kept].argsort(descending=True, stable=True)
        order = kept[by_saliency]                                  # (k,)
        S = self.similarity(tokens, order)                         # (k, k)
        is_redundant = (S > self.threshold).tril(-1)               # (k, k)  [j, i]: j, with an i before it
        can_absorb = by_anchors(is_redundant)                      # (k, k)
        absorber = order[self.route(S, can_absorb)]                # (k,)
        destination = torch.arange(tokens.n, device=kept.device)   # (n,)
        destination[order] = torch.where(can_absorb.any(dim=1), absorber, order)
        return destination

    def similarity(self, tokens, which):
        """S_ij, cosine of the hidden states of these visual tokens (m,); those of two images are not alike. (m, m)"""
        hidden = tokens.hidden[tokens.visual]                      # (n, D)
        finite(hidden, "the hidden states")
        image = image_of(tokens)[which]                            # (m,)
        S = cosines(hidden[which]).clamp(max=1)                    # (m, m)
        return S.masked_fill(image[:, None] != image, float("-inf"))

    def route(self, S, can_absorb):
        """Of those that can absorb each token the most salient, which is the first. (k, k) twice -> (k,)"""
        return can_absorb.int().argmax(dim=1)

    def consolidation(self, keep, absorbs, s_hat):
        """Eq. 6: the weights of what each kept token is made of; where all are 0, it stays as it is. (k, n)"""
        weight = absorbs * s_hat                                   # (k, n)
        total = weight.sum(dim=1, keepdim=True)                    # (k, 1)
        itself = F.one_hot(keep, len(s_hat))                       # (k, n)
        return torch.where(total > EPS, weight / total, itself)

    def reallocation(self, tokens, s, kept, anchors):
        """The best of the pruned pool by attention mass s_j, one for each vacated place, if there are enough. (a,)"""
        if not self.salvage:
            return kept[:0]
        a = len(kept) - len(anchors)
        return self.pruned_pool(tokens, s, kept, anchors)[:a]

    def pruned_pool(self, tokens, s, kept, anchors):
        """What is not in I_keep, the best by s_j first. (n-k,)"""
        order = descending(s.index_fill(0, kept, float("-inf")))   # (n,)  I_keep comes last
        return order[:len(s) - len(kept)]


def by_anchors(may_absorb):
    """Disjoint source sets: what is absorbed absorbs nothing. [j, i]: i, before j, may absorb j. (k, k) -> (k, k)"""
    may_absorb = may_absorb.clone()
    for j in range(len(may_absorb)):
        may_absorb[:, j] &= ~may_absorb[j].any()
    return may_absorb
