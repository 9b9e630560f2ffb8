"""Exercises: stubs that cannot drift, a grader that gives each check's points for what the check says, and survives.
"""

import importlib.util
import json
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import Phase, settings

import run as run_py
from command import done
from minivlm.course.exercises import exercise
from minivlm.course.exercises.exercise import answers_in
from minivlm.course.exercises.grading import grade, report
from minivlm.course.exercises.grading.grade import graded, run
from minivlm.course.exercises.grading.process import ForkServer, Limits, libraries
from minivlm.course.exercises.grading.sides import Ours
from minivlm.course.exercises.problem import LEVELS, TOTAL, Wrong
from minivlm.course.exercises.problems import PROBLEMS
from minivlm.course.exercises.stub import MARK, body_of, stub, with_bodies, write_tree
from planted_faults import FAULTS

every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def solution(problem):
    """A file that gets all points: our own source under the stub's first line."""
    first_line, *_ = stub(problem, PROBLEMS).splitlines(keepends=True)
    return first_line + problem.file.read_text()


def module_of(text, folder):
    """The text as a module, from a file in the folder."""
    file = folder / "planted.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("planted", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted"] = module            # dataclasses look there
    spec.loader.exec_module(module)
    return module


# --- exercises and stubs ----------------------------------------------------------------------------------------------

@every_problem
def test_an_exercise_is_whole(problem):
    """Points sum to the total, checks have names of their own, and every check has a planted fault."""
    names = [check.name for check in problem.checks]
    assert problem.points == TOTAL
    assert len(set(names)) == len(names)
    assert problem.level in LEVELS
    assert set(names) - {"reference"} <= {check for _, _, check in FAULTS[problem.name]}


@every_problem
def test_a_stub_is_the_source_without_the_solution(problem):
    """With the bodies pasted back it is the source, byte for byte; without them it is Python, and a mark."""
    source = problem.file.read_text()
    first_line, _, text = stub(problem, PROBLEMS).partition("\n")
    assert first_line.startswith(f"{MARK}{problem.name}: ")
    of_file = [other for other in PROBLEMS.values() if other.file == problem.file]
    regions = sum((other.regions for other in of_file), ())
    bodies = {region: body_of(source, region) for region in regions}
    for region in problem.regions:
        assert body_of(text, region).split("(")[0].strip() == "raise NotImplementedError"
    lines = [line.strip() for line in text.splitlines()]
    for before, line in zip(lines, lines[1:]):
        assert not (before.startswith("#") and line.startswith("raise NotImplementedError(")), "a comment gives it away"
    assert with_bodies(text, bodies) == source


@every_problem
def test_a_stub_gets_no_points(problem, tmp_path):
    """And a sentence for each check: that its function is not written yet."""
    result = graded(problem, Ours(module_of(stub(problem, PROBLEMS), tmp_path)))
    assert result.points == 0
    for row in result.rows:
        assert "not written yet" in row.sentence


def test_the_tree_has_no_solution(tmp_path):
    """What the student's process can import lacks the functions to write, the grader and the lab."""
    problem = PROBLEMS["consolidation"]
    write_tree(tmp_path, problem, PROBLEMS)
    copy = (tmp_path / "pruning" / "asap.py").read_text()
    assert copy == stub(problem, PROBLEMS).partition("\n")[2]
    assert (tmp_path / "pruning" / "fastv.py").read_text() == PROBLEMS["fastv"].file.read_text()
    assert not (tmp_path / "minivlm" / "lab").exists()
    assert not (tmp_path / "minivlm" / "course").exists()


# --- planted faults ---------------------------------------------------------------------------------------------------

PLANTED = [(name, *fault) for name, faults in FAULTS.items() for fault in faults]


@pytest.mark.parametrize("name, right, wrong, check", PLANTED, ids=[f"{name}-{check}" for name, *_, check in PLANTED])
def test_a_planted_fault_loses_its_points(name, right, wrong, check, tmp_path, monkeypatch):
    """At the check that is meant for it. Any case will do: none is shrunk."""
    monkeypatch.setattr(grade, "SETTINGS", settings(grade.SETTINGS, phases=[Phase.generate]))
    problem = PROBLEMS[name]
    source = problem.file.read_text()
    assert right in source
    side = Ours(module_of(source.replace(right, wrong), tmp_path))
    meant, = [own for own in problem.checks if own.name == check]
    sentence = first_sentence(meant, side)
    assert sentence and "cannot be read" not in sentence


def first_sentence(check, side):
    """What is wrong, under the first of a few seeds that shows it; "" if none does."""
    for seed in range(5):
        try:
            run(check, side, seed)
        except Wrong as wrong:
            return str(wrong)
    return ""


def test_a_failure_is_a_sentence_on_the_smallest_case(tmp_path):
    """Scores read at the first rows: two visual tokens after one of text are enough to show it."""
    fault = ("attention[0, tokens.visual]", "attention[0, :tokens.n]")
    problem = PROBLEMS["fastv"]
    side = Ours(module_of(problem.file.read_text().replace(*fault), tmp_path))
    row, = [row for row in graded(problem, side).rows if row.check.name == "shift"]
    assert row.sentence.startswith("text put before the image changes no choice; for an image of 1 x 2 tokens (rows ")
    assert "keep 1" in row.sentence and "it gives Reduction(selects 1: " in row.sentence


def test_another_seed_draws_other_cases():
    """And the same seed the same."""
    problem = PROBLEMS["fastv"]
    check = problem.checks[-1]

    def drawn(seed):
        cases = []
        run(replace(check, test=lambda side, case: cases.append(case)), Ours(None), seed)
        return cases

    assert drawn(0) == drawn(0) != drawn(1)


# --- the command ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def server():
    """One for all tests of this file, with little memory."""
    with ForkServer(PROBLEMS, Limits(seconds=60.0, memory=2 ** 28)) as server:
        yield server


@pytest.fixture
def few_cases(monkeypatch):
    """Draw a few cases for each check."""
    monkeypatch.setattr(grade, "SETTINGS", settings(grade.SETTINGS, max_examples=6))


def test_reference_solutions_get_all_points(few_cases, tmp_path, capsys):
    """Through the command, in processes of their own, under another seed; and the report says so."""
    for problem in PROBLEMS.values():
        (tmp_path / f"{problem.name}.py").write_text(solution(problem))
    status, out, err = done(capsys, "exercise", "grade", tmp_path, "--seed", 3, "--seconds", 60, "--json")
    answers = json.loads(out)["answers"]
    sentences = [check["sentence"] for answer in answers for check in answer["checks"] if check["sentence"]]
    assert sentences == []
    assert status == 0
    assert {answer["exercise"] for answer in answers} == set(PROBLEMS)
    assert all(answer["points"] == answer["of"] for answer in answers)


def test_stubs_get_no_points(few_cases, tmp_path, capsys):
    """`start all` writes them, and will not overwrite them; `grade` says which points are missing, in JSON and in XML.
    """
    folder = tmp_path / "hw"
    assert done(capsys, "exercise", "start", "all", folder)[0] == 0
    assert {file.stem for file in folder.iterdir()} == set(PROBLEMS)
    status, _, err = done(capsys, "exercise", "start", "fastv", folder)
    assert status == 2 and "exists" in err
    for name in set(PROBLEMS) - {"fastv", "cache"}:
        (folder / f"{name}.py").unlink()
    (folder / "fastv.py").write_text(solution(PROBLEMS["fastv"]))
    words = ("--seconds", 60, "--json", "--junit", tmp_path / "grades.xml")
    status, out, _ = done(capsys, "exercise", "grade", tmp_path, *words)
    assert status == 1
    answers = json.loads(out)["answers"]
    assert [(answer["exercise"], answer["points"]) for answer in answers] == [("cache", 0), ("fastv", TOTAL)]
    suites = ElementTree.parse(tmp_path / "grades.xml").getroot()
    for suite, answer in zip(suites, answers):
        failures = [failure.get("message") for failure in suite.iter("failure")]
        assert failures == [check["sentence"] for check in answer["checks"] if check["sentence"]]
        assert suite.get("failures") == str(len(failures))


def test_one_temporary_folder(few_cases, tmp_path, capsys, monkeypatch):
    """All that grading writes lies in the one that the fork server removes, also if the grader is killed."""
    (tmp_path / "hw").mkdir()
    (tmp_path / "temporary").mkdir()
    (tmp_path / "hw" / "fastv.py").write_text(solution(PROBLEMS["fastv"]))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    seen = []

    def graded_with_a_look(*args):
        result = graded(*args)
        seen.extend(path.name[:8] for path in (tmp_path / "temporary").iterdir())
        return result
    monkeypatch.setattr(exercise, "graded", graded_with_a_look)
    done(capsys, "exercise", "grade", tmp_path / "hw", "--seconds", 60)
    assert seen == ["minivlm-"] and not list((tmp_path / "temporary").iterdir())


def test_a_folder_is_a_row():
    """Of two answers to one exercise the best counts. A line break in a folder's name makes no row of its own."""
    problem = PROBLEMS["fastv"]
    none = grade.Grade(problem, ())
    full = grade.Grade(problem, tuple(map(grade.Row, problem.checks)))
    folder = Path("hw\nothers 15 15")
    _, *rows = report.table([(folder / "a.py", full), (folder / "b.py", none)])
    assert [row.split() for row in rows] == [["hw\\nothers", "15", "15", str(TOTAL), str(TOTAL)]]
    assert not any("\n" in line for line in report.lines([(folder / "a.py", full)]))


# --- what a student's code may do -------------------------------------------------------------------------------------

HOSTILE = {
    "return torch.ones(2 ** 27)": "asks for more memory",
    "raise SystemExit": "score exits the program",
    "__import__('os')._exit(0)": "score ends the process",
    "return self.score(tokens)": "raises RecursionError",
    "return 1 / 0": "raises ZeroDivisionError: division by zero (line 27)",
    "return None": "the score is None, and should be a tensor",
    "return {1, 2}": "the score is",
    "return object()": "the score is a object, and should be a tensor",
    "return torch.ones(3).to_sparse()": "score raises",
    "return [self.__dict__.setdefault('a', []), self.a.append(self.a)]": "score raises RecursionError",
    "return torch.ones(3).long().softmax(0)": "score raises NotImplementedError",
    "raise ValueError(chr(27) + '[2J')": "score raises ValueError: \\x1b[2J",
    "return torch.zeros(3, dtype=torch.complex64)": "the score has complex numbers",
}


def fastv_with(body):
    """A solution of fastv with another body, which may use torch."""
    problem = PROBLEMS["fastv"]
    text = with_bodies(stub(problem, PROBLEMS), {"FastV.score": f"        {body}\n"})
    return text.replace("from dataclasses", "import torch\nfrom dataclasses", 1)


def grade_of(server, text, tmp_path, checks=2):
    """The Grade of a text as an answer to fastv, on its first checks."""
    problem = PROBLEMS["fastv"]
    problem = replace(problem, checks=problem.checks[:checks])
    (tmp_path / "answer.py").write_text(text)
    side = server.submission(problem, tmp_path / "answer.py")
    try:
        return graded(problem, side)
    finally:
        side.close()


@pytest.mark.parametrize("body", HOSTILE)
def test_mistakes_cost_their_check(body, server, tmp_path):
    """Each has its sentence, and the grader goes on."""
    rows = grade_of(server, fastv_with(body), tmp_path, checks=1).rows
    assert HOSTILE[body] in rows[0].sentence
    assert rows[0].points == 0


@pytest.mark.parametrize("text, sentence", [
    (fastv_with("while True: pass"), "; score takes more than 1 s"),
    ("while True: pass\n", "; the import of the file takes more than 1 s"),
])
def test_loops_without_end(text, sentence, server, tmp_path, monkeypatch):
    """Are ended."""
    monkeypatch.setattr(server, "limits", Limits(seconds=1.0))
    assert grade_of(server, text, tmp_path, checks=1).rows[0].sentence.endswith(sentence)


def test_a_submission_meets_no_other(server, tmp_path):
    """One that removes the folder in which it runs, the tree too, costs itself points; where the next one runs there is
    no solution, though the tree of another exercise had it.
    """
    removed = "return [__import__('shutil').rmtree(place, True) for place in ('.', '../tree')]"
    assert grade_of(server, fastv_with(removed), tmp_path).points == 0
    server.submission(PROBLEMS["divprune"], tmp_path / "answer.py").close()
    assert "attention(" in (server.folder / "submission/tree/pruning/fastv.py").read_text()
    good = body_of(PROBLEMS["fastv"].file.read_text(), "FastV.score")
    assert all(row.points for row in grade_of(server, fastv_with(good.strip()), tmp_path).rows)
    sources = [file.read_text() for file in server.folder.rglob("fastv.py")]
    assert sources and not any(good in source for source in sources)


def test_what_ends_the_process_costs_one_check(server, tmp_path):
    """An answer that fails on two heads only keeps the points of the other checks."""
    good = body_of(PROBLEMS["fastv"].file.read_text(), "FastV.score")
    bad = """print("x" * 10 ** 5)
        if len(tokens.hidden) == 4:
            __import__("os")._exit(0)
"""
    text = fastv_with(bad + good)
    rows = grade_of(server, text, tmp_path, checks=3).rows
    assert [row.points > 0 for row in rows] == [True, False, True]


@pytest.mark.parametrize("text, sentence", [
    ("def score(:\n", "the import of the file raises SyntaxError: invalid syntax (line 1)"),
    ("import nothing_like_it\n", "raises ModuleNotFoundError"),
    ("exit()\n", "exits the program"),
    ("from minivlm.course.exercises import problems\n", "raises ModuleNotFoundError"),
])
def test_a_file_that_cannot_be_imported(text, sentence, server, tmp_path):
    result = grade_of(server, text, tmp_path)
    assert result.points == 0
    assert sentence in result.rows[0].sentence


def test_the_repository_is_not_on_its_path():
    """What the process imports of pruning and minivlm is the tree's copy."""
    assert libraries()
    assert not [path for path in libraries() if (Path(path) / "pruning").exists()]


# --- the command line -------------------------------------------------------------------------------------------------

def test_the_list_and_a_page(capsys):
    """All exercises; each with what must hold, and with commands that can be parsed."""
    status, out, _ = done(capsys, "exercise")
    assert status == 0 and all(name in out for name in PROBLEMS)
    for name, problem in PROBLEMS.items():
        status, out, _ = done(capsys, "exercise", name)
        assert status == 0 and all(check.about in out for check in problem.checks)
        for command in problem.commands:
            assert command in out
            words = shlex.split(command)[2:]
            if words[0] != "check":            # it executes the file, which is not there
                run_py.parsed(words)


@pytest.mark.parametrize("words, message", [
    (["nothing"], "is no exercise: use one of"),
    (["start", "fastv"], "needs NAME and DIR"),
    (["start", "nothing", "DIR"], "is no exercise"),
    (["start", "fastv", ""], "'' can name no file"),
    (["grade"], "needs DIR"),
    (["grade", "DIR"], "holds no answer"),
    (["grade", "DIR/no"], "there is no such folder"),
    (["fastv", "rope"], "give one name"),
    (["grade", "DIR", "--seed", "x"], "--seed"),
])
def test_bad_input(words, message, capsys, tmp_path):
    """An answer is a file."""
    (tmp_path / "fastv.py").mkdir()
    words = [word.replace("DIR", str(tmp_path)) for word in words]
    status, out, err = done(capsys, "exercise", *words)
    assert (status, out) == (2, "")
    assert message in err and err.count("\n") == 1


def test_answers_of_many(tmp_path):
    """The folders in a folder. The first line says which exercise a file is, or else its name."""
    for student in ("ada", "bob"):
        (tmp_path / student).mkdir()
        (tmp_path / student / "renamed.py").write_text(stub(PROBLEMS["rope"], PROBLEMS))
        (tmp_path / student / "fastv.py").write_text("# without the line\n")
        (tmp_path / student / "notes.py").write_text("")
    found = answers_in(str(tmp_path))
    assert [(file.parent.name, file.name, problem.name) for file, problem in found] == [
        ("ada", "fastv.py", "fastv"), ("ada", "renamed.py", "rope"),
        ("bob", "fastv.py", "fastv"), ("bob", "renamed.py", "rope")]
