"""ScienceQA and MMBench: one of several choices, by its letter.

ScienceQA, official   LLaVA's script: the answer is a letter; or begins with a letter, a period and a space; or has the
                      words "The answer is X". A line break counts as a period and a space.
ScienceQA, lmms-eval  it is a letter, or begins with a letter and a period.
MMBench               a lone letter, or one with a bracket, period, comma or colon; else the only choice whose words
                      occur in the answer. The released scripts ask a language model about other answers, and then
                      guess; here these are wrong, and counted.

MMBench asks a question several times with the choices moved on by one: it is right only if all its rows are ("circular
evaluation"). Without such rows in the file each counts by itself.
"""

import re

from minivlm.lab.tasks.metrics.base import Metric, ratio

LETTERS = ("A", "B", "C", "D", "E")
SENTENCES = (re.compile(r"The answer is ([A-E])\."), re.compile(r"The answer is ([A-E])"))
# what stands before and after a letter that names a choice; first those that tell most
MARKS = (("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ")."), (":", ""), (":", ","),
         (":", "."), (":", ")"), (":", ")."))


class ScienceQa(Metric):
    """The share of right answers."""

    parses = True

    def score(self, question, answer):
        """1 or 0."""
        return float(self.letter(question, answer) == question.answer)

    def is_parsed(self, question, answer):
        """Whether it names one of the choices."""
        return bool(self.letter(question, answer))

    def letter(self, question, answer):
        """The letter that it names; "" for none of the choices."""
        letter = strict_letter(answer) if self.rules == "lmms-eval" else llava_letter(answer)
        is_choice = letter in LETTERS[:len(question.choices)]
        return letter if is_choice else ""


def strict_letter(answer):
    """The first letter, if there is no more, or a period next."""
    is_letter = len(answer) == 1
    is_followed = answer[1:2] == "."
    return answer[:1] if is_letter or is_followed else ""


def llava_letter(answer):
    """What LLaVA's script finds; "" for nothing."""
    text = answer.replace("\n", ". ")
    lone = text.strip()
    if lone in LETTERS:
        return lone
    first = text[:1]
    if first in LETTERS and text[1:3] == ". ":
        return first
    for sentence in SENTENCES:
        match = sentence.search(text)
        if match:
            return match[1]
    return ""


class MmBench(Metric):
    """Counts: whether all rows of a question are right, 1, its right rows, its rows."""

    parses = True
    notes = ("an answer that names no choice is wrong here; released scripts ask a language model about it",)

    def unit(self, question):
        """The question, however its choices are moved."""
        return question.group

    def score(self, question, answer):
        """1 or 0, of one row."""
        return float(self.letter(question, answer) == question.answer)

    def is_parsed(self, question, answer):
        """Whether it names one choice."""
        return bool(self.letter(question, answer))

    def counts(self, questions, answers):
        """Of the rows of a question."""
        right = list(map(self.score, questions, answers))
        return min(right), 1, sum(right), len(right)

    def parts(self, sums):
        """The accuracy of single rows."""
        return {"of rows": ratio(sums[..., 2], sums[..., 3])}

    def letter(self, question, answer):
        """The letter that it names, or whose choice it repeats; "" if there is none, or several."""
        return named_letter(answer) or repeated_choice(question.choices, answer)


def named_letter(answer):
    """named_letter("(B) a dog") -> "B"; named_letter("A dog runs here") -> "": that A is an article."""
    words = answer.split()
    lone = [letter for letter in LETTERS if letter in words]
    is_article = lone == ["A"] and len(words) > 3
    if len(lone) == 1 and not is_article:
        return lone[0]
    for before, after in MARKS:
        marked = [letter for letter in LETTERS if before + letter + after in words]
        if len(marked) == 1:
            return marked[0]
    return ""


def repeated_choice(choices, answer):
    """repeated_choice(("cat", "dog"), "It is a dog.") -> "B"."""
    text = answer.lower()
    repeated = [letter for letter, choice in zip(LETTERS, choices) if choice.lower() in text]
    return repeated[0] if len(repeated) == 1 else ""
