"""Every contestant answers every question of a task, greedily, through the same Conversation as `ask`.

A picture is encoded once for all its questions and contestants, and once more for each set of things that methods look at
inside the tower. A random method answers each question several times, with tokens drawn anew, and counts by the share of
draws that were right. An answer is right if it is the task's to the letter, spaces around it aside.
"""

import zlib
from dataclasses import dataclass, replace

import torch
from torch import nn
from tqdm import tqdm

from minivlm.generate import Conversation
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import parallel
from minivlm.lab.compare.compare import evidence_kept
from minivlm.lab.score.contestants import Oracle
from pruning.base import UserError
from pruning.controls import Random, Random3x3


class Remembering(nn.Module):
    """A vision tower that gives again what it gave, as long as the picture stays the same."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower
        self.embeddings = tower.embeddings
        self.layers = tower.layers
        self.pixels = None
        self.states = None

    def forward(self, pixels, depth):
        """As the tower does; `depth` is the model's, the same at every call."""
        if self.pixels is None or not torch.equal(pixels, self.pixels):
            self.states = self.tower(pixels, depth)
            self.pixels = pixels
        return self.states


@dataclass
class Contest:
    """A model, its contestants, and what they are asked."""

    model: nn.Module
    items: list
    contestants: list
    template: str
    draws: int = 3                     # of random methods, for each question
    max_new_tokens: int = 4

    def run(self, log, rank=0, size=1):
        """[row] of all contestants and questions. What the log has is not asked again; `size` processes divide the pictures."""
        number = {image: n for n, image in enumerate(dict.fromkeys(item.image for item in self.items))}
        mine = [i for i, item in enumerate(self.items) if number[item.image] % size == rank]
        tower, new = self.model.vision_tower, []
        self.model.vision_tower = Remembering(tower)
        for i in tqdm(mine, desc="eval", unit=" questions", leave=False, disable=rank > 0):
            for row in self.rows(i, [one for one in self.contestants if not one.why_not and (one.label, i) not in log.rows]):
                log.add(row)
                new.append(row)
        self.model.vision_tower = tower
        asked = {(one.label, i) for one in self.contestants for i in range(len(self.items))}
        return [*(row for key, row in log.rows.items() if key in asked), *parallel.gathered(new)]

    def rows(self, i, contestants):
        """What becomes of question i, a contestant after the other: the answer of each draw and the averages, or why there is none."""
        item = self.items[i]
        ids = self.model.tokenizer.encode(prompt([(item.question, None)], 1, self.template))
        pixels = self.model.processor.pixels(item.picture)
        for one in contestants:
            try:
                pruner = one.pruner and one.pruner.divided(self.model.parts([pixels]))     # pictures may differ in their tiles
                answers, visual, evidence = zip(*(self.answer(ids, pixels, drawn, item.evidence) for drawn in self.drawn(pruner, i)))
                told = dict(answers=answers, right=mean([a == item.answer for a in answers]), visual=[mean(layer) for layer in zip(*visual)],
                            evidence=mean(evidence))
            except UserError as error:
                told = dict(why_not=str(error))
            yield dict(contestant=one.label, question=i, **told)

    def drawn(self, pruner, i):
        """The method; of a random one several, whose seeds no other question has. Oracles are told where the things are."""
        if not isinstance(pruner, (Random, Random3x3)):
            return [pruner]
        pruner = replace(pruner, things=self.items[i].things) if isinstance(pruner, Oracle) else pruner
        return [replace(pruner, seed=pruner.seed + self.draws * i + draw) for draw in range(self.draws)]

    def answer(self, ids, pixels, pruner, evidence):
        """The answer, the visual tokens that enter each layer, and the share of the evidence kept (None: not known)."""
        talk = Conversation(self.model, pruner)
        talk.read(ids, [pixels])
        answer = self.model.tokenizer.decode(list(talk.generate(self.max_new_tokens))).strip()
        kept, needed = evidence_kept(talk, evidence)
        return answer, talk.trace.visual, kept / needed if needed else None

    def recipe(self, **told):
        """`told`, and everything else that decides the rows, as words and numbers."""
        weights, asked = self.model.state_dict().values(), [(i.image, i.family, i.question, i.answer) for i in self.items]
        return told | dict(
            template=str(self.template), draws=self.draws, max_new_tokens=self.max_new_tokens, device=self.model.device.type,
            dtype=str(self.model.lm_head.weight.dtype).removeprefix("torch."), weights=checksum(weights),
            questions=zlib.crc32(repr(asked).encode()), **{one.label: _described(one.pruner) for one in self.contestants})


def mean(values):
    """Of numbers or truths; None where one is not known."""
    return None if None in values else sum(values) / len(values)


def _described(pruner):
    """Its options, and where it is trained the checksum of its weights."""
    trained = getattr(pruner, "module", None)
    return f"{pruner!r} {checksum(trained.state_dict().values())}" if trained else repr(pruner)


def checksum(tensors):
    """A number that other weights do not have, if only one of the first 64 values of each tensor differs."""
    number = 0
    for x in tensors:
        number = zlib.crc32(x.flatten()[:64].float().cpu().numpy().tobytes(), number)
    return number
