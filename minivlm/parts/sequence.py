"""How an image's tiles, and a prompt's words and images, become one sequence of Tokens."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from minivlm.parts.views import tower_view
from pruning.base import Tokens, whole_grid


def tower_tokens(tower, states, hidden, grid):
    """All tiles of one image as one sequence, as a method of the vision site is given it.

    states: what enters block 0, 1, .. up to the first that has not run. hidden: the features, (tiles, 1+P, C).
    grid: (n, 3) of all visual tokens.
    """
    tiles, rows, _ = hidden.shape
    depth = len(states) - 1
    per_tile = len(grid) // tiles                                                  # visual tokens of a tile
    index = torch.arange(tiles * rows).view(tiles, rows)
    visual = index[:, rows - per_tile:].flatten()                                  # (n,)
    hidden = hidden.flatten(0, 1)                                                  # (tiles * (1+P), C)
    tokens = Tokens.start(hidden, visual, grid, layer=depth)
    # the block before the features, and the one after them
    before = tower_view(tower, depth - 1, states, tokens)
    here = tower_view(tower, depth, states, tokens)
    return replace(tokens, before=before, here=here)


def places_on_tiles(tiles, side, with_class=False):
    """(n, 3) places of the patches of square tiles; with_class: each tile's class token first, on no grid."""
    one_tile = whole_grid(side, side)                                              # (P, 3)
    if with_class:
        class_token = torch.tensor([[0, -1, -1]])
        one_tile = torch.cat([class_token, one_tile])                              # (1+P, 3)
    grid = one_tile.repeat(tiles, 1, 1)                                            # (tiles, 1+P, 3)
    grid[:, :, 0] = torch.arange(tiles)[:, None]
    return grid.flatten(0, 1)


def only_visual(tokens):
    """The visual tokens without the class tokens between them, which would keep each tile's together."""
    rows = tokens.visual
    hidden = tokens.hidden[rows]
    position = tokens.position[rows]
    return replace(tokens, hidden=hidden, position=position, visual=tokens.source)


class Part(NamedTuple):
    """A piece of the prompt: words, or an image."""

    hidden: Tensor                     # (m, D)
    grid: Tensor | None = None         # (n, 3)    of an image's visual tokens
    source: Tensor | None = None       # (n,)
    position: Tensor | None = None     # (m,)      position ids, counted from the part's first; None: 0 .. m-1
    length: int | None = None          # position ids that the part takes; None: m
    visual: Tensor | None = None       # (m,) bool which rows of an image are visual; None: all, and n is m


def visual_rows(part):
    """(m,) bool: the part's rows that are visual tokens."""
    if part.visual is not None:
        return part.visual
    is_image = part.grid is not None
    return torch.full((len(part.hidden),), is_image)


def positioned(part, method, source, length):
    """The part with the position ids of its tokens (m,) among `length` unpruned ones, if the method keeps them."""
    if method is None or method.positions != "keep":
        return part
    return part._replace(position=source, length=length)


def counted_from(tile, grid):
    """The places (n, 3) with their tiles counted from `tile`."""
    shift = torch.tensor([tile, 0, 0], device=grid.device)
    return grid + shift


def spliced(parts):
    """The words and images of a prompt, in turn -> Tokens."""
    hidden = torch.cat([part.hidden for part in parts])                            # (T, D)
    # the rows of the images
    is_visual = torch.cat([visual_rows(part) for part in parts])                   # (T,)
    visual = is_visual.nonzero().squeeze(1)                                        # (n,)
    images = [part for part in parts if part.grid is not None]
    if not images:
        return Tokens.start(hidden, visual)
    grid = torch.cat([part.grid for part in images])                               # (n, 3)
    source = torch.cat([part.source for part in images])                           # (n,)
    tokens = Tokens.start(hidden, visual, grid)
    position, next_position = positions(parts)
    return replace(tokens, source=source, position=position.to(hidden.device), next_position=next_position)


def positions(parts):
    """Position ids (T,) of parts one after the other, and that of the token after them."""
    ids = []
    start = 0
    for part in parts:
        m = len(part.hidden)
        position = torch.arange(m) if part.position is None else part.position.cpu()
        ids.append(start + position)
        start += m if part.length is None else part.length
    return torch.cat(ids), start
