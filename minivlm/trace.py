"""What happened to the visual tokens of one prompt: the evidence that pictures, cost tables and tests use."""

from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from pruning.base import Reduction


@dataclass(frozen=True, repr=False)
class Step:
    """One reduction: where it acted, which tokens it was given, what the method said."""

    site: str                          # "image", "vision", "embed" or "decoder"
    layer: int                         # before this decoder layer (0 at the embed site), or this layer of the tower
    source: Tensor                     # (n,)  the tokens before it, as indices among the N of the unpruned prompt
    reduction: Reduction

    @property
    def kept(self):
        """(k,) original indices of the tokens that remain, or whose place a merged one takes."""
        return self.source[self.reduction.keep]

    def __repr__(self):
        return f"Step({self.site}, before layer {self.layer}: {len(self.kept)} of {len(self.source)} tokens)"


@dataclass(repr=False)
class Trace:
    """Filled during a prefill. `grid` (N, 3) says where in the picture each original visual token lies.

    N counts what the tower gave if a method acts at the vision site, else what enters the decoder unpruned. They differ
    for tiles: there are newlines, or patches that show nothing of the picture.
    """

    grid: Tensor = field(default_factory=lambda: torch.empty(0, 3, dtype=torch.long))
    images: list = field(default_factory=list)     # of each image: its range of original visual tokens
    padding: list = field(default_factory=list)    # of each image of tiles: rows above, columns left, off its map
    unpruned: int = 0                              # visual tokens that would enter the decoder without a method
    steps: list = field(default_factory=list)
    tokens: list = field(default_factory=list)     # entering each decoder layer, text and visual
    visual: list = field(default_factory=list)     # visual tokens entering each decoder layer

    def image(self, grid, padding=None):
        """Note where another image's original visual tokens lie, (m, 3)."""
        self.images.append(range(self.N, self.N + len(grid)))
        self.grid = torch.cat([self.grid, grid])
        self.padding.append(padding)

    def enter(self, tokens):
        """Note the tokens that enter a decoder layer; masked ones count, since they are computed."""
        self.tokens.append(len(tokens.hidden))
        self.visual.append(tokens.n)

    def reduce(self, site, layer, tokens, r):
        """Note a reduction of `tokens`."""
        self.steps.append(Step(site, layer, tokens.source.cpu(), _to_cpu(r)))

    @property
    def N(self):
        """Visual tokens of the unpruned prompt."""
        return len(self.grid)

    @property
    def tiles(self):
        """Tiles of the images so far."""
        return int(self.grid[:, 0].max()) + 1 if self.N else 0

    @property
    def kept(self):
        """(k,) original indices of the tokens after all reductions, or of those whose place a merged one takes."""
        index = torch.arange(self.N)                       # (m,)
        for step in self.steps:
            left, right = _others(step, index)
            index = torch.cat([index[left], step.kept, index[right]])
        return index

    def sources(self):
        """(k, N) matrix: row i has the weights of the original visual tokens in surviving token i."""
        weights = torch.eye(self.N)                        # (m, N)  of the tokens so far
        index = torch.arange(self.N)                       # (m,)    the original token whose place each takes
        for step in self.steps:
            before = weights[_rows_of(step.source, index)]                         # (n, N)
            keep = step.reduction.keep
            merge = step.reduction.merge
            after = before[keep] if merge is None else merge.float() @ before      # (k, N)
            left, right = _others(step, index)
            weights = torch.cat([weights[left], after, weights[right]])
            index = torch.cat([index[left], step.kept, index[right]])
        return weights

    def __repr__(self):
        return f"Trace({self.N} visual tokens; entering the layers: {runs(self.visual)})"


def note(trace, site, tokens, r):
    """Add to the trace, if there is one, a reduction of one image's tokens before these are in the prompt."""
    if trace is not None:
        # count the sources after those of the images before this one
        in_prompt = replace(tokens, source=tokens.source + trace.N)
        trace.reduce(site, tokens.layer, in_prompt, r)


def runs(counts):
    """runs([576, 576, 128]) -> "2x576 1x128"."""
    return " ".join(f"{len(list(group))}x{count}" for count, group in groupby(counts))


def _others(step, index):
    """Two masks (m,) of other images' tokens, which stay at the vision site: before and after those of the step."""
    is_other = ~torch.isin(index, step.source)
    first = step.source.min() if len(step.source) else 0
    left = is_other & (index < first)
    right = is_other & ~left
    return left, right


def _rows_of(values, index):
    """The row of `index` (m,) that holds each of `values` (n,). (n,)"""
    order = index.argsort()
    return order[torch.searchsorted(index[order], values)]


def _to_cpu(r):
    fields = [x.cpu() if isinstance(x, Tensor) else x for x in vars(r).values()]
    return Reduction(*fields)
