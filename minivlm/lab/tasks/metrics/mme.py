"""MME: two yes-no questions about each picture. A subtask scores accuracy and accuracy+, each of at most 100.

accuracy     of the questions
accuracy+    the share of pictures with both answers right

Perception is the sum of ten subtasks, at most 2000; cognition of four, at most 800; the number is that of all that are
there. The official tool pairs consecutive lines, here the two questions about one picture of a subtask are a pair.

official     The answer in lower case is yes or no, or has one of them in its first four letters, yes looked for first.
lmms-eval    The same without spaces at the ends and dots; a lone y or n counts too.
"""

import numpy as np

from minivlm.lab.tasks.metrics.base import Metric, ratio
from pruning.base import UserError

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = PERCEPTION + COGNITION
COUNTS = ("right", "both", "pictures")


class Mme(Metric):
    """Counts, for each subtask, in the order of COUNTS."""

    name = "score"
    scale = 1
    is_mean = False
    parses = True
    shown = 2

    def __init__(self, questions, rules):
        """UserError unless each picture of a subtask has two questions."""
        super().__init__(questions, rules)
        for unit in self.units():
            if len(unit) != 2:
                question = questions[unit[0]]
                raise UserError(f"MME counts pairs, and {question.image} of {question.family} has {len(unit)} "
                                "questions: give the whole file")
        self.subtasks = [name for name in SUBTASKS if any(question.family == name for question in questions)]

    def unit(self, question):
        """The picture, in its subtask."""
        return question.family, question.image

    def said(self, answer):
        """"yes", "no" or ""."""
        text = answer.lower()
        if self.rules == "lmms-eval":
            text = text.strip().replace(".", "")
            if text in ("y", "n"):
                return "yes" if text == "y" else "no"
        start = text[:4]
        return next((word for word in ("yes", "no") if word in start), "")

    def score(self, question, answer):
        """1 or 0."""
        return float(self.said(answer) == question.answer)

    def is_parsed(self, question, answer):
        """Whether there is a yes or no."""
        return bool(self.said(answer))

    def counts(self, questions, answers):
        """Right answers, 1 if both are, and 1, in the place of their subtask."""
        right = sum(map(self.score, questions, answers))
        subtask = self.subtasks.index(questions[0].family)
        counts = np.zeros((len(self.subtasks), len(COUNTS)))
        counts[subtask] = right, right == 2, 1
        return counts.flatten()

    def value(self, sums):
        """The sum of the subtasks."""
        return self.of_subtasks(sums).sum(axis=-1)

    def parts(self, sums):
        """Perception, cognition, and each subtask."""
        of_subtasks = np.moveaxis(self.of_subtasks(sums), -1, 0)
        scores = dict(zip(self.subtasks, of_subtasks))
        groups = {"perception": PERCEPTION, "cognition": COGNITION}
        totals = {}
        for name, members in groups.items():
            own = [scores[member] for member in members if member in scores]
            if own:
                totals[name] = sum(own)
        return totals | scores

    def of_subtasks(self, sums):
        """(.., subtasks): accuracy and accuracy+ together, at most 200."""
        shape = (*sums.shape[:-1], len(self.subtasks), len(COUNTS))
        by_subtask = sums.reshape(shape)                                           # (.., subtasks, 3)
        right, both, pictures = np.moveaxis(by_subtask, -1, 0)
        accuracy = ratio(right, 2 * pictures)
        accuracy_plus = ratio(both, pictures)
        return 100 * (accuracy + accuracy_plus)
