"""HiRED. Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution
Vision-Language Models", AAAI 2025, arXiv:2408.10945.

A picture of high resolution comes as a base tile (the whole picture, scaled down) and tiles of its parts. One budget is
divided over them: a share alpha goes to the base tile, the rest to the other tiles in proportion to their content. The
content of a tile is read from the base tile, in the part that the tile shows: it is attention from the class token in
the first block. Each tile then keeps the patches with the most attention in the block that makes the features. A single
tile, as in LLaVA-1.5, gets the whole budget.

Paper and code: in the paper the content of a tile is the sum of attention over a region of the base tile (HiREDGrid in
readings/). In the released code, and here, the base tile's patches in sequence order are cut into one part per tile,
and content is the number of top patches in a part; the top patches are a share 1 - alpha. Budgets are rounded down, so
that a few of the B tokens are not used. LLaVA-NeXT receives no padding and no newlines.
"""

from dataclasses import dataclass

import torch

from pruning.base import Reduction
from pruning.fields import Amount, Share, option
from pruning.grid import per_tile
from pruning.ranked import top
from pruning.vision_site import VisionSite


@dataclass(frozen=True)
class HiRED(VisionSite):
    """Divide a budget over tiles by visual content; keep of each tile the patches that its class token looks at."""

    keep: Amount = option(0.2, "share, or number, of the patches of all tiles kept, at most")
    alpha: Share = option(0.5, "share of the budget for the base tile; 1 - alpha of its patches are top patches")

    per = "image"
    laws = frozenset({"select", "ordered", "scale"})

    def reduce(self, tokens):
        # the class token's attention in the block that makes the features, and in the first one, mean over heads
        final = tokens.before.cls_attention().mean(dim=0)                          # (n,)
        initial = tokens.before.block(0).cls_attention().mean(dim=0)               # (n,)
        # divide the budget
        tiles = self.tiles(tokens.grid)                                            # [(m,)]
        base = tiles[0]
        budgets = self.budgets(tokens.n, len(tiles), initial[base], tokens.grid[base])
        # keep the best of each tile
        keep = []
        for tile, k in zip(tiles, budgets):
            best = top(final[tile], k)                                             # (k,)
            keep.append(tile[best])
        return Reduction(torch.cat(keep), score=final)

    def tiles(self, grid):
        """The indices of each tile's tokens (m,), the base tile's first."""
        return per_tile(grid)

    def budgets(self, n, tiles, attention, place):
        """How many tokens each tile keeps, from the base tile's first-block attention (m,) and places (m, 3)."""
        total = self.budget(n)
        if tiles == 1:
            return [total]
        m = len(attention)
        base = max(1, int(total * self.alpha))
        base = min(base, m)
        others = min(total - base, n - m)
        part = self.parts(place, tiles - 1)                                        # (m,)
        share = self.shares(attention, part, tiles - 1)                            # (tiles-1,)
        budgets = [base]
        for k in (share * others).tolist():
            budgets.append(min(m, int(k)))
        return budgets

    def parts(self, place, tiles):
        """The part of each patch (m,) of the base tile, as the number, from 0, of the tile that shows it."""
        m = len(place)
        return torch.arange(m, device=place.device) * tiles // m                   # equal parts in sequence order

    def shares(self, attention, part, tiles):
        """Each tile's share of the visual content. (tiles,) float32"""
        zeros = torch.zeros(tiles, device=attention.device)
        content = zeros.index_add(0, part, self.content(attention))                # (tiles,)
        if not content.any():
            content = torch.ones_like(content)             # alpha = 1: there are no top patches, so all tiles are equal
        return content / content.sum()

    def content(self, attention):
        """The content of each patch of the base tile: 1 for the top patches, 0 for the others. (m,) -> (m,)"""
        best = top(attention, int(len(attention) * (1 - self.alpha)))
        return torch.zeros_like(attention).index_fill(0, best, 1)

    def output_order(self, grid, tile_grid):
        """In the order of the picture, without tokens of the padding."""
        order = tile_grid.order(grid)
        is_shown = tile_grid.is_shown(grid)
        return order[is_shown[order]]
