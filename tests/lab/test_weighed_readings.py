"""Readings weighed: which tokens change, by hand; the command goes on from its answers."""

import json
from types import SimpleNamespace

import pytest

from command import done
from minivlm.lab.claims.claim import DIFFERS, OPEN, Answers, Claim
from minivlm.lab.claims.comparisons import Pair
from minivlm.lab.claims.readings import changed, facts, lines, weighed
from minivlm.lab.score.statistics import bits
from pruning import READINGS


@pytest.fixture
def answers():
    """Two questions: the reading keeps tokens 0 and 1 where the method keeps 1 and 2, then both keep 3."""
    items = [SimpleNamespace(family="color")] * 2
    rows = {
        "r 0.5": [dict(right=1, kept=[bits([0, 1])]), dict(right=1, kept=[bits([3])])],
        "m 0.5": [dict(right=0, kept=[bits([1, 2])]), dict(right=1, kept=[bits([3])])],
    }
    return Answers(SimpleNamespace(n=4, layers=8), items, rows, {"r 0.1": "too few"})


def test_changed_tokens_by_hand(answers):
    """Of {0, 1, 2} only one is kept by both: 2/3; then nothing: on average 1/3."""
    assert changed(answers, "r 0.5", "m 0.5") == pytest.approx(1 / 3)


def test_a_row(answers):
    row, missing = facts(Claim("m", "r", Pair("r", "m", "the reading", None, ("0.5", "0.1"))), answers)
    assert (row["accuracy"], row["difference"], row["verdict"]) == (0.5, 50, OPEN)
    assert missing["why_not"] == "too few"
    text = "\n".join(lines([row, missing], 2, "model"))
    assert "r 0.5  m 0.5      33%    50.0  +50.0 (" in text and "r 0.1  m 0.1  does not run here: too few" in text


def test_every_reading_is_weighed_against_its_method():
    assert {claim.test.method for claim in weighed(None, ["0.1"])} == set(READINGS)
    assert {claim.where for claim in weighed("asap", ["0.1"])} == {"asap"}


def test_the_command(capsys, tmp_path):
    """Eight questions: FastV's reading with all rows keeps other tokens, and one that only masks keeps the same."""
    out = tmp_path / "readings.json"
    argv = ("readings", "fastv", "--count", 1, "--processes", 1, "--out", out)
    status, first, _ = done(capsys, *argv)
    assert status == 0
    rows = {row["reading"]: row for row in json.loads(out.read_text())}
    assert rows["fastv_all 0.1"]["changed"] > 0.5 and rows["fastv_mask 0.1"]["changed"] == 0
    answers = out.with_suffix(".jsonl").read_bytes()
    assert done(capsys, *argv)[1] == first and out.with_suffix(".jsonl").read_bytes() == answers


def test_bad_input(capsys):
    status, _, err = done(capsys, "readings", "asap_dedup")
    assert status == 2 and err.startswith("run.py: no method 'asap_dedup': use some of ") and err.count("\n") == 1


def test_verdict_of_a_clear_difference(answers):
    many = [dict(right=1, kept=["1"])] * 40
    none = [dict(right=0, kept=["1"])] * 40
    items = [SimpleNamespace(family="color")] * 40
    clear = Answers(answers.prompt, items, {"r 0.5": many, "m 0.5": none}, {})
    row, = facts(Claim("m", "r", Pair("r", "m", "the reading", None, ("0.5",))), clear)
    assert row["verdict"] == DIFFERS
