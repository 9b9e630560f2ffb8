"""What happened to the visual tokens of one prompt: the evidence that pictures, cost tables and tests are made from."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruning.base import Reduction


@dataclass(frozen=True)
class Step:
    """One reduction: where, what came in, what the method said."""

    site: str                          # "vision", "embed" or "decoder"
    layer: int                         # before this decoder layer (0 at the embed site), or this layer of the vision tower
    origin: Tensor                     # (n,)  the tokens before it, as indices among the N of the unpruned prompt
    reduction: Reduction

    @property
    def kept(self):
        """(k,) original indices of the tokens that remain, or in whose place a merged one stands."""
        return self.origin[self.reduction.keep]


@dataclass
class Trace:
    """Filled during a prefill. `cells` (N, 3) says where in the picture each original visual token lies.

    N counts what the tower gave where a method acts at the vision site, else what enters the decoder unpruned. They differ
    for tiles: there are newlines, or patches that show nothing of the picture.
    """

    cells: Tensor | None = None
    images: list = field(default_factory=list)     # of each image: its range of original visual tokens
    padding: list = field(default_factory=list)    # of each image of tiles: rows above, columns left that its map is without
    unpruned: int = 0                              # visual tokens that would enter the decoder without a method
    steps: list = field(default_factory=list)
    tokens: list = field(default_factory=list)     # entering each decoder layer, text and visual
    visual: list = field(default_factory=list)     # visual tokens entering each decoder layer

    def image(self, cells, padding=None):
        """Note the cells of another image's original visual tokens."""
        self.images.append(range(self.N, self.N + len(cells)))
        self.cells = torch.cat([self.cells, cells])
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
        return len(self.cells)

    def sources(self):
        """(k, N) matrix: of which original visual tokens, with which weights, each token that survived is made."""
        made, index = torch.eye(self.N), torch.arange(self.N)                      # rows: tokens now
        for step in self.steps:
            keep, merge = step.reduction.keep, step.reduction.merge
            order = index.argsort()
            here = order[torch.searchsorted(index[order], step.origin)]            # (n,) rows of the tokens before it
            new = made[here][keep] if merge is None else merge.float() @ made[here]          # (k, N)
            other = ~torch.isin(index, step.origin)        # at the vision site: the tokens of other images
            left = other & (index < (step.origin.min() if len(here) else 0))
            right = other & ~left
            made = torch.cat([made[left], new, made[right]])
            index = torch.cat([index[left], step.origin[keep], index[right]])
        return made


def _to_cpu(r):
    return Reduction(*(x.cpu() if isinstance(x, Tensor) else x for x in vars(r).values()))
