"""VisionZip. Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025,
arXiv:2412.04467.

Before the projector, keep the tokens that the class token looks at most (dominant tokens), and merge the rest into a few:
targets at regular distances in the rest, each joined by the tokens whose keys are most similar to its own (contextual
tokens). Keys and attention are averaged over heads, both in the block that makes the features.

Paper and code: the paper merges a target and its tokens by their average (VisionZipAverage in readings.py); the released code,
and this file, add the average of the tokens to the target. The class token counts as the first dominant token, and its
embedding is sent to the decoder, as in the code.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Pruner, Reduction, UserError
from pruning.budget import tokens_to_keep
from pruning.fields import Amount
from pruning.grid import over_all, per_tile
from pruning.ranked import top


@dataclass(frozen=True)
class VisionZip(Pruner):
    """Keep the patches that the class token looks at, and merge the others by their keys."""

    keep: float | int = 1 / 9          # number, or share, of the tokens of each tile left, of both kinds: 64 of 576
    contextual: Amount = 10 / 64       # of these the contextual ones: share, rounded down, or number
    cls: bool = True                   # the class token is a visual token, and the first dominant one

    site = "vision"
    per = "tile"
    laws = frozenset({"budget", "scale", "disjoint"})
    preconditions = frozenset({"cls"})

    def __post_init__(self):
        super().__post_init__()
        most = 1 if isinstance(self.contextual, float) else 2 ** 20
        if not 0 <= self.contextual <= most:
            raise UserError(f"VisionZip: contextual is a share from 0 to 1.0, or a number from 0; got {self.contextual}")
        self.counts(self.keep if isinstance(self.keep, int) else 2 ** 20)
        self.budget(2 ** 20)           # a value of keep that no tile can meet fails here, before the model runs

    def budget(self, n, tiles=1):
        """Visual tokens left of n in all, the tiles being equal in size."""
        return tiles * tokens_to_keep(self.keep, n // tiles)

    def counts(self, k):
        """Of k tokens the numbers of dominant and of contextual ones. UserError if there are more of these than k."""
        contextual = int(k * self.contextual) if isinstance(self.contextual, float) else self.contextual
        if contextual > k:
            raise UserError(f"VisionZip: contextual {contextual} is more than the {k} tokens kept: give a share of them")
        return k - contextual, contextual

    def reduce(self, tokens):
        attention = self.importance(tokens)                                        # (n,)
        metric = tokens.before.key().float().mean(dim=0)[tokens.visual]            # (n, Dh)  keys, mean over heads
        is_cls = tokens.grid[:, 1] < 0                                             # (n,)
        keep = []
        merge = []
        reason = []
        for tile in per_tile(tokens.grid):                                         # (m,) indices of each tile's tokens
            place, weights, is_target = self.zipped(attention[tile], metric[tile], is_cls[tile])
            keep.append(tile[place])                                               # (k,)
            merge.append(over_all(weights, tile, tokens.n))                        # (k, n)
            reason.append(is_target)
        return Reduction(torch.cat(keep), torch.cat(merge), attention, reason=torch.cat(reason).long(),
                         reasons=("dominant", "contextual"))

    def importance(self, tokens):
        """(n,) attention from the class token of each one's tile, mean over heads"""
        return tokens.before.cls_attention().mean(dim=0)

    def zipped(self, attention, metric, is_cls):
        """One tile's attention (m,), keys (m, Dh), class token or not (m,) -> places (k,), weights (k, m), contextual or not (k,)."""
        dominant_count, contextual_count = self.counts(self.budget(len(attention)))
        # dominant tokens, the class token first
        dominant = top(attention.masked_fill(is_cls, torch.inf), dominant_count)   # (d,)
        rest = torch.ones_like(is_cls).index_fill(0, dominant, False).nonzero().squeeze(1)
        # contextual tokens
        target, weights = self.merged(metric, rest, contextual_count)              # (c,), (c, m)
        one_hot = F.one_hot(dominant, len(attention)).to(weights)                  # (d, m)
        place = torch.cat([dominant, target])
        is_target = torch.arange(len(place), device=place.device) >= len(dominant)
        return place, torch.cat([one_hot, weights]), is_target

    def merged(self, metric, rest, count):
        """The contextual tokens: places (c,) of the targets among `rest`, and weights (c, m)."""
        members = torch.zeros(count, len(metric), device=metric.device)            # (c, m)  1: joins the target
        if count == 0:
            return rest[:0], members
        target = rest[::max(1, len(rest) // count)][:count]                        # (c,)
        other = rest[~torch.isin(rest, target)]
        unit = F.normalize(metric, dim=1)
        owner = (unit[other] @ unit[target].T).argmax(dim=1)                       # the target that each one joins
        members[owner, other] = 1
        return target, self.weights(members, target)

    def weights(self, members, target):
        """Each target and the average of its members (c, m). (c, m)"""
        average = members / members.sum(dim=1, keepdim=True).clamp_min(1)
        return average.scatter(1, target[:, None], 1.0)

    def output_order(self, grid, mosaic):
        """The base tile's as they are; the others' dominant patches in the order of the picture, class tokens, contextual ones."""
        tile = grid[:, 0]
        k = int((tile == 0).sum())
        dominant_count, _ = self.counts(k)
        is_contextual = torch.arange(len(grid), device=grid.device) % k >= dominant_count
        is_last = is_contextual & (tile > 0)               # every tile has k tokens, the contextual ones at its end
        order = mosaic.order(grid)
        return torch.cat([order[~is_last[order]], is_last.nonzero().squeeze(1)])
