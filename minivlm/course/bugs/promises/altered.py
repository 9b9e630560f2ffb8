"""The same tokens seen otherwise, for promises that are not among the laws: what may change without changing a choice.

Each function takes Tokens whose views are of typed matrices (LayerView.of) and gives Tokens.
"""

from dataclasses import replace

import torch

from pruning.base import LayerView, UserError
from pruning.grid import map_shape

OFFSET = 3.0                           # added to all logits
NEARLY_ALL = 0.99                      # of the attention, for the needle


class Wrapped:
    """A view that is another one but for what a subclass changes."""

    def __init__(self, view):
        self.view = view

    def __getattr__(self, name):
        return getattr(self.view, name)                    # everything else is the other view's own

    def block(self, l):
        return type(self)(self.view.block(l))


class MeanHeadView(Wrapped):
    """All heads have the mean over heads for their attention."""

    def attention(self, rows="all"):
        return self.view.attention(rows).mean(dim=0, keepdim=True)

    def each_head(self, rows="all"):
        return iter(self.attention(rows))

    def cls_attention(self):
        return self.view.cls_attention().mean(dim=0, keepdim=True)


class OffsetView(Wrapped):
    """All logits are larger by a constant: the softmax, and so the attention, does not see it."""

    def logits(self, rows="all"):
        return self.view.logits(rows) + OFFSET

    def each_head_logits(self, rows="all"):
        return iter(self.logits(rows))

    def mean_logits(self, rows="all"):
        return self.view.mean_logits(rows) + OFFSET

    def summed_logits(self, rows="all"):
        count = len(self.view.tokens.rows(rows))
        return self.view.summed_logits(rows) + OFFSET * count


class NeedleView(Wrapped):
    """The visual token in the middle gets nearly all the attention, in every head."""

    def attention(self, rows="all"):
        tokens = self.view.tokens
        attention = self.view.attention(rows)                                      # (H, R, T)
        return towards(attention, tokens.visual[tokens.n // 2])

    def each_head(self, rows="all"):
        return iter(self.attention(rows))

    def mean_attention(self, rows="all"):
        return self.attention(rows).mean(dim=0)

    def cls_attention(self):
        attention = self.view.cls_attention()                                      # (H, n)
        return towards(attention, attention.shape[1] // 2)


def towards(attention, column):
    """Attention (.., T) of which nearly all is moved to one column."""
    moved = (1 - NEARLY_ALL) * attention
    moved[..., column] += NEARLY_ALL
    return moved


def with_views(tokens, kind):
    """The tokens with both views wrapped."""
    return replace(tokens, before=kind(tokens.before), here=kind(tokens.here))


def mirrored(tokens):
    """The tokens of the picture with left and right exchanged, and all that the views hold of them.

    UserError if the picture has no middle between two columns: in an odd number of them released code is off centre.
    """
    swap = mirror_image(tokens.grid)                                               # (n,)
    rows = torch.arange(len(tokens.hidden))                                        # (T,)
    rows[tokens.visual] = tokens.visual[swap]
    changed = replace(tokens, hidden=tokens.hidden[rows])
    if tokens.prompt is not None:
        changed = replace(changed, prompt=replace(tokens.prompt, hidden=tokens.prompt.hidden[rows]))
    views = {}
    for side in ("before", "here"):
        view = getattr(tokens, side)
        views[side] = mirrored_view(view, rows, swap).on(changed) if hasattr(view, "given") else view
    return replace(changed, **views)


def mirror_image(grid):
    """(n,) for each patch of a whole image, the one that takes its place."""
    shape = map_shape(grid)
    if shape is None or shape[1] % 2:
        raise UserError("a picture that can be mirrored has whole rows, of an even number of patches")
    return torch.arange(len(grid)).view(shape).flip(1).flatten()


def mirrored_view(view, rows, swap):
    """The typed matrices of a view with rows (T,), and patches (n,), exchanged."""
    matrices = {}
    for name, x in view.given.items():
        if x is None:
            continue
        if name == "cls_attention":
            x = x[..., swap]
        elif name in ("attention", "logits"):
            x = x[..., rows]
        if name != "cls_attention" and x.shape[-2] == len(rows):
            x = x.index_select(-2, rows)
        matrices[name] = x
    blocks = {l: mirrored_view(block, rows, swap) for l, block in view.blocks.items()}
    return LayerView.of(**matrices, blocks=blocks)
