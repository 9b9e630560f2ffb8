"""What an exercise is: which functions of which file are to be written, and the checks that give its points."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).parents[3]
OWN = Path(__file__).parent / "problems" / "sources"   # files that are only for an exercise
# pictures and questions for commands
SAMPLE = 'minivlm/toy/samples/00003.png "what shape is the red object ?"'
SQUARE = 'minivlm/toy/samples/00001.png "is there a cyan square ?"'
CIRCLE = 'minivlm/toy/samples/00002.png "what color is the circle ?"'
TOTAL = 15                             # points of each exercise
LEVELS = {1: "warm-up", 2: "core", 3: "hard"}


class Wrong(Exception):
    """What a student's code does instead of what must hold, on one case, in words."""


class Stopped(BaseException):
    """A check fails, and smaller cases would say no more. Not an Exception, so that hypothesis does not try them."""


class Ended(Stopped):
    """The student's process has ended or was ended."""


@dataclass(frozen=True)
class Check:
    """Something that must hold, and its points. `test` raises Wrong if it does not.

    It is called as test(side), or, with `cases`, as test(side, case) for cases that hypothesis draws and shrinks.
    side: the student's functions, called by name (sides.py).
    """

    name: str
    points: int
    about: str                         # what must hold, in a sentence
    test: Callable
    cases: Any = None                  # a hypothesis strategy


@dataclass(frozen=True)
class Problem:
    """An exercise."""

    name: str
    title: str
    paper: str
    section: str
    formula: str
    task: str                          # what is to be written, in a few sentences
    look: str                          # what to look at afterwards
    commands: tuple[str, ...]          # that show it
    minutes: int
    level: int                         # of LEVELS
    file: Path                         # our own source
    regions: tuple[str, ...]           # the functions to write: "gaussian", "AdaptPrune.suppression"
    checks: tuple[Check, ...]

    @property
    def points(self):
        """Of all checks."""
        return sum(check.points for check in self.checks)
