"""The contract: what a method may look at (Tokens), what it gives back (Reduction), where it acts (Pruner).

A reduction of visual tokens is a k x n matrix applied to the n visual tokens somewhere in the pipeline: one-hot rows
select, other rows merge. A method is a pure function from Tokens to that matrix. Applying it, and keeping positions,
masks and caches right, is done elsewhere (apply.py and the model), by no method.

tokens.before and tokens.here are two layers to look at, LayerViews (views.py): tokens.before.mean_attention("last").

Letters: T tokens in the sequence now, n visual tokens now, k visual tokens after, N visual tokens at first, D width,
H query heads, Hk key heads, Dh head width, R query rows.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from pruning import apply
from pruning.budget import Budgeted
from pruning.errors import UserError
from pruning.fields import first_fault
from pruning.views import NOT_YET, LayerView, NoView, for_each_head  # noqa: F401


@dataclass(frozen=True, repr=False)
class Tokens:
    """One prompt's sequence as it enters layer `layer`, and two layers to look at.

    At the vision site the sequence is each tile's class token and patches, and a layer is a block of the tower.
    """

    hidden: Tensor                 # (T, D)    residual stream
    visual: Tensor                 # (n,)      rows of `hidden` that are visual tokens (several images: one set)
    grid: Tensor                   # (n, 3)    tile, row, column in the unpruned image; row -1: on no grid (newline)
    source: Tensor                 # (n,)      index of each among the N visual tokens of the unpruned prompt
    position: Tensor               # (T,)      RoPE position ids; (T, 2) where they have two dimensions
    next_position: int             # position id of the first generated token
    layer: int = 0
    before: LayerView = NOT_YET    # layer - 1, which has run
    here: LayerView = NOT_YET      # this layer, which is about to run
    prompt: "Tokens | None" = None                                     # what entered layer 0; None: these tokens
    masked: Tensor | None = None   # (T,)      True: still in the sequence, its key masked (Reduction.drop False)

    @classmethod
    def start(cls, hidden, visual, grid=None, before=None, here=None, layer=0):
        """Tokens of a whole prompt: positions and sources count from 0. For examples by hand, too.

        visual: its rows. grid: (n, 3), or (rows, columns) of one image; None: one row. Views: LayerView.of(..).
        """
        hidden = torch.as_tensor(hidden)
        visual = torch.as_tensor(visual, dtype=torch.long, device=hidden.device)
        if not isinstance(grid, Tensor):
            grid = whole_grid(*(grid or (1, len(visual))))
        source = torch.arange(len(visual), device=hidden.device)
        position = torch.arange(len(hidden), device=hidden.device)
        tokens = cls(hidden, visual, grid.to(hidden.device), source, position, len(hidden), layer)
        views = dict(before=before, here=here)
        return replace(tokens, **{name: view.on(tokens) for name, view in views.items() if view is not None})

    @property
    def n(self):
        """Number of visual tokens now."""
        return len(self.visual)

    @property
    def N(self):
        """Number of visual tokens that entered layer 0."""
        return self.n if self.prompt is None else self.prompt.n

    def is_visual(self):
        """(T,) bool"""
        row = torch.zeros(len(self.hidden), dtype=torch.bool, device=self.visual.device)
        return row.index_fill_(0, self.visual, True)

    def text(self):
        """(m,) rows of the text after the (first) image: those that can see visual tokens."""
        is_text = ~self.is_visual()
        if self.masked is not None:
            is_text &= ~self.masked
        rows = is_text.nonzero().squeeze(1)
        return rows[rows > self.visual.min()] if self.n else rows[:0]

    def rows(self, which):
        """(R,) the rows called "last", "text" (after the image), "visual" or "all" (but masked ones). Indices stay."""
        if isinstance(which, Tensor):
            return which
        if which == "last":
            return self.visual.new_tensor([len(self.hidden) - 1])
        if which == "text":
            return self.text()
        if which == "visual":
            return self.visual
        if which != "all":
            raise UserError(f'rows are "last", "text", "visual", "all" or indices, not {which!r}')
        if self.masked is None:
            return torch.arange(len(self.hidden), device=self.visual.device)
        return (~self.masked).nonzero().squeeze(1)

    def reduced(self, r, positions="keep"):
        """The sequence after a Reduction; see apply.reduced."""
        return apply.reduced(self, r, positions)

    def without_views(self, **new):
        """These tokens with other fields, and nothing to look at: no stale matrix can be read."""
        gone = NoView("a reduction has changed the sequence after that layer ran")
        return replace(self, before=gone, here=gone, **new)

    def __repr__(self):
        return f"Tokens(layer {self.layer}, hidden {tuple(self.hidden.shape)}, {self.n} visual of {self.N})"


def whole_grid(rows, columns, tile=0):
    """(rows * columns, 3): tile, row and column of every patch, row by row."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    tile = torch.full_like(row, tile)
    return torch.stack([tile, row, column], dim=-1).flatten(0, 1)


@dataclass(frozen=True, repr=False)
class Reduction:
    """n visual tokens -> k. Without `merge` it selects; with it, row i is the weighted sum of all n."""

    keep: Tensor                   # (k,)      row i takes the place (position, grid) of source keep[i]
    merge: Tensor | None = None    # (k, n)    weights
    score: Tensor | None = None    # (n,)      what the method ranked by: for pictures, never for computing
    drop: bool = True              # False: the tokens stay in the sequence and their keys are masked instead
    reason: Tensor | None = None   # (k,)      which of `reasons` kept each: for pictures too
    reasons: tuple = ()            # their names

    def __repr__(self):
        verb = "selects" if self.merge is None else f"merges {self.merge.shape[1]} into"
        return f"Reduction({verb} {len(self.keep)}: {self.keep.tolist()})"


class Pruner(Budgeted):
    """A method. Subclasses are frozen dataclasses: their fields are the paper's hyper-parameters.

    Their annotations say what is allowed (fields.py): another value is a UserError. A subclass that checks more in a
    `__post_init__` of its own calls this one first.
    """

    site: ClassVar = "decoder"                    # "vision": before the projector; "embed": before layer 0; "decoder"
    laws: ClassVar = frozenset({"select"})        # promises that the tests hold it to, of LAWS
    positions: ClassVar = "keep"                  # of the tokens left: "keep" their position ids, or "renumber" them
    preconditions: ClassVar = frozenset()         # what it needs of model and prompt, of PRECONDITIONS
    per: ClassVar = "prompt"                      # what `keep` counts, of PER

    def __post_init__(self):
        wrong = first_fault(self)
        if wrong:
            raise UserError(f"{type(self).__name__}: {wrong}")

    def reduce_at(self, layers):
        """Decoder layers, of `layers` in all, before which `reduce` is called."""
        return ()

    def mask_at(self, layers):
        """Decoder layers before which `mask` is called."""
        return ()

    def budget(self, n):
        """Visual tokens left of n, or None if the method does not fix it."""
        return None

    def reduce(self, tokens) -> Reduction:
        """The matrix, from what the method reads of the tokens and their views."""
        raise NotImplementedError

    def mask(self, tokens) -> Tensor:
        """(T, T) what layer `tokens.layer` adds to its logits, in place of tokens.here.mask()."""
        raise NotImplementedError

    def schedule(self, n, layers):
        """Visual tokens that enter each of `layers` decoder layers, n at first; None if the prompt decides it."""
        cuts = self.reduce_at(layers)
        k = self.budget(n)
        if self.site == "decoder" and not cuts:
            return [n] * layers
        if k is None or len(cuts) > 1:
            return None
        first = cuts[0] if self.site == "decoder" else 0
        return [n] * first + [k] * (layers - first)

    # Rare: what only one or two methods change.
    cls: ClassVar = False                         # vision site: the class tokens are visual tokens too, on no grid
    drops: ClassVar = True                        # False: its tokens stay in the sequence, with their keys masked
    prune_past_kv: ClassVar = False               # drop from the caches of the layers before the cut, too
    rerank_each_step: ClassVar = False            # reduce again, from the whole cache, at each generated token

    def at(self, site):
        """The method that acts at `site`, or None."""
        return self if self.site == site else None

    def with_positions(self, tokens):
        """The prompt with other position ids for the decoder; by default those it has."""
        return tokens

    def output_order(self, grid, mosaic):
        """Vision site, several tiles: which of the kept tokens, whose grid is (k, 3), are sent on, in order. (k',)

        mosaic: how the tiles lie (mosaic.py). By default all of them, in the order of the picture.
        """
        return mosaic.order(grid)
