"""HoloV. Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
NeurIPS 2025, arXiv:2510.02912.

The patches that the class token looks at most are often alike. So the image is cut into crops, the budget is divided
over the crops, and each crop keeps its best tokens.

Paper and code: this file follows the released code. There a crop's score also has a term for the variance of its
features, which is divided by its own mean and so cancels: a crop's budget is its share of the class token's attention
(HoloVReleased in readings/ has the term). In the code, rows of zeros replace what a crop cannot hold; here the other
crops get it. A crop is a strip of the flattened image; `grid` makes it a square.
"""

from dataclasses import dataclass

import torch

from pruning.base import Reduction
from pruning.fields import Amount, FromOne, option
from pruning.grid import squares
from pruning.ranked import descending, finite
from pruning.vision_site import VisionSite


@dataclass(frozen=True)
class HoloV(VisionSite):
    """Divide the budget over crops of the image, by the class token's attention; keep each crop's best tokens."""

    keep: Amount = option(1 / 9, "share, or number, of the tokens of an image kept: 64 of 576")
    crops: FromOne | None = option(None, "number of crops; none: 1024 / 576 times n / keep, 16 for 64 of 576")
    grid: bool = option(False, "crops are squares of the picture, not strips of the flattened image")

    per = "image"
    laws = frozenset({"select", "budget", "scale"})

    def reduce(self, tokens):
        # attention from the class token, mean over heads
        attention = tokens.before.cls_attention().mean(dim=0)                      # (n,)
        finite(attention, "the attention scores")
        feature = tokens.hidden[tokens.visual]                                     # (n, C)
        # divide the budget over the crops
        crops = self.crops_of(tokens)                                              # [(m,)]
        scores = [self.crop_score(attention[crop], feature[crop]) for crop in crops]
        sizes = [len(crop) for crop in crops]
        k = self.budget(tokens.n)
        score = torch.stack(scores).cpu()                                          # (crops,)
        size = torch.tensor(sizes)                                                 # (crops,)
        quotas = self.quotas(k, score, size)
        # keep the best of each crop, the most attended first; all of a full crop, in its order
        keep = []
        for crop, quota in zip(crops, quotas.tolist()):
            best = descending(attention[crop])[:quota]                             # (quota,)
            keep.append(crop if quota >= len(crop) else crop[best])
        return Reduction(torch.cat(keep), score=attention)

    def crops_of(self, tokens):
        """The indices (m,) of each crop's tokens: a list"""
        ratio = tokens.n / self.budget(tokens.n)
        count = self.crops or max(1, int(1024 / 576 * ratio))
        if self.grid:
            return squares(tokens.grid, count)
        index = torch.arange(tokens.n, device=tokens.visual.device)
        return index.tensor_split(min(count, tokens.n))          # the first of them are longer by a token

    def crop_score(self, attention, feature):
        """() what the share of a crop with attention (m,) and features (m, C) is proportional to"""
        return attention.double().mean()

    def quotas(self, k, score, size):
        """k tokens divided over crops in proportion to their scores, of each at most its size. (crops,) each

        Shares are rounded down, and the crops with the highest scores get one more each, until k is reached. What a
        full crop cannot take is divided over the others in the same way.
        """
        quota = torch.zeros_like(size)
        while quota.sum() < k:
            has_room = quota < size
            weight = torch.where(has_room, score, 0)
            if not weight.any():
                weight = has_room.double()                 # no attention at all: equal shares
            share = weight / weight.sum()                                          # (crops,)
            left = k - quota.sum()
            more = (share * left).long()                   # rounded down
            order = descending(torch.where(has_room, share, -1))
            more[order[:left - more.sum()]] += 1
            quota = torch.minimum(quota + more, size)
        return quota
