"""ASAP. Pathak and Han, "Attention-Shift-Aware Pruning for Efficient LVLM Inference", arXiv:2603.14549.

Rotary positions and the causal mask favour late visual tokens whatever they show. SG-BiMask lets each visual token look
at later ones too, the more so the more salient those are; the attention under it is what layer K-1 computes with and what
ranks the tokens. Of the k best, the redundant ones are merged into more salient ones (Saliency-Weighted Consolidation),
and the most salient of the dropped ones fill the places that this vacates (Budget Reallocation).

Paper and code: no code is public and the paper leaves much open. What is chosen here, and the options that change it:
    4.1  It does not say which attention ranks. The mask changes visual rows alone: in layer K-1 the last row, which FastV
         ranks by, stays as it was and would give FastV's tokens. So all rows from the image on rank (rank_query).
         The mask itself, and what is open in it: bimask.py. It drives the layer's output, as Eq. 5 says (apply_to_output).
    4.2  What is compared and merged is what layer K receives; t has no value. "j is absorbed by i" may chain, where i is
         absorbed too; disjoint source sets forbid that, and then one set of anchors alone fits the rule (chain). Of several
         anchors the most similar takes the source (route). Where the weights of Eq. 6 are all 0, h_i stays. A salvaged
         token may be like a kept one (salvage_dedup); if the pool is too small, fewer than k are left.
    I    is all tiles of an image, newline tokens too. Images with text between them are a set I each, and do not merge:
         else the first would see, through the second, text that comes after it.
Figure 4: bidirectional=False, consolidate=False, rank_query="last" is FastV; then consolidate=False; then the defaults.
Appendix C.1, the mask as a plug-in: bimask.py. "192" and "128" of the tables are averages over layers (with_average).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from pruning.base import Reduction, UserError, cosines, staged, tokens_to_keep, top
from pruning.bimask import SGBiMask, images
from pruning.fields import Amount, AnyLayer, Layer


@dataclass(frozen=True)
class ASAP(SGBiMask):
    """Rank under SG-BiMask, merge what is redundant among the kept, refill."""

    layer: Layer = 2                   # K: the first layer that runs on the kept tokens; the paper's L is layer K-1
    keep: Amount = 0.17                # k: share, or number, of visual tokens kept (98 of 576: 128 on average)
    stages: tuple[tuple[AnyLayer, Amount], ...] = ()  # progressive, in place of layer and keep: ((layer, keep of the original), ..)
    rounding: str = "round"            # of share * n
    bidirectional: bool = True         # off: causal attention, as in FastV
    apply_to_output: bool = True       # the mask drives the layer's output; off: the scores alone
    rank_query: Literal["all", "visual", "text", "last", "saliency"] = "all"  # attention from "all" rows from the image on, "visual", "text", "last"; "saliency": s_j
    consolidate: bool = True           # Saliency-Weighted Consolidation
    threshold: float = 0.9             # t: cosine above which a token is redundant
    chain: Literal["anchor", "root", "cascade", "literal"] = "anchor"  # where i is absorbed too: "anchor", "root", "cascade" or "literal" (see destinations)
    route: Literal["similar", "salient"] = "similar"  # of several anchors, the most "similar" or the most "salient"
    salvage: bool = True               # Budget Reallocation
    salvage_dedup: bool = False        # salvage only what is not redundant with what is there
    position_ids: Literal["keep", "renumber"] = "keep"  # of survivors, merged ones too: their own, "keep", or "renumber"
    prune_past_kv: bool = False        # drop from the caches of layers ..K-1 too: Table 4's storage is just that

    rows = "all"
    across_heads = "mean"
    positions = property(lambda self: self.position_ids)

    def __post_init__(self):
        super().__post_init__()
        layers = self.reduce_at(None)
        if layers[0] < 1 or any(a >= b for a, b in zip(layers, layers[1:])):
            raise UserError(f"ASAP: layers rise from 1 on, as before layer 0 there is no attention to rank by; got {layers}")
        if self.bidir_layers and not (self.bidirectional and self.apply_to_output):
            raise UserError("ASAP: bidir_layers needs bidirectional and apply_to_output: without them no layer has the mask")
        self.budget(2 ** 20)           # what no prompt can meet fails here, before the model runs

    @property
    def cuts(self):
        """((layer, keep), ..) of all stages."""
        return self.stages or ((self.layer, self.keep),)

    @property
    def looks(self):
        """Whether it ranks by the attention that layer K-1 computes with."""
        return self.rank_query != "saliency" and (self.apply_to_output or not self.bidirectional)

    @property
    def needs(self):
        return frozenset({"turned_query", "turned_key"} | ({"attn"} if self.looks else set()))

    @property
    def laws(self):
        refills = self.salvage and not self.salvage_dedup and isinstance(self.keep, float) and self.keep <= .5
        return frozenset({"ordered", "scale", "convex" if self.consolidate else "select"}
                         | ({"budget"} if (refills or not self.consolidate) and not self.stages else set())
                         | ({"needle"} if self.looks and not self.consolidate else set()))

    def reduce_at(self, layers):
        return tuple(l for l, _ in self.cuts)

    def mask_at(self, layers):
        return super().mask_at(layers) if self.bidirectional and self.apply_to_output else ()

    def budget(self, n):
        """Visual tokens left of n after the last stage; fewer where consolidation vacates more than the pool can fill."""
        return min(tokens_to_keep(keep, n, self.rounding) for _, keep in self.cuts)

    def schedule(self, n, layers):
        return staged(self.cuts, n, layers, self.rounding)

    def reduce(self, tokens):
        s, s_hat = self.masses(tokens)                                             # (n,), (n,)
        score = s if self.rank_query == "saliency" else self.attention_received(tokens)            # (n,)
        kept = top(score, self._k(tokens))                                         # (k,)   I_keep
        if not self.consolidate:
            return Reduction(kept, score=score)
        anchors, weight = self.consolidation(tokens, s_hat, kept)                  # (k-a,), (k-a, n)
        salvaged = self.reallocation(tokens, s, kept, anchors)                     # (a,)
        keep, order = torch.cat([anchors, salvaged]).sort()
        return Reduction(keep, torch.cat([weight, F.one_hot(salvaged, tokens.n).to(weight)])[order], score)

    def masses(self, tokens):
        """4.1: s_j and saliency of each visual token, among those of its image. (n,), (n,)"""
        of = [self.saliency(tokens.turned_query[:, image], tokens.turned_key[:, image]) for image in images(tokens.visual)]
        return tuple(torch.cat(parts, dim=1).squeeze(0) for parts in zip(*of))

    def attention_received(self, tokens):
        """4.1: of each visual token the attention under the mask, mean over heads and over the rows that rank. (n,)"""
        rows = tokens.query_rows(self.rank_query)
        rows = rows[rows >= tokens.visual[0]]
        if not len(rows):
            raise UserError('ASAP: no text follows the image, so rank_query="text" has no rows: put the question after <image>')
        attn = tokens.attn.mean(dim=0) if self.looks else self.unseen(tokens)      # (T, T)
        return attn[rows].mean(dim=0)[tokens.visual]

    def unseen(self, tokens):
        """Eq. 5 where the layer computed with the causal mask: attention under this one, mean over heads. (T, T)"""
        query, key = tokens.turned_query.float(), tokens.turned_key.float()        # (H, T, Dh), (Hk, T, Dh)
        (H, T, Dh), key = query.shape, key.repeat_interleave(len(query) // len(key), dim=0)
        mask = self.mask(tokens, query, key, torch.full((T, T), float("-inf"), device=key.device).triu(1)).expand(H, -1, -1)
        return sum((q @ k.T / Dh ** 0.5 + m).softmax(dim=-1) for q, k, m in zip(query, key, mask)) / H

    def consolidation(self, tokens, s_hat, kept):
        """4.2 Saliency-Weighted Consolidation of I_keep (k,): its anchors and of what they are made, (k-a,), (k-a, n)."""
        order = kept[s_hat[kept].argsort(descending=True, stable=True)]            # (k,)   ties by sequence index
        S, own = self.similarity(tokens, order), torch.arange(len(order), device=order.device)
        dest = self.destinations(S)                                                # (k,)   its own: an anchor
        weight = F.one_hot(dest, len(dest)).T * s_hat[order]                       # (k, k) i absorbs j
        weight[own, own] = s_hat[order]
        total = weight.sum(dim=1, keepdim=True)
        weight = torch.where(total > self.eps, weight / total, F.one_hot(own))     # Eq. 6
        if self.chain == "cascade":        # h' = diagonal h + above h': what is absorbed has itself absorbed
            above = weight.triu(1)
            weight = torch.linalg.solve_triangular(torch.eye(len(own)).to(above) - above, weight - above, upper=True)
        anchor = dest == own
        made = weight[anchor]                                                      # (k-a, k)
        return order[anchor], made.new_zeros(len(made), tokens.n).index_copy_(1, order, made)

    def similarity(self, tokens, which):
        """S_ij: cosine of the hidden states of these visual tokens (m,); tokens of two images have none. (m, m)"""
        hidden = tokens.hidden[tokens.visual].float()                              # (n, D)
        if not hidden.isfinite().all():                    # 0 * inf is NaN: one such row would spoil every merged one
            raise UserError("the hidden states are not finite: the model overflowed; load it in float32 or bfloat16")
        image = (tokens.visual - torch.arange(tokens.n, device=which.device))[which]               # (m,)  by the text before it
        return cosines(hidden[which]).clamp(max=1).masked_fill(image[:, None] != image, float("-inf"))

    def destinations(self, S):
        """Which token absorbs each, of tokens from the most salient on with similarity S (k, k); its own index: none. (k,)

        chain="anchor": only anchors absorb (anchors_of). Else every token with one above it is a source, and goes to it and
        on to where that one goes ("root"), or what that one has become goes on ("cascade"), or, as the paper's sentence
        reads, nothing goes on: what a source has absorbed is lost with it ("literal").
        """
        above = (S > self.threshold).tril(-1)                                      # (k, k) i may absorb j: [j, i]
        if self.chain == "anchor":
            above &= anchors_of(above)
        best = S.masked_fill(~above, float("-inf")) if self.route == "similar" else above.int()
        own = torch.arange(len(S), device=S.device)
        dest = torch.where(above.any(dim=1), best.argmax(dim=1), own)              # of equals, the more salient
        for _ in range(len(S).bit_length() if self.chain == "root" else 0):
            dest = dest[dest]
        return dest

    def reallocation(self, tokens, s, kept, anchors):
        """4.2 Budget Reallocation: the a best of the pruned pool by mass s_j, a = number of sources. (a,)"""
        a = len(kept) - len(anchors) if self.salvage else 0
        pool = s.index_fill(0, kept, float("-inf")).argsort(descending=True, stable=True)[:tokens.n - len(kept)]
        if self.salvage_dedup:
            S = self.similarity(tokens, torch.cat([anchors, pool]))
            pool = pool[anchors_of((S > self.threshold).tril(-1))[len(anchors):]]
        return pool[:a]

    def _k(self, tokens):
        keep = dict(self.cuts)[tokens.layer] if self.stages else self.keep
        return min(tokens.n, tokens_to_keep(keep, tokens.entered, self.rounding))


def anchors_of(above):
    """The one set in which a token is an anchor exactly if no anchor may absorb it. (k, k) [j, i]: i may absorb j -> (k,)

    i comes before j: the first is an anchor, and each round settles those whom only settled ones may absorb.
    """
    anchor = torch.ones(len(above), dtype=torch.bool, device=above.device)
    for _ in range(len(above)):                            # a few rounds do, as many as the longest chain has links
        before, anchor = anchor, ~(above & anchor).any(dim=1)
        if torch.equal(before, anchor):
            break
    return anchor
