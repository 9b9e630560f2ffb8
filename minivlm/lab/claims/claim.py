"""A claim of a paper, what was measured, and the verdict, which follows from the interval.

A claim says in which range a difference lies: above zero, at most two points below it, .. It holds if the whole
interval lies in that range, does not hold if the whole interval lies outside, and cannot be told otherwise. If the
paper says nothing there is no range, and the question is only whether the two differ.
"""

from dataclasses import dataclass, field
from math import ceil, inf

from minivlm.lab.score.accuracy import against

HOLDS = "holds"
OPEN = "cannot be told"
FAILS = "does not hold"
UNTESTED = "cannot be tested here"
DIFFERS = "differs"

# ranges of a claimed difference
MORE = (0, inf)
LESS = (-inf, 0)


def at_least(difference):
    """The range of a claim such as "loses at most three points": at_least(-3)."""
    return (difference, inf)


@dataclass(frozen=True)
class Measured:
    """A difference with its 95 % interval, and what it is the difference of."""

    what: str                          # "asap - fastv at 0.1"
    difference: float
    interval: tuple
    questions: int
    unit: str = "points"

    def needed(self, limit):
        """How many questions would tell on which side of the limit the difference lies, if it stays as it is.

        The interval narrows with the square root of their number. None if no number would tell.
        """
        low, high = self.interval
        distance = abs(self.difference - limit)
        if distance == 0:
            return None
        return ceil(self.questions * ((high - low) / 2 / distance) ** 2)


@dataclass(frozen=True)
class Finding:
    """What the test of a claim gave: the verdict with its sentence, and the differences that it follows from."""

    verdict: str
    sentence: str
    measured: list = field(default_factory=list)


@dataclass(frozen=True)
class Claim:
    """Where a paper says something, what it says, in our words, and how that is tested."""

    where: str                         # "Figure 4"
    says: str
    test: object                       # Pair, Check, Studied or Untested
    figures: str = ""                  # what the paper prints


@dataclass(frozen=True)
class Answers:
    """What every method answered to the same questions."""

    prompt: object                     # a Prompt: the model, and the picture of the first question
    items: list
    rows: dict                         # {label: a row per question, in order}
    why_not: dict                      # {label: the reason} of those that do not run on the model
    template: object = None            # of the prompts
    study: dict = field(default_factory=dict)          # {"questions", "comparisons"}, see claims.study
    places: object = None              # a Places

    @property
    def families(self):
        """The kinds of questions."""
        return sorted({item.family for item in self.items})

    def reason(self, *labels):
        """Why these methods cannot be compared: that of the first which does not run; "" if all do."""
        return next((self.why_not[label] for label in labels if label in self.why_not), "")

    def right(self, label, family=None):
        """Of each question, of a family or of all: 1 if the answer is right, else 0; the share of draws if there are
        several."""
        return [row["right"] for row, item in zip(self.rows[label], self.items) if family in (None, item.family)]

    def difference(self, label, control, family=None):
        """The Measured difference in points between two entrants, on the same questions."""
        right = self.right(label, family)
        compared = against(right, self.right(control, family))
        where = f", {family}" if family else ""
        interval = tuple(100 * end for end in compared["interval"])
        return Measured(f"{label} - {control}{where}", 100 * compared["difference"], interval, len(right))


def judged(measured, range):
    """The Finding of these differences: the claim holds if it holds for each of them."""
    verdicts = [verdict(difference.interval, range) for difference in measured]
    worst_first = (FAILS, OPEN, DIFFERS, HOLDS)
    whole = next((each for each in worst_first if each in verdicts), OPEN)
    return Finding(whole, sentence(measured, verdicts, whole, range), measured)


def verdict(interval, range):
    """HOLDS, FAILS or OPEN of one interval; DIFFERS or OPEN if nothing is claimed."""
    low, high = interval
    if range is None:
        return OPEN if low <= 0 <= high else DIFFERS
    first, last = range
    if first < low and high < last:
        return HOLDS
    return FAILS if high <= first or last <= low else OPEN


def sentence(measured, verdicts, whole, range):
    """The numbers, the verdict, and how many questions it would take to tell."""
    decisive = [each for each, own in zip(measured, verdicts) if own == whole]
    # the numbers: all of them, or three of those that decide
    shown = measured if len(measured) <= 3 else decisive[:3]
    numbers = "; ".join(figures(each) for each in shown)
    if len(measured) > 3:
        numbers = f"{len(decisive)} of {len(measured)} differences {of_all(whole)}, such as {numbers}"
    if whole == OPEN:
        limits = [limit for limit in (range or (0,)) if abs(limit) < inf]
        needed = [each.needed(limit) for each in decisive for limit in limits]
        needed = [count for count in needed if count]
        more = f" (at this size some {max(needed):,} questions would tell)" if needed else ""
        return f"{numbers}: {whole}{more}"
    return f"{numbers}: {whole}" + (" on this model" if whole == FAILS else "")


def of_all(verdict):
    """The verb phrase of a sentence that counts the differences with a verdict."""
    return {HOLDS: "are as claimed", FAILS: "are not as claimed", OPEN: "cannot be told", DIFFERS: "differ"}[verdict]


def figures(measured):
    """asap 0.1 - fastv 0.1: +2.5 points (-0.2 to +5.2)"""
    low, high = measured.interval
    digits = 1 if measured.unit == "points" else 3
    difference = f"{measured.difference:+.{digits}f} {measured.unit}"
    return f"{measured.what}: {difference} ({low:+.{digits}f} to {high:+.{digits}f})"
