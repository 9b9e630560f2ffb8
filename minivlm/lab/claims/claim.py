"""A claim of a paper, the comparison that tests only it, and the verdict, which follows from the interval.

A claim says in which range a difference lies: above zero, within two points of it, .. It holds if the whole interval
lies in that range, does not hold if the whole interval lies outside, and cannot be told otherwise. Where a paper says
nothing there is no range, and the question is whether the two readings differ.
"""

from dataclasses import dataclass, field, replace
from math import ceil, inf

from minivlm.lab.cli.options import takes_keep
from minivlm.lab.score.accuracy import against
from minivlm.lab.score.answers import mean
from pruning.base import UserError

HOLDS = "holds"
OPEN = "cannot be told"
FAILS = "does not hold"
UNTESTED = "cannot be tested here"
DIFFERS = "differs"

MORE = (0, inf)                        # ranges of a claimed difference
LESS = (-inf, 0)


def at_least(difference):
    """The range of a claim such as "loses at most three points": at_least(-3)."""
    return (difference, inf)


@dataclass(frozen=True)
class Measured:
    """A difference, its 95 % interval, and what differs."""

    what: str                          # "asap - fastv at 0.1"
    difference: float
    interval: tuple
    questions: int
    unit: str = "points"

    def needed(self, limit):
        """How many questions would tell, at this difference, on which side of the limit it lies. None: no number."""
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
    """Where a paper says something, what it says, in a sentence of ours, and how it is tested."""

    where: str                         # "Figure 4"
    says: str
    test: object                       # Pair, Check, or Untested
    figures: str = ""                  # what the paper prints


@dataclass(frozen=True)
class Entrant:
    """A method, as the command line names it, with its budget."""

    method: str                        # "asap@salvage=False"
    keep: str | None = None            # a share, or a number of tokens
    average: float | None = None       # or the share of all tokens that is in a layer, on average
    stages: bool = False               # reached in three cuts, each to half of the one before, and not in one

    @property
    def budget(self):
        """In words; "" without one."""
        return self.keep or "" if self.average is None else f"{self.average:.0%} average"

    @property
    def label(self):
        """Its name among the answers."""
        stages = "in stages" if self.stages else ""
        return " ".join(filter(None, (self.method, stages, self.budget)))


@dataclass(frozen=True)
class Pair:
    """Two methods that differ in one thing, at the same budget, on the same questions."""

    method: str
    control: str
    changed: str                       # the one thing, in words
    range: tuple | None = MORE         # of the difference, in points; None: the paper says nothing
    keep: tuple = ("0.1",)
    average: tuple = ()                # budgets as averages over the layers, in place of `keep`
    by_family: bool = False            # the claim is for each family of questions
    stages: bool = False               # the method acts in stages, the control once

    def control_line(self):
        """What is compared, and what differs."""
        return f"{self.method} against {self.control}: {self.changed}"

    def pairs(self):
        """[(Entrant, Entrant)], one pair per budget."""
        budgets = [dict(average=a) for a in self.average] or [dict(keep=k) for k in self.keep]
        pairs = [(self.entrant(self.method, **b), self.entrant(self.control, **b)) for b in budgets]
        if self.stages:
            return [(replace(method, stages=True), control) for method, control in pairs]
        return pairs

    def entrant(self, method, **budget):
        """With its budget, if it takes one."""
        return Entrant(method, **budget) if takes_keep(method) else Entrant(method)

    def entrants(self):
        """All that must answer."""
        return [entrant for pair in self.pairs() for entrant in pair]

    def result(self, answers):
        """The Finding of these Answers."""
        measured = []
        left_out = {}
        for method, control in self.pairs():
            reasons = [answers.why_not[e.label] for e in (method, control) if e.label in answers.why_not]
            if reasons:
                left_out[method.budget] = reasons[0]
                continue
            for family in answers.families if self.by_family else [None]:
                measured.append(answers.difference(method.label, control.label, family))
        if not measured:
            return Finding(UNTESTED, next(iter(left_out.values())))
        finding = judged(measured, self.range)
        notes = "".join(f"; not run at {budget}: {reason}" for budget, reason in left_out.items())
        return replace(finding, sentence=finding.sentence + notes)


@dataclass(frozen=True)
class Check:
    """A claim that is tested by a function of the Answers, which gives [Measured]."""

    measure: object
    control: str
    range: tuple | None = MORE

    def control_line(self):
        """What is compared."""
        return self.control

    def entrants(self):
        """None: the function runs what it needs, or reads what other claims ask for."""
        return []

    def result(self, answers):
        """The Finding of these Answers."""
        try:
            measured = self.measure(answers)
        except UserError as error:
            return Finding(UNTESTED, str(error))
        return judged(measured, self.range)


@dataclass(frozen=True)
class Untested:
    """A figure or table that this command cannot test, the reason, and the command that comes nearest."""

    reason: str

    def control_line(self):
        """Nothing."""
        return "nothing was run"

    def entrants(self):
        """None."""
        return []

    def result(self, answers):
        """The Finding, which is the reason."""
        return Finding(UNTESTED, self.reason)


@dataclass(frozen=True)
class Answers:
    """What every entrant answered to the same questions."""

    model: object
    items: list
    rows: dict                         # {label: the rows of the questions, in order}
    why_not: dict                      # {label: the reason} of those that do not run on the model

    @property
    def families(self):
        """The kinds of questions."""
        return sorted({item.family for item in self.items})

    def right(self, label, family=None):
        """Of each question, of one family or of all: 1 if the answer is right, or the share of draws that are."""
        return [row["right"] for row, item in zip(self.rows[label], self.items) if family in (None, item.family)]

    def difference(self, label, control, family=None):
        """The Measured difference of two entrants in points."""
        right = self.right(label, family)
        compared = against(right, self.right(control, family))
        where = f", {family}" if family else ""
        interval = tuple(100 * end for end in compared["interval"])
        return Measured(f"{label} - {control}{where}", 100 * compared["difference"], interval, len(right))

    def tokens(self, label):
        """Visual tokens in a layer, on average over layers and questions."""
        return mean([mean(row["visual"]) for row in self.rows[label]])


def judged(measured, range):
    """The Finding of these differences: the claim holds if it holds for each of them."""
    verdicts = [verdict(one.interval, range) for one in measured]
    whole = next((v for v in (FAILS, OPEN, DIFFERS, HOLDS) if v in verdicts), OPEN)
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
    """The numbers, the verdict, and what it would take to tell."""
    shown = [one for one, own in zip(measured, verdicts) if own == whole]
    numbers = "; ".join(figures(one) for one in (measured if len(measured) <= 3 else shown[:3]))
    if len(measured) > 3:
        numbers = f"{len(shown)} of {len(measured)} differences {of_all(whole)}, such as {numbers}"
    if whole == OPEN:
        limits = [limit for limit in (range or (0,)) if abs(limit) < inf]
        needed = [one.needed(limit) for one in shown for limit in limits]
        needed = [count for count in needed if count]
        more = f" (at this size some {max(needed):,} questions would tell)" if needed else ""
        return f"{numbers}: {whole}{more}"
    return f"{numbers}: {whole}" + (" on this model" if whole == FAILS else "")


def of_all(verdict):
    """How a sentence goes on that counts the differences with a verdict."""
    return {HOLDS: "are as claimed", FAILS: "are not as claimed", OPEN: "cannot be told", DIFFERS: "differ"}[verdict]


def figures(one):
    """asap 0.1 - fastv 0.1: +2.5 points (-0.2 to +5.2)"""
    low, high = one.interval
    digits = 1 if one.unit == "points" else 3
    return f"{one.what}: {one.difference:+.{digits}f} {one.unit} ({low:+.{digits}f} to {high:+.{digits}f})"
