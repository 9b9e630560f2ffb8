"""Where tokens lie: grids of patches, tiles, and which tokens belong to which tile."""


def per_tile(grid):
    """The indices of each tile's tokens (m,), tile after tile. (n, 3) -> list"""
    tile = grid[:, 0]
    return [(tile == t).nonzero().squeeze(1) for t in tile.unique()]
