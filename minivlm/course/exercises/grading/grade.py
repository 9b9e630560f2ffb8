"""Grades: each check of an exercise, run on a student's functions, with one sentence for what fails."""

from contextlib import contextmanager
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, Verbosity, given, seed as seeded, settings
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import Flaky

from minivlm.course.exercises.problem import Check, Ended, Problem, Stopped, Wrong

EXAMPLES = 40                          # cases of a check
ENDS = 2                               # so often a submission's process is started again
SETTINGS = settings(
    max_examples=EXAMPLES,
    phases=(Phase.generate, Phase.shrink),
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    verbosity=Verbosity.quiet,
)
FLAKY = "gives another answer when the same is asked again"


@dataclass(frozen=True)
class Row:
    """One check's result."""

    check: Check
    sentence: str = ""                 # what is wrong; "" if nothing is

    @property
    def points(self):
        """All or none."""
        return 0 if self.sentence else self.check.points


@dataclass(frozen=True)
class Grade:
    """An exercise's result."""

    problem: Problem
    rows: tuple

    @property
    def points(self):
        """Of all checks."""
        return sum(row.points for row in self.rows)

    @property
    def is_full(self):
        """Whether nothing is missing."""
        return self.points == self.problem.points


@contextmanager
def no_traces(folder):
    """Let hypothesis write its notes into this folder, and not into the one in which the command runs."""
    set_hypothesis_home_dir(folder / "notes")
    try:
        yield
    finally:
        set_hypothesis_home_dir(None)


def graded(problem, side, seed=0):
    """The Grade of a side's functions. seed: of the cases that are drawn."""
    rows = []
    ends = []
    for check in problem.checks:
        if len(ends) == ENDS:
            rows.append(Row(check, f"{check.about}; not asked any more, since {ends[-1]}"))
            continue
        try:
            run(check, side, seed)
            rows.append(Row(check))
        except (Wrong, Stopped) as wrong:
            rows.append(Row(check, f"{check.about}; {wrong}"))
            if isinstance(wrong, Ended):
                ends.append(wrong)
    return Grade(problem, tuple(rows))


def run(check, side, seed):
    """Wrong if the check does not hold, in words on the smallest case; Stopped if there is none."""
    side.begin()
    if check.cases is None:
        judged(check, side)
        return

    @seeded(seed)
    @SETTINGS
    @given(check.cases)
    def on_cases(case):
        try:
            judged(check, side, case)
        except Wrong as wrong:
            raise Wrong(f"for {case}, {wrong}") from None

    try:
        on_cases()
    except Flaky:
        raise Wrong(FLAKY) from None


def judged(check, side, *case):
    """Run the test. Wrong also if the test cannot read an answer."""
    try:
        check.test(side, *case)
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"the answer cannot be read ({type(error).__name__}: {error})") from error
