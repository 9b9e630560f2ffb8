"""Where tokens lie: tiles and grids of patches. A place is a row of Tokens.grid: tile, row, column (-1: no patch)."""

import torch


def whole_grid(rows, columns, tile=0):
    """(rows * columns, 3): tile, row and column of every patch, row by row."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    tile = torch.full_like(row, tile)
    return torch.stack([tile, row, column], dim=-1).flatten(0, 1)


def per_tile(grid):
    """The indices of each tile's tokens (m,), tile after tile. (n, 3) -> list"""
    tile = grid[:, 0]
    members = []
    for number in tile.unique():
        is_member = tile == number
        index = is_member.nonzero().squeeze(1)
        members.append(index)
    return members


def over_all(weights, index, n):
    """Weights (k, m) of the m tokens with these indices, as weights of all n tokens: 0 for the others. (k, n)"""
    zeros = weights.new_zeros(len(weights), n)
    return zeros.index_copy(1, index, weights)


def map_shape(place):
    """(H, W) of the grid that the places (m, 3) of one tile's tokens form; None if it has gaps."""
    first_row = place[:, 1].min()
    last = place[:, 1:].amax(dim=0)
    height, width = (last + 1).tolist()
    if first_row < 0 or height * width != len(place):
        return None
    return height, width


def squares(place, count):
    """Tokens at these places (n, 3) in equal squares of their tiles, `count` or about as many in all: the indices (m,)
    of each."""
    tiles = per_tile(place)
    per_tile_count = count / len(tiles)
    side = max(1, round(per_tile_count ** 0.5))            # squares on each side of a tile
    members = []
    for tile in tiles:
        row = place[tile, 1]                                                       # (m,)
        column = place[tile, 2]
        # rows and columns of squares
        row = row * side // (row.max() + 1)
        column = column * side // (column.max() + 1)
        number = row * side + column                                               # (m,)  each one's square
        for square in number.unique():
            is_member = number == square
            members.append(tile[is_member])
    return members
