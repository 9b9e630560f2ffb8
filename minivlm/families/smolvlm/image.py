"""SmolVLM's pictures: enlarged, cut into tiles, all of it once more as the last tile, and text between the tiles.

A picture of 640 x 480 becomes 2048 x 1536 pixels, which are 4 x 3 tiles of 512. Before each tile stand two tokens that
say where it lies, and a line break after each row:

    <fake_token_around_image><row_1_col_1> tile <fake_token_around_image><row_1_col_2> tile .. \\n
    .. \\n\\n<fake_token_around_image><global-img> whole picture <fake_token_around_image>
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from minivlm.families.internvl_image import InternVLProcessor, tiles_of
from minivlm.io.config_json import require, section
from minivlm.io.image import open_image, preprocessor_settings, processor_fields
from minivlm.io.limits import check
from minivlm.io.text.tokenizer import Tokenizer
from pruning.base import UserError

HALF = [0.5, 0.5, 0.5]
DEFAULTS = dict(image_mean=HALF, image_std=HALF, resample=int(Image.Resampling.LANCZOS))
AROUND = "<fake_token_around_image>"
WHOLE = "<global-img>"
KINDS = [f"{name}ImageProcessor{kind}" for name in ("Idefics3", "SmolVLM") for kind in ("", "Fast", "Pil")]


@dataclass(frozen=True)
class SplitPicture:
    """One picture: its tiles, and the ids of the text before each of them and after the last."""

    pixels: Tensor                     # (tiles, 3, S, S)
    words: list                        # tiles + 1 lists of ids

    def __len__(self):
        return len(self.pixels)

    def ids(self, mark, tokens):
        """All ids of the picture in a prompt, with `tokens` marks for each tile."""
        *before, last = self.words
        ids = []
        for words in before:
            ids += words + [mark] * tokens
        return ids + last


@dataclass(frozen=True)
class SmolVLMProcessor(InternVLProcessor):
    """A picture as a SplitPicture. SmolVLMProcessor(512).grid(640, 480) -> (4, 3): 12 tiles and the whole picture."""

    size: int = 512
    longest: int = 2048                # pixels of the longer side before the picture is cut
    tokenizer: Tokenizer | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_folder(cls, folder, config):
        """As the folder's preprocessor_config.json says, or processor_config.json."""
        size = config.vision.image_size
        path, stored = preprocessor_settings(Path(folder))
        require(path, stored, image_processor_type=KINDS, do_image_splitting=(True,), do_resize=(True,))
        tile = longest_edge(path, stored, "max_image_size", size)
        if tile != size:
            raise UserError(f"{path} makes tiles of side {tile}, but config.json's image_size is {size}")
        known = processor_fields(path, DEFAULTS | stored | dict(size=size, do_center_crop=False), size)
        known["resize"] = None
        tokenizer = Tokenizer(folder, config.image_token_index)
        missing = [mark for mark in (AROUND, WHOLE) if tokenizer.fast.token_to_id(mark) is None]
        if missing:
            raise UserError(f"{folder}: the tokenizer has no {missing[0]}: SmolVLM's own tokenizer files are needed")
        return cls(**known, longest=longest_edge(path, stored, "size", 4 * size), tokenizer=tokenizer)

    def enlarged(self, width, height):
        """(width, height) of the picture before it is cut: the longer side is `longest`, the other an even number."""
        shape = width / height
        if width >= height:
            shorter = int(self.longest / shape)
            return self.longest, max(shorter + shorter % 2, 1)
        shorter = int(self.longest * shape)
        return max(shorter + shorter % 2, 1), self.longest

    def grid(self, width, height):
        """(columns, rows) of tiles, each side as many as reach over the enlarged picture."""
        width, height = self.enlarged(width, height)
        shape = width / height
        S = self.size
        if width >= height:
            columns = math.ceil(width / S)
            return columns, math.ceil(int(columns * S / shape) / S)
        rows = math.ceil(height / S)
        return math.ceil(int(rows * S * shape) / S), rows

    def pixels(self, image):
        """The SplitPicture of a PIL image (or a path)."""
        image = open_image(image)
        columns, rows = self.grid(*image.size)
        S = self.size
        # resize three times: keep the shape, fill the tiles, squeeze all into one
        enlarged = image.resize(self.enlarged(*image.size), self.resample)
        filled = enlarged.resize((columns * S, rows * S), self.resample)
        tiles = tiles_of(filled, S)
        if len(tiles) > 1:
            tiles.append(filled.resize((S, S), self.resample))
        pixels = torch.stack([self.normalized(tile) for tile in tiles])            # (tiles, 3, S, S)
        words = [self.tokenizer.encode(text, bos=False) for text in around_tiles(columns, rows)]
        return SplitPicture(pixels, words)


def around_tiles(columns, rows):
    """The text before each tile and after the last.

    around_tiles(1, 1) -> ["<fake_token_around_image><global-img>", "<fake_token_around_image>"]
    """
    texts = []
    for row in range(1, rows + 1):
        for column in range(1, columns + 1):
            line_break = "\n" if row > 1 and column == 1 else ""
            texts.append(f"{line_break}{AROUND}<row_{row}_col_{column}>")
    if len(texts) == 1:
        return [AROUND + WHOLE, AROUND]
    return [*texts, f"\n\n{AROUND}{WHOLE}", AROUND]


def longest_edge(path, stored, name, default):
    """The number of pixels in {"longest_edge": 2048}."""
    edges = section(path, stored, name)
    return check(path, "longest_edge", edges.get("longest_edge", default), int)
