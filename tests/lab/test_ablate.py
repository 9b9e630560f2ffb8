"""The tables of ATP on a model of one's own: the paper's counts, rows trained and scored once, verdicts, bad input."""

import json

import pytest
import torch

from command import done
from minivlm.lab.cli.modules import read
from minivlm.lab.cost.flops import average
from minivlm.lab.studies.ablation import study as ablation
from minivlm.lab.studies.ablation.study import ROWS, Row, facts, lines, method, picture, study
from minivlm.lab.train.instruct import Instructions
from minivlm.lab.train.train_atp import Recipe
from minivlm.llava import Llava
from minivlm.toy import benchmark, folder
from pruning.readings import ATPFixedRatio
from tiny import toy_config
from weights import load

CHOSEN = [row for row in ROWS if row.name in ("adaptive", "fixed-1-2", "frozen")]
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


@pytest.mark.parametrize("drop, counts", [(1, (130,)), (2 / 3, (162, 54, 18)), (1 / 2, (136, 68, 34))])
def test_ratios_give_the_counts_of_table_2(drop, counts):
    """32 layers, 576 tokens, 144 on average."""
    atp = method(Row("", "2", drop=drop), 32, 576)
    assert atp.counts == counts and atp.layers == ((1,) if drop == 1 else (4, 14, 24))
    assert average(atp.schedule(576, 32)) == pytest.approx(144, abs=.5)


@pytest.mark.parametrize("row", [row for row in ROWS if row.drop], ids=lambda row: row.name)
def test_ratios_meet_their_budget_in_eight_layers(row):
    assert average(method(row, 8, 144).schedule(144, 8)) == pytest.approx(row.share * 144, abs=.6)


def test_a_study_is_done_once(model, data, tmp_path, capsys):
    """Three rows: trained and scored; again: nothing is trained, nothing asked, and the numbers are the same."""
    items = benchmark.items("heldout", 1)
    first = json.loads(json.dumps(study(model, tmp_path, RECIPE, data, items, CHOSEN)))
    files = {path: path.read_text() for path in tmp_path.rglob("answers.jsonl")}
    assert study(model, tmp_path, RECIPE, data, items, CHOSEN) == first
    assert {path: path.read_text() for path in files} == files
    assert len(files) == 4
    assert all(len(rows) == 8 for rows in first.values())
    assert all((tmp_path / row.name / "kept.png").exists() for row in CHOSEN)
    row = {row["row"]: row for row in facts(first, items, CHOSEN)}
    assert row["none"]["visual"] == [144] * 8
    assert row["fixed-1-2"]["visual"] == [144, 36, 36, 18, 18, 18, 9, 9]
    assert set(row["adaptive"]["against"]) == {"fixed-1-2", "frozen"}
    assert type(read(tmp_path / "fixed-1-2")) is ATPFixedRatio
    assert read(tmp_path / "frozen").module is not None
    trained, base = (load(path, "float32").state_dict() for path in (tmp_path / "fixed-1-2", model))
    assert not torch.equal(trained["lm_head.weight"], base["lm_head.weight"])
    assert not (tmp_path / "frozen" / "model.safetensors").exists()


def test_every_model_of_a_study_is_on_its_device(model, data, tmp_path, monkeypatch, capsys):
    """The unpruned one, and that of each row: --device was once without effect."""
    devices = []

    def loaded(source, dtype, device="cpu"):
        devices.append(device)
        return load(source, dtype, device)
    monkeypatch.setattr(ablation, "load", loaded)
    for name in ("answers", "row_answers", "facts", "lines"):
        monkeypatch.setattr(ablation, name, lambda *args: [])
    words = ["--model", model, "--rows", "frozen,self", "--device", "cpu:0"]
    status, _, err = done(capsys, "ablate", "--out", tmp_path / "study", *words)
    assert status == 0, err
    assert devices == ["cpu:0"] * 3


def test_lines_say_what_holds():
    """Three wins and no loss in 200 questions may be chance; 60 wins are not, and their sign may be the paper's."""
    def rows(right):
        return [dict(question=i, right=float(i < right), visual=[144., 20. + i % 2]) for i in range(200)]
    items = [benchmark.Item(i, None, "ab"[i % 2], "", "", (), tuple(range(i))) for i in range(200)]
    chosen = [row for row in ROWS if row.name in ("adaptive", "self", "cross", "spatial", "2d")]
    right = {"none": 190, "adaptive": 150, "self": 90, "cross": 190, "spatial": 149, "2d": 10}
    table = facts({name: rows(count) for name, count in right.items()}, items, chosen)
    text = list(lines(table))
    verdict = {line.split(":")[0]: line for line in text if " against " in line}
    assert verdict["adaptive against self"].endswith("in the paper +0.4: holds here")
    assert verdict["adaptive against cross"].endswith("in the paper +0.5: does NOT hold here")
    assert verdict["adaptive against spatial"].endswith("in the paper +2.1: undecided here")
    assert sum(line.startswith("2d ") for line in text) == 1
    assert sum(line.startswith("none ") for line in text) == 6
    adaptive = next(row for row in table if row["row"] == "adaptive")
    assert adaptive["kept"] == {"a": 82, "b": 82.5}
    assert adaptive["accuracy"] == .75
    assert len(adaptive["crowded"]) == 3


def test_picture_has_a_panel_a_boundary(model, tmp_path, data):
    """Two scenes, three boundaries: wider than three panels."""
    study(model, tmp_path, RECIPE, data, benchmark.items("heldout", 1), CHOSEN[:1])
    page = picture(load(model, "float32"), read(tmp_path / "adaptive"), benchmark.items("heldout", 20))
    assert page.width > 3 * 400 and page.height > 2 * 400


def test_unknown_rows_are_one_line(capsys, tmp_path):
    status, _, err = done(capsys, "ablate", "--out", tmp_path / "a", "--rows", "adaptive,wise")
    assert status == 2 and "wise" in err and "fixed-1-2" in err and not (tmp_path / "a").exists()
