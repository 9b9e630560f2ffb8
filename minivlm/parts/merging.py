"""The vision tower with a method at its end, or with one that merges tokens inside its blocks: ToMe.

The latter acts between attention and MLP, and the blocks are run by their own modules; else the tower runs as clip.py
says. The size of a token is the number of patches that it is made of, and log(size) is added to the logits of its key.
"""

from dataclasses import replace

import torch

from minivlm.parts.sequence import tower_tokens
from minivlm.parts.smaller import seen_smaller
from minivlm.parts.views import TowerView
from pruning.apply import checked
from pruning.base import Reduction, UserError


def tower_output(model, pixels, method):
    """All features of one image as Tokens, and the Reduction of a method before the projector; None without one."""
    if method is None:
        return model.encode(pixels), None
    if method.site == "image":
        return seen_smaller(model, pixels, method)
    layers = model.config.feature_layers
    depth = max(layers)
    tiles = len(pixels)
    grid = model.visual_grid(tiles, method)                                        # (N, 3)
    per_tile = len(grid) // tiles
    counts = method.tower_schedule(per_tile, depth)
    if counts is None:
        tokens = model.encode(pixels, method)
        return tokens, checked(method, tokens)
    name = type(method).__name__
    if "cls" in model.lacks:
        raise UserError(f"{name} needs a class token, {model.lacks['cls']}: see python run.py methods --readings")
    if len(layers) > 1:
        raise UserError(f"{name} merges inside the tower, and this model reads several of its layers, "
                        "which then have different tokens: use a method that acts after the tower")
    return merged_inside(model.vision_tower, pixels, grid, method, counts)


def merged_inside(tower, pixels, grid, method, counts):
    """Run a block for each of `counts`, which says how many visual tokens of a tile it leaves -> Tokens, Reduction.

    The Tokens are the unpruned ones (places: grid (N, 3)); the row of each token that is left holds its features.
    """
    states = tower(pixels, depth=0)
    first = states[0]                                                              # (tiles, 1+P, C)
    unpruned = tower_tokens(tower, states, first, grid)
    tokens = unpruned
    made_of = torch.eye(tokens.n, device=first.device)                             # (n, N)  1 / size for its patches
    for l, k in enumerate(counts):
        tokens, made_of = merging_block(tower, l, tokens, made_of, method, k)
    # put the tokens in the order of the picture
    keep, order = tokens.source.sort()
    left = tokens.visual[order]
    place = unpruned.visual[keep]
    hidden = torch.zeros_like(unpruned.hidden)
    hidden[place] = tokens.hidden[left]
    depth = len(counts)
    tokens = replace(unpruned, hidden=hidden, layer=depth)
    made_of = made_of[order]
    return tokens, Reduction(keep, made_of, applied=True)


def merging_block(tower, l, tokens, made_of, method, k):
    """Block l, which leaves k visual tokens of each tile -> the tokens, and what they are made of (tiles * k, N)."""
    block = tower.layers[l]
    n, N = made_of.shape
    tile = tokens.grid[:, 0]
    tiles = len(tile.unique())
    is_part = made_of > 0                                                          # (n, N)
    size = is_part.sum(dim=1)                                                      # (n,)
    # attention
    x = tokens.hidden.unflatten(0, (tiles, -1))                                    # (tiles, T, C)
    before = TowerView(tower, l, {l: x}, tokens)
    bias = None
    if n < N and method.prop_attn:
        bias = key_bias(tokens, size, tiles)                                       # (tiles, 1, 1, T)
    normed = block.layer_norm1(x)
    x = x + block.self_attn(normed, bias)
    hidden = x.flatten(0, 1)
    tokens = replace(tokens, hidden=hidden, layer=l, before=before)
    # merge
    if tiles * k < n:
        r = method.merge(tokens, size, k)
        tokens = tokens.reduced(r)
        made_of = r.merge @ made_of
    # MLP
    x = tokens.hidden.unflatten(0, (tiles, -1))                                    # (tiles, T', C)
    normed = block.layer_norm2(x)
    x = x + block.mlp(normed)
    hidden = x.flatten(0, 1)
    tokens = replace(tokens, hidden=hidden)
    return tokens, made_of


def key_bias(tokens, size, tiles):
    """(tiles, 1, 1, T) log(size) of each key, 0 for the class token: what proportional attention adds to the logits."""
    rows = len(tokens.hidden)
    bias = torch.zeros(rows, device=size.device)
    bias[tokens.visual] = size.float().log()
    return bias.view(tiles, 1, 1, -1)
