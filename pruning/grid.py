"""Where tokens lie: tiles and grids of patches. A place is a row of Tokens.grid: tile, row, column (-1: no patch)."""

from dataclasses import dataclass

from pruning.base import Pruner
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, Positions, early_positions, option


@dataclass(frozen=True)
class PerTile(Pruner):
    """Base of vision-site methods that read the class token's attention and reduce each tile by itself."""

    keep: Amount = option(0.5, "share, or number, of each tile's tokens left")
    positions: Positions = early_positions()

    site = "vision"
    per = "tile"
    preconditions = frozenset({"cls"})

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # raises UserError if no tile is large enough for `keep`

    def budget(self, n):
        """Tokens left of a tile of n."""
        return tokens_to_keep(self.keep, n)


def per_tile(grid):
    """The indices of each tile's tokens (m,), tile after tile. (n, 3) -> list"""
    tile = grid[:, 0]
    members = []
    for t in tile.unique():
        is_member = tile == t
        members.append(is_member.nonzero().squeeze(1))
    return members


def over_all(weights, index, n):
    """Weights (k, m) of the m tokens with these indices, as weights of all n tokens: 0 for the others. (k, n)"""
    zeros = weights.new_zeros(len(weights), n)
    return zeros.index_copy(1, index, weights)


def map_shape(place):
    """(H, W) of the grid that the places (m, 3) of one tile's tokens form; None if it has gaps."""
    height, width = (place[:, 1:].amax(dim=0) + 1).tolist()
    is_whole = place[:, 1].min() >= 0 and height * width == len(place)
    return (height, width) if is_whole else None


def squares(place, count):
    """Tokens at these places (n, 3) in equal squares of their tiles, `count` or about as many in all: the indices (m,)
    of each."""
    tiles = per_tile(place)
    side = max(1, round((count / len(tiles)) ** 0.5))      # squares on each side of a tile
    members = []
    for tile in tiles:
        row, column = place[tile, 1:].T                                            # (m,) twice
        row = row * side // (row.max() + 1)                # of squares
        column = column * side // (column.max() + 1)
        number = row * side + column                                               # (m,)  each one's square
        members += [tile[number == square] for square in number.unique()]
    return members
