"""ASAP: whose attention ranks, in which layers the mask acts, what is merged."""

from dataclasses import dataclass

import torch

from pruning.asap import ASAP, FastVBiMask, by_anchors, masses


class MaskInLastLayer:
    """The mask acts only in layer K-1. It does not change the last row there, so all rows from the image on rank."""

    def mask_at(self, layers):
        return tuple(l - 1 for l in self.reduce_at(layers))

    def score(self, tokens):
        rows = tokens.rows("all")                                                  # (T,)
        from_image_on = rows[rows >= tokens.visual[0]]                             # (R,)
        return tokens.before.mean_attention(from_image_on).mean(dim=0)[tokens.visual]


@dataclass(frozen=True)
class ASAPMaskLast(MaskInLastLayer, ASAP):
    """The mask acts only in layer K-1, and all rows rank."""


@dataclass(frozen=True)
class FastVBiMaskLast(MaskInLastLayer, FastVBiMask):
    """FastV with SG-BiMask only in layer K-1, and all rows rank. The same without the mask is fastv_all."""


@dataclass(frozen=True)
class ASAPSaliencyRank(ASAP):
    """Figure 3 has "top-k salient visual tokens": the attention mass s_j ranks."""

    @property
    def laws(self):
        return super().laws - {"needle"}

    def score(self, tokens):
        s, _ = masses(tokens, tokens.before)
        return s


@dataclass(frozen=True)
class ASAPUniformMask(ASAP):
    """What section 4.1 compares with: every later token is equally visible."""

    def discount(self, s_hat):
        return torch.full_like(s_hat, self.lambda_max)


@dataclass(frozen=True)
class ASAPMeanMerge(ASAP):
    """What section 4.2 compares with: redundant tokens are merged by their plain mean."""

    def consolidation(self, keep, absorbs, s_hat):
        return super().consolidation(keep, absorbs, torch.ones_like(s_hat))


@dataclass(frozen=True)
class ASAPSimilarRoute(ASAP):
    """A redundant token goes to the most similar of the anchors that can absorb it, not to the most salient."""

    def route(self, S, can_absorb):
        return S.masked_fill(~can_absorb, float("-inf")).argmax(dim=1)


@dataclass(frozen=True)
class ASAPMaskLastSimilar(ASAPMaskLast):
    """ASAPMaskLast and ASAPSimilarRoute together: the reading of the stored recordings."""

    route = ASAPSimilarRoute.route


@dataclass(frozen=True)
class ASAPDedup(ASAP):
    """A token is salvaged only if it is not redundant with an anchor, or with a token salvaged before it."""

    @property
    def laws(self):
        return super().laws - {"budget"}       # the pool may have too few such tokens

    def pruned_pool(self, tokens, s, kept, anchors):
        pool = super().pruned_pool(tokens, s, kept, anchors)                       # (n-k,)
        # the anchors first, so that they stay anchors
        S = self.similarity(tokens, torch.cat([anchors, pool]))                    # (m, m)
        is_similar = (S > self.threshold).tril(-1)                                 # [j, i]: j is like i, before it
        is_redundant = by_anchors(is_similar).any(dim=1)                           # (m,)
        of_pool = is_redundant[len(anchors):]                                      # (n-k,)
        return pool[~of_pool]


@dataclass(frozen=True)
class ASAPPrunePast(ASAP):
    """The caches of the layers before the cut lose the dropped tokens, too, as the storage in Table 4 suggests."""

    prune_past_kv = True


@dataclass(frozen=True)
class ASAPRenumbered(ASAP):
    """The remaining tokens get position ids 0, 1, ..; they do not keep theirs."""

    positions = "renumber"
