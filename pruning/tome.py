"""ToMe. Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv:2210.09461.

In every block of the vision tower, between attention and MLP, r tokens are merged into those most like them, so the
tower itself becomes faster. A merged token is the mean of its patches; the number of these is its size, and log(size)
is added to the logits of its key (proportional attention).

Paper and code: no LLaVA version by the authors is known. Matching, merging and proportional attention are those of the
released code. Here r is spread over the blocks before the features so that exactly `keep` tokens are left, in the order
of their first patches; the class token is never merged, and not sent on.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from pruning.apply import reordered
from pruning.base import Reduction
from pruning.fields import Amount, option
from pruning.grid import over_all, per_tile
from pruning.matching import merged
from pruning.ranked import finite
from pruning.vision_site import VisionSite


@dataclass(frozen=True)
class ToMe(VisionSite):
    """Merge the patches with the most similar keys, some in each block of the tower."""

    keep: Amount = option(1 / 3, "share, or number, of the tokens of each tile left: 192 of 576")
    where: Literal["inside", "after"] = option("inside", "inside the tower, or after its last block")
    prop_attn: bool = option(True, "proportional attention inside the tower")

    laws = frozenset({"convex", "disjoint", "ordered", "budget"})

    def tower_schedule(self, n, blocks):
        if self.where == "after":
            return None
        counts = []
        for block in range(1, blocks + 1):
            merged_so_far = block * (n - self.budget(n)) // blocks
            counts.append(n - merged_so_far)
        return counts

    def reduce(self, tokens):
        tiles = len(per_tile(tokens.grid))
        k = self.budget(tokens.n // tiles)
        size = torch.ones(tokens.n, device=tokens.visual.device)
        r = self.merge(tokens, size, k)
        order = r.keep.argsort()
        return reordered(r, order)

    def merge(self, tokens, size, k):
        key = finite(tokens.before.key(), "the keys")                              # (H, T, Dh)
        metric = key[:, tokens.visual].float().mean(dim=0)                         # (n, Dh)  mean over heads
        has_class = len(tokens.hidden) > tokens.n
        keep = []
        merge = []
        for tile in per_tile(tokens.grid):                                         # (m,) indices of each tile's tokens
            weights = merged(metric[tile], size[tile], k, has_class)               # (k, m)
            # a merged token takes the place of its first patch
            source = torch.where(weights > 0, tokens.source[tile], 2 ** 62)        # (k, m)
            keep.append(tile[source.argmin(dim=1)])
            merge.append(over_all(weights, tile, tokens.n))
        return Reduction(torch.cat(keep), torch.cat(merge))
