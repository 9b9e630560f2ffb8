"""ASAP. Pathak and Han, "Attention-Shift-Aware Pruning for Efficient LVLM Inference", arXiv:2603.14549.

Rotary positions and the causal mask favour late visual tokens, whatever they show. SG-BiMask lets each visual token look at
later ones too, more so the more salient those are. Of the k best tokens under that mask, redundant ones are merged into more
salient ones, and the best of the dropped ones take the places that this vacates.

Paper and code: no code is public, and the paper leaves open in which layers the mask acts and whose attention ranks. Here it
acts in all layers before the cut and FastV's last row ranks, so that Figure 4 changes one thing at a time; the other readings
are in readings.py and weighed in the card (README.md).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F

from pruning.base import Pruner, Reduction, UserError
from pruning.fastv import FastV
from pruning.fields import Amount, Layer, Range
from pruning.ranked import Ranked, cosines, top

ToOne = Annotated[float, Range(above=0, high=1)]
EPS = 1e-6                             # of Eq. 3 and 4


@dataclass(frozen=True, kw_only=True)
class SGBiMask(Pruner):
    """4.1 Saliency-Guided Bidirectional Mask. A plug-in: `class Mine(SGBiMask, AnyDecoderMethod)` has the mask before its cut."""

    lambda_max: ToOne = 1.0            # how visible the most salient later token is, in (0, 1]

    def mask_at(self, layers):
        """All layers before the (last) cut."""
        return tuple(range(max(self.reduce_at(layers))))

    def mask(self, tokens):
        mask = tokens.here.mask().clone()                                          # (T, T)  causal
        for image in images(tokens.visual):
            _, s_hat = saliency(tokens.here, image)                                # (m,)
            log_lambda = self.visibility(s_hat).clamp_min(EPS).log()               # (m,)
            later = torch.ones(len(image), len(image), dtype=torch.bool, device=image.device).triu(1)        # i < j
            span = slice(int(image[0]), int(image[-1]) + 1)
            mask[span, span] = torch.where(later, log_lambda, mask[span, span])    # Eq. 4; the layer adds it to W: Eq. 5
        return mask

    def visibility(self, s_hat):
        """lambda_j of each later token. (m,) -> (m,)"""
        return self.lambda_max * s_hat


def saliency(view, image):
    """Raw attention mass s_j and saliency s_hat_j of the visual tokens of one image, rows (m,). (m,) twice

    W = QK^T / sqrt(Dh), mean over heads. W itself is not needed: the sum over i of q_i . k_j is (sum of the q_i) . k_j.
    """
    query_sum = view.query(image).sum(dim=1, dtype=torch.float32)                  # (H, Dh)
    key = view.key()[:, image].float()                                             # (Hk, m, Dh)
    query_sum = query_sum.unflatten(0, (len(key), -1)).mean(dim=1)                 # (Hk, Dh)  mean of the heads that share a key
    s = (key @ query_sum[:, :, None]).squeeze(2).mean(dim=0) / key.shape[-1] ** 0.5                # (m,)  Eq. 2
    if not s.isfinite().all():
        raise UserError("the queries or keys contain NaN or infinity: the model overflowed; load it in float32 or bfloat16")
    s_hat = (s - s.min()) / (s.max() - s.min() + EPS)                              # (m,)  Eq. 3
    return s, s_hat


@dataclass(frozen=True)
class ASAP(SGBiMask, Ranked):
    """Rank under SG-BiMask, merge what is redundant among the kept, refill."""

    layer: Layer = 2                   # K: the first layer that runs on the kept tokens; the paper's L is layer K-1
    keep: Amount = 0.17                # k: share, or number, of visual tokens kept (98 of 576: 128 on average)
    lambda_max: ToOne = 1.0            # how visible the most salient later token is, in (0, 1]
    consolidate: bool = True           # Saliency-Weighted Consolidation
    threshold: float = 0.9             # t: cosine above which a token is redundant
    salvage: bool = True               # Budget Reallocation

    rounding = "round"

    @property
    def laws(self):
        if not self.consolidate:
            return frozenset({"select", "ordered", "budget", "scale", "needle"})
        refills = self.salvage and isinstance(self.keep, float) and self.keep <= 0.5
        return frozenset({"ordered", "scale", "convex", "disjoint"} | ({"budget"} if refills else set()))

    def reduce(self, tokens):
        # 4.1: of the attention under the mask, the k best
        score = self.score(tokens)                                                 # (n,)
        kept = top(score, self.budget(tokens.n))                                   # (k,)    I_keep
        if not self.consolidate:
            return Reduction(kept, score=score)
        # 4.2: merge what is redundant, then refill from the pruned pool
        s, s_hat = self.masses(tokens)                                             # (n,) twice
        anchors, weights = self.consolidation(tokens, s_hat, kept)                 # (k-a,), (k-a, n)
        salvaged = self.reallocation(tokens, s, kept, anchors)                     # (a,)
        keep, place = torch.cat([anchors, salvaged]).sort()
        merge = torch.cat([weights, F.one_hot(salvaged, tokens.n).to(weights)])[place]             # (k, n)
        reason = (place >= len(anchors)).long()
        reason = torch.where((merge > 0).sum(dim=1) > 1, 2, reason)
        return Reduction(keep, merge, score, reason=reason, reasons=("kept", "salvaged", "absorbs others"))

    def score(self, tokens):
        """(n,) attention from the last prompt token, mean over heads, as in FastV"""
        return tokens.before.mean_attention("last")[0, tokens.visual]

    def masses(self, tokens):
        """4.1: s_j and saliency of each visual token, among those of its image. (n,) twice"""
        pairs = [saliency(tokens.before, image) for image in images(tokens.visual)]
        return torch.cat([s for s, _ in pairs]), torch.cat([s_hat for _, s_hat in pairs])

    def consolidation(self, tokens, s_hat, kept):
        """4.2 Saliency-Weighted Consolidation of I_keep (k,): its anchors, and the weights of what each is made of."""
        # from the most salient on; ties by sequence index
        order = kept[s_hat[kept].argsort(descending=True, stable=True)]            # (k,)
        own = torch.arange(len(order), device=order.device)
        # a token goes to an anchor that is more salient and alike; what no anchor can absorb is an anchor
        can_absorb = (self.similarity(tokens, order) > self.threshold).tril(-1)    # (k, k)  [j, i]: i may absorb j
        can_absorb &= anchors_of(can_absorb)
        destination = torch.where(can_absorb.any(dim=1), self.route(tokens, order, can_absorb), own)         # (k,)
        # Eq. 6: each anchor and its sources, weighted by saliency; where all weights are 0, the anchor stays as it is
        weight = F.one_hot(destination, len(own)).T * self.merge_weight(s_hat[order])                # (k, k)  i absorbs j
        total = weight.sum(dim=1, keepdim=True)                                    # (k, 1)
        weight = torch.where(total > EPS, weight / total, F.one_hot(own))
        is_anchor = destination == own
        weights = weight.new_zeros(int(is_anchor.sum()), tokens.n).index_copy_(1, order, weight[is_anchor])
        return order[is_anchor], weights

    def similarity(self, tokens, which):
        """S_ij: cosine of the hidden states of these visual tokens (m,); tokens of two images have none. (m, m)"""
        hidden = tokens.hidden[tokens.visual].float()                              # (n, D)
        if not hidden.isfinite().all():                    # 0 * inf is NaN: one such row would spoil every merged one
            raise UserError("the hidden states are not finite: the model overflowed; load it in float32 or bfloat16")
        image = (tokens.visual - torch.arange(tokens.n, device=which.device))[which]               # (m,)  by the text before it
        S = cosines(hidden[which]).clamp(max=1)
        return S.masked_fill(image[:, None] != image, float("-inf"))

    def route(self, tokens, order, can_absorb):
        """(k,) the most salient of the anchors that may absorb each token: they come first"""
        return can_absorb.int().argmax(dim=1)

    def merge_weight(self, s_hat):
        """What each token weighs in Eq. 6. (k,) -> (k,)"""
        return s_hat

    def reallocation(self, tokens, s, kept, anchors):
        """4.2 Budget Reallocation: of the pruned pool, the best by mass s_j, as many as the sources that left a place. (a,)"""
        if not self.salvage:
            return kept[:0]
        pool = s.index_fill(0, kept, float("-inf")).argsort(descending=True, stable=True)[:len(s) - len(kept)]
        return pool[:len(kept) - len(anchors)]


def anchors_of(can_absorb):
    """The one set in which a token is an anchor exactly if no anchor may absorb it. (k, k) [j, i]: i may absorb j -> (k,)

    i comes before j: the first is an anchor, and each round settles those that only settled ones may absorb.
    """
    anchor = torch.ones(len(can_absorb), dtype=torch.bool, device=can_absorb.device)
    for _ in range(len(can_absorb)):                       # a few rounds: as many as the longest chain has links
        before = anchor
        anchor = ~(can_absorb & anchor).any(dim=1)
        if torch.equal(before, anchor):
            break
    return anchor


def images(visual):
    """The rows of each image (m,), of visual rows (n,): text ends an image."""
    ends = (visual.diff() > 1).nonzero().squeeze(1) + 1
    return visual.tensor_split(ends.cpu())


@dataclass(frozen=True)
class FastVBiMask(SGBiMask, FastV):
    """Appendix C.1: FastV with SG-BiMask. The second rung of Figure 4."""
