"""ChartQA: relaxed accuracy. A number is right within 5 % of the target; any other answer must be the target's letters.

Traps of the common code, kept by both rules: a target of 0 allows no margin and is compared as letters, so "0.0" is
wrong; "5" is not "5%", which is 0.05; "1,000" is no number.
"""

import math

from minivlm.lab.tasks.metrics.base import Metric

MARGIN = 0.05


class Relaxed(Metric):
    """The share of right answers."""

    name = "relaxed accuracy"

    def score(self, question, answer):
        """1 or 0."""
        return float(is_right(answer, question.answer))


def is_right(answer, target):
    """Whether an answer is within 5 % of the target, or the same letters but for capitals."""
    value = number(answer)
    wanted = number(target)
    if value is not None and wanted:
        return abs(value - wanted) / abs(wanted) <= MARGIN
    return answer.lower() == target.lower()


def number(text):
    """number("5%") -> 0.05; None for what is no number."""
    digits = text.rstrip("%")
    try:
        value = float(digits)
    except ValueError:
        return None
    if not math.isfinite(value):                           # float("nan") is one, and an answer "nan" is a word
        return None
    return value / 100 if text.endswith("%") else value
