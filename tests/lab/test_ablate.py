"""The tables of ATP on a model of one's own: the paper's counts, rows trained and scored once, verdicts, bad input."""

import json
from dataclasses import replace

import pytest
import torch

from command import done
from minivlm.lab.cli.modules import read
from minivlm.lab.cost.flops import average
from minivlm.lab.studies.ablation import study
from minivlm.lab.studies.ablation.rows import COMPARISONS, ROWS
from minivlm.lab.studies.ablation.verdicts import (
    conclusion, facts, grains, lines, resampled, sentence, spread, thirds, verdict,
)
from minivlm.lab.train.instruct import Instructions
from minivlm.lab.train.train_atp import Recipe
from minivlm.llava import Llava
from minivlm.toy import benchmark, folder
from pruning.readings import ATPFixedRatio
from tiny import toy_config
from weights import load

ROW_OF = {row.name: row for row in ROWS}
CHOSEN = [ROW_OF[name] for name in ("none", "adaptive", "fastv", "fixed-1-2", "frozen")]
RECIPE = Recipe(0, steps=2, batch=2, lr=1e-4, lr_module=1e-2)


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    folder.save(Llava(toy_config(8)), path)
    return path


@pytest.fixture
def data(monkeypatch):
    monkeypatch.setattr("minivlm.lab.train.instruct.drawn.__defaults__", (4,))
    return Instructions("toy")


# --- the rows ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, counts", [
    ("fixed-once", (130,)), ("fixed-2-3", (162, 54, 18)), ("fixed-1-2", (136, 68, 34))])
@pytest.mark.parametrize("reading", ["", "-max"])
def test_ratios_give_the_counts_of_table_2(name, reading, counts):
    """32 layers, 576 tokens, 144 on average."""
    atp = ROW_OF[name + reading].pruner(32, 576)
    assert atp.counts == counts and atp.layers == ((1,) if len(counts) == 1 else (4, 14, 24))
    assert average(atp.schedule(576, 32)) == pytest.approx(144, abs=.5)


@pytest.mark.parametrize("row", [row for row in ROWS if row.trained and row.drop], ids=lambda row: row.name)
def test_ratios_meet_their_budget_in_eight_layers(row):
    assert average(row.pruner(8, 144).schedule(144, 8)) == pytest.approx(36, abs=.6)


def test_budgets():
    """Table 2's 98, 79 and 16 before layers 1, 13 and 25: (576 + 12 * 98 + 12 * 79 + 7 * 16) / 32 = 87.875.

    Of 8 layers they act before 1, 3 and 6: (576 + 2 * 98 + 3 * 79 + 2 * 16) / 8 = 130.125, a quarter of which is of 144
    tokens.
    """
    less = ROW_OF["adaptive-88"]
    assert less.pruner(32, 576).layers == (1, 13, 25)
    assert less.target(32, 576) == pytest.approx(87.875)
    assert less.target(8, 144) == pytest.approx(130.125 / 4)
    assert ROW_OF["adaptive"].target(8, 144) == 36


@pytest.mark.parametrize("row", [row for row in ROWS if not row.trained and row.name != "none"],
                         ids=lambda row: row.name)
def test_rivals_have_the_average_of_their_row(row):
    """In the paper's depth FastV acts before layer 2 and SparseVLM after 2, 6 and 15; in eight layers as early."""
    expected = {"fastv": (2,), "sparsevlm": (3, 7, 16), "prumerge_plus": ()}[row.name.removesuffix("-88")]
    if expected:
        assert tuple(row.pruner(32, 576).reduce_at(32)) == expected
        assert list(row.pruner(8, 144).reduce_at(8)) == [1, 2, 4][:len(expected)]
        assert average(row.pruner(8, 144).schedule(144, 8)) == pytest.approx(row.target(8, 144), abs=1)
    else:
        assert row.pruner(8, 144).budget(144) == 36


def test_means_of_the_paper():
    """Of MMB, GQA, VQAv2 and SEED, as the tables print them."""
    means = {name: row.mean for name, row in ROW_OF.items() if row.paper}
    expected = {"none": 65.85, "adaptive": 64.8, "adaptive-88": 62.625, "fixed-once": 60.125, "fixed-2-3": 62.75,
                "fixed-1-2": 62.65, "frozen": 62.775, "redundant": 63.8, "spatial": 63.75, "renumbered": 63.75,
                "spatial-renumbered": 62.675, "self": 64.375, "cross": 64.25}
    assert {name: means[name] for name in expected} == pytest.approx(expected)


def test_comparisons_are_of_rows_and_each_row_is_compared():
    """A comparison of the paper's has a printed difference; a row that is not trained is no first row."""
    compared = {name for comparison in COMPARISONS for name in (comparison.row, comparison.control)}
    assert compared == set(ROW_OF)
    for comparison in COMPARISONS:
        row = ROW_OF[comparison.row]
        control = ROW_OF[comparison.control]
        assert row.trained and comparison.changes
        if comparison.table:
            assert (row.paper and control.paper) or (row.percent and control.percent)


def test_what_is_compared_differs_in_what_the_comparison_says():
    """Rows of our own differ from their controls in one field, besides name and words."""
    for comparison in COMPARISONS:
        row = ROW_OF[comparison.row]
        control = ROW_OF[comparison.control]
        if not comparison.table and control.trained:
            same = replace(row, name=control.name, what=control.what, tables=control.tables, paper=control.paper,
                           percent=control.percent)
            differing = [name for name in vars(same) if getattr(same, name) != getattr(control, name)]
            assert len(differing) == 1, f"{comparison.row} against {comparison.control}: {differing}"


# --- the study --------------------------------------------------------------------------------------------------------

def test_a_study_is_done_once(model, data, tmp_path, capsys):
    """Five rows: trained and scored; again: nothing is trained, nothing asked, and the numbers are the same."""
    items = benchmark.items("heldout", 1)
    study.study(model, tmp_path, RECIPE, data, items, CHOSEN)
    files = {path: path.read_bytes() for path in tmp_path.rglob("answers.jsonl")}
    logs = {path: path.read_bytes() for path in tmp_path.rglob("log.jsonl")}
    study.study(model, tmp_path, RECIPE, data, items, CHOSEN)
    assert {path: path.read_bytes() for path in files} == files and len(files) == 5
    assert {path: path.read_bytes() for path in logs} == logs and len(logs) == 3
    results = study.read(tmp_path, items)
    assert list(results) == [row.name for row in CHOSEN]
    assert all(len(rows) == 8 for rows in results.values())
    assert all((tmp_path / row.name / "kept.png").exists() == row.trained for row in CHOSEN)
    figures = facts(results, items)
    visual = {row["row"]: row["visual"] for row in figures["rows"]}
    assert visual["none"] == [144] * 8
    assert visual["fixed-1-2"] == [144, 36, 36, 18, 18, 18, 9, 9]
    assert visual["fastv"] == [144] + [21] * 7
    pairs = [(compared["row"], compared["control"]) for compared in figures["comparisons"]]
    assert pairs == [("adaptive", "none"), ("adaptive", "fastv"), ("frozen", "fastv"), ("adaptive", "fixed-1-2"),
                     ("adaptive", "frozen")]
    assert json.loads(json.dumps(figures))["comparisons"][0]["table"] == "1"
    assert type(read(tmp_path / "fixed-1-2")) is ATPFixedRatio
    assert read(tmp_path / "frozen").module is not None
    trained, base = (load(path, "float32").state_dict() for path in (tmp_path / "fixed-1-2", model))
    assert not torch.equal(trained["lm_head.weight"], base["lm_head.weight"])
    assert not (tmp_path / "frozen" / "model.safetensors").exists()


def test_rows_of_several_processes_are_read_together(model, data, tmp_path, capsys):
    """Two calls with a row each, and one that reads both; a row with an answer too few is left out."""
    small = ["--steps", "2", "--batch", "2", "--count", "1", "--model", model]
    for name in ("none", "fixed-1-2"):
        status, _, err = done(capsys, "ablate", "--out", tmp_path / "s", "--rows", name, *small)
        assert status == 0, err
    assert not (tmp_path / "s" / "tables.json").exists()
    answers = tmp_path / "s" / "fixed-1-2" / "answers.jsonl"
    before = answers.read_text()
    assert done(capsys, "ablate", "--out", tmp_path / "s", "--report", "--count", "1")[0] == 0
    figures = json.loads((tmp_path / "s" / "tables.json").read_text())
    assert [row["row"] for row in figures["rows"]] == ["none", "fixed-1-2"]
    answers.write_text("".join(before.splitlines(keepends=True)[:-1]))
    assert list(study.read(tmp_path / "s", benchmark.items("heldout", 1))) == ["none"]
    status, _, err = done(capsys, "ablate", "--out", tmp_path / "s", "--report", "--count", "3")
    assert status == 2 and "24 answers" in err


def test_another_seed_is_another_training(model, data):
    """The row "again" differs from "adaptive" by the seed of its recipe."""
    network = load(model, "float32")
    _, first = study.trained_as(ROW_OF["adaptive"], network, RECIPE)
    _, again = study.trained_as(ROW_OF["again"], network, RECIPE)
    assert again == replace(first, seed=1)


def test_every_model_of_a_study_is_on_its_device(model, data, tmp_path, monkeypatch, capsys):
    """The one that is checked, and that of each row: --device was once without effect."""
    devices = []

    def loaded(source, dtype, device="cpu"):
        devices.append(device)
        return load(source, dtype, device)
    monkeypatch.setattr(study, "load", loaded)
    monkeypatch.setattr(study, "score", lambda *args: None)
    words = ["--model", model, "--rows", "frozen,self", "--device", "cpu:0"]
    status, _, err = done(capsys, "ablate", "--out", tmp_path / "study", *words)
    assert status == 2 and "no row with 800 answers" in err
    assert devices == ["cpu:0"] * 3


# --- the verdicts -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("interval, printed, said", [
    ((.01, .03), 2., "holds"), ((-.03, -.01), -2., "holds"), ((.01, .03), -2., "does not hold"),
    ((-.03, -.01), 2., "does not hold"), ((-.01, .03), 2., "cannot be told"), ((0, .03), -2., "cannot be told"),
    ((.01, .03), None, "more"), ((-.03, -.01), None, "less"), ((-.01, .03), None, "cannot be told")])
def test_verdict(interval, printed, said):
    assert verdict(interval, printed) == said


@pytest.mark.parametrize("intervals, share, said", [
    ([(.01, .03)], 1, "holds"), ([(.01, .03), (.02, .04)], 1, "holds"),
    ([(.01, .03), (-.01, .02)], 1, "cannot be told"), ([(.01, .03), (-.03, -.01)], 1, "cannot be told"),
    ([(-.03, -.01), (-.02, -.01)], 1, "does not hold"),
    ([(.01, .03)], 1.04, "holds"), ([(.01, .03)], 1.06, "cannot be told"), ([(.01, .03)], .9, "holds"),
    ([(-.03, -.01)], .94, "cannot be told"), ([(-.03, -.01)], 1.2, "does not hold")])
def test_conclusion(intervals, share, said):
    """The paper's difference is above zero. All trainings agree, and the better row has no more tokens."""
    assert conclusion(intervals, 2., share) == said


def answers(right, tokens=lambda i: 20):
    """Rows of answers to 200 questions of which so many are right."""
    return [dict(question=i, right=float(i < right), visual=[144., float(tokens(i))]) for i in range(200)]


ITEMS = [benchmark.Item(i, None, ("scene", "count")[i % 2], "", "", (), tuple(range(i))) for i in range(200)]


def test_lines_say_what_holds():
    """Three wins and no loss in 200 questions may be chance; 60 wins are not, and their sign may be the paper's."""
    right = {"none": 190, "adaptive": 150, "self": 90, "cross": 190, "spatial": 149, "2d": 10}
    results = {name: answers(count) for name, count in right.items()}
    figures = facts(results, ITEMS)
    text = list(lines(figures))
    said = {line.split(" (")[0]: line for line in text if " against " in line}
    assert said["adaptive against self"].endswith("in the paper +0.43 points: holds")
    assert "Table 5; changed: S_cross; 100% of the tokens): +30.0 (" in said["adaptive against self"]
    assert said["adaptive against cross"].endswith("in the paper +0.55 points: does not hold")
    assert said["adaptive against spatial"].endswith("in the paper +1.05 points: cannot be told")
    assert "(not in the paper; " in text[[line.startswith("2d against") for line in text].index(True)]
    assert sum(line.startswith("none ") and "144 20" in line for line in text) == 5
    adaptive = next(row for row in figures["rows"] if row["row"] == "adaptive")
    assert adaptive["accuracy"] == .75 and adaptive["tokens"] == 82


def test_other_seeds_are_compared_too():
    """200 questions: 20 more are right than under the fixed ratio, with other seeds 10 or none: that cannot be told.

    If the number of tokens is what is changed, more of them are no reason for doubt.
    """
    right = {"none": 190, "adaptive": 150, "again": 130, "fixed-1-2": 130, "fixed-1-2-again": 140}
    figures = facts({name: answers(count) for name, count in right.items()}, ITEMS)
    compared = {(c["row"], c["control"]): c for c in figures["comparisons"]}
    pair = compared["adaptive", "fixed-1-2"]
    assert pair["difference"] == .1
    assert [other["difference"] for other in pair["others"]] == [.05, 0, -.05]
    assert pair["verdict"] == "cannot be told"
    assert "with other seeds +5.0 (" in sentence(pair)
    assert not compared["again", "adaptive"]["others"]
    results = {"none": answers(190, lambda i: 144), "adaptive": answers(150), "fastv": answers(90, lambda i: 10)}
    said = {c["control"]: c["verdict"] for c in facts(results, ITEMS)["comparisons"]}
    assert said == {"none": "holds", "fastv": "cannot be told"}


def test_adaptivity_needs_both_trainings():
    """The last third of the pictures gets 6 tokens more, so 3 in a layer; with another seed no more than the others.

    Questions about the scene get 2 tokens more than those that count in both.
    """
    results = {"adaptive": answers(9, lambda i: 20 + 6 * (i >= 134) - 2 * (i % 2))}
    assert [claim["verdict"] for claim in facts(results, ITEMS)["claims"]] == ["does not hold", "holds"]
    figures = facts(results | {"again": answers(9, lambda i: 20 - 2 * (i % 2))}, ITEMS)
    assert [claim["verdict"] for claim in figures["claims"]] == ["does not hold", "cannot be told"]
    said = next(line for line in lines(figures) if line.startswith("Figure 4"))
    assert "an empty one: +3.0 (" in said and said.endswith("): cannot be told")
    assert facts({"none": answers(9)}, ITEMS)["claims"] == []


def test_table_1_is_in_per_cent_of_the_unpruned_model():
    """FastV's row has a percentage only: 98.1 - 86.4 of it lie between the two."""
    figures = facts({"adaptive": answers(150), "fastv": answers(90)}, ITEMS)
    (compared,) = figures["comparisons"]
    assert compared["paper"] == pytest.approx(11.7) and compared["verdict"] == "holds"
    assert sentence(compared).endswith("in the paper +11.70 % of the unpruned: holds")


def test_spread_by_hand():
    """Questions that count keep 4 tokens more than those about the scene, 2 in a layer, so the deviation is 1.

    Of 200 pictures with 0 to 199 things, the middle 67 get 2 tokens more than the first 67, and the last 66 get 6 more:
    3 in a layer.
    """
    by_family = spread(answers(0, lambda i: 20 + 4 * (i % 2)), ITEMS)
    assert by_family["deviation"][0] == 1
    assert by_family["fine"].unique().tolist() == [2]                  # each draw has as many of both families
    others = [replace(item, family="color") for item in ITEMS[:2]]
    assert grains([*ITEMS[:2], *others]).tolist() == [0, 2, 1, 1]
    by_picture = spread(answers(0, lambda i: 20 + 2 * (i >= 67) + 4 * (i >= 134)), ITEMS)
    assert by_picture["crowded"][0] == 3
    assert thirds(ITEMS).bincount().tolist() == [67, 67, 66]


def test_a_draw_has_as_many_questions_of_each_family():
    index = resampled(["b", "b", "a", "b", "a"])
    assert index[0].tolist() == [0, 1, 2, 3, 4]
    is_a = torch.tensor([False, False, True, False, True])
    assert (is_a[index] == is_a).all()
    assert len(index[1:].unique(dim=0)) > 50


def test_growing_adaptivity_is_paired():
    """What is 1.5 times as far from the mean for each question has 1.5 times the deviation, in each draw too.

    So the interval of the difference is half of the first one's.
    """
    less = answers(100, lambda i: 20 + i % 5)
    more = answers(100, lambda i: 20 + 1.5 * (i % 5))
    figures = facts({"adaptive": less, "raw": more}, ITEMS)
    (compared,) = figures["comparisons"]
    growth = compared["spread"]["deviation"]
    assert growth["value"] == pytest.approx(2 ** .5 / 4)               # of 0 .. 4 by halves: sqrt(2) / 2, times .5
    first = figures["rows"][0]["spread"]["deviation"]["interval"]
    assert growth["interval"] == pytest.approx([end / 2 for end in first])
    assert first[0] < 2 ** .5 / 2 < first[1]
    assert any("raw against adaptive: deviation +0.35" in line and ": more" in line for line in lines(figures))


def test_picture_has_a_panel_a_boundary(model, tmp_path, data):
    """Two scenes, three boundaries: wider than three panels."""
    study.study(model, tmp_path, RECIPE, data, benchmark.items("heldout", 1), CHOSEN[1:2])
    page = study.picture(load(model, "float32"), read(tmp_path / "adaptive"), benchmark.items("heldout", 20))
    assert page.width > 3 * 400 and page.height > 2 * 400


def test_unknown_rows_are_one_line(capsys, tmp_path):
    status, _, err = done(capsys, "ablate", "--out", tmp_path / "a", "--rows", "adaptive,wise")
    assert status == 2 and "wise" in err and "fixed-1-2" in err and not (tmp_path / "a").exists()
