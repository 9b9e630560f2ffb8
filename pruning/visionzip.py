"""VisionZip. Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025,
arXiv:2412.04467.

Before the projector, keep the tokens that the class token looks at most (dominant tokens), and merge the rest into a
few (contextual tokens): targets are taken at regular distances from the rest, and each other token joins the target
with the most similar key. Keys and attention are averaged over heads, both in the block that makes the features.

Paper and code: the paper merges a target and its tokens by their average (VisionZipAverage in readings/); the
released code, and this file, add the average of the tokens to the target. The class token counts as the first dominant
token, and its embedding is sent to the decoder, as in the code.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Reduction, UserError
from pruning.fields import Amount, option
from pruning.grid import over_all, per_tile
from pruning.ranked import top
from pruning.vision_site import VisionSite


@dataclass(frozen=True)
class VisionZip(VisionSite):
    """Keep the patches that the class token looks at, and merge the others by their keys."""

    keep: Amount = option(1 / 9, "number, or share, of the tokens of each tile left, of both kinds: 64 of 576")
    contextual: Amount = option(10 / 64, "number, or share (rounded down), of these that are contextual")
    cls: bool = option(True, "the class token is a visual token, and the first dominant one")

    laws = frozenset({"budget", "scale", "disjoint"})

    def __post_init__(self):
        super().__post_init__()
        most = 1 if isinstance(self.contextual, float) else 2 ** 20
        if not 0 <= self.contextual <= most:
            raise UserError("VisionZip: contextual is a share from 0 to 1.0, or a number from 0; "
                            f"got {self.contextual}")
        if isinstance(self.keep, int):
            self.counts(self.keep)

    def counts(self, k):
        """How many of k tokens are dominant, and how many contextual. UserError if the latter are more than k."""
        contextual = self.contextual
        if isinstance(contextual, float):
            contextual = int(k * contextual)
        if contextual > k:
            raise UserError(f"VisionZip: contextual {contextual} is more than the {k} tokens kept: "
                            "give a share of them")
        return k - contextual, contextual

    def reduce(self, tokens):
        # attention from the class token of each one's tile, and keys, mean over heads
        attention = tokens.before.cls_attention().mean(dim=0)                      # (n,)
        key = tokens.before.key().float().mean(dim=0)                              # (T, Dh)
        metric = key[tokens.visual]                                                # (n, Dh)
        is_cls = tokens.grid[:, 1] < 0                                             # (n,)
        keep = []
        merge = []
        reason = []
        for tile in per_tile(tokens.grid):                                         # (m,) indices of each tile's tokens
            place, weights, is_target = self.reduced_tile(attention[tile], metric[tile], is_cls[tile])
            keep.append(tile[place])                                               # (k,)
            merge.append(over_all(weights, tile, tokens.n))                        # (k, n)
            reason.append(is_target)
        reason = torch.cat(reason).long()
        reasons = ("dominant", "contextual")
        return Reduction(torch.cat(keep), torch.cat(merge), attention, reason=reason, reasons=reasons)

    def reduced_tile(self, attention, metric, is_cls):
        """One tile's attention (m,), keys (m, Dh) and is_cls (m,) bool -> keep (k,), merge weights (k, m), and which
        are contextual (k,) bool."""
        k = self.budget(len(attention))
        dominant_count, contextual_count = self.counts(k)
        # dominant tokens, the class token first
        cls_first = attention.masked_fill(is_cls, torch.inf)                       # (m,)
        dominant = top(cls_first, dominant_count)                                  # (d,)
        # contextual tokens, out of the rest
        is_rest = torch.ones_like(is_cls).index_fill(0, dominant, False)
        rest = is_rest.nonzero().squeeze(1)                                        # (m-d,)
        target, weights = self.merged(metric, rest, contextual_count)              # (c,), (c, m)
        # join both; dominant tokens stay as they are
        one_hot = F.one_hot(dominant, len(attention)).to(weights)                  # (d, m)
        place = torch.cat([dominant, target])
        weights = torch.cat([one_hot, weights])
        is_target = torch.zeros_like(place, dtype=torch.bool)
        is_target[len(dominant):] = True
        return place, weights, is_target

    def merged(self, metric, rest, count):
        """The contextual tokens: which of `rest` are targets (c,), and merge weights (c, m)."""
        members = torch.zeros(count, len(metric), device=metric.device)            # (c, m)  1: joins the target
        if count == 0:
            nothing = rest[:0]
            return nothing, members
        # targets at regular distances in the rest
        step = max(1, len(rest) // count)
        target = rest[::step]
        target = target[:count]                                                    # (c,)
        # each of the others joins the target whose key is most similar
        other = rest[~torch.isin(rest, target)]                                    # (m-d-c,)
        unit = F.normalize(metric, dim=1)                                          # (m, Dh)
        similarity = unit[other] @ unit[target].T                                  # (m-d-c, c)
        members[similarity.argmax(dim=1), other] = 1
        return target, self.weights(members, target)

    def weights(self, members, target):
        """Weight 1 for each target, and for its members (c, m) together 1 more: their average. (c, m)"""
        count = members.sum(dim=1, keepdim=True)                                   # (c, 1)
        average = members / count.clamp_min(1)
        return average.scatter(1, target[:, None], 1.0)

    def output_order(self, grid, tile_grid):
        """The base tile's tokens first; then the others' dominant patches in the order of the picture, their class
        tokens, and last their contextual tokens."""
        tile = grid[:, 0]
        k = int((tile == 0).sum())
        dominant_count, _ = self.counts(k)
        index_in_tile = torch.arange(len(grid), device=grid.device) % k            # contextual tokens come last
        is_contextual = index_in_tile >= dominant_count
        is_last = is_contextual & (tile > 0)
        order = tile_grid.order(grid)
        first = order[~is_last[order]]
        last = is_last.nonzero().squeeze(1)
        return torch.cat([first, last])
