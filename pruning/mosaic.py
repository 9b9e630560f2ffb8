"""How the tiles of a high-resolution picture lie: LLaVA-NeXT's base tile, the whole picture made small, and its mosaic.

The other tiles are cut, row by row, from the picture made large, which lies in the middle of a grid of tiles. Their patches
make one map; the rows or columns of it that show nothing of the picture are not sent on, and each row ends with a newline.
"""

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Mosaic:
    """The tiles of one picture. Mosaic(24, (2, 2), (480, 640)): of 48 x 48 patches 6 rows above and 6 below show nothing."""

    side: int                          # patches on each side of a tile
    grid: tuple                        # rows and columns of tiles, without the base tile
    size: tuple                        # height and width of the picture, in pixels
    digits: int | None = 7             # what is left of a side is rounded to so many before it is cut; None: not at all

    @cached_property
    def padding(self):
        """(above, left): rows and columns of patches, on both sides of the map, that show nothing of the picture."""
        return padding(self.side * self.grid[0], self.side * self.grid[1], *self.size, self.digits)

    def lines(self):
        """What is sent on unpruned: (n,) patches counted tile after tile, -1 a newline; and cells (n, 3), the map as tile 1."""
        (above, left), side, (rows, columns) = self.padding, self.side, self.grid
        index = torch.arange((1 + rows * columns) * side * side)
        base, tiles = index[:side * side], index[side * side:].view(rows, columns, side, side)
        whole = tiles.transpose(1, 2).reshape(rows * side, columns * side)
        shown = whole[above:rows * side - above, left:columns * side - left]       # (H, W)
        newline = torch.full((len(shown), 1), -1)
        order = torch.cat([base, torch.cat([shown, newline], dim=1).flatten()])    # (n,)
        return order, torch.cat([_cells(side, side, 0), _cells(*shown.shape, 1, newline=True)])

    def on_map(self, cell):
        """Cells of the tiles (m, 3), padding and all, as cells of the base tile, 0, and the map, 1."""
        tile, row, column = cell.T
        down, right = (tile - 1) // self.grid[1] * self.side, (tile - 1) % self.grid[1] * self.side
        moved = torch.stack([torch.ones_like(tile), row + down, column + right], dim=1)
        moved = torch.where(row[:, None] < 0, torch.tensor([1, -1, -1], device=cell.device), moved)
        return torch.where(tile[:, None] > 0, moved, cell)

    def order(self, cell):
        """Indices of the cells of tiles (m, 3): the base tile's as they are, the map's row by row, what is on no grid last."""
        tile, row, column = self.on_map(cell).T
        high, wide = (n * self.side for n in self.grid)
        place = torch.where(row < 0, high * wide, row * wide + column)
        return torch.where(tile == 0, -1, place).argsort(stable=True)


def _cells(height, width, tile, newline=False):
    """(H * W, 3), or (H * (W + 1), 3) with a cell on no grid after each row."""
    cell = torch.full((height, width + newline, 3), -1)
    cell[..., 0] = tile
    cell[:, :width, 1], cell[:, :width, 2] = torch.arange(height)[:, None], torch.arange(width)
    return cell.flatten(0, 1)


def padding(rows, columns, height, width, digits=None):
    """(above, left) of a map of rows x columns patches that shows a picture of height x width pixels in its middle."""
    whole = (lambda x: int(x)) if digits is None else lambda x: int(round(x, digits))
    if width / height > columns / rows:
        return (rows - whole(height * (columns / width))) // 2, 0
    return 0, (columns - whole(width * (rows / height))) // 2
