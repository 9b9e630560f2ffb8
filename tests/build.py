"""Builds the Tokens of an example by hand: the builders that the tests of all methods use."""

import math
from dataclasses import replace

import torch

from pruning.base import LayerView, Tokens, whole_grid


def tokens(kinds, attention=None, *, hidden=None, values=None, grid=None, layer=2, before=None, here=None, **fields):
    """Tokens of "t"ext and "v"isual rows: tokens("tvvvt", [[.1, .2, .5, .1, .1]]).

    attention: of layer - 1, (R, T) or (H, R, T); with fewer than T rows, those are the last ones.
    hidden: (T, D) states; by default each row's is its own index. values: (n,) those of the visual rows, with D = 1;
    the text rows then hold 100, 101, and so on. grid: (n, 3), or (rows, columns) of one image.
    before, here: {name: matrix} for LayerView.of. fields: others of Tokens, such as prompt, masked or source.
    """
    kinds = kinds.replace(" ", "")
    visual = [row for row, kind in enumerate(kinds) if kind == "v"]
    if values is not None:
        hidden = numbered(kinds, torch.as_tensor(values))
    if hidden is None:
        hidden = torch.arange(len(kinds)).float()[:, None]
    if attention is not None:
        before = dict(before or {}, attention=attention)
    views = {name: LayerView.of(**view) for name, view in (("before", before), ("here", here)) if view is not None}
    start = Tokens.start(hidden, visual, grid, layer=layer, **views)
    return replace(start, **fields) if fields else start


def numbered(kinds, values):
    """(T, 1) states: `values` in the visual rows; 100, 101, and so on in the text rows."""
    is_visual = torch.tensor([kind == "v" for kind in kinds])                      # (T,)
    hidden = torch.empty(len(kinds), dtype=values.dtype if values.is_floating_point() else torch.float32)
    hidden[is_visual] = values.to(hidden.dtype)
    hidden[~is_visual] = 100 + torch.arange(int((~is_visual).sum())).to(hidden.dtype)
    return hidden[:, None]


def tiles(hidden, attention=None, *, key=None, initial=None, here=None, grid=None, cls=False, layer=23):
    """Tokens of the vision site: of each tile the class token, then its patches. hidden (tiles, 1+P, C).

    attention: from each tile's class token in block layer - 1, (tiles, H, 1+P); initial: in block 0. key: of block
    layer - 1, (tiles, H, 1+P, Dh). here: {"query" or "key": the same of block `layer`}. Without H: of one head. grid:
    (rows, columns) of a tile's patches; None: one row. cls: the class tokens are visual tokens, too.
    """
    count, rows, _ = hidden.shape
    one_tile = torch.cat([torch.tensor([[0, -1, -1]]), whole_grid(*(grid or (1, rows - 1)))])      # (1+P, 3)
    places = torch.stack([one_tile + torch.tensor([tile, 0, 0]) for tile in range(count)])         # (tiles, 1+P, 3)
    is_visual = (places[:, :, 1] >= 0) | cls                                       # (tiles, 1+P)
    of_visual = is_visual.flatten().nonzero().squeeze(1)                           # (n,)

    def received(attention):
        return None if attention is None else heads_first(attention, 3)[:, of_visual]

    before = LayerView.of(cls_attention=received(attention), key=heads_first(key, 4),
                          blocks={0: LayerView.of(cls_attention=received(initial))})
    here = {name: heads_first(x, 4) for name, x in (here or {}).items()}
    return Tokens.start(hidden.flatten(0, 1), of_visual, places[is_visual], before, LayerView.of(**here), layer)


def heads_first(x, ndim):
    """(tiles, H, 1+P, ..) -> (H, tiles * (1+P), ..); with a dimension less than `ndim` there is one head."""
    if x is None:
        return None
    x = x[:, None] if x.ndim < ndim else x
    return x.transpose(0, 1).flatten(1, 2)


def plane(*degrees, length=1.):
    """(n, 2) vectors of these angles."""
    return length * torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])


def close(ours, theirs, atol=1e-5, rtol=0):
    """The two have one shape and agree to `atol`, however large they are; rtol: and to this share of their size
    more."""
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), atol=atol, rtol=rtol, check_dtype=False)
