"""A claim of a paper, the comparison that tests it, and the verdict, which follows from the interval.

A claim says in which range a difference lies: above zero, at most two points below it, .. It holds if the whole
interval lies in that range, does not hold if the whole interval lies outside, and cannot be told otherwise. If the
paper says nothing there is no range, and the question is only whether the two differ.
"""

from dataclasses import dataclass, field, replace
from math import ceil, inf

from minivlm.lab.lineup.lineup import Budget
from minivlm.lab.lineup.variants import Variant
from minivlm.lab.score.accuracy import against
from pruning.base import UserError

HOLDS = "holds"
OPEN = "cannot be told"
FAILS = "does not hold"
UNTESTED = "cannot be tested here"
DIFFERS = "differs"

UNEVEN = 0.05                          # by which share the tokens of two trained rows may differ
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
class Side:
    """A method of a comparison, as the command line names it, with its budget."""

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
    changed: str                       # that thing, in words
    range: tuple | None = MORE         # of the difference, in points; None: nothing is claimed
    keep: tuple = ("0.1",)
    average: tuple = ()                # in place of `keep`: shares of all tokens that enter a layer, on average
    by_family: bool = False            # the claim is for each family of questions
    stages: bool = False               # the method acts in stages, the control once

    def control_line(self):
        """What is compared, and what differs."""
        return f"{self.method} against {self.control}: {self.changed}"

    def pairs(self, prompt):
        """[(budget in words, Side of the method, Side of the control)], one for each budget, on a model and picture."""
        if not self.average:
            return [(keep, self.side(self.method, Budget(keep)), self.side(self.control, Budget(keep)))
                    for keep in self.keep]
        pairs = []
        for share in self.average:
            average = share * prompt.n
            budget = Budget(average=f"{average:g}")
            of_method = Budget(schedule=halving(average, prompt.n, prompt.layers)) if self.stages else budget
            pairs.append((str(budget), self.side(self.method, of_method), self.side(self.control, budget)))
        return pairs

    def side(self, method, budget):
        """The method with that budget, if it takes one."""
        is_solved_for = budget.schedule or budget.average
        takes_one = method != "none" and (is_solved_for or Variant(method).takes_keep)
        return Side(method, budget) if takes_one else Side(method)

    def sides(self, prompt):
        """[Side] that must answer."""
        return [side for _, *pair in self.pairs(prompt) for side in pair]

    def result(self, answers):
        """The Finding of these Answers."""
        measured = []
        left_out = {}
        families = answers.families if self.by_family else [None]
        for budget, method, control in self.pairs(answers.prompt):
            reasons = [answers.why_not[side.label] for side in (method, control) if side.label in answers.why_not]
            if reasons:
                left_out[budget] = reasons[0]
                continue
            for family in families:
                measured.append(answers.difference(method.label, control.label, family))
        if not measured:
            return Finding(UNTESTED, next(iter(left_out.values())))
        finding = judged(measured, self.range)
        notes = "".join(f"; not run at {budget}: {reason}" for budget, reason in left_out.items())
        return replace(finding, sentence=finding.sentence + notes)


def halving(average, n, layers):
    """A schedule "LAYER:KEEP,.." of three cuts by which `average` of n visual tokens enter a layer, on average.

    The cuts are before layer 2, at half and at three quarters of the depth. The second and the third leave half of what
    the one before leaves; at least one token is left.

    halving(48, 144, 8) -> "2:27,4:14,6:7": (2 x 144 + 2 x 27 + 2 x 14 + 2 x 7) / 8 is 48.
    """
    cuts = (2, layers // 2, 3 * layers // 4)
    # how many layers run on what each cut leaves
    lengths = [end - start for start, end in zip(cuts, (*cuts[1:], layers))]
    # layers * average = cuts[0] * n + first * (lengths[0] + lengths[1] / 2 + lengths[2] / 4)
    weight = sum(length / 2 ** i for i, length in enumerate(lengths))
    first = (average * layers - cuts[0] * n) / weight
    counts = [max(1, round(first / 2 ** i)) for i in range(len(cuts))]
    return ",".join(f"{cut}:{count}" for cut, count in zip(cuts, counts))


@dataclass(frozen=True)
class Check:
    """A claim that is tested by a function of the Answers, which gives [Measured]."""

    measure: object                    # the function
    control: str                       # what is compared, in words
    range: tuple | None = MORE         # of the differences, in their unit
    methods: tuple = ()                # ((method, keep), ..) whose answers the function reads

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
    """Two rows of `run.py ablate`, trained alike. What they differ by is in the tables.json of a study."""

    row: str
    control: str
    changed: str                       # as of a Pair, like the range
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
        rows = f"{self.row},{self.control}"
        return Finding(UNTESTED, f"the study has no rows {self.row} and {self.control}: run.py ablate --out STUDY "
                                 f"--rows {rows}, then claims --study STUDY/tables.json")

    def judged(self, compared, questions):
        """The Finding of a comparison: the claim holds if it does for each training of the two rows.

        If they have different numbers of tokens it cannot be told, unless these are what is changed.
        """
        first, *others = compared["intervals"]
        what = f"{self.row} - {self.control}"
        measured = [Measured(what, compared["difference"], tuple(first), questions)]
        for low, high in others:
            measured.append(Measured(f"{what}, other seeds", (low + high) / 2, (low, high), questions))
        finding = judged(measured, self.range)
        if self.same_tokens and abs(compared["share"] - 1) > UNEVEN:
            numbers, _, _ = finding.sentence.rpartition(": ")
            note = f"since the first has {compared['share']:.0%} of the other's tokens"
            return Finding(OPEN, f"{numbers}: {OPEN}, {note}", measured)
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
    rows: dict                         # {label: a row per question, in order}
    why_not: dict                      # {label: the reason} of those that do not run on the model
    template: object = None            # of the prompts
    study: dict = field(default_factory=dict)          # {"questions", "comparisons"}, see claims.study
    places: object = None              # a Places

    @property
    def families(self):
        """The kinds of questions."""
        return sorted({item.family for item in self.items})

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
