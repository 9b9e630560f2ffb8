"""HoloV: the released code, and a tower without a class token."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from pruning.fields import FromOne, option
from pruning.holov import HoloV
from pruning.ranked import descending
from pruning.readings.received import ByReceived


@dataclass(frozen=True)
class HoloVReleased(HoloV):
    """The released code. A crop's score has a term for the variance of its features, which cancels in the mean. What a
    crop is to keep, but cannot hold, is lost: rows of zeros take the places of the first tokens that are not kept."""

    crops: FromOne | None = option(16, "number of crops")

    laws = frozenset({"budget", "disjoint"})

    def crop_score(self, attention, feature):
        m = len(attention)
        if m == 1:
            return attention[0]
        # how much the similarities of each token to the others vary
        feature = feature.float()
        unit = feature / (feature.norm(dim=1, keepdim=True) + 1e-6)                # (m, C)
        similarity = (unit @ unit.T).fill_diagonal_(0)                             # (m, m)
        mean = similarity.sum(dim=1, keepdim=True) / (m - 1)                       # (m, 1)
        variance = (similarity - mean).square().sum(dim=1) / (m - 1)               # (m,)
        # bring both terms to the same scale
        attention = 1000 * attention                                               # (m,)
        scale = attention.abs().mean() / (variance.abs().mean() + 1e-6)
        return (attention + 0.09 * scale * variance).mean()

    def quotas(self, k, score, size):
        share = score / (score.sum() + 1e-6)                                       # (crops,)
        quota = (share * k).long()
        rest = k - int(quota.sum())
        quota[descending(share)[:rest]] += 1
        return quota

    def reduce(self, tokens):
        r = super().reduce(tokens)
        lost = self.budget(tokens.n) - len(r.keep)
        if lost == 0:
            return r
        one_hot = F.one_hot(r.keep, tokens.n).float()                              # (k-lost, n)
        is_left_out = one_hot.sum(dim=0) == 0                                      # (n,)
        place = is_left_out.nonzero().squeeze(1)[:lost]
        zeros = one_hot.new_zeros(lost, tokens.n)
        return replace(r, keep=torch.cat([r.keep, place]), merge=torch.cat([one_hot, zeros]))


@dataclass(frozen=True)
class HoloVReceived(ByReceived, HoloV):
    """Without a class token: patches rank by the attention they receive from all patches of their tile."""
