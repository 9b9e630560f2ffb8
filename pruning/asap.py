"""ASAP. Pathak and Han, "ASAP: Attention-Shift-Aware Pruning for Efficient LVLM Inference", arXiv:2603.14549.

Rotary positions and the causal mask favour late visual tokens, whatever these show. SG-BiMask lets each visual token
also see later ones: the more salient they are, the better. Of the k best tokens under that mask, redundant ones are
merged into more salient ones, and the best of the dropped tokens take the places that become free.

Paper and code: no code is public. The paper does not say in which layers the mask acts, nor whose attention ranks. Here
the mask acts in all layers before the cut, and the last row ranks as in FastV. So each of FastV, FastVBiMask and ASAP
adds one thing to the one before, as in Figure 4. Other readings: readings/ and the card (README.md).
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
    """4.1 Saliency-Guided Bidirectional Mask, for any decoder method: `class Masked(SGBiMask, OtherMethod)`."""

    lambda_max: ToOne = option(1.0, "how visible the most salient later token is, in (0, 1]")

    def mask_at(self, layers):
        """All layers before the last cut."""
        last_cut = max(self.reduce_at(layers), default=0)
        return tuple(range(last_cut))

    def mask(self, tokens):
        mask = tokens.here.mask().clone()                          # (T, T)  causal
        _, s_hat = masses(tokens, tokens.here)                     # (n,)
        log_lambda = self.discount(s_hat).clamp_min(EPS).log()     # (n,)
        # Eq. 4: visual token i sees the later token j of its image, discounted by lambda_j
        image = image_of(tokens)                                   # (n,)
        is_later = (image[:, None] == image).triu(1)               # (n, n)  [i, j]: j > i, in one image
        visual_pairs = (tokens.visual[:, None], tokens.visual)     # indices of an (n, n) part of the mask
        mask[visual_pairs] = torch.where(is_later, log_lambda, mask[visual_pairs])
        return mask                                                # Eq. 5: the layer adds it to W

    def discount(self, s_hat):
        """lambda_j: how visible token j is to earlier ones. (n,) -> (n,)"""
        return self.lambda_max * s_hat


def masses(tokens, view):
    """Attention mass s_j and saliency s_hat_j of each visual token; each image by itself. (n,) twice"""
    _, counts = image_of(tokens).unique_consecutive(return_counts=True)
    s = [attention_mass(view, rows) for rows in tokens.visual.split(counts.tolist())]
    s_hat = [saliency(s_of_image) for s_of_image in s]
    return torch.cat(s), torch.cat(s_hat)


def attention_mass(view, rows):
    """Eq. 2: s_j, the sum of W_ij over the visual tokens i of one image, rows (m,). (m,)

    W = QK^T / sqrt(Dh), the attention logits before the mask, mean over heads.
    """
    s = view.summed_logits(rows)[rows]                             # (m,)
    return finite(s, "the queries or keys")


def saliency(s):
    """Eq. 3: s_hat_j in [0, 1], of the masses of one image. (m,) -> (m,)"""
    s_min = s.min()
    s_max = s.max()
    return (s - s_min) / (s_max - s_min + EPS)


def image_of(tokens):
    """(n,) a number for the image of each visual token: of text tokens before it, since text separates images."""
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
        # 4.2: redundant tokens go to more salient ones, the anchors, which stay where they are
        s, s_hat = masses(tokens, tokens.before)                   # (n,) twice
        destination = self.routing(tokens, s_hat, kept)            # (n,)
        stays = destination[kept] == kept                          # (k,)
        anchors = kept[stays]                                      # (k-a,)
        # 4.2: the best of the other tokens take the a places that became free
        salvaged = self.reallocation(tokens, s, kept, anchors)     # (a,)
        keep = torch.cat([anchors, salvaged]).sort().values        # (k,)
        # 4.2: merge
        absorbs = destination == keep[:, None]                     # (k, n)  [i, j]: i absorbs j; each absorbs itself
        merge = self.consolidation(keep, absorbs, s_hat)           # (k, n)
        # for pictures: 0 kept, 1 salvaged, 2 absorbs others
        reason = torch.isin(keep, salvaged).long()                 # (k,)
        reason[absorbs.sum(dim=1) > 1] = 2
        return Reduction(keep, merge, best.score, reason=reason, reasons=("kept", "salvaged", "absorbs others"))

    def routing(self, tokens, s_hat, kept):
        """(n,) where each token goes: the redundant ones of I_keep (k,) to an anchor, all others stay"""
        order = kept[descending(s_hat[kept])]                      # (k,)    the most salient first
        S = self.similarity(tokens, order)                         # (k, k)
        is_similar = (S > self.threshold).tril(-1)                 # (k, k)  [j, i]: j is like i, which is more salient
        can_absorb = by_anchors(is_similar)                        # (k, k)  [j, i]: and i is an anchor
        is_redundant = can_absorb.any(dim=1)                       # (k,)
        absorber = order[self.route(S, can_absorb)]                # (k,)
        destination = torch.arange(tokens.n, device=kept.device)   # (n,)
        destination[order] = torch.where(is_redundant, absorber, order)
        return destination

    def similarity(self, tokens, which):
        """S_ij, cosine of the hidden states of these visual tokens (m,); -inf between two images. (m, m)"""
        hidden = finite(tokens.hidden[tokens.visual], "the hidden states")         # (n, D)
        image = image_of(tokens)[which]                            # (m,)
        S = cosines(hidden[which]).clamp(max=1)                    # (m, m)
        return S.masked_fill(image[:, None] != image, float("-inf"))

    def route(self, S, can_absorb):
        """For each token j, which of those that can absorb it does: the most salient. (k, k) twice -> (k,)"""
        return can_absorb.int().argmax(dim=1)                      # the first, since the most salient come first

    def consolidation(self, keep, absorbs, s_hat):
        """Eq. 6: new token i is the mean of what it absorbs, weighted by saliency; if that is 0, i itself. (k, n)"""
        weight = absorbs * s_hat                                   # (k, n)
        total = weight.sum(dim=1, keepdim=True)                    # (k, 1)
        itself = F.one_hot(keep, len(s_hat))                       # (k, n)
        return torch.where(total > EPS, weight / total, itself)

    def reallocation(self, tokens, s, kept, anchors):
        """The best of the pruned pool by attention mass s_j, one for each free place, if there are enough. (a,)"""
        a = len(kept) - len(anchors) if self.salvage else 0
        return self.pruned_pool(tokens, s, kept, anchors)[:a]

    def pruned_pool(self, tokens, s, kept, anchors):
        """The tokens that are not in I_keep, the best by s_j first. (n-k,)"""
        order = descending(s)                                      # (n,)
        return order[~torch.isin(order, kept)]


def by_anchors(may_absorb):
    """Disjoint source sets: only anchors absorb, and nothing absorbs an anchor. (k, k) -> (k, k)

    [j, i]: i, which comes before j, may absorb j. The first token is an anchor; then each that no anchor may absorb.
    """
    is_anchor = torch.zeros_like(may_absorb[0])                    # (k,)
    for j in range(len(may_absorb)):
        is_anchor[j] = ~(may_absorb[j] & is_anchor).any()
    return may_absorb & is_anchor
