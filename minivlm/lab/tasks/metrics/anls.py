"""DocVQA: average normalized Levenshtein similarity, ANLS (Biten et al. 2019, arXiv:1905.13648).

A question scores 1 - edits / length of the longer text, with the reference that is nearest; below 0.5 it is 0. Capitals
do not count, and whitespace is one space.

official     exactly 0.5 counts, as in the challenge's code; the paper's sentence leaves it out
lmms-eval    divides by the lengths before whitespace is made one space, as several released codes do: three wrong
             letters and 100 spaces make 0.97
"""

from minivlm.lab.tasks.metrics.base import Metric

LEAST = 0.5


class Anls(Metric):
    """The mean similarity."""

    name = "ANLS"

    def score(self, question, answer):
        """0, or from 0.5 to 1."""
        best = max(self.similarity(reference, answer) for reference in question.answer)
        return best if best >= LEAST else 0.0

    def similarity(self, reference, answer):
        """1 for equal texts."""
        texts = (reference, answer)
        plain = [one_space(text) for text in texts]
        compared = texts if self.rules == "lmms-eval" else plain
        longest = max(map(len, compared))
        if not longest:
            return 1.0
        return 1 - edits(*plain) / longest


def one_space(text):
    """In lower case, with one space between words and none at the ends."""
    return " ".join(text.lower().split())


def edits(text, other):
    """edits("cat", "cart") -> 1: letters put in, taken out or exchanged (Levenshtein), at least."""
    before = list(range(len(other) + 1))                   # from no letter of `text`
    for i, letter in enumerate(text, 1):
        now = [i]
        for j, other_letter in enumerate(other, 1):
            is_other = letter != other_letter
            exchanged = before[j - 1] + is_other
            taken_out = before[j] + 1
            put_in = now[-1] + 1
            now.append(min(exchanged, taken_out, put_in))
        before = now
    return before[-1]
