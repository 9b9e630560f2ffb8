"""HiRED. Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution
Vision-Language Models", AAAI 2025, arXiv:2408.10945.

A picture of high resolution comes as a base tile, the whole picture made small, and tiles of its parts. One budget for
all is divided: a share alpha for the base tile, the rest over the others by how much of the base tile's visual content
lies in their parts, which the class token's attention in the first block shows. Each tile then keeps its budget of
patches, those with the most attention in the block that makes the features. One tile alone, as in LLaVA-1.5, keeps the
whole budget.

Paper and code: the paper sums the attention of a part, which is a region of the picture (HiREDGrid in readings.py). The
released code, and this file, count its top patches, a share 1 - alpha of all, in bands of the flattened base tile.
Budgets are rounded down, so that of B tokens a few are not given out. LLaVA-NeXT is sent no padding and no newlines.
"""

from dataclasses import dataclass

import torch

from pruning.base import Pruner, Reduction
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, Share, option
from pruning.grid import per_tile
from pruning.ranked import top


@dataclass(frozen=True)
class HiRED(Pruner):
    """Divide a budget over tiles by visual content; keep of each tile the patches that its class token looks at."""

    keep: Amount = option(0.2, "share, or number, of the patches of all tiles kept, at most")
    alpha: Share = option(0.5, "share of the budget for the base tile; 1 - alpha: of its patches, the content")

    site = "vision"
    per = "image"
    laws = frozenset({"select", "ordered", "scale"})
    preconditions = frozenset({"cls"})

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # a value of keep that no image can meet fails here, before the model runs

    def budget(self, n):
        """Visual tokens left of n: exactly for one tile, at most for several."""
        return tokens_to_keep(self.keep, n)

    def reduce(self, tokens):
        # attention from the class token, in the block that makes the features and in the first one
        final = tokens.before.cls_attention().mean(dim=0)                          # (n,)
        initial = tokens.before.block(0).cls_attention().mean(dim=0)               # (n,)
        # divide the budget
        tiles = per_tile(tokens.grid)                                              # [(m,)]  the base tile first
        base = tiles[0]
        budgets = self.budgets(tokens.n, len(tiles), initial[base], tokens.grid[base])
        # keep the best of each tile
        keep = []
        for tile, k in zip(tiles, budgets):
            best = top(final[tile], k)                                             # (k,)
            keep.append(tile[best])
        return Reduction(torch.cat(keep), score=final)

    def budgets(self, n, tiles, attention, place):
        """Of each tile its number of tokens, from the base tile's attention (m,) and places (m, 3) in the first
        block."""
        total = self.budget(n)
        if tiles == 1:
            return [total]
        m = len(attention)
        base = min(max(1, int(total * self.alpha)), m)
        others = min(total - base, n - m)
        share = self.shares(attention, self.parts(place, tiles - 1), tiles - 1)    # (tiles - 1,)
        return [base] + [min(m, int(k)) for k in (share * others).tolist()]

    def parts(self, place, tiles):
        """Of each patch of the base tile the tile, from 0, in whose part it lies: bands of the flattened base tile.
        (m,)"""
        return torch.arange(len(place), device=place.device) * tiles // len(place)

    def shares(self, attention, part, tiles):
        """Of each tile the share of the visual content that lies in its part. (tiles,) float32"""
        content = torch.zeros(tiles, device=attention.device).index_add(0, part, self.content(attention))
        if not content.any():
            content = torch.ones_like(content)             # alpha = 1: no patch is content, all tiles are alike
        return content / content.sum()

    def content(self, attention):
        """How much content each patch of the base tile is: 1 for the top patches, 0 for the others. (m,) -> (m,)"""
        best = top(attention, int(len(attention) * (1 - self.alpha)))
        return torch.zeros_like(attention).index_fill(0, best, 1)

    def output_order(self, grid, mosaic):
        """In the order of the picture, without what lies in the padding."""
        order = mosaic.order(grid)
        is_shown = mosaic.is_shown(grid)
        return order[is_shown[order]]
