"""The same tokens in another light, for the laws: attention times a factor, and text put before everything."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from pruning.base import LayerView


class ScaledView:
    """A view whose attention is that of another one times a factor."""

    def __init__(self, view, factor):
        self.view, self.factor = view, factor

    def __getattr__(self, name):
        return getattr(self.view, name)                    # everything else is the other view's own

    def attention(self, rows="all"):
        return self.view.attention(rows) * self.factor

    def each_head(self, rows="all"):
        return (attention * self.factor for attention in self.view.each_head(rows))

    def mean_attention(self, rows="all"):
        return self.view.mean_attention(rows) * self.factor

    def cls_attention(self):
        return self.view.cls_attention() * self.factor

    def block(self, l):
        return ScaledView(self.view.block(l), self.factor)


def shifted(tokens, rows):
    """The tokens with so many rows of text put before all others, which nobody looks at."""
    before = tokens.hidden.new_zeros(rows, tokens.hidden.shape[1])
    position = torch.cat([torch.arange(rows, device=tokens.position.device), tokens.position + rows])
    moved = replace(tokens, hidden=torch.cat([before, tokens.hidden]), visual=tokens.visual + rows, position=position,
                    next_position=tokens.next_position + rows)
    if tokens.masked is not None:
        moved = replace(moved, masked=torch.cat([tokens.masked.new_zeros(rows), tokens.masked]))
    if tokens.prompt is not None:
        moved = replace(moved, prompt=shifted(tokens.prompt, rows))
    return replace(moved, before=ShiftedView(tokens.before, moved, rows), here=ShiftedView(tokens.here, moved, rows))


class ShiftedView(LayerView):
    """A view of tokens with rows of text before them: those look at nothing, and nobody looks at them."""

    def __init__(self, view, tokens, rows):
        self.view, self.before = view, rows
        self.tokens = replace(tokens, before=view, here=view)

    def _old_rows(self, rows):
        """The rows asked for as the other view counts them; the text put before has none."""
        rows = self.tokens.rows(rows)
        return rows[rows >= self.before] - self.before

    def _padded(self, x, rows, columns):
        """x (.., R, T) with rows, and columns, of zeros for the text put before."""
        new = self.before if columns else 0
        missing = len(self.tokens.rows(rows)) - x.shape[-2]
        return F.pad(x, (new, 0, missing, 0))

    def query(self, rows="all"):
        return self._padded(self.view.query(self._old_rows(rows)), rows, False)

    def key(self):
        return self._padded(self.view.key(), "all", False)

    def projected_key(self, norm=True):
        return self._padded(self.view.projected_key(norm), "all", False)

    def mask(self, rows=None):
        rows = torch.arange(len(self.tokens.hidden), device=self.tokens.visual.device) if rows is None else rows
        return self._padded(self.view.mask(self._old_rows(rows)), rows, True)

    def rotated(self, x):
        return self._padded(self.view.rotated(x[self.before:]), "all", False)

    def logits(self, rows="all"):
        return self._padded(self.view.logits(self._old_rows(rows)), rows, True)

    def attention(self, rows="all"):
        return self._padded(self.view.attention(self._old_rows(rows)), rows, True)

    def each_head_logits(self, rows="all"):
        return (self._padded(x, rows, True) for x in self.view.each_head_logits(self._old_rows(rows)))

    def each_head(self, rows="all"):
        return (self._padded(x, rows, True) for x in self.view.each_head(self._old_rows(rows)))
