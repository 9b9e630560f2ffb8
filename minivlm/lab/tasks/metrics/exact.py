"""GQA: the answer is the right word.

official     Stanford's eval.py compares the strings. LLaVA first removes dots at the end and capitals.
lmms-eval    ignores capitals and all punctuation, on both sides, which is a little more lenient.

A right word within a longer answer is wrong by both.
"""

import string

from minivlm.lab.tasks.metrics.base import Metric

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Exact(Metric):
    """The share of answers that equal the right one."""

    def score(self, question, answer):
        """1 or 0."""
        right = question.answer
        if self.rules == "lmms-eval":
            return float(bare(answer) == bare(right))
        return float(answer.rstrip(".").lower() == right)


def bare(text):
    """Without capitals and punctuation."""
    return text.lower().translate(NO_PUNCTUATION)
