"""InternVL's pictures: cut into tiles of one size, and a thumbnail of all of it after them."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from minivlm.io.image import ImageProcessor, open_image, preprocessor_settings, processor_fields
from minivlm.io.limits import check
from pruning.base import UserError

MEAN = (0.485, 0.456, 0.406)           # of ImageNet: red, green, blue
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InternVLProcessor(ImageProcessor):
    """A picture as tiles: the grid of tiles nearest to its shape, the picture squashed to it, and a thumbnail after
    them.

    InternVLProcessor(448).grid(1000, 500) -> (2, 1): two tiles side by side; its pixels are these and the thumbnail,
    (3, 3, 448, 448).
    """

    size: int = 448
    mean: tuple = MEAN
    std: tuple = STD
    resize: None = None                    # each tile is cut to size
    crop: bool = False
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True

    @classmethod
    def from_folder(cls, folder, config):
        """As config.json says in OpenGVLab's layout; else as preprocessor_config.json or processor_config.json do."""
        size = config.vision.image_size
        path, stored = preprocessor_settings(Path(folder))
        if config.original or not stored:
            return cls(size, min_tiles=config.min_tiles, max_tiles=config.max_tiles, thumbnail=config.use_thumbnail)
        defaults = {"image_mean": MEAN, "image_std": STD}
        fixed = {"do_center_crop": False, "do_resize": True}
        known = processor_fields(path, defaults | stored | fixed, size)
        if known["size"] != size:
            raise UserError(f"{path} makes pixels of side {known['size']}, but config.json's image_size is {size}")
        least = check(path, "min_patches", stored.get("min_patches") or 1, int)
        most = check(path, "max_patches", stored.get("max_patches") or 12, int)
        if least > most:
            raise UserError(f"{path}: min_patches {least} is more than max_patches {most}")
        known["resize"] = None
        return cls(**known, min_tiles=least, max_tiles=most)

    def grid(self, width, height):
        """(columns, rows) of tiles: the shape nearest to the picture's; of equals the larger, if it is not far too
        large."""
        shape = width / height
        area = width * height
        most = range(1, self.max_tiles + 1)
        grids = [(i, j) for i in most for j in most if self.min_tiles <= i * j <= self.max_tiles]
        best = (1, 1)
        least = float("inf")
        for i, j in sorted(grids, key=math.prod):
            distance = abs(shape - i / j)
            area_of_tiles = i * j * self.size ** 2
            is_larger_of_equals = distance == least and area > 0.5 * area_of_tiles
            if distance < least or is_larger_of_equals:
                best = (i, j)
                least = distance
        return best

    def pixels(self, image):
        """(tiles, 3, S, S) float32 pixels of a PIL image (or a path): tiles row by row, the thumbnail last."""
        image = open_image(image)
        columns, rows = self.grid(*image.size)
        S = self.size
        whole = image.resize((columns * S, rows * S), self.resample)
        tiles = tiles_of(whole, S)
        if self.thumbnail and len(tiles) > 1:
            tiles.append(image.resize((S, S), self.resample))
        return torch.cat([super(InternVLProcessor, self).pixels(tile) for tile in tiles])

    def box(self, width, height):
        """(left, top, right, bottom) of what the only tile shows of a picture, in its own pixels; of several tiles
        each one's.

        InternVLProcessor(448).box(1000, 500) -> ((0, 0, 500, 500), (500, 0, 1000, 500), (0, 0, 1000, 500)): two
        tiles and the thumbnail.
        """
        columns, rows = self.grid(width, height)
        whole = (0, 0, width, height)
        if columns * rows == 1:
            return whole
        boxes = []
        for row in range(rows):
            top = height * row / rows
            bottom = height * (row + 1) / rows
            for column in range(columns):
                left = width * column / columns
                right = width * (column + 1) / columns
                boxes.append((left, top, right, bottom))
        if self.thumbnail:
            boxes.append(whole)
        return tuple(boxes)


def tiles_of(picture, side):
    """The squares of a picture whose sides are multiples of `side`, row by row."""
    tiles = []
    for top in range(0, picture.height, side):
        for left in range(0, picture.width, side):
            tiles.append(picture.crop((left, top, left + side, top + side)))
    return tiles
