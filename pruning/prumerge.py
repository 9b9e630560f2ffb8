"""PruMerge and PruMerge+. Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal
Models", ICCV 2025, arXiv:2403.15388.

Before the projector, keep the patches whose attention from the class token is an outlier of its distribution (above Q3
+ 1.5 IQR), so that a busy image keeps more tokens than a plain one. Then supplement each with the patches whose keys
are most similar to its own, weighted by their attention. PruMerge+ keeps a uniform sample of the patches as well.

Paper and code: the paper averages clusters (PruMergeAverage in readings/); the released code, and this file, add the
neighbours, weighted by their attention, to the kept token, and append one more token, the weighted sum of all patches
not kept. Queries and keys are those of the block after the features, as one head over the full width. Each tile is
reduced by itself.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Reduction
from pruning.fields import Amount, Count, FromOne, option
from pruning.grid import over_all, per_tile
from pruning.ranked import descending, finite
from pruning.vision_site import VisionSite


@dataclass(frozen=True)
class PruMerge(VisionSite):
    """Keep the outliers of the class token's attention and merge into each the tokens with similar keys.

    `keep` counts every token left of a tile, the pooled one too: 73 of 576 is the released code's fixed ratio 1/8.
    """

    keep: Amount | None = option(None, "share, or number, of each tile's tokens left; None: as many as are outliers")
    neighbours: Count = option(32, "k nearest neighbours merged into each kept token")

    merges_kept = True                 # a kept patch may also be a neighbour of another one
    pooled = 1                         # 1: a token is appended, the sum of the patches not kept; 0: none

    @property
    def laws(self):
        return frozenset() if self.keep is None else frozenset({"budget"})

    def budget(self, n):
        """Tokens left of a tile of n; None if the image decides."""
        if self.keep is None:
            return None
        return super().budget(n)

    def reduce(self, tokens):
        attention, key = self.attention_and_keys(tokens)                           # (n,), (n, C)
        finite(attention, "the attention scores")
        keep = []
        merge = []
        for tile in per_tile(tokens.grid):                                         # (m,) indices of each tile's tokens
            place, weights = self.merged(attention[tile], key[tile])               # (k,), (k, m)
            keep.append(tile[place])
            merge.append(over_all(weights, tile, tokens.n))                        # (k, n)
        return Reduction(torch.cat(keep), torch.cat(merge), attention)

    def attention_and_keys(self, tokens):
        """Attention (n,) that each patch receives from its tile's class token, and its key (n, C), in the block after
        the features, all heads joined to one."""
        view = tokens.here
        query = full_width(view.query(view.cls_rows()))                            # (tiles, C)
        key = full_width(view.key())                                               # (T, C)
        keys_of_tile = key.unflatten(0, (len(query), -1))                          # (tiles, 1+P, C)
        logits = keys_of_tile @ query[:, :, None]                                  # (tiles, 1+P, 1)
        logits = logits / key.shape[1] ** 0.5
        attention = logits.softmax(dim=1).flatten()                                # (T,)
        return attention[tokens.visual], key[tokens.visual]

    def merged(self, attention, key):
        """One tile's attention (m,) and keys (m, C) -> the kept tokens (k,) and their merge weights (k, m)."""
        # adaptive important token selection
        kept = self.selected(attention)                                            # (c,)
        rest = self.not_kept(attention, kept)
        # token supplement: each kept patch takes in its nearest neighbours
        merge = self.supplemented(attention, key, kept, rest)                      # (c, m)
        own = self.own_weight(attention[kept])                                     # (c,)
        merge = merge.scatter_add(1, kept[:, None], own[:, None])
        # the pooled token, in the place of the strongest patch not kept
        if self.pooled and len(rest):
            strongest = attention[rest].argmax(dim=0, keepdim=True)                # (1,)
            kept = torch.cat([kept, rest[strongest]])
            pooled = torch.zeros_like(attention).index_copy(0, rest, attention[rest])              # (m,)
            merge = torch.cat([merge, pooled[None]])
        return kept, self.normalised(merge)

    def selected(self, attention):
        """The outliers, or a given number, by falling attention. (m,) -> (c,)"""
        return descending(attention)[:self.count(attention)]

    def count(self, attention):
        """How many patches are selected; the pooled token comes on top."""
        if self.keep is None:
            least = 1 - self.pooled    # some token must remain
            return max(outliers(attention), least)
        return self.budget(len(attention)) - self.pooled

    def not_kept(self, attention, kept):
        """The patches of the tile that are not among `kept`."""
        every = torch.arange(len(attention), device=attention.device)
        return without(every, kept)

    def supplemented(self, attention, key, kept, rest):
        """For each kept patch, its nearest neighbours, weighted by their attention. (c, m)"""
        sources = torch.cat([kept, rest]) if self.merges_kept else rest            # (s,)
        unit = F.normalize(key, dim=1)                                             # (m, C)
        similarity = unit[kept] @ unit[sources].T                                  # (c, s)
        most = len(sources)
        if self.merges_kept:
            similarity[:, :len(kept)].fill_diagonal_(-torch.inf)                   # no patch is its own neighbour
            most -= 1
        count = min(self.neighbours, most)
        nearest = similarity.argsort(dim=1, descending=True, stable=True)[:, :count]
        neighbour = sources[nearest]                                               # (c, count)
        merge = attention.new_zeros(len(kept), len(attention))                     # (c, m)
        return merge.scatter_add(1, neighbour, attention[neighbour])

    def own_weight(self, attention):
        """The weight of each kept patch itself, from its attention. (c,) -> (c,)"""
        return torch.ones_like(attention)

    def normalised(self, merge):
        """The weights as they are: rows may sum to more than 1. (k, m)"""
        return merge

    def output_order(self, grid, tile_grid):
        """Tile after tile."""
        return torch.arange(len(grid), device=grid.device)


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge that also keeps a uniform sample of the patches; with `keep`, half of the tokens are such a sample."""

    density: FromOne = option(3, "sampled patches per outlier, if keep is None")

    def selected(self, attention):
        m = len(attention)
        k = self.count(attention)
        order = descending(attention)                                              # (m,)
        if self.keep is None:
            strong = order[:k]
            per_outlier = m // max(1, k)
            stride = per_outlier // self.density
            stride = max(1, stride)
            # the last patch is never sampled, as in the code
            sample = torch.arange(0, m - 1, stride, device=attention.device)
            return torch.cat([strong, without(sample, strong)])
        half = (k + 1) // 2
        strong = order[:half]
        others = order[half:]
        sample = self.uniform_sample(m, k - len(strong)).to(order.device)
        sample = without(sample, strong)
        next_strongest = without(others, sample)           # instead of sampled patches that are strong
        return torch.cat([strong, sample, next_strongest])[:k]

    def uniform_sample(self, m, count):
        """The patches in the middle of `count` equal parts of m patches."""
        odd = 2 * torch.arange(count) + 1
        half_parts = max(1, 2 * count)
        return odd * m // half_parts


def full_width(x):
    """Heads side by side, in float32: (H, R, Dh) -> (R, C)"""
    return x.transpose(0, 1).flatten(1).float()


def outliers(attention):
    """How many values lie above Q3 + 1.5 IQR, in float32."""
    attention = attention.float()
    quarters = torch.tensor([.25, .75], device=attention.device)
    q1, q3 = attention.quantile(quarters)
    fence = q3 + 1.5 * (q3 - q1)
    return int((attention > fence).sum())


def without(index, gone):
    """`index` without the entries that are in `gone`, in its order."""
    return index[~torch.isin(index, gone)]
