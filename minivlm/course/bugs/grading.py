"""The grader: looks whether the promise that is named breaks, by running it on our own file and on the one with the
mistake.

An answer is right if our file keeps the promise in every case and the broken one does not: another promise than the
intended one may break, too. The broken files are made anew from the seed, so nothing that a student wrote is executed.
"""

from importlib import import_module
from typing import NamedTuple

from minivlm.course.bugs.answers import shuffled
from minivlm.course.bugs.promises.promises import PROMISES, outcomes
from minivlm.course.bugs.variant import in_place, lines

AGAIN = "minivlm.course.bugs.promises.promises"  # imported anew inside `in_place`


class Look(NamedTuple):
    """A promise, looked at on both: its state, the case that shows it, and what ours and the broken one do there."""

    state: str                         # "broken", or a key of WHY_NOT
    case: str = ""
    ours: str = ""
    here: str = ""


WHY_NOT = {
    "holds": "{name} holds in all cases: {sentence}",
    "ours": "{name} is none of its promises: without the mistake it does not hold either ({case}: {ours})",
    "foreign": "{name} does not concern it: {ours}",
    "ended": "{name} cannot be seen, as the run ends before: {here}",
}


def look(ours, here):
    """The Look at the outcomes of one promise, case by case."""
    pairs = [(a, b) for a, b in zip(ours, here) if a.kept is not None]
    if not pairs:
        return Look("foreign", ours=ours[0].words)
    for a, _ in pairs:
        if not a.kept:
            return Look("ours", a.case, a.words)
    for a, b in pairs:
        if b.kept is False:
            return Look("broken", a.case, a.words, b.words)
    for a, b in pairs:
        if b.kept is None:
            return Look("ended", a.case, a.words, b.words)
    return Look("holds")


def looks(bug, names):
    """{name: Look} of these promises at a planted mistake."""
    ours = {name: outcomes(bug.title, name) for name in names}
    with in_place(bug):
        again = import_module(AGAIN)
        here = {name: again.outcomes(bug.title, name) for name in names}
    return {name: look(ours[name], here[name]) for name in names}


def graded(file, bug, answer):
    """One file as data: what was said of it, whether that is right, and what breaks. Without an answer, not that."""
    row = dict(file=file, named=None, right=False, line=None, line_right=None, verdict="no answer yet")
    if answer is None:
        return row
    at = looks(bug, dict.fromkeys([answer.name, bug.promise]))
    named = at[answer.name]
    right = named.state == "broken"
    shown = answer.name if right else bug.promise
    row |= dict(named=answer.name, right=right, verdict=verdict(answer.name, named), breaks=shown)
    if answer.line is not None:
        row |= dict(line=answer.line, line_right=answer.line in lines(bug))
    return row | explained(bug, shown, at[shown])


def verdict(name, named):
    """Whether the promise that is named breaks, in words."""
    sentence = PROMISES[name].sentence
    if named.state == "broken":
        return f"{name} breaks: {sentence}"
    why_not = WHY_NOT[named.state]
    return why_not.format(name=name, sentence=sentence, case=named.case, ours=named.ours, here=named.here)


def explained(bug, shown, counter):
    """The mistake, and the case in which the promise `shown` breaks."""
    return dict(
        of=bug.file,
        mistake=bug.title,
        lines=list(lines(bug)),
        ours=stripped(bug.old),
        here=stripped(bug.new),
        sentence=PROMISES[shown].sentence,
        case=counter.case,
        ours_gives=counter.ours,
        here_gives=counter.here,
        why=bug.why,
        test=bug.test,
    )


def stripped(text):
    """The lines of a replaced text, without their comments."""
    return [line.partition("  #")[0].strip() for line in text.splitlines()]


def rows(seed, answers):
    """Every file as data, in the order of their names; a generator, since each takes a moment."""
    for file, bug in shuffled(seed).items():
        yield graded(file, bug, answers.get(file))
