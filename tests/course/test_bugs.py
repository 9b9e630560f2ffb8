"""`bugs`: each planted mistake breaks the promise that it is planted for, and our own suite rejects it.

The grader runs promises and compares no list, so other answers that are true count, too.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from command import done
from minivlm.course.bugs.answers import NAME, shuffled
from minivlm.course.bugs.grading import looks
from minivlm.course.bugs.planted import BUGS, titled
from minivlm.course.bugs.promises.promises import PROMISES
from minivlm.course.bugs.variant import in_place, lines, source, variant
from minivlm.lab.named.file import executed
from paths import GOLDENS, ROOT

QUICK = ("head max for mean", "RoPE pairs interleaved")                # a method, and a part of the model
OTHERS = tuple(bug.title for bug in BUGS if bug.title not in QUICK)
SEED = 5


def file_of(title, seed=SEED):
    """The name of the file that has the mistake."""
    return next(file for file, bug in shuffled(seed).items() if bug.title == title)


def answered(folder, answers):
    """Write answers, {title: text}, into ANSWERS.txt."""
    path = folder / NAME
    text = path.read_text()
    for title, said in answers.items():
        file = file_of(title)
        text = re.sub(rf"^{file}:.*", f"{file}: {said}", text, flags=re.M)
    path.write_text(text)


@pytest.fixture
def folder(tmp_path, capsys):
    """What `bugs` writes."""
    status, _, _ = done(capsys, "bugs", tmp_path / "BUGS", "--seed", SEED)
    assert status == 0
    return tmp_path / "BUGS"


def graded(capsys, folder):
    """The exit status of `bugs grade`, and its rows by the title of the mistake."""
    status, out, error = done(capsys, "bugs", "grade", folder, "--json")
    assert status in (0, 1), error
    rows = {row["file"]: row for row in json.loads(out)["rows"]}
    return status, {bug.title: rows[file] for file, bug in shuffled(SEED).items()}


# --- what is planted --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.title)
def test_one_text_of_ours_is_replaced(bug):
    """It occurs once, the lines that are named are the new ones, and nothing else differs: no word gives it away."""
    ours = source(bug).splitlines()
    theirs = variant(bug).splitlines()
    first, end = lines(bug).start - 1, lines(bug).stop - 1
    assert "\n".join(theirs[first:end]) + "\n" == bug.new != bug.old
    assert theirs[:first] + bug.old.splitlines() + theirs[end:] == ours
    assert bug.promise in PROMISES and max(map(len, theirs)) <= 120


def test_written_files(folder):
    """Twelve of them, each of which can be imported; another seed gives another order; ANSWERS.txt lists the promises.
    """
    written = sorted(path.name for path in folder.iterdir())
    assert written == [NAME, *(f"bug_{number:02d}.py" for number in range(1, 13))]
    for file, bug in shuffled(SEED).items():
        assert (folder / file).read_text() == variant(bug)
        executed(str(folder / file), SEED)
    assert list(shuffled(SEED).values()) != list(shuffled(SEED + 1).values())
    page = (folder / NAME).read_text()
    assert all(f"    {name} " in page and promise.sentence in page for name, promise in PROMISES.items())


def test_our_modules_come_back():
    """Inside, they are others, of which one is broken; afterwards those that were there before."""
    from pruning import vispruner
    with in_place(titled("head max for mean")):
        from pruning import vispruner as broken
    from pruning import vispruner as again
    assert again is vispruner is not broken
    names = [module.VisPruner.reduce.__code__.co_names for module in (vispruner, broken)]
    assert ["amax" in of_reduce for of_reduce in names] == [False, True]


# --- the grader -------------------------------------------------------------------------------------------------------

def test_all_right(folder, capsys):
    """The intended promise of each holds for our file and breaks in the variant. Nothing of the student's is run."""
    answered(folder, {bug.title: f"{bug.promise}, line {lines(bug)[0]}" for bug in BUGS})
    for file in shuffled(SEED):
        (folder / file).write_text("raise SystemExit('this was run')")
    status, rows = graded(capsys, folder)
    assert {title: row["verdict"] for title, row in rows.items() if not row["right"]} == {}
    assert all(row["line_right"] and row["ours_gives"] != row["here_gives"] for row in rows.values())
    assert status == 0


def test_what_is_said_of_answers(folder, capsys):
    """Not the intended promise, but one that breaks, too; one that holds; one that ours does not keep; one that does
    not concern it; one that a refusal hides; none."""
    answered(folder, {
        "packed positions": "masked",
        "head max for mean": "Needle, 3",
        "span shifted by one": "positions",
        "forgotten sort": "masked",
        "unnormalised merge": "causal",
    })
    status, rows = graded(capsys, folder)
    assert status == 1 and sum(row["right"] for row in rows.values()) == 1
    assert rows["packed positions"]["right"] and rows["packed positions"]["verdict"].startswith("masked breaks")
    wrong = rows["head max for mean"]
    assert wrong["verdict"].startswith("needle holds in all cases") and wrong["breaks"] == "heads"
    assert wrong["line_right"] is False and ": [1]" in wrong["ours_gives"] and ": [0]" in wrong["here_gives"]
    assert "positions is none of its promises" in rows["span shifted by one"]["verdict"]
    assert "causal cannot be seen, as the run ends before" in rows["unnormalised merge"]["verdict"]
    assert "masked does not concern it" in rows["forgotten sort"]["verdict"]
    assert rows["threshold on logits"] == dict(file=file_of("threshold on logits"), named=None, right=False, line=None,
                                               line_right=None, verdict="no answer yet")


def test_the_text_has_the_case(folder, capsys):
    """What was named and why it holds, what breaks instead, both lines of code, and the case."""
    answered(folder, {"Gaussian off centre": "ordered"})
    status, out, _ = done(capsys, "bugs", "grade", folder)
    assert status == 1 and out.endswith("0 of 12 are right\n") and out.count("no answer yet") == 11
    for words in ("ordered holds in all cases", "what breaks is mirror", "ours: high = (side / 2).floor()",
                  "here: high = (side / 2).floor() - 1", "a case: four patches in a row", "rejected by tests/methods"):
        assert words in out, words


@pytest.mark.parametrize("old, new, problem", [
    ("bug_01.py:", "bug_01.py: needles", "'needles' is no promise.* did you mean needle"),
    ("bug_01.py:", "bug_01.py: line 3", "write the name of a promise"),
    ("bug_01.py:", "bug_99.py: needle", "there is no bug_99.py"),
    ("bug_01.py:", "bug_01.py: shift\nbug_01.py: scale", "answered twice"),
    ("bug_01.py:", "bug_01.py budget", "line 10: write the name of the file"),
    ("bug_01.py:", "Bug_01.py: budget", "line 10: write the name of the file"),
    ("seed: 5", "seed: 5\nseed: 6", "it has 2 lines `seed: ..`"),
    ("seed: 5", "", "`seed: ..` is gone"),
    ("seed: 5", "seed: five", "the seed is a number"),
])
def test_answers_that_cannot_be_read(folder, capsys, old, new, problem):
    path = folder / NAME
    path.write_text(path.read_text().replace(old, new))
    status, _, error = done(capsys, "bugs", "grade", folder)
    assert status == 2 and re.search(problem, error) and error.count("\n") == 1


def test_bad_words(folder, tmp_path, capsys):
    """Answers are not overwritten; a folder without them cannot be graded; --laws stands by itself."""
    for words, problem in (([folder], "exists"), (["grade", tmp_path], "no answers that can be read"),
                           (["grade"], "say `bugs DIR`"), ([folder, "--laws"], "say `bugs DIR`")):
        status, _, error = done(capsys, "bugs", *words)
        assert status == 2 and problem in error
    status, out, _ = done(capsys, "bugs", "--laws")
    assert status == 0 and len(out.splitlines()) == len(PROMISES)


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.title)
def test_every_promise_of_every_mistake(bug):
    """None ends the grader, and a promise of another kind of mistake does not break."""
    states = {name: look.state for name, look in looks(bug, PROMISES).items()}
    assert states[bug.promise] == "broken"
    assert "broken" not in [states[name] for name in ("select", "budget", "disjoint")]


# --- our suite --------------------------------------------------------------------------------------------------------

def copied(folder, bug, text):
    """A copy of the sources in which one file has this text, with one test file."""
    leave_out = shutil.ignore_patterns("*.safetensors", "*.png")
    for name in ("pruning", "minivlm"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave_out)
    (folder / bug.file).write_text(text)
    test, _, _ = bug.test.partition("::")
    room = Path(test).parent
    (folder / room).mkdir(parents=True)
    for file in (*(ROOT / "tests").glob("*.py"), ROOT / test, *(ROOT / room).glob("conftest.py")):
        shutil.copy2(file, folder / file.relative_to(ROOT))
    for name in ("weights.py", "run.py"):
        shutil.copy2(ROOT / name, folder / name)


def run_of_our_suite(tmp_path, bugs, text_of):
    """[(exit status, printed)] of each mistake's test on a copy of the sources with text_of(bug) in its file."""
    words = []
    for number, bug in enumerate(bugs):
        folder = tmp_path / str(number)
        copied(folder, bug, text_of(bug))
        words += [str(folder), bug.test]
    environment = os.environ | {"MINIVLM_GOLDENS": str(GOLDENS)}
    script = Path(__file__).parent / "rejecting.py"
    out = subprocess.run([sys.executable, str(script), *words], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(out.stdout)


@pytest.mark.parametrize("titles", [QUICK, pytest.param(OTHERS, marks=pytest.mark.slow)], ids=["two", "the others"])
def test_our_suite_rejects_it(titles, tmp_path):
    """With the mistake in place a test of ours fails at an assertion; that the files are imported is seen by that."""
    bugs = [titled(title) for title in titles]
    for bug, (status, printed) in zip(bugs, run_of_our_suite(tmp_path, bugs, variant)):
        assert status == 1 and "AssertionError" in printed and "1 failed" in printed, (bug.title, printed)


@pytest.mark.slow
def test_it_is_the_mistake_that_is_rejected(tmp_path):
    """In the same copies without the mistakes the same tests pass."""
    for bug, (status, printed) in zip(BUGS, run_of_our_suite(tmp_path, BUGS, source)):
        assert status == 0, (bug.title, printed)
