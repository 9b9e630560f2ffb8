"""The picture made smaller before the tower: for the control downsample_image, the only method that acts there.

Pixels and position embeddings are interpolated bicubically, the latter as transformers' interpolate_pos_encoding does.
"""

from dataclasses import replace
from math import isqrt

import torch
import torch.nn.functional as F

from minivlm.parts.sequence import places_on_tiles
from pruning.apply import checked
from pruning.base import Tokens, UserError


def seen_smaller(model, pixels, method):
    """One image's pixels (tiles, 3, S, S) -> the Tokens of the whole picture, and the Reduction, which says what part
    of it each token of the smaller one shows. The row of each token that is left holds its features."""
    config = model.config
    name = type(method).__name__
    if config.sends_class_token:
        raise UserError(f"{name} shows the decoder patches only, and this model sends it the class token, too: "
                        "use another method")
    tiles = len(pixels)
    grid = places_on_tiles(tiles, config.grid_side)                                # (n, 3)
    stateless = torch.zeros(len(grid), 1, device=pixels.device)
    tokens = Tokens.start(stateless, torch.arange(len(grid)), grid)
    r = checked(method, tokens)
    # the tower on the smaller picture
    side = isqrt(len(r.keep) // tiles)
    pixels_per_token = config.vision.image_size // config.grid_side
    smaller = model.encode(resized_pixels(pixels, side * pixels_per_token), side=side)
    features = smaller.hidden[smaller.visual]                                      # (k, C)
    in_sequence = r.keep.argsort().argsort()               # (k,)  of each row of r, its place in sequence order
    hidden = features.new_zeros(len(grid), features.shape[1])                      # (n, C)
    hidden[r.keep] = features[in_sequence]
    return replace(tokens, hidden=hidden), replace(r, applied=True)


def resized_pixels(pixels, side):
    """(tiles, 3, S, S) -> (tiles, 3, side, side)"""
    if pixels.shape[-1] == side:
        return pixels
    resized = F.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True)
    return resized.to(pixels.dtype)


def resized_positions(position, rows):
    """Position embeddings (1+P, C) of the class token and a square of patches -> (rows, C), of a smaller square.

    Without a class token they are (P, C).
    """
    if len(position) == rows:
        return position
    side = isqrt(len(position))
    new_side = isqrt(rows)
    first = len(position) - side ** 2                      # 1, or 0 without a class token
    of_patches = position[first:].float()                                          # (P, C)
    maps = of_patches.T.unflatten(1, (side, side))                                 # (C, side, side)
    maps = F.interpolate(maps[None], (new_side, new_side), mode="bicubic")[0]      # (C, new_side, new_side)
    of_patches = maps.flatten(1).T.to(position.dtype)
    return torch.cat([position[:first], of_patches])
