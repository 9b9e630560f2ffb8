"""Pruning before each layer in turn: horizons by hand, who competes, the picture, the command and its bad input."""

import json

import pytest
from PIL import Image

from command import done
from minivlm.lab.attention import horizon
from minivlm.lab.draw.chart import COLORS
from minivlm.lab.score.contestants import Contestant
from minivlm.toy import benchmark
from minivlm.toy.benchmark import Item

LAYERS = (1, 2, 3, 4)
# right answers of 40 to the questions, before each layer
TYPED = {
    ("random", "0.5"): (20, 20, 38, 40),
    ("random", "0.1"): (20, 20, 20, 20),
    ("fastv", "0.5"): (4, 36, 20, 40),
    ("fastv", "0.1"): (20, 36, 20, 36),
}


def typed():
    """[Item], [Contestant], [row]: questions of two families in turn; the first of each family are right."""
    items = [Item(i, None, "ab"[i % 2], "?", "yes") for i in range(40)]
    right = {Contestant("none"): 40}
    for (method, keep), counts in TYPED.items():
        for layer, count in zip(LAYERS, counts):
            right[Contestant(f"{method}@layer={layer}", keep)] = count
    rows = []
    for contestant, count in right.items():
        for i in range(40):
            rows.append(dict(contestant=contestant.label, question=i, answers=["yes"], right=float(i < count),
                             visual=[144.0], evidence=None))
    return items, list(right), rows


def facts():
    items, entered, rows = typed()
    return dict(model="M", **horizon.facts(items, entered, rows))


def test_horizons_by_hand():
    """At 0.5 FastV is worse before layers 1 and 3 and better before layer 2, then like random tokens: the horizon is
    layer 4, and random tokens lose up to layer 2. At 0.1 it is better before layer 4, too: there is no horizon."""
    half, tenth = facts()["budgets"]
    assert half == dict(keep="0.5", better={"fastv": [2]}, worse={"fastv": [1, 3]}, horizon=4, loses=[1, 2], needed=3)
    assert tenth == dict(keep="0.1", better={"fastv": [2, 4]}, worse={"fastv": []}, horizon=None, loses=[1, 2, 3, 4],
                         needed=None)


def test_first_beyond_by_hand():
    assert horizon.first_beyond([1, 2, 3, 4], [1, 3]) == 4
    assert horizon.first_beyond([1, 2, 3, 4], []) == 1
    assert horizon.first_beyond([1, 2, 3, 4], [4]) is None


def test_differences_by_hand():
    """FastV at 0.5 before layer 2: 36 of 40, against all and 20; in each family 18 of 20."""
    cells = {(cell["method"], cell["keep"], cell["layer"]): cell for cell in facts()["cells"]}
    cell = cells["fastv", "0.5", 2]
    whole = cell["families"]["all"]
    assert whole["accuracy"] == .9
    assert whole["against"]["none"]["difference"] == pytest.approx(-.1)
    assert whole["against"]["random"]["difference"] == pytest.approx(.4)
    assert cell["families"]["a"]["accuracy"] == .9 and cell["families"]["a"]["questions"] == 20


def test_text():
    """Differences with their marks, and the sentences."""
    text = "\n".join(horizon.lines(facts()))
    assert "minus random      -40.0*  +40.0*  -45.0*   +0.0 " in text
    assert "keep 0.5: fastv is better than random tokens before layer 2, worse before layers 1, 3" in text
    beyond = "from which on 40 questions show no difference to random tokens"
    assert f"keep 0.5: information horizon: layer 4, {beyond}" in text
    assert "keep 0.1: information horizon: not among the layers tried" in text
    assert "keep 0.5: random tokens lose before layers 1, 2; from layer 3 on 40 questions show no loss" in text
    assert "keep 0.1: random tokens lose before layers 1, 2, 3, 4; before the last layer tried, too" in text


def test_what_does_not_run_is_said():
    """A method that fails on a question has no cells, and its reason is printed."""
    items, entered, rows = typed()
    rows[-1] = dict(contestant="fastv@layer=4 0.1", question=39, why_not="no text")
    result = dict(model="M", **horizon.facts(items, entered, rows))
    assert len(result["cells"]) == 15
    assert "fastv@layer=4 0.1 does not run here: no text" in "\n".join(horizon.lines(result))


@pytest.mark.internal
def test_the_horizon_is_on_the_axis():
    """A dot in the budget's colour at its layer; none for a budget without a horizon."""
    chart = horizon.overall(facts())
    x, _ = chart.place(4, 100)
    assert chart.page.getpixel((round(x), chart.bottom)) == COLORS[0]
    on_axis = [chart.page.getpixel((left, chart.bottom)) for left in range(100, chart.right)]
    assert COLORS[1] not in on_axis


def test_each_method_has_a_colour():
    """Random tokens have that of the first method at their budget; without methods each budget has one."""
    names = [(method, keep) for method in ("random", "fastv", "dart") for keep in ("0.5", "0.1")]
    color_of = horizon.colors(dict.fromkeys(names))
    assert [color_of[name] for name in names] == [COLORS[i] for i in (0, 1, 0, 1, 2, 3)]
    assert list(horizon.colors(dict.fromkeys(names[:2])).values()) == list(COLORS[:2])


@pytest.fixture
def words(tmp_path):
    """The command on one question."""
    benchmark.write(tmp_path / "data", count=1, pictures=1)
    questions = tmp_path / "data" / "questions.jsonl"
    lines = questions.read_text().splitlines()
    questions.write_text("\n".join(lines[:1]))
    return ["sensitivity", "--data", tmp_path / "data", "--processes", 1, "--layers", "2,6", "--keep", "0.1", "--out",
            tmp_path / "a.png", "--json", tmp_path / "a.json"]


def test_the_command(capsys, words, tmp_path):
    """Every method before every layer; what is answered is not asked again."""
    status, out, err = done(capsys, *words, "--method", "random,fastv,fastv_mask")
    assert status == 0, err
    result = json.loads((tmp_path / "a.json").read_text())
    cells = [(cell["method"], cell["keep"], cell["layer"]) for cell in result["cells"]]
    assert cells == [(name, "0.1", layer) for name in ("random", "fastv", "fastv_mask") for layer in (2, 6)]
    assert "information horizon" in out
    assert Image.open(tmp_path / "a.png").height > 1000, "two charts"
    log = (tmp_path / "a.jsonl").read_text()
    rows = [json.loads(line) for line in log.splitlines()[1:]]
    assert len(rows) == 7
    entering = {row["contestant"]: row["visual"] for row in rows}
    assert entering["fastv@layer=6 0.1"] == [144] * 6 + [14] * 2
    assert entering["random@layer=2 0.1"] == [144] * 2 + [14] * 6
    kept, whole = log.splitlines(keepends=True)[:-3], (tmp_path / "a.json").read_text()
    (tmp_path / "a.jsonl").write_text("".join(kept))
    status, out, err = done(capsys, *words, "--method", "random,fastv,fastv_mask")
    assert status == 0 and (tmp_path / "a.jsonl").read_text().startswith("".join(kept))
    assert (tmp_path / "a.json").read_text() == whole
    status, out, err = done(capsys, *words)
    assert status == 2 and "a.jsonl is of a run with fastv_mask@layer=2 0.1" in err


@pytest.mark.parametrize("more, message", [
    (["--layers", "0"], "before layers 1 to 7"),
    (["--layers", "2,8"], "--layers 8"),
    (["--layers", "x"], "--layers x"),
    (["--method", "divprune"], "divprune: it has no layer and keep"),
    (["--method", "nothing"], "'nothing' is not known"),
    (["--method", "fastv,fastv"], "fastv is there twice"),
    (["--keep", "2.5"], "2.5"),
    (["--out", "a.jpg"], "name it *.png"),
])
def test_bad_input_is_one_line(capsys, words, more, message, tmp_path):
    status, out, err = done(capsys, *words, *more)
    assert status == 2 and message in err and err.count("\n") == 1 and not out
    assert not (tmp_path / "a.jsonl").exists()
