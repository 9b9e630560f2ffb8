"""How the tiles of a high-resolution picture lie, LLaVA-NeXT's way: a base tile and a grid of tiles.

The base tile, tile 0, is the whole picture made small. The grid of tiles is the picture made large and cut, row by row;
it lies in the middle, and the patches beyond its edges are padding. Padding is not sent on, and each row of the grid
ends with a newline.

A place is a row of Tokens.grid: tile, row, column. On the grid of tiles as a whole, which counts as tile 1, rows and
columns are those of the grid.
"""

from dataclasses import dataclass
from functools import cached_property

import torch

from pruning.base import whole_grid

ON_NO_GRID = torch.tensor([1, -1, -1])                     # the place of the grid's newlines and class tokens


@dataclass(frozen=True)
class TileGrid:
    """The tiles of one picture. TileGrid(24, (2, 2), (480, 640)): of 48 x 48 patches 6 rows above and 6 below are
    padding."""

    side: int                          # patches on each side of a tile
    grid: tuple                        # rows and columns of tiles, without the base tile
    size: tuple                        # height and width of the picture, in pixels
    digits: int | None = 7             # of the picture's side in patches, before it is cut; None: not rounded

    @property
    def shape(self):
        """(rows, columns) of patches of the whole grid."""
        side = self.side
        rows, columns = self.grid
        return rows * side, columns * side

    @cached_property
    def padding(self):
        """(above, left): rows and columns of padding, in patches; below and to the right there are as many."""
        rows, columns = self.shape
        height, width = self.size
        return padding(rows, columns, height, width, self.digits)

    def unpruned(self):
        """What is sent on unpruned: (n,) patches counted tile after tile, -1 a newline; and their places (n, 3)."""
        side = self.side
        rows, columns = self.shape
        base = torch.arange(side ** 2)                                             # (P,)
        # lay the tiles beside each other
        first = len(base)
        patch = torch.arange(first, first + rows * columns)
        patch = patch.view(*self.grid, side, side)         # row of tiles, column of tiles, row, column
        patch = patch.transpose(1, 2)
        patch = patch.reshape(rows, columns)
        # leave out the padding
        above, left = self.padding
        below = rows - above
        right = columns - left
        patch = patch[above:below, left:right]                                     # (H, W)
        H, W = patch.shape
        # end each row with a newline
        newline = torch.full((H, 1), -1)
        patch = torch.cat([patch, newline], dim=1)                                 # (H, W+1)
        # the base tile comes first
        patch = torch.cat([base, patch.flatten()])                                 # (n,)
        return patch, places(side, H, W)

    def on_whole_grid(self, place):
        """Places on the tiles (m, 3), padding too, as places on the base tile, 0, and on the whole grid, 1. (m, 3)"""
        tile, row, column = place.T
        _, columns = self.grid
        # the patches of the grid above the tile, and to the left of it
        before = tile - 1                                  # tiles before it, without the base tile
        above = before // columns * self.side
        left = before % columns * self.side
        row = row + above
        column = column + left
        tile_1 = torch.ones_like(tile)
        whole = torch.stack([tile_1, row, column], dim=1)                          # (m, 3)
        # class tokens and the base tile stay as they are
        is_on_no_grid = place[:, 1:2] < 0                                          # (m, 1)
        on_no_grid = ON_NO_GRID.to(place.device)
        whole = torch.where(is_on_no_grid, on_no_grid, whole)
        is_base = tile[:, None] == 0                                               # (m, 1)
        return torch.where(is_base, place, whole)

    def order(self, place):
        """Indices of places on the tiles (m, 3): the base tile's as they are, the grid's row by row, what is on no
        grid last."""
        tile, row, column = self.on_whole_grid(place).T
        rows, columns = self.shape
        rank = row * columns + column
        last = rows * columns
        rank = torch.where(row < 0, last, rank)
        rank = torch.where(tile == 0, -1, rank)
        return rank.argsort(stable=True)

    def is_shown(self, place):
        """(m,) bool: which places on the tiles (m, 3) are not padding."""
        tile, row, column = self.on_whole_grid(place).T
        rows, columns = self.shape
        above, left = self.padding
        below = rows - above
        right = columns - left
        can_be_padding = (tile > 0) & (row >= 0)
        is_shown = row >= above
        is_shown &= row < below
        is_shown &= column >= left
        is_shown &= column < right
        return is_shown | ~can_be_padding


def places(side, H, W):
    """(n, 3): of the base tile, and of H rows of W patches on the grid of tiles, each with a newline at its end."""
    base = whole_grid(side, side)                                                  # (P, 3)
    place = whole_grid(H, W, tile=1).view(H, W, 3)
    newline = ON_NO_GRID.expand(H, 1, 3)
    place = torch.cat([place, newline], dim=1)                                     # (H, W+1, 3)
    return torch.cat([base, place.flatten(0, 1)])                                  # (n, 3)


def padding(rows, columns, height, width, digits=None):
    """(above, left) of a grid of rows x columns patches that shows a picture of height x width pixels in its middle."""
    if width / height > columns / rows:
        # a wide picture touches the left and the right edge
        rows_shown = cut(height * (columns / width), digits)
        return (rows - rows_shown) // 2, 0
    # a high picture touches the upper and the lower one
    columns_shown = cut(width * (rows / height), digits)
    return 0, (columns - columns_shown) // 2


def cut(x, digits):
    """cut(2.9999999999, 7) -> 3, but None -> 2: a whole number, from x rounded to so many digits or from x as it is."""
    if digits is not None:
        x = round(x, digits)
    return int(x)
