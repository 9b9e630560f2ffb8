"""run.py score: rows that parse, the same for a seed, between a floor and a ceiling; a broken law gets no badge."""

import re
from pathlib import Path

import pytest

from command import done
from minivlm.course import score
from minivlm.course.board import HEADS, in_order, name
from minivlm.course.score import evidence_first
from minivlm.toy import benchmark

OWN = '''
from dataclasses import dataclass
from pruning import Ranked
from pruning.fields import Amount

@dataclass(frozen=True)
class Above(Ranked):
    """Keeps what gets more than an absolute share of the attention first: no scale-free rule, though it says so."""
    keep: Amount = 0.1
    laws = frozenset({"select", "ordered", "budget", "scale"})

    def score(self, tokens):
        attention = tokens.before.mean_attention("last")[0, tokens.visual]
        return (attention > 0.1).float()

def fails(attention, keep):
    return attention[0] / None
'''


def scored(capsys, *words):
    """({label: {head: cell}}, what is printed) of `run.py score *words`."""
    status, out, err = done(capsys, "score", *words)
    assert status == 0, err
    lines = [line for line in out.splitlines() if line.startswith("| ")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head, dashes, *rows = table
    assert head == list(HEADS) and set(dashes) == {"---"}
    return {row[0]: dict(zip(HEADS, row)) for row in rows}, out


def number(cell):
    """The number that a cell begins with."""
    return float(re.match(r"[+-]?[\d.]+", cell)[0])


@pytest.fixture
def quick(monkeypatch):
    """One draw of random tokens, and one question timed."""
    monkeypatch.setattr(score, "DRAWS", 1)
    monkeypatch.setattr(score, "TIMED", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with methods of one's own."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.py").write_text(OWN)
    return folder


def test_a_row_between_floor_and_ceiling(capsys):
    """Random tokens first, who knows the evidence last."""
    rows, out = scored(capsys, "fastv", "--count", "2", "--seed", "3")
    floor, ceiling = "*random 0.1* (floor)", "*evidence first 0.1* (ceiling)"
    assert list(rows) == [floor, "fastv 0.1", ceiling] and "16 questions of the drawn world, seed 3" in out
    for row in rows.values():
        low, high = map(float, re.search(r"\((.+) to (.+)\)", row["right, %"]).groups())
        assert low <= number(row["right, %"]) <= high
        assert number(row["tokens"]) == 46.5
    assert [row["own time"].endswith(" ms") for row in rows.values()] == [True, True, False]
    assert number(rows[ceiling]["right, %"]) > number(rows[floor]["right, %"])
    assert re.search(r"\(\+", rows[ceiling]["against random"])             # the interval lies above zero
    assert number(rows[ceiling]["evidence"]) > number(rows[floor]["evidence"])
    assert set(rows["fastv 0.1"]["laws"].split()) == {"budget", "select", "ordered", "scale", "needle", "shift"}


def test_the_seed_decides(capsys, quick):
    """The same one gives the same rows but for the time, another one others."""
    rows, again, other = (scored(capsys, "divprune", "--count", "1", "--seed", seed)[0] for seed in (3, 3, 4))
    for each in (rows, again, other):
        for row in each.values():
            del row["own time"]
    assert rows == again != other


def test_a_broken_law_gets_no_badge(capsys, quick, folder):
    """It is struck out, and said in words; the laws that hold have theirs. Several methods have one table."""
    mine = f"{folder}/own.py:Above"
    rows, out = scored(capsys, f"{mine},divprune", "--count", "1")
    laws = rows[f"{mine} 0.1"]["laws"].split()
    assert "~~scale~~" in laws and {"select", "ordered", "budget"} <= set(laws)
    assert f"{mine} 0.1 breaks scale (attention times a positive constant selects the same): " in out
    assert "~~" not in rows["divprune 0.1"]["laws"]
    assert [name for name in rows if "floor" in name] == ["*random 0.1* (floor)", "*random embed 0.1* (floor)"]


def test_order_of_the_table():
    """Floors, methods from the best on, ceilings. A floor of its own is shown only with a method that is alone."""
    def row(label, role, accuracy):
        return dict(contestant=label, role=role, all=dict(accuracy=accuracy))

    rows = [row("evidence first", "ceiling", .9), row("a", "method", .5), row("random as a", "floor", .4)]
    assert [each["contestant"] for each in in_order(rows)] == ["random as a", "a", "evidence first"]
    rows.append(row("b", "method", .6))
    assert [each["contestant"] for each in in_order(rows)] == ["b", "a", "evidence first"]


def test_a_name_ends_no_cell():
    """Markdown would take the bar in a file's name for the end of the cell."""
    assert name(dict(contestant="a|b.py:Mine 0.1", role="method")) == r"a\|b.py:Mine 0.1"


def test_the_evidence_is_what_the_question_is_about():
    """Of a question on one object its patches, most pixels first; of one on the scene the background, not things."""
    for item in benchmark.items("heldout", 2, 0):
        first = evidence_first(item).things
        assert sorted(first) == sorted(item.evidence)
        if item.family == "scene":
            assert first[0] not in item.things
        else:
            assert first == tuple(patch for patch in item.things if patch in item.evidence)


@pytest.mark.parametrize("words, message", [
    (["answers.jsonl"], "answers.jsonl: name the benchmark of a file of answers with --task"),
    (["fastv", "--against", "answers.jsonl"], "--against is for answers: name their benchmark with --task"),
    (["answers.jsonl", "--task", "pope"], "--count is for methods"),
    (["nothing"], "'nothing' is not known"),
    (["own.py:gone"], "own.py defines no function or class 'gone'"),
    (["own.py:fails"], "own.py:17: TypeError: unsupported operand"),
    (["fastv", "--keep", "0"], "keep 0 is out of range"),
])
def test_bad_input(capsys, monkeypatch, folder, words, message):
    """One line, which names the thing."""
    monkeypatch.chdir(folder)
    assert Path("own.py").exists()
    status, out, err = done(capsys, "score", *words, "--count", "1")
    *progress, last = err.rstrip("\n").split("\r")
    assert status == 2 and out == "" and message in last and "\n" not in last
