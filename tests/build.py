"""Builds the Tokens of an example by hand: the one builder that the tests of all methods use."""

from dataclasses import replace

import torch

from pruning.base import LayerView, Tokens


def tokens(kinds, attention=None, *, hidden=None, grid=None, layer=2, before=None, here=None, **fields):
    """Tokens of "t"ext and "v"isual rows: tokens("tvvvt", [[.1, .2, .5, .1, .1]]).

    attention: of layer - 1, (R, T) or (H, R, T); with fewer than T rows, those are the last ones.
    hidden: (T, D) states; by default each row's is its own index. grid: (n, 3), or (rows, columns) of one image.
    before, here: {name: matrix} for LayerView.of. fields: others of Tokens, such as prompt, masked or source.
    """
    kinds = kinds.replace(" ", "")
    visual = [row for row, kind in enumerate(kinds) if kind == "v"]
    if hidden is None:
        hidden = torch.arange(len(kinds)).float()[:, None]
    if attention is not None:
        before = dict(before or {}, attention=attention)
    views = {name: LayerView.of(**view) for name, view in (("before", before), ("here", here)) if view is not None}
    made = Tokens.start(hidden, visual, grid, layer=layer, **views)
    return replace(made, **fields) if fields else made


def close(ours, theirs, atol=1e-5):
    """The two agree to `atol`, however large they are."""
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), atol=atol, rtol=0, check_dtype=False)
