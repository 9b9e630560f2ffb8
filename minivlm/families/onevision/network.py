"""LLaVA-OneVision: LLaVA-NeXT with SigLIP's tower, whose large maps are made smaller: "anyres_max_9".

The map of the tiles without its padding may have up to 1.1^2 times as many patches as nine tiles have. A larger one is
interpolated after the projector to about nine tiles' worth of tokens, which then stand for no whole patch: their rows
and columns are those of the smaller map. Newlines are put at its rows' ends.

A prompt with several pictures has no tiles: each picture is one square with one newline at its end.
"""

import re
from dataclasses import dataclass
from math import sqrt

import torch
from torch.nn.functional import interpolate

from minivlm.families.llava_next import LlavaNext
from minivlm.families.llava_next_image import Tiles
from minivlm.families.siglip import SiglipLlava, SiglipVision
from minivlm.io.config_json import read_hugging_face, section
from minivlm.parts.config import LlavaConfig
from pruning.apply import acting
from pruning.base import UserError
from pruning.tile_grid import places

TOLERATED = 1.1                        # how much longer a side of the map may be
SO400M = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16, image_size=384,
              patch_size=14)
SIDES = range(384, 2305, 384)
# What a config.json means by saying nothing.
DEFAULTS = dict(image_token_index=151646, vision_feature_layer=-1, vision_feature_select_strategy="full",
                image_grid_pinpoints=[[height, width] for height in SIDES for width in SIDES])


@dataclass
class OneVisionConfig(LlavaConfig):
    """The whole model, and what a checkpoint says about its files."""

    vision_aspect_ratio: str = "anyres_max_9"

    @property
    def most_patches(self):
        """Of a map, before it is made smaller."""
        most_tiles = int(self.vision_aspect_ratio.removeprefix("anyres_max_"))
        return most_tiles * self.grid_side ** 2


def read_onevision(path, raw):
    """The OneVisionConfig of a config.json with this content."""
    written = {key: value for key, value in raw.items() if value is not None}
    vision = SO400M
    if "vision_config" in written:
        vision = section(path, raw, "vision_config")
    written["vision_config"] = {"model_type": "siglip_vision_model"} | vision
    text = section(path, raw, "text_config")
    written["text_config"] = {"model_type": "qwen2"} | text
    ratio = written.get("vision_aspect_ratio", "anyres_max_9")
    if not re.fullmatch("anyres_max_[1-9][0-9]*", str(ratio)):
        raise UserError(f"{path}: vision_aspect_ratio {ratio!r} is not supported, only such as anyres_max_9")
    return read_hugging_face(path, DEFAULTS | written, OneVisionConfig)


class OneVision(LlavaNext):
    """LLaVA that takes Tiles for the only image of a prompt, and plain pixels for each of several."""

    tower = SiglipVision
    lacks = SiglipLlava.lacks

    def visual_tokens(self, image):
        """How many visual tokens an image becomes, unpruned."""
        if not isinstance(image, Tiles):
            return super().visual_tokens(image) + 1
        _, (rows, columns) = self.map_shapes(image)
        return self.config.grid_side ** 2 + rows * (columns + 1)

    def map_shapes(self, image):
        """(rows, columns) of the map of an image's Tiles without padding, before and after it is made smaller."""
        tile_grid = self.tile_grid(image)
        rows, columns = tile_grid.shape
        above, left = tile_grid.padding
        rows -= 2 * above
        columns -= 2 * left
        ratio = sqrt(rows * columns / self.config.most_patches)
        smaller = (rows, columns)
        if ratio > TOLERATED:
            smaller = (int(rows // ratio), int(columns // ratio))
        return (rows, columns), smaller

    def whole_part(self, image, trace):
        """What shows something of the picture, the map made smaller if it is large, and a newline after its rows."""
        whole, smaller = self.map_shapes(image)
        if whole == smaller:
            return super().whole_part(image, trace)
        # the patches of the base tile and of the map
        side = self.config.grid_side
        tile_grid = self.tile_grid(image)
        features, _, _ = self.features(image.pixels.to(self.device))
        patch, _ = tile_grid.unpruned()
        shown = features[patch[patch >= 0]]
        hidden = self.multi_modal_projector(shown)                                 # (P + H * W, D)
        base, of_map = hidden.tensor_split([side ** 2])
        # the map made smaller, with newlines
        of_map = of_map.unflatten(0, whole)                                        # (H, W, D)
        of_map = resized(of_map, smaller)                                          # (H', W', D)
        rows, columns = smaller
        newline = self.image_newline.expand(rows, 1, -1)
        of_map = torch.cat([of_map, newline], dim=1)                               # (H', W'+1, D)
        hidden = torch.cat([base, of_map.flatten(0, 1)])                           # (n, D)
        # its padding, in its own rows and columns
        above, left = tile_grid.padding
        above *= rows / whole[0]
        left *= columns / whole[1]
        return self.noted(hidden, places(side, rows, columns), (above, left), trace)

    def image_part(self, image, pruner, trace):
        """The Part of one image."""
        method = acting(pruner, "image") or acting(pruner, "vision")
        if isinstance(image, Tiles):
            return super().image_part(image, pruner, trace)
        if method:
            part = super().image_part(image, pruner, trace)
            if part.length is not None:
                part = part._replace(length=part.length + 1)           # the newline has a position, too
            return part
        features, grid, _ = self.features(image.to(self.device))
        hidden = self.multi_modal_projector(features)                              # (P, D)
        hidden = torch.cat([hidden, self.image_newline[None]])                     # (P+1, D)
        newline_place = torch.tensor([[0, -1, -1]])
        grid = torch.cat([grid.cpu(), newline_place])                              # (P+1, 3)
        return self.noted(hidden, grid, None, trace)


def resized(x, shape):
    """(H, W, D) -> (*shape, D), bilinearly: each value from the four nearest, however much smaller the map becomes."""
    channels_first = x.permute(2, 0, 1)[None]                                      # (1, D, H, W)
    smaller = interpolate(channels_first, shape, mode="bilinear")
    return smaller[0].permute(1, 2, 0)
