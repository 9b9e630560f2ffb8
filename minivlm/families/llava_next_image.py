"""LLaVA-NeXT's pictures, of any resolution: the whole picture on a base tile, and enlarged on a grid of tiles.

Of the grids that the model knows, the best shows most of the picture's pixels, and among equals has the least padding.
The picture is resized to touch two edges of the grid and laid in its middle, on black; the grid is cut into tiles, row
by row. The base tile comes before them: all of the picture, squeezed into a square. pruning/tile_grid.py says which
patches are padding.
"""

import math
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from minivlm.io.image import ImageProcessor, open_image


@dataclass(frozen=True)
class Tiles:
    """The pixels of one picture, and how they lie."""

    pixels: Tensor                     # (1 + rows * columns, 3, S, S)  base tile first
    grid: tuple                        # rows and columns of tiles
    size: tuple                        # height and width of the picture, in its own pixels

    def __len__(self):
        return len(self.pixels)


@dataclass(frozen=True)
class LlavaNextProcessor(ImageProcessor):
    """How a picture becomes Tiles. `grids`: the sizes of grids, (height, width) in pixels, in the order of the file."""

    grids: tuple = ()

    @classmethod
    def from_folder(cls, folder, config):
        """As ImageProcessor's; the grids are config.json's, since the model counts tokens by them."""
        grids = tuple(map(tuple, config.image_grid_pinpoints))
        return replace(super().from_folder(folder, config), grids=grids)

    def pixels(self, image):
        """The Tiles of a PIL image (or a path)."""
        image = open_image(image)
        S = self.size
        # lay the picture on the grid
        size = (image.height, image.width)
        height, width = best_grid(*size, self.grids)
        left, top, *resized = box_on_grid(*size, height, width)
        resized = image.resize(resized, self.resample)
        canvas = Image.new("RGB", (width, height))
        canvas.paste(resized, (left, top))
        # cut it into tiles; the base tile comes first
        tiles = [image.resize((S, S), self.resample)]
        for y in range(0, height, S):
            for x in range(0, width, S):
                tiles.append(canvas.crop((x, y, x + S, y + S)))
        pixels = torch.stack([self.normalized(tile) for tile in tiles])            # (tiles, 3, S, S)
        grid = (height // S, width // S)
        return Tiles(pixels, grid, size)

    def box(self, width, height):
        """Two boxes (left, top, right, bottom) in the picture's pixels: what the base tile shows, and what the grid
        shows."""
        grid_height, grid_width = best_grid(height, width, self.grids)
        left, top, resized_width, resized_height = box_on_grid(height, width, grid_height, grid_width)
        right = grid_width - left
        bottom = grid_height - top
        # from pixels of the grid to pixels of the picture
        base = (0, 0, width, height)
        left, right = [edge * width / resized_width for edge in (-left, right)]
        top, bottom = [edge * height / resized_height for edge in (-top, bottom)]
        return base, (left, top, right, bottom)


def best_grid(height, width, grids):
    """The grid that shows most pixels of the picture, at most all; of these the one with least padding; then the first.

    best_grid(480, 640, [(336, 672), (672, 672)]) -> (672, 672): 480 x 640 pixels there, at most 336 x 448 in the other.
    """
    def badness(grid):
        grid_height, grid_width = grid
        scale = min(grid_width / width, grid_height / height)
        shown = int(width * scale) * int(height * scale)
        shown = min(shown, width * height)
        return -shown, grid_height * grid_width - shown
    return min(grids, key=badness)


def box_on_grid(height, width, grid_height, grid_width):
    """(left, top, width, height) of the resized picture on its grid; an odd pixel of padding is to the right or
    below."""
    down = grid_height / height
    across = grid_width / width
    if across < down:
        width = grid_width
        height = min(math.ceil(height * across), grid_height)
    else:
        width = min(math.ceil(width * down), grid_width)
        height = grid_height
    left = (grid_width - width) // 2
    top = (grid_height - height) // 2
    return left, top, width, height
