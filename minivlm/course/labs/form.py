"""What every lab says before it measures. Its module then has five functions, each of the numbers of the first:

    measure(count, seed)    the numbers, as plain data
    table(numbers)          lines
    right(numbers)          the index of the choice that they bear out; None: of none
    sentences(numbers)      what they say
    picture(numbers)        a PIL image

So the sentences, and which choice is right, follow from what was measured.
"""

from dataclasses import dataclass
from string import ascii_lowercase

from minivlm.lab.score.accuracy import mean, wilson


@dataclass(frozen=True)
class Lab:
    """A question, and what a reader may predict."""

    question: str
    choices: tuple
    count: int                         # how many `units` are measured if the reader names no number; 0: nothing is
    units: str                         # "questions of each family"
    seconds: int                       # on two cores, about
    read_on: tuple                     # papers, files, commands

    @property
    def letters(self):
        """One for each choice: "abc"."""
        return ascii_lowercase[:len(self.choices)]


def shares(right, questions=None):
    """{name: {"share", "interval"}} of {name: 1 or 0 for each question}, of all questions or of some."""
    found = {}
    for name, own in right.items():
        of_some = own if questions is None else [own[i] for i in questions]
        share = mean(of_some)
        found[name] = dict(share=share, interval=wilson(share, len(of_some)))
    return found


def percent(row, digits=0):
    """57 % (47 to 66), of {"share", "interval"}."""
    low, high = (f"{100 * end:.{digits}f}" for end in row["interval"])
    return f"{100 * row['share']:.{digits}f} % ({low} to {high})"


def points(compared):
    """+2.5 points (-0.2 to +5.2), of a paired difference: see score/accuracy.py."""
    low, high = (f"{100 * end:+.1f}" for end in compared["interval"])
    return f"{100 * compared['difference']:+.1f} points ({low} to {high})"


def sign(compared):
    """1 or -1 if the interval of a difference lies above or below zero; 0 if it cannot be told."""
    low, high = compared["interval"]
    if low > 0:
        return 1
    return -1 if high < 0 else 0
