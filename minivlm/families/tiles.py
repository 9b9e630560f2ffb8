"""A picture of any resolution in, LLaVA-NeXT's way: the whole of it on one tile, and made large on a grid of tiles.

Of the grids that the model knows, the one is taken that shows the most of the picture's pixels, and then leaves the least
room. The picture is resized to touch two of its edges and laid in the middle, on black; the grid is cut into tiles, row by
row. Before them comes the base tile, all of the picture squeezed into a square.
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
class TilesProcessor(ImageProcessor):
    """How a picture becomes tiles. `grids`: the sizes that there are, (height, width) in pixels, in the order of the file."""

    grids: tuple = ()

    @classmethod
    def from_folder(cls, folder, config):
        """As ImageProcessor's; the grids are config.json's, since the model counts tokens by them."""
        return replace(super().from_folder(folder, config), grids=tuple(map(tuple, config.image_grid_pinpoints)))

    def pixels(self, image):
        """The Tiles of a PIL image (or a path)."""
        image = open_image(image)
        height, width = best_grid(image.height, image.width, self.grids)
        page, (left, top, *size) = Image.new("RGB", (width, height)), fitted(image.height, image.width, height, width)
        page.paste(image.resize(size, self.resample), (left, top))
        corners = [(x, y) for y in range(0, height, self.size) for x in range(0, width, self.size)]
        parts = [page.crop((x, y, x + self.size, y + self.size)) for x, y in corners]
        parts = [image.resize((self.size, self.size), self.resample), *parts]
        return Tiles(torch.stack([self.normalized(part) for part in parts]), (height // self.size, width // self.size),
                     (image.height, image.width))

    def box(self, width, height):
        """Two boxes (left, top, right, bottom) in the picture's pixels: what the base tile shows, and what the grid shows."""
        high, wide = best_grid(height, width, self.grids)
        left, top, w, h = fitted(height, width, high, wide)
        return (0, 0, width, height), tuple(
            edge * n / scaled for edge, n, scaled in ((-left, width, w), (-top, height, h), (wide - left, width, w), (high - top, height, h)))


def best_grid(height, width, grids):
    """The grid that shows most pixels of the picture, no more than it has; of these the one with least room; then the first.

    best_grid(480, 640, [(336, 672), (672, 672)]) -> (672, 672): 480 x 640 pixels there, at most 336 x 448 in the other.
    """
    def key(grid):
        scale = min(grid[1] / width, grid[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return -shown, grid[0] * grid[1] - shown
    return min(grids, key=key)


def fitted(height, width, high, wide):
    """(left, top, width, height) of the picture on a page of high x wide; an odd pixel goes to the right and the bottom."""
    down, across = high / height, wide / width
    w, h = (wide, min(math.ceil(height * across), high)) if across < down else (min(math.ceil(width * down), wide), high)
    return (wide - w) // 2, (high - h) // 2, w, h
