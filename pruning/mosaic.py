"""How the tiles of a high-resolution picture lie: LLaVA-NeXT's base tile, the whole picture made small, and its mosaic.

The other tiles are cut, row by row, from the picture made large, which lies in the middle of a grid of tiles. Their
patches make one map. Rows or columns of the map that show nothing of the picture are not sent on; each row ends with a
newline.

A place is a row of Tokens.grid: tile, row, column. The base tile is tile 0.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from pruning.base import whole_grid

ON_NO_GRID = torch.tensor([1, -1, -1])                     # the place of the map's newlines and class tokens


@dataclass(frozen=True)
class Mosaic:
    """The tiles of one picture. Mosaic(24, (2, 2), (480, 640)): of 48 x 48 patches 6 rows above and 6 below show
    nothing."""

    side: int                          # patches on each side of a tile
    grid: tuple                        # rows and columns of tiles, without the base tile
    size: tuple                        # height and width of the picture, in pixels
    digits: int | None = 7             # of the picture's side on the map, before it is cut; None: not rounded

    @property
    def shape(self):
        """(rows, columns) of patches of the whole map."""
        rows, columns = self.grid
        return rows * self.side, columns * self.side

    @cached_property
    def padding(self):
        """(above, left): rows and columns of patches, on both sides of the map, that show nothing of the picture."""
        rows, columns = self.shape
        height, width = self.size
        return padding(rows, columns, height, width, self.digits)

    def lines(self):
        """What is sent on unpruned: (n,) patches counted tile after tile, -1 a newline; their places (n, 3), the map
        as tile 1."""
        side = self.side
        rows, columns = self.shape
        base = torch.arange(side * side)                                           # (P,)
        # lay the tiles side by side
        patch = torch.arange(rows * columns) + len(base)
        patch = patch.view(*self.grid, side, side)         # row of tiles, column of tiles, row, column
        patch = patch.transpose(1, 2).reshape(rows, columns)
        # leave out what shows nothing of the picture
        above, left = self.padding
        below = rows - above
        right = columns - left
        patch = patch[above:below, left:right]                                     # (H, W)
        H, W = patch.shape
        place = whole_grid(H, W, tile=1).view(H, W, 3)
        # end each row with a newline
        newline = torch.full((H, 1), -1)
        newline_place = ON_NO_GRID.expand(H, 1, 3)
        patch = torch.cat([patch, newline], dim=1)                                 # (H, W+1)
        place = torch.cat([place, newline_place], dim=1)                           # (H, W+1, 3)
        # the base tile comes first
        base_place = whole_grid(side, side)                                        # (P, 3)
        patch = torch.cat([base, patch.flatten()])                                 # (n,)
        place = torch.cat([base_place, place.flatten(0, 1)])                       # (n, 3)
        return patch, place

    def on_map(self, place):
        """Places on the tiles (m, 3), padding and all, as places on the base tile, 0, and on the map, 1. (m, 3)"""
        tile, row, column = place.T
        _, columns = self.grid
        # the map's patches above the tile, and to the left of it
        before = tile - 1                                  # tiles before it, the base tile aside
        above = before // columns * self.side
        left = before % columns * self.side
        row_on_map = row + above
        column_on_map = column + left
        tile_1 = torch.ones_like(tile)
        on_map = torch.stack([tile_1, row_on_map, column_on_map], dim=1)           # (m, 3)
        is_on_no_grid = row[:, None] < 0                                           # (m, 1)
        on_map = torch.where(is_on_no_grid, ON_NO_GRID.to(place.device), on_map)
        is_base = tile[:, None] == 0                                               # (m, 1)
        return torch.where(is_base, place, on_map)

    def order(self, place):
        """Indices of places on the tiles (m, 3): the base tile's as they are, the map's row by row, what is on no
        grid last."""
        tile, row, column = self.on_map(place).T
        rows, columns = self.shape
        rank = row * columns + column
        last = rows * columns
        rank = torch.where(row < 0, last, rank)
        rank = torch.where(tile == 0, -1, rank)
        return rank.argsort(stable=True)

    def is_shown(self, place):
        """(m,) bool: which places on the tiles (m, 3) are not in the padding of the map"""
        tile, row, column = self.on_map(place).T
        rows, columns = self.shape
        above, left = self.padding
        below = rows - above
        right = columns - left
        is_on_map = (tile > 0) & (row >= 0)
        is_shown = (row >= above) & (row < below)
        is_shown &= column >= left
        is_shown &= column < right
        return is_shown | ~is_on_map


def padding(rows, columns, height, width, digits=None):
    """(above, left) of a map of rows x columns patches that shows a picture of height x width pixels in its middle."""
    if width / height > columns / rows:
        # a wide picture touches the map's left and right
        rows_shown = cut(height * (columns / width), digits)
        return (rows - rows_shown) // 2, 0
    # a high picture touches its top and bottom
    columns_shown = cut(width * (rows / height), digits)
    return 0, (columns - columns_shown) // 2


def cut(x, digits):
    """cut(2.9999999999, 7) -> 3, but None -> 2: a whole number, from x rounded to so many digits or from x as it is."""
    if digits is not None:
        x = round(x, digits)
    return int(x)
