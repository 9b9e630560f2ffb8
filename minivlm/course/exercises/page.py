"""What an exercise is, in text: the list of all, and the page of one."""

import textwrap

from minivlm.course.exercises.problem import LEVELS

WIDTH = 110
TITLE = 54                             # letters of a title


def table(problems):
    """A line for each exercise."""
    yield f"{'exercise':15}{'':{TITLE}}{'level':10}{'minutes':>8}"
    for problem in problems:
        yield f"{problem.name:15}{problem.title:{TITLE}}{LEVELS[problem.level]:10}{problem.minutes:8}"
    yield ""
    yield "python run.py exercise NAME describes one; python run.py exercise start NAME DIR writes its stub into DIR"


def facts(problem):
    """The same as data, with the checks."""
    return dict(
        name=problem.name,
        title=problem.title,
        paper=problem.paper,
        section=problem.section,
        formula=problem.formula.strip("\n").splitlines(),
        task=one_line(problem.task),
        regions=list(problem.regions),
        checks=[dict(name=check.name, points=check.points, about=check.about) for check in problem.checks],
        look=one_line(problem.look),
        commands=list(problem.commands),
        minutes=problem.minutes,
        level=LEVELS[problem.level],
        points=problem.points,
    )


def lines(problem):
    """The page of an exercise."""
    size = f"{LEVELS[problem.level]}, {problem.minutes} minutes, {problem.points} points"
    yield f"{problem.name}: {problem.title} ({size})"
    yield from wrapped(f"{problem.paper}; {problem.section}")
    yield ""
    yield from textwrap.indent(problem.formula.strip("\n"), "    ").splitlines()
    yield ""
    yield from wrapped(problem.task)
    yield ""
    yield "What must hold:"
    for check in problem.checks:
        yield f"  {check.points:2} {check.name + ':':20} {check.about}"
    yield ""
    yield from wrapped(f"Then look at this (hw is your folder). {problem.look}")
    for command in problem.commands:
        yield f"  {command}"
    yield ""
    yield f"Begin: python run.py exercise start {problem.name} hw"


def one_line(text):
    """The text without its line breaks."""
    return " ".join(text.split())


def wrapped(text):
    """The text in lines."""
    return textwrap.wrap(one_line(text), WIDTH, break_long_words=False, break_on_hyphens=False)
