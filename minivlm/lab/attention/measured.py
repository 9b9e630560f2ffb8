"""What `attention` measures over many questions, with the state of an interrupted run.

For each question: the attention that each image token gets in each layer under each Case, and in which rows of the
image the tokens lie that each method keeps. Of a picture cut into tiles only the tile that shows all of it counts.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import torch
from tqdm import tqdm

from minivlm.families.internvl import InternVL
from minivlm.io.resume import check_number, check_same, read_facts, read_tensors, save_state
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.attention.watch import attention_of
from minivlm.lab.score.answers import Contest, Remembering
from minivlm.trace import Trace

SECONDS = 30                           # between two states of a run


@dataclass
class Measured:
    """What is measured so far: a row per question."""

    attention: torch.Tensor            # (Q, cases, L, m)  of the m tokens of the tile that shows the whole picture
    image: torch.Tensor                # (Q, cases, L)     of all image tokens together
    kept: torch.Tensor                 # (Q, methods, rows)  tokens of that tile that are kept, by row of patches
    tokens: torch.Tensor               # (Q,)              image tokens of the prompt
    done: int = 0

    @classmethod
    def empty(cls, questions, cases, layers, methods, side):
        """Nothing measured yet; the tile has side x side tokens."""
        return cls(
            attention=torch.zeros(questions, cases, layers, side ** 2),
            image=torch.zeros(questions, cases, layers),
            kept=torch.zeros(questions, methods, side),
            tokens=torch.zeros(questions),
        )

    def tensors(self):
        """{name: what is done of it}"""
        names = ("attention", "image", "kept", "tokens")
        return {name: getattr(self, name)[:self.done] for name in names}


@dataclass
class Study:
    """A model and its questions, under cases of position ids; the methods whose tokens are counted."""

    contest: Contest                   # model, items, contestants and template
    cases: list                        # the first is the usual one
    which: str = "last"                # the rows whose attention is measured, as Tokens.rows names them
    path: Path | None = None           # of the state; None: nothing is kept
    recipe: dict = field(default_factory=dict)         # what decides the result; a state of another one is refused

    @torch.no_grad()
    def run(self):
        """The Measured of all questions. It continues from the state at `path`, and leaves one if interrupted."""
        measured = self.opened()
        model = self.contest.model
        tower = model.vision_tower
        model.vision_tower = Remembering(tower)
        saved = monotonic()
        questions = range(measured.done, len(self.contest.items))
        try:
            for i in tqdm(questions, desc="attention", unit=" questions", leave=False):
                self.measure(measured, i)
                measured.done = i + 1
                if monotonic() - saved > SECONDS:
                    self.save(measured)
                    saved = monotonic()
        finally:
            model.vision_tower = tower
            if measured.done > questions.start:
                self.save(measured)
        return measured

    def measure(self, measured, i):
        """Fill in question i: attention, then the tokens that each method keeps."""
        item = self.contest.items[i]
        model = self.contest.model
        ids = model.tokenizer.encode(prompt([(item.question, None)], 1, self.contest.template))
        pixels = model.processor.pixels(item.picture)
        tokens = model.embed(ids, [pixels])
        attention = attention_of(model, tokens, self.cases, self.which)                      # (cases, L, n)
        measured.attention[i] = attention[:, :, overview(model, tokens.grid)]
        measured.image[i] = attention.sum(dim=-1)
        measured.tokens[i] = tokens.n
        for m, contestant in enumerate(self.contest.contestants):
            pruner, *_ = self.contest.drawn(contestant.pruner, i)                  # of a random method its first draw
            trace = kept_by(model, pruner, ids, pixels)
            places = trace.grid[trace.kept]                                        # (k, 3)
            row = places[overview(model, places, trace.grid), 1]
            measured.kept[i, m] = row.bincount(minlength=measured.kept.shape[-1])

    def opened(self):
        """What the state holds, or nothing. UserError if it is of another run, or damaged."""
        contest = self.contest
        side = contest.model.config.grid_side
        depth = contest.model.config.text.num_hidden_layers
        questions = len(contest.items)
        measured = Measured.empty(questions, len(self.cases), depth, len(contest.contestants), side)
        if self.path is None or not self.path.exists():
            return measured
        facts = read_facts(self.path)
        check_same(self.path, facts, self.options())
        measured.done = check_number(self.path, facts, "done", 0, questions)
        expected = {name: (x.shape, x.dtype) for name, x in measured.tensors().items()}
        for name, tensor in read_tensors(self.path, expected).items():
            getattr(measured, name)[:measured.done] = tensor
        return measured

    def save(self, measured):
        """Write the state."""
        if self.path is not None:
            save_state(self.path, measured.tensors(), self.options() | dict(done=measured.done))

    def options(self):
        """The recipe as it comes back from a JSON file, to be compared with that of a state."""
        return json.loads(json.dumps(dict(run=self.recipe)))


def overview(model, grid, whole=None):
    """Of the places `grid` (n, 3), the indices of those on the tile that shows the whole picture, row by row.

    It is the first tile of LLaVA-NeXT and the last of InternVL. whole: the grid of all tokens (N, 3), if `grid` has
    only the kept ones.
    """
    tile = (grid if whole is None else whole)[:, 0]
    chosen = tile.max() if isinstance(model, InternVL) else tile.min()
    is_own = (grid[:, 0] == chosen) & (grid[:, 1] >= 0)
    return is_own.nonzero().squeeze(1).cpu()


def kept_by(model, pruner, ids, pixels):
    """The Trace of the prompt under a method, which knows the kept tokens."""
    pruner = pruner.divided(model.parts([pixels]))
    trace = Trace()
    tokens = model.embed(ids, [pixels], pruner, trace)
    model.prefill(tokens, pruner, trace)
    return trace
