"""Every contestant answers every question of a task, greedily, through the same Conversation as `ask`.

A picture is encoded once for all its questions and contestants. A random method answers each question several times,
with other tokens each time, and counts by the share of draws that were right. An answer is right if it is the task's to
the letter, spaces around it aside; a benchmark scores it by its own rules.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn
from tqdm import tqdm

from minivlm.generate import Conversation
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import parallel
from minivlm.lab.draw.evidence import share
from minivlm.lab.lineup.lineup import Prompt
from minivlm.lab.named.file import text_of
from minivlm.lab.score.contestants import Oracle
from minivlm.lab.score.statistics import NAMES, Watched, bits, statistics
from pruning.base import UserError
from pruning.compose import Both, Schedule
from pruning.controls import Random, Random3x3


VERSION = 2                            # of the rows in a log


class Remembering(nn.Module):
    """A vision tower that gives again what it gave, as long as the picture stays the same, at each size of it."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower
        self.config = tower.config
        self.embeddings = tower.embeddings
        self.layers = tower.layers
        self.known = {}                                # {side: pixels and states of the newest picture of this size}

    def forward(self, pixels, depth):
        """As the tower does; `depth` is the model's, the same at every call."""
        side = pixels.shape[-1]
        if side not in self.known or not torch.equal(pixels, self.known[side][0]):
            self.known[side] = pixels, self.tower(pixels, depth)
        _, states = self.known[side]
        return states


def exact(item, answer):
    """Whether it is the answer, to the letter."""
    return answer == item.answer


@dataclass
class Contest:
    """A model, its contestants, and their questions."""

    model: nn.Module
    items: list
    contestants: list
    template: str
    draws: int = 3                     # of random methods, for each question
    max_new_tokens: int = 4
    score: Callable = exact            # (item, answer) -> from 0, wrong, to 1, right

    def run(self, log, rank=0, size=1):
        """[row] of all contestants and questions. What the log has is not asked again.

        `size` processes divide the pictures.
        """
        images = dict.fromkeys(item.image for item in self.items)
        number = {image: n for n, image in enumerate(images)}
        own = [i for i, item in enumerate(self.items) if number[item.image] % size == rank]
        tower = self.model.vision_tower
        self.model.vision_tower = Remembering(tower)
        new = []
        for i in tqdm(own, desc="eval", unit=" questions", leave=False, disable=rank > 0):
            missing = [c for c in self.contestants if not c.why_not and (c.label, i) not in log.rows]
            for row in self.rows(i, missing):
                log.add(row)
                new.append(row)
        self.model.vision_tower = tower
        labels = {contestant.label for contestant in self.contestants}
        logged = [row for (label, i), row in log.rows.items() if label in labels and i < len(self.items)]
        return [*logged, *parallel.gathered(new)]

    def rows(self, i, contestants):
        """The row of question i for each contestant: the answer of each draw and the averages, or why there is none."""
        item = self.items[i]
        ids = self.model.tokenizer.encode(prompt([(item.question, None)], 1, self.template))
        pixels = self.model.processor.pixels(item.picture)
        for contestant in contestants:
            try:
                result = self.result(contestant, i, ids, pixels)
            except UserError as error:
                result = dict(why_not=str(error))
            yield dict(contestant=contestant.label, question=i, **result)

    def result(self, contestant, i, ids, pixels):
        """What a contestant answers to question i: {"answers", "right", "visual", "evidence", "kept", "statistics"}"""
        item = self.items[i]
        pruner = contestant.on(Prompt(self.model, [pixels]))           # pictures may differ in their tiles
        answers = []
        traces = []
        for drawn in self.drawn(pruner, i):
            answer, trace = self.answer(ids, pixels, drawn)
            answers.append(answer)
            traces.append(trace)
        drawn_statistics = [statistics(trace) for trace in traces]
        return dict(
            answers=tuple(answers),
            right=mean([self.score(item, answer) for answer in answers]),
            visual=[mean(layer) for layer in zip(*(trace.visual for trace in traces))],
            evidence=mean([share(trace, item.evidence) for trace in traces]),
            kept=[bits(trace.kept.tolist()) for trace in traces],
            statistics={name: mean([each[name] for each in drawn_statistics]) for name in NAMES},
        )

    def drawn(self, pruner, i):
        """The method; of a random one several, whose seeds no other question has. Oracles get the things' patches."""
        if not is_random(pruner):
            return [pruner]
        if isinstance(pruner, Oracle):
            pruner = replace(pruner, things=self.items[i].things)
        return [reseeded(pruner, self.draws * i + draw) for draw in range(self.draws)]

    def answer(self, ids, pixels, pruner):
        """The answer, and what happened to the visual tokens."""
        talk = Conversation(self.model, pruner)
        trace = Watched()
        talk.read(ids, [pixels], trace)
        answer = self.model.tokenizer.decode(list(talk.generate(self.max_new_tokens))).strip()
        return answer, trace

    def recipe(self, **options):
        """The options, and everything else that decides the rows, as words and numbers."""
        questions = [(item.image, item.family, item.question, item.answer) for item in self.items]
        pruners = {contestant.label: _described(contestant.pruner) for contestant in self.contestants}
        model = dict(device=self.model.device.type, dtype=str(self.model.lm_head.weight.dtype).removeprefix("torch."),
                     weights=checksum(self.model.state_dict().values()))
        return dict(options, version=VERSION, template=str(self.template), draws=self.draws,
                    max_new_tokens=self.max_new_tokens, **model,
                    questions=zlib.crc32(repr(questions).encode()), **pruners)


def is_random(pruner):
    """Whether it draws tokens, by itself or in a schedule or composition."""
    if isinstance(pruner, Schedule):
        return is_random(pruner.method)
    if isinstance(pruner, Both):
        return any(is_random(method) for method in pruner.methods)
    return isinstance(pruner, (Random, Random3x3))


def reseeded(pruner, number):
    """The same with this number added to the seed of all that is random in it."""
    if isinstance(pruner, Schedule):
        return replace(pruner, method=reseeded(pruner.method, number))
    if isinstance(pruner, Both):
        methods = tuple(reseeded(method, number) for method in pruner.methods)
        return replace(pruner, methods=methods)
    if is_random(pruner):
        return replace(pruner, seed=pruner.seed + number)
    return pruner


def mean(values):
    """Of numbers or truths; None if one of them is not known."""
    return None if None in values else sum(values) / len(values)


def _described(pruner):
    """Its options; of a trained method the checksum of its weights, too, and of the user's own that of its file."""
    words = [repr(pruner)]
    module = getattr(pruner, "module", None)
    if module:
        words.append(str(checksum(module.state_dict().values())))
    for method in methods_of(pruner):
        text = text_of(type(method))
        if text:
            words.append(str(zlib.crc32(text.encode())))
    return " ".join(words)


def methods_of(pruner):
    """The methods of a composition or schedule, or the method itself."""
    if isinstance(pruner, Both):
        return [part for method in pruner.methods for part in methods_of(method)]
    return [pruner.method] if isinstance(pruner, Schedule) else [pruner]


def checksum(tensors):
    """A number that other weights do not have, if only one of the first 64 values of each tensor differs."""
    number = 0
    for x in tensors:
        number = zlib.crc32(x.flatten()[:64].float().cpu().numpy().tobytes(), number)
    return number
