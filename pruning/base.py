"""The contract: what a method may look at (Tokens), what it gives back (Reduction), where it acts (Pruner).

A reduction of visual tokens is a k x n matrix applied to the n visual tokens somewhere in the pipeline: one-hot rows
select, other rows merge. A method is a pure function from Tokens to that matrix. Applying it, and keeping positions,
masks and caches right, is done elsewhere (apply.py and the model), by no method.

It acts at a site: "vision" (the output of the vision tower, which may read an image as several square tiles), "embed"
(the prompt before layer 0) or "decoder" (before a layer). A method that needs attention reads it from tokens.before,
the layer that has just run, or from tokens.here, the one about to run: tokens.before.mean_attention("last").

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
from pruning.grid import whole_grid
from pruning.views import NOT_YET, LayerView, NoView


@dataclass(frozen=True, repr=False)
class Tokens:
    """One prompt's sequence as it enters layer `layer`, with views of the layers before and after.

    At the vision site the sequence is the class token and patches of each tile, and a layer is a block of the tower.
    """

    hidden: Tensor                 # (T, D)    residual stream
    visual: Tensor                 # (n,)      rows of `hidden` that are visual tokens, of all images
    grid: Tensor                   # (n, 3)    tile, row, column in the unpruned image; row -1: not a patch
    source: Tensor                 # (n,)      index of each among the N visual tokens of the unpruned prompt
    position: Tensor               # (T,)      RoPE position ids; (T, 2) if they are two-dimensional
    next_position: int             # position id of the first generated token
    layer: int = 0
    before: LayerView = NOT_YET    # view of layer - 1, which has run
    here: LayerView = NOT_YET      # view of this layer, which is about to run
    watched: tuple = ()            # views of the layers of Pruner.watch_at that have run, each on what entered it
    prompt: "Tokens | None" = None  # the Tokens that entered layer 0; None if these are they
    masked: Tensor | None = None   # (T,)      True: the row stays in the sequence, but no other row sees its key

    @classmethod
    def start(cls, hidden, visual, grid=None, before=None, here=None, layer=0, watched=()):
        """Tokens of an unpruned prompt: positions and sources count from 0. Also for examples typed by hand.

        grid: (n, 3), or (rows, columns) of a single image; None: a single row. The views are LayerView.of(..).
        """
        hidden = torch.as_tensor(hidden)
        visual = torch.as_tensor(visual, dtype=torch.long, device=hidden.device)
        if not isinstance(grid, Tensor):
            rows, columns = grid or (1, len(visual))
            grid = whole_grid(rows, columns)
        source = torch.arange(len(visual), device=hidden.device)
        position = torch.arange(len(hidden), device=hidden.device)
        tokens = cls(hidden, visual, grid.to(hidden.device), source, position, next_position=len(hidden), layer=layer)
        if before is not None:
            tokens = replace(tokens, before=before.on(tokens))
        if here is not None:
            tokens = replace(tokens, here=here.on(tokens))
        return replace(tokens, watched=tuple(view.on(tokens) for view in watched))

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
        """(m,) rows of the text after the first visual token: the text that can see visual tokens."""
        is_text = ~self.is_visual()
        if self.masked is not None:
            is_text &= ~self.masked
        rows = is_text.nonzero().squeeze(1)
        if self.n == 0:
            return rows[:0]
        return rows[rows > self.visual.min()]

    def rows(self, which):
        """(R,) row indices. which: "last", "text" (see text()), "visual", "all" (that are not masked), or indices."""
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
        """These tokens with new fields and without views: attention of the old sequence can no longer be read."""
        gone = NoView("a reduction has changed the sequence after that layer ran")
        return replace(self, before=gone, here=gone, **new)

    def __repr__(self):
        return f"Tokens(layer {self.layer}, hidden {tuple(self.hidden.shape)}, {self.n} visual of {self.N})"


@dataclass(frozen=True, repr=False)
class Reduction:
    """n visual tokens -> k. Without `merge` it selects; with it, row i is the weighted sum of all n."""

    keep: Tensor                   # (k,)      of 0 .. n-1: new row i takes position and grid of visual token keep[i]
    merge: Tensor | None = None    # (k, n)    weights
    score: Tensor | None = None    # (n,)      what the method ranked by; only drawn in pictures
    drop: bool = True              # False: the other tokens stay in the sequence, and their keys are masked
    reason: Tensor | None = None   # (k,)      why each was kept, an index into `reasons`; only drawn in pictures
    reasons: tuple = ()            # names, such as ("important", "diverse")
    applied: bool = False          # True: the tower has merged already (Budgeted.tower_schedule)

    def __repr__(self):
        verb = "selects" if self.merge is None else f"merges {self.merge.shape[1]} into"
        return f"Reduction({verb} {len(self.keep)}: {self.keep.tolist()})"


class Pruner(Budgeted):
    """A method. Subclasses are frozen dataclasses: their fields are the paper's hyper-parameters.

    A value that a field's annotation does not allow (fields.py) is a UserError. A subclass with more checks has its own
    `__post_init__`, which first calls this one. Budgeted only has helpers for commands.
    """

    site: ClassVar = "decoder"                    # "vision": before the projector; "embed": before layer 0; "decoder";
                                                  # "image": before the tower, where only downsample_image acts
    laws: ClassVar = frozenset({"select"})        # what it promises and the tests check: names in LAWS (laws.py)
    positions: ClassVar = None                    # position ids: "keep" or "renumber"; None: keep them in the decoder,
                                                  # renumber before it, since it never saw the dropped tokens
    preconditions: ClassVar = frozenset()         # what it needs of model and prompt: names in PRECONDITIONS (laws.py)
    per: ClassVar = "prompt"                      # `keep` counts the tokens of the "prompt", of each "image" or "tile"

    def __post_init__(self):
        wrong = first_fault(self)
        if wrong:
            raise UserError(f"{type(self).__name__}: {wrong}")

    def reduce_at(self, layers):
        """The decoder layers before which `reduce` is called, in a decoder of `layers` layers."""
        return ()

    def mask_at(self, layers):
        """The decoder layers before which `mask` is called."""
        return ()

    def budget(self, n):
        """How many of n visual tokens remain; None if the method does not fix it."""
        return None

    def reduce(self, tokens) -> Reduction:
        """The method itself: which visual tokens remain, or how they are merged."""
        raise NotImplementedError

    def mask(self, tokens) -> Tensor:
        """(T, T) mask that layer `tokens.layer` adds to its attention logits instead of tokens.here.mask()."""
        raise NotImplementedError

    def schedule(self, n, layers):
        """How many visual tokens enter each of `layers` decoder layers, given n; None if the prompt decides it."""
        cuts = self.reduce_at(layers) if self.site == "decoder" else (0,)
        if not cuts:
            return [n] * layers
        k = self.budget(n)
        if k is None or len(cuts) > 1:
            return None
        return [n] * cuts[0] + [k] * (layers - cuts[0])

    # Rare: what only one or two methods change.
    cls: ClassVar = False                         # vision site: is each tile's class token a visual token, too?
    drops: ClassVar = True                        # False: its Reductions have drop=False (for cost tables)
    prune_past_kv: ClassVar = False               # drop from the caches of the layers before the cut, too
    rerank_each_step: ClassVar = False            # reduce again, from the whole cache, at each generated token

    def at(self, site):
        """The method that acts at `site`, or None."""
        return self if self.site == site else None

    def watch_at(self, layers):
        """The decoder layers whose views, in tokens.watched, `reduce` reads at all later cuts."""
        return ()

    def with_positions(self, tokens):
        """The prompt, possibly with other position ids for the decoder."""
        return tokens

    def output_order(self, grid, tile_grid):
        """Vision site, several tiles: indices (k',) of the kept tokens (grid (k, 3)) to send to the decoder, in order.

        By default all of them, in the order in which they lie in the picture, which tile_grid (tile_grid.py) knows.
        """
        return tile_grid.order(grid)
