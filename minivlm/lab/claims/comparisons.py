"""The comparisons that test claims: two methods, a function of the answers, two rows of a study, or none.

Each has `sides` (who must answer), `control_line` (what is compared, in words) and `result` (the Finding).
"""

from dataclasses import dataclass, replace

from minivlm.lab.claims.claim import MORE, OPEN, UNTESTED, Finding, Measured, judged
from minivlm.lab.lineup.lineup import Budget
from minivlm.lab.lineup.variants import Variant
from minivlm.lab.studies.ablation.rows import COMPARISONS
from minivlm.lab.studies.ablation.verdicts import is_uneven
from pruning.base import UserError


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
            reason = answers.reason(method.label, control.label)
            if reason:
                left_out[budget] = reason
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
        reason = answers.reason(*(side.label for side in self.sides(answers.prompt)))
        if reason:
            return Finding(UNTESTED, reason)
        try:
            measured = self.measure(answers)
        except UserError as error:
            return Finding(UNTESTED, str(error))
        return judged(measured, self.range)


@dataclass(frozen=True)
class Studied:
    """Two rows of `run.py ablate`, one of its COMPARISONS. Their difference is in the tables.json of a study."""

    row: str
    control: str
    range: tuple | None = MORE         # as of a Pair

    @property
    def comparison(self):
        """What the study says of the two rows."""
        return next(each for each in COMPARISONS if (each.row, each.control) == (self.row, self.control))

    def control_line(self):
        """What is compared, and what differs."""
        return f"{self.row} against {self.control}, both of `ablate`: {self.comparison.changes}"

    def sides(self, prompt):
        """None: the study has its own answers."""
        return []

    def result(self, answers):
        """The Finding of the study."""
        for compared in answers.study.get("comparisons", ()):
            if (compared["row"], compared["control"]) == (self.row, self.control):
                return self.finding(compared, answers.study["questions"])
        rows = f"{self.row},{self.control}"
        return Finding(UNTESTED, f"the study has no rows {self.row} and {self.control}: run.py ablate --out STUDY "
                                 f"--rows {rows}, then claims --study STUDY/tables.json")

    def finding(self, compared, questions):
        """The Finding of a comparison: the claim holds if it does for each training of the two rows.

        If the better row has more tokens it cannot be told, unless these are what is changed.
        """
        first, *others = compared["intervals"]
        what = f"{self.row} - {self.control}"
        measured = [Measured(what, compared["difference"], tuple(first), questions)]
        for low, high in others:
            measured.append(Measured(f"{what}, other seeds", (low + high) / 2, (low, high), questions))
        finding = judged(measured, self.range)
        if self.comparison.same_tokens and is_uneven(compared["share"], first):
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
