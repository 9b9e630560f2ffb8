"""HiRED: the paper's text, and a tower without a class token."""

from dataclasses import dataclass, replace
from typing import Literal

from pruning.base import UserError
from pruning.fields import FromOne, option
from pruning.hired import HiRED
from pruning.readings.received import ByReceived


@dataclass(frozen=True)
class HiREDSum(HiRED):
    """The paper's text: the content of a part is the sum of its attention."""

    laws = HiRED.laws - {"scale"}      # rounding may turn a scaled sum into another budget

    def content(self, attention):
        return attention


@dataclass(frozen=True)
class HiREDGrid(HiREDSum):
    """The paper's text: a part is the tile's region of the picture. `grid` says how the tiles lie."""

    grid: tuple[FromOne, FromOne] = option((2, 2), "rows and columns of the tiles")

    def parts(self, place, tiles):
        rows, columns = self.grid
        if rows * columns != tiles:
            raise UserError(f"HiRED: grid {rows},{columns} does not fit the {tiles} tiles of this image")
        place = place.clamp_min(0)         # a class token counts as part of the first tile
        height, width = place[:, 1:].amax(dim=0) + 1
        row_of_tile = place[:, 1] * rows // height
        column_of_tile = place[:, 2] * columns // width
        return row_of_tile * columns + column_of_tile


@dataclass(frozen=True)
class HiREDReceived(ByReceived, HiRED):
    """Without a class token: patches rank by the attention they receive from all patches of their tile."""

    base: Literal["first", "last"] = option("last", "the tile that shows the whole picture; last: InternVL's thumbnail")

    def tiles(self, grid):
        tiles = super().tiles(grid)
        return tiles if self.base == "first" else [tiles[-1], *tiles[:-1]]

    def reduce(self, tokens):
        r = super().reduce(tokens)
        return replace(r, keep=r.keep.sort().values)       # in sequence order, whichever tile comes first
