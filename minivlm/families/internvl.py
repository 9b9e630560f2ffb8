"""InternVL 2 and 2.5: InternViT, pixel shuffle, projector; the decoder and what is done with a prompt are LLaVA's.

    picture -> tiles of 448 pixels, and all of it once more as a thumbnail -> InternViT: 32 x 32 patches a tile
            -> pixel shuffle: 16 x 16 visual tokens of four patches each -> projector -> [embed] -> decoder [decoder]

There is no vision site: pixel shuffle needs the whole grid, and what the class token looks at are patches, of which a
visual token has four.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from minivlm.attention import attention
from minivlm.clip import MLP
from minivlm.io.image import ImageProcessor, _fields, _told, open_image
from minivlm.io.limits import check
from minivlm.llava import Llava
from minivlm.parts.activations import ACTIVATIONS
from pruning.base import UserError, whole_grid

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)               # of ImageNet: red, green, blue


class Embeddings(nn.Module):
    """Patches by a strided convolution, the class token before them, learned positions."""

    def __init__(self, c):
        super().__init__()
        patches = (c.image_size // c.patch_size) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.hidden_size))
        self.position_embeddings = nn.Parameter(torch.zeros(1, patches + 1, c.hidden_size))
        projection = nn.Conv2d(3, c.hidden_size, c.patch_size, c.patch_size)
        self.patch_embeddings = nn.ModuleDict({"projection": projection})

    def forward(self, pixels):
        """(tiles, 3, size, size) -> (tiles, 1+P, C)"""
        patches = self.patch_embeddings["projection"](pixels)                      # (tiles, C, rows, columns)
        patches = patches.flatten(2).transpose(1, 2)                               # (tiles, P, C)
        cls = self.cls_token.expand(len(pixels), -1, -1)                           # (tiles, 1, C)
        hidden = torch.cat([cls, patches], dim=1)                                  # (tiles, 1+P, C)
        return hidden + self.position_embeddings


class Attention(nn.Module):
    """Multi-head attention without a mask."""

    def __init__(self, c):
        super().__init__()
        self.num_heads = c.num_attention_heads
        self.q_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=c.attention_bias)
        self.k_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=c.attention_bias)
        self.v_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=c.attention_bias)
        self.projection_layer = nn.Linear(c.hidden_size, c.hidden_size)

    def heads(self, x):
        """(tiles, T, C) -> (tiles, H, T, Dh)"""
        heads = x.unflatten(-1, (self.num_heads, -1))                              # (tiles, T, H, Dh)
        return heads.transpose(1, 2)

    def forward(self, x):
        """(tiles, T, C) -> (tiles, T, C)"""
        query = self.heads(self.q_proj(x))
        key = self.heads(self.k_proj(x))
        value = self.heads(self.v_proj(x))
        out = attention(query, key, value, causal=False)                           # (tiles, H, T, Dh)
        out = out.transpose(1, 2).flatten(2)                                       # (tiles, T, C)
        return self.projection_layer(out)


class Layer(nn.Module):
    """x + lambda_1 * attention(norm x), then x + lambda_2 * mlp(norm x): each channel of a branch has its own scale."""

    def __init__(self, c):
        super().__init__()
        self.attention = Attention(c)
        self.mlp = MLP(c)
        self.layernorm_before = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.lambda_1 = nn.Parameter(torch.ones(c.hidden_size))
        self.lambda_2 = nn.Parameter(torch.ones(c.hidden_size))

    def forward(self, x):
        """(tiles, T, C) -> (tiles, T, C)"""
        x = x + self.lambda_1 * self.attention(self.layernorm_before(x))
        return x + self.lambda_2 * self.mlp(self.layernorm_after(x))


class InternViT(nn.Module):
    """Pixels to hidden states; no norm before the first layer and none after the last."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embeddings = Embeddings(c)
        layers = [Layer(c) for _ in range(c.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)

    def forward(self, pixels, depth):
        """(tiles, 3, size, size) -> hidden_states[0 .. depth], (tiles, 1+P, C) each."""
        pixels = pixels.to(self.embeddings.cls_token)
        states = [self.embeddings(pixels)]
        for layer in self.layers[:depth]:
            states.append(layer(states[-1]))
        return states


class Projector(nn.Module):
    """linear_2(act(linear_1(norm x))): from the width of four patches to that of the decoder."""

    def __init__(self, c):
        super().__init__()
        width = c.vision.hidden_size * c.join ** 2
        self.layer_norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, c.text.hidden_size)
        self.linear_2 = nn.Linear(c.text.hidden_size, c.text.hidden_size)
        self.act = ACTIVATIONS[c.projector_hidden_act]

    def forward(self, x):
        """(.., 4C) -> (.., D)"""
        x = self.linear_1(self.layer_norm(x))
        return self.linear_2(self.act(x))


class InternVL(Llava):
    """The whole model. `weights.load` makes one from a checkpoint folder and adds tokenizer, processor and eos."""

    tower = InternViT
    projector = Projector
    lacks = {"cls": "and InternVL's rates patches, of which pixel shuffle joins four to a visual token"}

    def features(self, pixels, pruner=None, trace=None):
        """One image, (tiles, 3, size, size) -> features (n, 4C), their grid (n, 3) and source (n,). There is no
        vision site."""
        at_vision = pruner and pruner.at("vision")
        if at_vision:
            raise UserError(f"{type(at_vision).__name__} acts inside the vision tower, and InternVL's pixel shuffle "
                            "needs all patches: use a method of the embed or decoder site (python run.py methods)")
        states = self.vision_tower(pixels, self.config.vision.num_hidden_layers)
        patches = states[-1][:, 1:]                                                # (tiles, P, C)
        features = pixel_shuffle(patches, self.config.join).flatten(0, 1)          # (n, 4C)
        grid = self.places(len(pixels)).to(pixels.device)
        return features, grid, torch.arange(len(grid), device=grid.device)

    def parts(self, images):
        """{"tile": (how many, visual tokens of each), "image": (how many, visual tokens of each, on average)}"""
        tiles = sum(len(image) for image in images)
        tokens = len(self.places(1))
        return {
            "tile": (tiles, tokens),
            "image": (len(images), tiles * tokens // len(images)),
        }

    def places(self, tiles, pruner=None):
        """(n, 3) places of all visual tokens of so many tiles, row and column on the shuffled grid."""
        c = self.config
        side = c.vision.image_size // c.vision.patch_size // c.join
        grids = [whole_grid(side, side, tile) for tile in range(tiles)]
        return torch.cat(grids)


def pixel_shuffle(x, join=2):
    """(tiles, P, C) -> (tiles, P / 4, 4C): squares of 2 x 2 patches to one row each, the grid of squares row by row.

    Within a row of the result: the upper left patch, the upper right, the lower left, the lower right.
    """
    side = round(x.shape[1] ** 0.5)
    x = x.unflatten(1, (side // join, join, side // join, join))                   # (tiles, row, 2, column, 2, C)
    return x.transpose(2, 3).flatten(3).flatten(1, 2)


@dataclass(frozen=True)
class TileProcessor(ImageProcessor):
    """A picture as tiles: the grid of tiles nearest to its shape, the picture squashed to it, and a thumbnail after
    them.

    TileProcessor(448).grid(1000, 500) -> (2, 1): two tiles side by side; pixels: these and the thumbnail, (3, 3, 448,
    448).
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
        path, stored = _told(Path(folder))
        if config.original or not stored:
            return cls(size, min_tiles=config.min_tiles, max_tiles=config.max_tiles, thumbnail=config.use_thumbnail)
        defaults = {"image_mean": MEAN, "image_std": STD}
        fixed = {"do_center_crop": False, "do_resize": True}
        known = _fields(path, defaults | stored | fixed, size)
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
        tiles = []
        for row in range(rows):
            for column in range(columns):
                left = column * S
                top = row * S
                tiles.append(whole.crop((left, top, left + S, top + S)))
        if self.thumbnail and len(tiles) > 1:
            tiles.append(image.resize((S, S), self.resample))
        return torch.cat([super(TileProcessor, self).pixels(tile) for tile in tiles])

    def box(self, width, height):
        """(left, top, right, bottom) of what the one tile shows of a picture, in its own pixels; of several tiles each
        one's.

        TileProcessor(448).box(1000, 500) -> ((0, 0, 500, 500), (500, 0, 1000, 500), (0, 0, 1000, 500)), the thumbnail's
        last.
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
