"""Claims of papers: verdicts follow from intervals, each claim has its control, every figure and table has a row."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from command import done
from minivlm.lab.claims import claims, places
from minivlm.lab.claims.claim import (
    DIFFERS,
    FAILS,
    HOLDS,
    LESS,
    MORE,
    OPEN,
    UNTESTED,
    Answers,
    Claim,
    Measured,
    at_least,
    judged,
    verdict,
)
from minivlm.lab.claims.comparisons import Pair, Studied, halving
from minivlm.lab.claims.plot import page
from minivlm.lab.lineup.lineup import entrant_of
from minivlm.lab.lineup.variants import Variant
from pruning.base import UserError

PROMPT = SimpleNamespace(n=144, layers=8)
ALL = [(paper, claim) for paper, rows in claims.PAPERS.items() for claim in rows]
SAID = {paper: " ".join(claim.where for claim in rows) for paper, rows in claims.PAPERS.items()}
# numbered figures and tables with a number or a comparison in them; the others are drawings
PRINTED = {
    "asap": ["Figure 2", "Figure 4", "Figure 5", "Table 1", "Table 2", "Table 3", "Table 4"],
    "adaptprune": ["Figure 1", "Figure 2", "Figure 3", "Figure 5", "Figures 6 and 7", "Figures 8 and 9",
                   "Table 1", "Table 2", "Table 3",
                   "Table 4", "Table 5", "Tables 6 to 8"],
    "atp": ["Figure 2", "Figure 4", "Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Table 6"],
}


@pytest.mark.parametrize("interval, range, expected", [
    ((1, 3), MORE, HOLDS),
    ((-1, 3), MORE, OPEN),
    ((-3, -1), MORE, FAILS),
    ((-3, -1), LESS, HOLDS),
    ((0, 3), MORE, OPEN),                      # the end lies on the limit
    ((-3, 0), MORE, FAILS),
    ((-2, 5), at_least(-3), HOLDS),
    ((-4, 5), at_least(-3), OPEN),
    ((-9, -4), at_least(-3), FAILS),
    ((-1, 1), (-2, 2), HOLDS),
    ((3, 4), (-2, 2), FAILS),
    ((1, 3), None, DIFFERS),
    ((-1, 3), None, OPEN),
])
def test_the_verdict_follows_from_the_interval(interval, range, expected):
    assert verdict(interval, range) == expected


def test_how_many_questions_would_tell():
    """A difference of 2 with an interval of 4 to either side: twice as narrow needs four times as many questions."""
    one = Measured("a - b", 2, (-2, 6), 100)
    assert one.needed(0) == 400
    assert one.needed(-2) == 100
    assert one.needed(2) is None


def test_a_claim_holds_only_if_each_of_its_differences_does():
    good, bad, unknown = (Measured(name, d, (d - 1, d + 1), 10) for name, d in (("g", 5), ("b", -5), ("u", 0.5)))
    assert judged([good, good], MORE).verdict == HOLDS
    assert judged([good, unknown], MORE).verdict == OPEN
    assert judged([good, unknown, bad], MORE).verdict == FAILS
    assert "b: -5.0 points (-6.0 to -4.0)" in judged([good, bad], MORE).sentence
    assert judged([good] * 3 + [bad], MORE).sentence.startswith("1 of 4 differences are not as claimed, such as b:")
    assert "some 40 questions would tell" in judged([unknown], MORE).sentence


@pytest.fixture
def typed():
    """Four questions of two families, answered by two methods at two budgets; one does not run at the second."""
    items = [SimpleNamespace(family=family) for family in ("color", "color", "count", "count")]
    right = {"a 0.5": [1, 1, 1, 0], "b 0.5": [0, 1, 1, 0], "b 0.1": [0, 0, 0, 0]}
    rows = {label: [dict(right=r, visual=[4, 2]) for r in own] for label, own in right.items()}
    return Answers(PROMPT, items, rows, {"a 0.1": "out of reach"})


def test_a_pair_by_hand(typed):
    """a is right on three questions and b on two of these: +25 points; of the first family +50, of the second 0."""
    found = Pair("a", "b", "all", keep=("0.5",)).result(typed)
    assert found.measured[0].difference == 25 and found.measured[0].questions == 4
    families = Pair("a", "b", "all", keep=("0.5",), by_family=True).result(typed)
    assert [one.difference for one in families.measured] == [50, 0]
    assert families.measured[1].what == "a 0.5 - b 0.5, count"


def test_what_does_not_run_is_said(typed):
    found = Pair("a", "b", "all", keep=("0.5", "0.1")).result(typed)
    assert len(found.measured) == 1 and found.sentence.endswith("; not run at 0.1: out of reach")
    nothing = Pair("a", "b", "all", keep=("0.1",)).result(typed)
    assert nothing.verdict == UNTESTED and nothing.sentence == "out of reach"


def test_budgets():
    pair = Pair("asap", "none", "pruning", average=(1 / 3,))
    assert [side.label for side in pair.sides(PROMPT)] == ["asap average 48", "none"]
    assert [side.label for side in Pair("asap@t=1", "vtw", "all").sides(PROMPT)] == ["asap@t=1 0.1", "vtw"]


def test_stages_have_the_same_average():
    """(2 x 144 + 2 x 27 + 2 x 14 + 2 x 7) / 8 = 48; 32 layers: 2, 14, 8, 8 of them."""
    assert halving(48, 144, 8) == "2:27,4:14,6:7"
    assert halving(192, 576, 32) == "2:250,16:125,24:62"
    assert (2 * 576 + 14 * 250 + 8 * 125 + 8 * 62) / 32 == pytest.approx(192, abs=.5)
    assert halving(32, 144, 8) == "2:1,4:1,6:1"
    stages, once = Pair("asap", "asap", "three cuts", average=(1 / 3,), stages=True).sides(PROMPT)
    assert (stages.label, once.label) == ("asap 2:27,4:14,6:7", "asap average 48")


@pytest.mark.parametrize("paper, claim", ALL, ids=lambda x: x if isinstance(x, str) else x.where)
def test_each_claim_names_methods_that_exist_and_its_control(paper, claim):
    assert claim.says.endswith(".") and claim.test.control_line()
    for side in claim.test.sides(PROMPT):
        if side.method != "none":
            entrant_of(Variant(side.method), side.budget, {})
    if isinstance(claim.test, Pair):
        assert claim.test.changed and (claim.test.method != claim.test.control or claim.test.stages)


def test_every_figure_and_table_has_a_row():
    assert len(ALL) >= 25
    for paper, printed in PRINTED.items():
        missing = [name for name in printed if name not in SAID[paper]]
        assert not missing, f"{paper}: {missing}"


def test_the_command_goes_on_from_its_answers(capsys, tmp_path, monkeypatch):
    """Two claims, eight questions; the second run asks nothing and says the same."""
    pair = Claim("Table 1", "FastV answers more than the last tokens.", Pair("fastv", "last", "which tokens are kept"))
    monkeypatch.setattr(claims, "PAPERS", {"adaptprune": (pair,)})
    argv = ("claims", "adaptprune", "--count", 1, "--processes", 1, "--out", tmp_path / "c")
    status, first, _ = done(capsys, *argv)
    assert status == 0 and "changed   fastv against last: which tokens are kept" in first
    answers = (tmp_path / "c" / "answers.jsonl").read_bytes()
    assert done(capsys, *argv)[1] == first
    assert (tmp_path / "c" / "answers.jsonl").read_bytes() == answers
    facts = json.loads((tmp_path / "c" / "claims.json").read_text())["adaptprune"]
    one = facts[0]["measured"][0]
    assert one["questions"] == 8 and math.isclose(one["difference"], sum(one["interval"]) / 2 * 10 / 8, abs_tol=1e-6)


def test_bad_input(capsys):
    status, _, err = done(capsys, "claims", "fitprune")
    assert status == 2 and err == "run.py: no claims of 'fitprune': the papers are " + ", ".join(claims.PAPERS) + "\n"


def drawn(families, images, **rows):
    """Answers to questions of these families and pictures; a row of values for each label."""
    items = [SimpleNamespace(family=family, image=image, things=range(image))
             for family, image in zip(families, images)]
    return Answers(PROMPT, items, {label.replace("_", " "): own for label, own in rows.items()}, {})


def test_what_is_kept_by_hand():
    """Distances 1 and 3 where the control has 2 and 2, in two pictures: 0 on average; a question without is passed."""
    def distances(*values):
        return [dict(statistics=dict(distance=value)) for value in values]

    answers = drawn("abc", (0, 1, 2), a=distances(1, 3, None), b=distances(2, 2, 2))
    one = places.statistic(answers, "distance", "patches", "a", "b")
    assert (one.difference, one.questions) == (0, 2)
    assert one.interval == pytest.approx((-1.96, 1.96), abs=1e-3)      # deviation sqrt 2, over sqrt 2
    with pytest.raises(UserError, match="too few tokens are left"):
        places.statistic(drawn("a", (0,), a=distances(None), b=distances(1)), "distance", "patches", "a", "b")


def test_the_place_of_kept_tokens_by_hand():
    """Of five tokens one method keeps 3 and 4, the other 0 and 1: 3.5 against 0.5 of 4; two draws count together."""
    none = [dict(visual=[5, 5])] * 2
    late = [dict(kept=["18"]), dict(kept=["18"])]
    early = [dict(kept=["3"]), dict(kept=["1", "2"])]
    one, = places.late_kept(drawn("ab", (0, 1), none=none, a=late, b=early), "a", "b")
    assert one.difference == pytest.approx(3 / 4) and one.interval == pytest.approx((3 / 4, 3 / 4))
    assert places.mean_index(["0"]) is None


def test_the_interval_of_maps_holds_their_correlation():
    """Noisy maps of two families with one pattern: drawn again they are noisier; the interval is around the value."""
    generator = torch.Generator().manual_seed(0)
    pattern = torch.linspace(0, 1, 16)
    attention = pattern + torch.randn(40, 1, 2, 16, generator=generator)           # (questions, cases, layers, m)
    answers = drawn("ab" * 20, range(40))
    known = places.Places(attention, dict(layers=[{}, {}]))
    one, = places.same_maps(replace(answers, places=known))
    low, high = one.interval
    assert low < one.difference < high and high - low > 0.1


def test_two_questions_about_one_picture_count_as_one():
    """Equal values within each of two pictures: as wide as with one question each, not narrower by sqrt 2."""
    once = places.average("", drawn("ab", (0, 1)), {0: 1, 1: 3}, "")
    twice = places.average("", drawn("aabb", (0, 0, 1, 1)), {0: 1, 1: 1, 2: 3, 3: 3}, "")
    assert once.interval == pytest.approx(twice.interval) and once.difference == twice.difference == 2
    with pytest.raises(UserError, match="about one picture"):
        places.average("", drawn("ab", (0, 0)), {0: 1, 1: 3}, "")


def test_losses_by_family_by_hand():
    """color loses both of its questions, the scene one of two: 50 points more."""
    right = [[1, 1, 1, 1], [0, 0, 1, 0]]
    unpruned, pruned = ([dict(right=value) for value in own] for own in right)
    families = ("color", "color", "scene", "scene")
    answers = drawn(families, (0, 1, 2, 3), none=unpruned, r=pruned)
    one, = places.coarse(answers, "r")
    assert one.what == "loss of color - scene" and one.difference == 50
    assert one.interval == pytest.approx((50 - 98, 50 + 98), abs=1e-2)


def test_tokens_by_layer_and_by_picture():
    """Cut before layer 2: 4 and 2 tokens then, 1 in the last layer. The crowded half of six pictures keeps one more."""
    visual = [[8, 8, 4, 1], [8, 8, 2, 1], [8, 8, 4, 1], [8, 8, 2, 1], [8, 8, 8, 1], [8, 8, 6, 1]]
    answers = drawn("abcdef", range(6), atp=[dict(visual=own) for own in visual])
    one, = places.later(answers)
    assert one.difference == pytest.approx((3 + 1 + 3 + 1 + 0 + 5) / 6)
    one, = places.crowded(answers)
    assert one.unit == "tokens" and one.difference == pytest.approx((25 + 23) / 8 - (21 + 19) / 8)


def test_a_study_is_of_its_model(capsys, tmp_path):
    """The shipped study is not taken for another model; another file is refused."""
    assert claims.study(SimpleNamespace(model=tmp_path, study=None)) == {}
    shipped = claims.study(SimpleNamespace(model=claims.shipped.FOLDER, study=None))
    rows = {(one["row"], one["control"]) for one in shipped["comparisons"]}
    assert ("adaptive", "fixed-1-2") in rows
    path = tmp_path / "t.json"
    for text in ("{}", "[]", '{"questions": 1, "comparisons": [{}]}', '{"questions": "x", "comparisons": []}'):
        path.write_text(text)
        status, _, err = done(capsys, "claims", "atp", "--count", 1, "--processes", 1, "--study", path)
        assert status == 2 and err == f"run.py: {path} is no tables.json of run.py ablate\n", text


def test_a_row_that_a_study_lacks():
    found = Studied("adaptive", "frozen").result(Answers(PROMPT, [], {}, {}, study={"comparisons": []}))
    assert found.verdict == UNTESTED and "--rows adaptive,frozen" in found.sentence


def test_a_study_by_hand():
    """In fractions, as `ablate` writes it: 2 points; with another seed 0 to 2; with more tokens nothing can be told."""
    one = dict(row="adaptive", control="frozen", difference=.02, interval=[.01, .03], others=[], share=1)
    more = dict(one, others=[dict(interval=[0, .02])])
    uneven = dict(one, share=1.2)

    def found(row):
        study = claims.compared(dict(questions=800, comparisons=[row]), 100, "t.json")
        return Studied("adaptive", "frozen").result(Answers(PROMPT, [], {}, {}, study=study))

    assert found(one).sentence == "adaptive - frozen: +2.0 points (+1.0 to +3.0): holds"
    assert found(more).verdict == OPEN
    assert "adaptive - frozen, other seeds: +1.0 points (+0.0 to +2.0)" in found(more).sentence
    assert found(uneven).verdict == OPEN
    assert found(uneven).sentence.endswith("since the first has 120% of the other's tokens")


def test_the_page_marks_each_verdict():
    """Three intervals, three colours."""
    pair = Pair("a", "b", "all")
    rows = []
    for d in (5, -5, 0.5):
        one = Measured("a - b", d, (d - 1, d + 1), 10)
        rows.append((Claim("Table 1", "More.", pair), judged([one], MORE)))
    colors = {color for _, color in page({"asap": rows}).getcolors(1 << 16)}
    assert {(0, 114, 178), (213, 94, 0), (130, 130, 130)} <= colors
