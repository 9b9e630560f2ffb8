"""A method on small prompts of tiny random models: its result, once computed, and its decisions taken again."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from minivlm.lab.own.in_model.tiny import MARK, ids, llava, picture, prefill, tiled
from minivlm.lab.own.promises.drawn import LAYERS
from pruning.base import Pruner


@dataclass(frozen=True)
class Prompt:
    """Words and images for a tiny model."""

    words: str                         # what it is, in words
    parts: tuple                       # as of tiny.ids
    sizes: tuple = ()                  # height and width of each picture, if it is cut into tiles
    dtype: torch.dtype = torch.float32

    @property
    def model(self):
        """The model that reads it."""
        return llava(LAYERS, bool(self.sizes), self.dtype)

    @property
    def ids(self):
        """Of words and marks."""
        return ids(*self.parts)

    def images(self, seed=0):
        """Random pixels."""
        if self.sizes:
            return [tiled(*size, seed + i) for i, size in enumerate(self.sizes)]
        return [picture(seed + i).to(self.dtype) for i in range(self.parts.count(MARK))]


ONE = Prompt("3 words, an image of 16 tokens, 5 words", (3, MARK, 5))
OFFSETS = (
    Prompt("an image of 16 tokens, 5 words", (MARK, 5)),
    Prompt("11 words, an image of 16 tokens, 2 words", (11, MARK, 2)),
)
SEVERAL = (
    Prompt("2 words, two images of 16 tokens side by side, 5 words", (2, MARK, MARK, 5)),
    Prompt("3 words, an image, 4 words, an image, 6 words", (3, MARK, 4, MARK, 6)),
)
TILES = (Prompt("5 words, a picture of 2 x 2 tiles and a base tile, 7 words", (5, MARK, 7), ((24, 32),)),)
IN_HALF = replace(ONE, words=f"{ONE.words}, in bfloat16", dtype=torch.bfloat16)


class Replay(Pruner):
    """Takes the decisions of an earlier run again, one after the other."""

    laws = frozenset()

    def __init__(self, pruner, trace, **changed):
        self.pruner = pruner
        self.steps = iter(trace.steps)
        self.changed = changed
        self.site = pruner.site
        self.positions = pruner.positions
        self.cls = pruner.cls
        self.rerank_each_step = pruner.rerank_each_step

    def reduce_at(self, layers):
        return self.pruner.reduce_at(layers)

    def mask_at(self, layers):
        return self.pruner.mask_at(layers)

    def watch_at(self, layers):
        return self.pruner.watch_at(layers)

    def mask(self, tokens):
        return self.pruner.mask(tokens)

    def reduce(self, tokens):
        return replace(next(self.steps).reduction, **self.changed)

    def output_order(self, grid, tile_grid):
        """As it is: the trace has the order in which they were sent on."""
        return torch.arange(len(grid))


@dataclass(frozen=True)
class Run:
    """A method on a prompt."""

    pruner: Pruner
    prompt: Prompt

    @cached_property
    def result(self):
        """Logits, cache, trace."""
        return self.of(self.pruner)

    def of(self, pruner, words=()):
        """The same of another method, or with more words after the prompt."""
        prompt = self.prompt
        return prefill(prompt.model, prompt.ids + list(words), prompt.images(), pruner)

    @property
    def merges_in_tower(self):
        """Whether the tower merges while it runs, so that no decision can be replayed."""
        blocks = self.prompt.model.config.vision.num_hidden_layers
        return self.pruner.site == "vision" and bool(self.pruner.tower_schedule(16, blocks))

    @property
    def selects(self):
        """Whether nothing is merged or sent on in another order."""
        in_order = all(bool((step.reduction.keep.diff() > 0).all()) for step in self.result[2].steps)
        return in_order and all(step.reduction.merge is None for step in self.result[2].steps)
