"""The same tokens, altered, for the laws: attention times a factor, and text put before everything."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from pruning.base import LayerView


class ScaledView:
    """A view whose attention is that of another one times a factor."""

    def __init__(self, view, factor):
        self.view = view
        self.factor = factor

    def __getattr__(self, name):
        return getattr(self.view, name)                    # everything else is the other view's own

    def attention(self, rows="all"):
        return self.view.attention(rows) * self.factor

    def each_head(self, rows="all"):
        for attention in self.view.each_head(rows):
            yield attention * self.factor

    def mean_attention(self, rows="all"):
        return self.view.mean_attention(rows) * self.factor

    def cls_attention(self):
        return self.view.cls_attention() * self.factor

    def received(self):
        return self.view.received() * self.factor

    def block(self, l):
        return ScaledView(self.view.block(l), self.factor)


def shifted(tokens, rows):
    """The tokens with so many rows of text put before all others, which nobody looks at."""
    width = tokens.hidden.shape[1]
    new_text = tokens.hidden.new_zeros(rows, width)
    new_position = torch.arange(rows, device=tokens.position.device)
    hidden = torch.cat([new_text, tokens.hidden])                                  # (rows+T, D)
    position = torch.cat([new_position, tokens.position + rows])                   # (rows+T,)
    next_position = tokens.next_position + rows
    changed = replace(tokens, hidden=hidden, position=position, next_position=next_position)
    changed = replace(changed, visual=tokens.visual + rows)
    if tokens.masked is not None:
        not_masked = tokens.masked.new_zeros(rows)
        changed = replace(changed, masked=torch.cat([not_masked, tokens.masked]))
    if tokens.prompt is not None:
        changed = replace(changed, prompt=shifted(tokens.prompt, rows))
    before = ShiftedView(tokens.before, changed, rows)
    here = ShiftedView(tokens.here, changed, rows)
    watched = [ShiftedView(view, shifted(view.tokens, rows), rows) for view in tokens.watched]
    return replace(changed, before=before, here=here, watched=tuple(watched))


class ShiftedView(LayerView):
    """A view of tokens with rows of text before them: those look at nothing, and nobody looks at them."""

    def __init__(self, view, tokens, new):
        self.view = view
        self.new = new                 # rows of text put before
        self.tokens = replace(tokens, before=view, here=view)

    def _old(self, rows):
        """These rows as the other view counts them, without the new ones."""
        rows = self.tokens.rows(rows)
        is_old = rows >= self.new
        return rows[is_old] - self.new

    def _with_new_rows(self, x, rows):
        """x (.., R, S) with rows of zeros for the new ones among `rows`."""
        missing = len(self.tokens.rows(rows)) - x.shape[-2]
        return F.pad(x, (0, 0, missing, 0))

    def _with_new(self, x, rows):
        """x (.., R, T) with columns of zeros, too, for the new keys."""
        x = F.pad(x, (self.new, 0))
        return self._with_new_rows(x, rows)

    def query(self, rows="all", rope=True):
        query = self.view.query(self._old(rows), rope)
        return self._with_new_rows(query, rows)

    def key(self, rope=True):
        return self._with_new_rows(self.view.key(rope), "all")

    def projected_key(self, norm=True):
        key = self.view.projected_key(norm)
        return self._with_new_rows(key, "all")

    def final_normed(self):
        return self._with_new_rows(self.view.final_normed(), "all")

    def modules(self):
        pairs = []
        for pair in self.view.modules():
            with_new = [self._with_new_rows(x, "all") for x in pair]               # (rows+T, D) twice
            pairs.append(with_new)
        return pairs

    def mask(self, rows=None):
        if rows is None:
            T = len(self.tokens.hidden)
            rows = torch.arange(T, device=self.tokens.visual.device)
        mask = self.view.mask(self._old(rows))
        mask = F.pad(mask, (self.new, 0), value=float("-inf"))
        return self._with_new_rows(mask, rows)

    def rotated(self, x):
        rotated = self.view.rotated(x[self.new:])
        return self._with_new_rows(rotated, "all")

    def logits(self, rows="all"):
        logits = self.view.logits(self._old(rows))
        return self._with_new(logits, rows)

    def attention(self, rows="all"):
        attention = self.view.attention(self._old(rows))
        return self._with_new(attention, rows)

    def each_head_logits(self, rows="all"):
        for logits in self.view.each_head_logits(self._old(rows)):
            yield self._with_new(logits, rows)

    def each_head(self, rows="all"):
        for attention in self.view.each_head(self._old(rows)):
            yield self._with_new(attention, rows)
