"""The shipped model and drawn questions. Every answer is one word, so the next token's logits are all that is needed.

    exam = Exam(10, seed=0)
    answers = exam.answers(lambda i: {"none": None, "fastv": FastV(keep=0.1)})
    exam.right(answers["fastv"])                   # of each question 1 or 0
"""

import torch
from tqdm import tqdm

from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import session
from minivlm.lab.cli.options import check
from minivlm.lab.score.answers import Remembering
from minivlm.toy import benchmark
from minivlm.toy.questions import ID


class Exam:
    """`count` questions of each family about held-out pictures, the same for a seed."""

    def __init__(self, count, seed=0):
        self.model = session.shipped_model()
        self.model.vision_tower = Remembering(self.model.vision_tower)
        self.items = benchmark.items("heldout", count, seed)

    def prompts(self):
        """(number, item, ids, pixels) of each question; those of one picture follow one another."""
        template = self.model.config.template
        bar = tqdm(self.items, desc="lab", unit=" questions", leave=False)
        for i, item in enumerate(bar):
            text = prompt([(item.question, None)], 1, template)
            ids = self.model.tokenizer.encode(text)
            pixels = self.model.processor.pixels(item.picture)
            yield i, item, ids, pixels

    @torch.inference_mode()
    def logits(self, ids, pixels, pruner=None):
        """(V,) of the next token."""
        tokens = self.model.embed(ids, [pixels], pruner)
        logits, _ = self.model.prefill(tokens, pruner)
        return logits

    def answers(self, methods_for):
        """{name: (Q, V)} the next token's logits. methods_for(i) is {name: method, or None} of question i."""
        rows = {}
        for i, _, ids, pixels in self.prompts():
            for name, pruner in methods_for(i).items():
                rows.setdefault(name, []).append(self.logits(ids, pixels, pruner))
        return {name: torch.stack(row) for name, row in rows.items()}

    def trained(self, pruner):
        """The method with the module that was trained for the shipped model."""
        return check(pruner, self.model)

    def right(self, logits):
        """[1.0 or 0.0] of each question: whether the likeliest word (Q, V) is its answer."""
        words = logits.argmax(dim=1).tolist()
        return [float(word == ID[item.answer]) for word, item in zip(words, self.items)]

    @property
    def pictures(self):
        """The picture of each question."""
        return [item.image for item in self.items]

    @property
    def families(self):
        """{family: the numbers of its questions}"""
        questions = {}
        for i, item in enumerate(self.items):
            questions.setdefault(item.family, []).append(i)
        return dict(sorted(questions.items()))
