"""HiRED. Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language
Models", AAAI 2025, arXiv:2408.10945.

A picture of high resolution comes as a base tile, the whole picture made small, and tiles of its parts. One budget for all
is divided: a share alpha for the base tile, the rest over the others by how much of the base tile's visual content lies in
their parts, which the class token's attention in the first block shows. Each tile then keeps its budget of patches, those
with the most attention in the block that makes the features. One tile alone, as in LLaVA-1.5, keeps the whole budget.

Paper and code: the paper's content of a part is the sum of its attention; the released code takes the top patches, a share
1 - alpha of all, and counts how many lie in the part (content="count", the default; "sum"). The paper's part is the tile's
region of the picture; the code cuts the base tile's patches, row by row, into as many bands as there are tiles (grid=(),
the default; grid=(2, 2) are four quadrants). Budgets are rounded down, so that of B tokens a few are not given out. Where
alpha = 1 leaves no content patch the code divides by zero; here the tiles are alike, and the base tile keeps at least one
patch. `keep` is for all tiles of an image together.

LLaVA-NeXT is sent the kept tokens in the order of the mosaic that the tiles make, without those in its padding, which are
lost, and without newlines: `packed`. There the released code confuses the rows and columns of a mosaic that is not square
(swapped=True).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from pruning.base import Pruner, Reduction, UserError, tokens_to_keep, top
from pruning.fields import Amount, FromOne, Share
from pruning.mosaic import padding


@dataclass(frozen=True)
class HiRED(Pruner):
    """Divide a budget over tiles by visual content; keep of each tile the patches that its class token looks at."""

    keep: Amount = 0.2                 # share, or number, of the patches of all tiles kept, at most
    alpha: Share = 0.5                 # share of the budget for the base tile; 1 - alpha: of its patches, the content
    content: Literal["count", "sum"] = "count"  # of a part: its "count" of content patches (code) or its "sum" of attention (paper)
    grid: tuple[FromOne, ...] = ()     # rows and columns of the tiles, whose parts are regions (paper); (): bands (code)
    swapped: bool = False              # rows and columns of the mosaic exchanged, as in the released code

    site = "vision"
    per = "image"
    needs = frozenset({"attn", "first_attn"})
    preconditions = frozenset({"cls"})

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # a value of keep that no image can meet fails here, before the model runs
        if self.grid and len(self.grid) != 2:
            raise UserError(f"HiRED: grid is the rows and columns of the tiles, like 2,2; got {self.grid}")

    @property
    def laws(self):                    # a sum may be rounded to another budget when it is scaled
        return frozenset({"select", "ordered"} | ({"scale"} if self.content == "count" else set()))

    def budget(self, n):
        """Visual tokens left of n: exactly for one tile, at most for several."""
        return tokens_to_keep(self.keep, n)

    def reduce(self, tokens):
        final, initial = (attn.mean(dim=0).sum(dim=0)[tokens.visual] for attn in (tokens.attn, tokens.first_attn))
        tile = tokens.cell[:, 0]
        tiles = [(tile == t).nonzero().squeeze(1) for t in tile.unique()]          # of each its (m,) tokens, base first
        base, *parts = self.budgets(tokens.n, len(tiles), initial[tiles[0]], tokens.cell[tiles[0]])
        keep = [here[top(final[here], k)] for here, k in zip(tiles, [base, *parts])]
        return Reduction(torch.cat(keep), score=final)

    def assemble(self, cell, mosaic):
        """In the order of the picture, without what lies in the padding."""
        return packed(cell, mosaic.side, mosaic.grid, mosaic.size, self.swapped)

    def budgets(self, n, tiles, attn, cell):
        """Of each tile its number of tokens, from the base tile's attention (m,) and cells (m, 3) in the first block."""
        if tiles == 1:
            return [self.budget(n)]
        m = len(attn)
        base = min(max(1, int(self.budget(n) * self.alpha)), m)
        others = min(self.budget(n) - base, n - m)
        share = self.shares(attn, self.parts(cell, tiles - 1), tiles - 1)
        return [base] + [min(m, int(k)) for k in (share * others).tolist()]

    def parts(self, cell, tiles):
        """Of each patch of the base tile the tile, from 0, in whose part it lies. (m,)"""
        if not self.grid:
            return torch.arange(len(cell), device=cell.device) * tiles // len(cell)
        rows, columns = self.grid
        if rows * columns != tiles:
            raise UserError(f"HiRED: grid {rows},{columns} does not fit the {tiles} tiles of this image")
        row, column = cell[:, 1], cell[:, 2]
        return row * rows // (row.max() + 1) * columns + column * columns // (column.max() + 1)

    def shares(self, attn, part, tiles):
        """Of each tile the share of the visual content that lies in its part. (tiles,) float32"""
        if self.content == "count":
            attn = torch.zeros_like(attn).index_fill(0, top(attn, int(len(attn) * (1 - self.alpha))), 1)
        content = torch.zeros(tiles, device=attn.device).index_add(0, part, attn)
        if not content.any():
            content = torch.ones_like(content)             # alpha = 1: no patch is content, all tiles are alike
        return content / content.sum()


def packed(cell, side, grid, size, swapped=False):
    """Which kept tokens LLaVA-NeXT sends on, in this order: the base tile's, then the mosaic's row by row, without padding.

    cell (k, 3) of the tokens; a tile has side x side patches; grid: rows and columns of tiles; size: height and width of the
    picture. swapped: with rows and columns exchanged, as in the released code. -> (k',) indices of the tokens.
    """
    rows, columns = grid[::-1] if swapped else grid
    tile, row, column = cell.T
    y, x = (tile - 1) // columns * side + row, (tile - 1) % columns * side + column
    above, left = padding(rows * side, columns * side, *size)
    inside = (y >= above) & (y < rows * side - above) & (x >= left) & (x < columns * side - left)
    place = torch.where(tile == 0, row * side + column, side * side + y * columns * side + x)
    order = place.argsort(stable=True)
    return order[(inside | (tile == 0))[order]]

