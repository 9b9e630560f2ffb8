"""A claim of a paper, the comparison that tests only it, and the verdict, which follows from the interval.

A claim says in which range a difference lies: above zero, within two points of it, .. It holds if the whole interval
lies in that range, does not hold if the whole interval lies outside, and cannot be told otherwise. Where a paper says
nothing there is no range, and the question is whether the two readings differ.
"""

from dataclasses import dataclass, field, replace
from math import ceil, inf

from minivlm.lab.lineup.lineup import Budget
from minivlm.lab.lineup.variants import Variant
from minivlm.lab.score.accuracy import against
from minivlm.lab.score.answers import mean
from pruning.base import UserError

HOLDS = "holds"
OPEN = "cannot be told"
FAILS = "does not hold"
UNTESTED = "cannot be tested here"
DIFFERS = "differs"

UNEVEN = 0.05                          # by how much the tokens of two trained rows may differ
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
class Side:
    """One of the two methods of a comparison, as the command line names it, with its budget."""

    method: str                        # "asap@salvage=False", or "none"
    budget: Budget = Budget()

    @property
    def label(self):
        """Its name among the answers."""
        return f"{self.method} {self.budget}".strip()


@dataclass(frozen=True)
class Pair:
    """Two methods that differ in one thing, at the same budget, on the same questions."""

    method: str
    control: str
    changed: str                       # the one thing, in words
    range: tuple | None = MORE         # of the difference, in points; None: the paper says nothing
    keep: tuple = ("0.1",)
    average: tuple = ()                # in place of `keep`: shares of all tokens that enter a layer, on average
    by_family: bool = False            # the claim is for each family of questions
    stages: bool = False               # the method acts in stages, the control once

    def control_line(self):
        """What is compared, and what differs."""
        return f"{self.method} against {self.control}: {self.changed}"

    def pairs(self, prompt):
        """[(budget in words, Side, Side)] on a model and picture: the method and the control at each budget."""
        if not self.average:
            return [(keep, self.side(self.method, Budget(keep)), self.side(self.control, Budget(keep)))
                    for keep in self.keep]
        pairs = []
        for share in self.average:
            average = share * prompt.n
            budget = Budget(average=f"{average:g}")
            own = Budget(schedule=halving(average, prompt.n, prompt.layers)) if self.stages else budget
            pairs.append((str(budget), self.side(self.method, own), self.side(self.control, budget)))
        return pairs

    def side(self, method, budget):
        """The method with that budget, if it takes one."""
        takes_one = budget.schedule or Variant(method).takes_keep
        return Side(method, budget) if takes_one else Side(method)

    def sides(self, prompt):
        """All that must answer."""
        return [side for _, *pair in self.pairs(prompt) for side in pair]

    def result(self, answers):
        """The Finding of these Answers."""
        measured = []
        left_out = {}
        for budget, method, control in self.pairs(answers.prompt):
            reasons = [answers.why_not[side.label] for side in (method, control) if side.label in answers.why_not]
            if reasons:
                left_out[budget] = reasons[0]
                continue
            for family in answers.families if self.by_family else [None]:
                measured.append(answers.difference(method.label, control.label, family))
        if not measured:
            return Finding(UNTESTED, next(iter(left_out.values())))
        finding = judged(measured, self.range)
        notes = "".join(f"; not run at {budget}: {reason}" for budget, reason in left_out.items())
        return replace(finding, sentence=finding.sentence + notes)


def halving(average, n, layers):
    """Three cuts, before layer 2, half and three quarters of the depth, each to half of the one before, so that on
    average as many of n visual tokens enter a layer; at least one token after the first cut.

    halving(48, 144, 8) -> "2:27,4:14,6:7": 2 x 144, 2 x 27, 2 x 14 and 2 x 7 tokens are 48 a layer.
    """
    cuts = (2, layers // 2, 3 * layers // 4)
    lengths = [end - start for start, end in zip(cuts, (*cuts[1:], layers))]
    weight = sum(length / 2 ** i for i, length in enumerate(lengths))
    first = (average * layers - cuts[0] * n) / weight
    counts = [max(1, round(first / 2 ** i)) for i in range(len(cuts))]
    return ",".join(f"{cut}:{count}" for cut, count in zip(cuts, counts))


@dataclass(frozen=True)
class Check:
    """A claim that is tested by a function of the Answers, which gives [Measured]."""

    measure: object
    control: str
    range: tuple | None = MORE
    methods: tuple = ()                # ((method, keep), ..) that the function reads the answers of

    def control_line(self):
        """What is compared."""
        return self.control

    def sides(self, prompt):
        """All that must answer."""
        return [Side(method, Budget(keep)) for method, keep in self.methods]

    def result(self, answers):
        """The Finding of these Answers."""
        for side in self.sides(answers.prompt):
            if side.label in answers.why_not:
                return Finding(UNTESTED, answers.why_not[side.label])
        try:
            measured = self.measure(answers)
        except UserError as error:
            return Finding(UNTESTED, str(error))
        return judged(measured, self.range)


@dataclass(frozen=True)
class Studied:
    """Two rows of `run.py ablate`, trained alike. Their answers are in the tables.json of a study."""

    row: str
    control: str
    changed: str
    range: tuple | None = MORE
    same_tokens: bool = True           # False: the number of tokens is what is changed

    def control_line(self):
        """What is compared, and what differs."""
        return f"{self.row} against {self.control}, both of `ablate`: {self.changed}"

    def sides(self, prompt):
        """None: the study has its own answers."""
        return []

    def result(self, answers):
        """The Finding of the study."""
        for compared in answers.study.get("comparisons", ()):
            if (compared["row"], compared["control"]) == (self.row, self.control):
                return self.judged(compared, answers.study["questions"])
        return Finding(UNTESTED, f"the study has no rows {self.row} and {self.control}: run.py ablate --out STUDY --rows "
                                 f"{self.row},{self.control}, then claims --study STUDY/tables.json")


    def judged(self, compared, questions):
        """The Finding of a comparison: that of every training of the two rows, if the budgets are equal."""
        first, *others = compared["intervals"]
        what = f"{self.row} - {self.control}"
        measured = [Measured(what, compared["difference"], tuple(first), questions)]
        for low, high in others:
            measured.append(Measured(f"{what}, other seeds", (low + high) / 2, (low, high), questions))
        finding = judged(measured, self.range)
        if self.same_tokens and abs(compared["share"] - 1) > UNEVEN:
            note = f"{finding.sentence.rpartition(': ')[0]}: {OPEN}, since the first has {compared['share']:.0%} of the "
            return Finding(OPEN, f"{note}other's tokens", measured)
        return finding


@dataclass(frozen=True)
class Untested:
    """A figure or table that this command cannot test, the reason, and the command that comes nearest."""

    reason: str

    def control_line(self):
        """Nothing."""
        return "nothing was run"

    def sides(self, prompt):
        """None."""
        return []

    def result(self, answers):
        """The Finding, which is the reason."""
        return Finding(UNTESTED, self.reason)


@dataclass(frozen=True)
class Answers:
    """What every method answered to the same questions."""

    prompt: object                     # a Prompt: the model, and the picture of the first question
    items: list
    rows: dict                         # {label: the rows of the questions, in order}
    why_not: dict                      # {label: the reason} of those that do not run on the model
    template: object = None            # of the prompts
    study: dict = field(default_factory=dict)          # tables.json of `run.py ablate`
    places: object = None              # a Places

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
