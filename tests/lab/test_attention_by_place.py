"""Attention by place: other position ids by hand and against the network, figures and verdicts of typed attention,
the mechanism without content, an interrupted run, pictures, bad input."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from command import done
from minivlm.lab.attention import demo, figures, maps, tables
from minivlm.lab.attention.measured import Measured, Study, overview
from minivlm.lab.attention.watch import IDS, Case, attention_of, cases, changed
from minivlm.lab.draw.draw import HEAT
from minivlm.lab.score.contestants import Contestant
from minivlm.parts.sequence import places_on_tiles
from minivlm.toy import benchmark
from minivlm.toy.benchmark import Item
from paths import ROOT
from pruning import FastV
from pruning.base import UserError
from tiny import MARK, ids, internvl, llava, next_llava, picture, prefill, tiled

SCENE = ROOT / "minivlm" / "toy" / "samples" / "00001.png"
QUESTION = "is there a cyan square ?"


def prompt(model):
    """Three words, an image of 16 tokens, five words."""
    return model.embed(ids(3, MARK, 5), [picture(model)])


# --- what is noted ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, expected", [
    ("usual", [0, 1, 2, 3, 4, 5]),
    ("reversed", [0, 3, 2, 1, 4, 5]),
    ("equal", [0, 2, 2, 2, 4, 5]),
    ("unrotated", [0, 0, 0, 0, 0, 0]),
])
def test_position_ids_by_hand(name, expected):
    """One word, an image of three tokens, two words."""
    assert changed(torch.arange(6), torch.tensor([1, 2, 3]), name).tolist() == expected


def test_noted_is_what_fastv_ranks_by():
    """In each layer but the last, whose attention no method reads."""
    model = llava(layers=4)
    noted = attention_of(model, prompt(model), cases([]))
    assert noted.shape == (1, 4, 16)
    for l in range(3):
        _, _, trace = prefill(model, ids(3, MARK, 5), [picture(model)], FastV(layer=l + 1))
        torch.testing.assert_close(noted[0, l], trace.steps[0].reduction.score)


def test_the_layers_own_ids_change_nothing():
    """Rotated anew by the usual ids, queries and keys give the layer's attention; with the mean over text rows too."""
    model = llava(layers=4)
    for which in ("last", "text"):
        whole, own = attention_of(model, prompt(model), [Case(), Case("usual", "layer")], which)
        torch.testing.assert_close(whole, own)


def test_rows_are_the_ones_named():
    """The mean over the text after the image is that of the rows that are noted one by one."""
    model = llava(layers=3)
    tokens = prompt(model)
    rows = tokens.text()
    by_row = [attention_of(model, tokens, cases([]), row[None])[0] for row in rows]
    torch.testing.assert_close(attention_of(model, tokens, cases([]), "text")[0], torch.stack(by_row).mean(dim=0))
    torch.testing.assert_close(attention_of(model, tokens, cases([]), "last")[0], by_row[-1])


def test_readers_agree_in_layer_0_only():
    """What enters layer 0 has not been rotated yet; later layers get other hidden states if the whole model reads."""
    model = llava(layers=4)
    noted = dict(zip(cases(IDS), attention_of(model, prompt(model), cases(IDS))))
    for name in IDS[1:]:
        whole = noted[Case(name)]
        own = noted[Case(name, "layer")]
        torch.testing.assert_close(whole[0], own[0])
        assert (whole[0] - noted[Case()][0]).abs().max() > 1e-3
        assert (whole[1:] - own[1:]).abs().amax(dim=1).min() > 1e-4


def test_without_rotation_places_do_not_matter():
    """In layer 0 two equal image tokens get the same attention if equal or unrotated, and different ones by usual ids.
    """
    model = llava(layers=2)
    tokens = prompt(model)
    tokens.hidden[tokens.visual] = tokens.hidden[tokens.visual[0]].clone()
    noted = dict(zip(cases(IDS), attention_of(model, tokens, cases(IDS))))
    for name in ("equal", "unrotated"):
        assert noted[Case(name)][0].std() < 1e-6
    assert noted[Case()][0].std() > 1e-3
    torch.testing.assert_close(noted[Case("reversed")][0], noted[Case()][0].flip(0))


def test_the_tile_that_shows_all():
    """The first of LLaVA-NeXT, without newlines; the last of InternVL; of a plain picture all patches, but no class
    token."""
    model = next_llava(layers=2)
    tokens = model.embed(ids(3, MARK, 5), [tiled(model, 32, 32)])
    assert overview(model, tokens.grid).tolist() == list(range(16)) and tokens.n > 16
    model = internvl(layers=2)
    tokens = model.embed(ids(3, MARK, 5), [picture(model, tiles=3)])
    assert overview(model, tokens.grid).tolist() == [8, 9, 10, 11]
    assert overview(llava(), places_on_tiles(1, 4)).tolist() == list(range(16))
    assert overview(llava(), places_on_tiles(1, 4, with_class=True)).tolist() == list(range(1, 17))


# --- figures ----------------------------------------------------------------------------------------------------------

def test_correlation_by_hand():
    """Rising, falling, constant; 1 3 2 and 0 1 2: covariance 1/3, variances 2/3 each."""
    index = torch.arange(3)
    rows = torch.tensor([[1, 2, 3], [3, 2, 1], [2, 2, 2], [1, 3, 2]])
    assert figures.correlation(rows, index).tolist() == pytest.approx([1, -1, 0, .5])


def test_interval_by_hand():
    """0 0 1 1: of four pictures the variance of the mean is (4 * 1/4) * 4/3 / 16; of two, (1 + 1) * 2 / 16."""
    values = torch.tensor([0., 0, 1, 1])
    assert figures.interval(values, "abcd") == pytest.approx((.5 - 1.959964 * (1 / 12) ** .5, 1))
    assert figures.interval(values * .1, "aabb") == pytest.approx((.05 - .0979982, .05 + .0979982))
    assert figures.interval(values, "aaaa") == (-1, 1), "one picture proves nothing"


def typed(rows, ids=IDS, readers=("model", "layer")):
    """(Study's cases, Measured) of four questions about four pictures, two layers, two methods on 2 x 2 patches.

    rows: {label: attention (4,) of a question, in both layers}; slightly different for each question.
    """
    labels = cases(ids)
    attention = torch.tensor([rows[case.label] for case in labels])                # (cases, 4)
    noise = torch.tensor([.01, -.01, .005, -.005])
    attention = attention[None, :, None] + noise[:, None, None, None] * torch.tensor([1., 0, 0, 0])
    attention = attention.repeat(1, 1, 2, 1)                                       # (4, cases, 2, 4)
    kept = torch.tensor([[[1., 3], [0, 0]]]).repeat(4, 1, 1)
    return labels, Measured(attention, attention.sum(dim=-1), kept, torch.full((4,), 4.), 4)


RISING = [.1, .2, .3, .4]
FALLING = RISING[::-1]
FLAT = [.2, .3, .3, .2]


def report(rows, ids=IDS):
    """The facts of typed attention, and their text."""
    labels, measured = typed(rows, ids)
    items = [Item(i, None, "ab"[i % 2], "?", "yes") for i in range(4)]
    entered = [Contestant("fastv", "0.5"), Contestant("vtw")]
    facts = figures.facts(measured, labels, entered, items)
    return facts, "\n".join(tables.lines(facts))


def rows_of(**by_ids):
    """The same for both readers."""
    return {case.label: by_ids[case.ids] for case in cases(by_ids)}


def test_facts_by_hand():
    """Attention .1 .2 .3 .4 on 2 x 2 patches: all of the row, 30 and 70 % of it by row; kept 1 and 3 tokens by row."""
    facts, text = report(rows_of(usual=RISING), ["usual"])
    layer = facts["layers"][1]
    assert layer["correlation"]["usual"]["value"] == pytest.approx(1, abs=.01)
    assert layer["share"] == pytest.approx(1) and layer["by_row"] == pytest.approx([.3, .7])
    assert layer["alike"] == pytest.approx(1, abs=.01)
    assert facts["maps"]["all"][0] == pytest.approx(RISING)
    assert facts["kept"] == {"fastv 0.5": dict(tokens=4, by_row=[.25, .75]), "vtw": dict(tokens=0, by_row=None)}
    assert "100%" in text and "30.0 70.0" in text and "25.0 75.0" in text and "none on a patch" in text
    assert "read by" not in text and "the tile" not in text


def test_the_map_turns_over():
    """Late tokens win by the usual ids, early ones by the reversed ones, neither without rotation."""
    facts, text = report(rows_of(usual=RISING, reversed=FALLING, equal=FLAT, unrotated=FLAT))
    by_case = facts["layers"][0]["correlation"]
    assert by_case["reversed, model"]["verdict"] == "turns over" and by_case["equal, layer"]["verdict"] == "weakens"
    assert by_case["reversed, layer"]["difference"] == pytest.approx(-2, abs=.01)
    assert text.count("reversed: this bias turns over in layers 0, 1.") == 2
    assert text.count("Rotary positions are the cause in layers 0, 1.") == 2
    assert text.count("unrotated: index r is lower in layers 0, 1, higher in no layer.") == 2


def test_another_cause_is_seen():
    """The bias is there whatever the ids."""
    facts, text = report(rows_of(usual=RISING, reversed=RISING, equal=RISING, unrotated=RISING))
    assert facts["layers"][0]["correlation"]["reversed, model"]["verdict"] == "stays"
    assert text.count("Rotary positions are not the cause in layers 0, 1.") == 2


@pytest.mark.parametrize("others", [
    dict(reversed=FLAT, equal=FLAT, unrotated=FLAT),
    dict(reversed=FALLING, equal=FLAT, unrotated=RISING),
])
def test_a_part_of_the_cause(others):
    """The map does not turn over; or it does, and the bias is there without rotation, too."""
    _, text = report(rows_of(usual=RISING, **others))
    assert text.count("Rotary positions are a part of the cause in layers 0, 1.") == 2


@pytest.mark.parametrize("usual", [FLAT, FALLING])
def test_without_a_bias_nothing_is_explained(usual):
    _, text = report(rows_of(usual=usual, reversed=RISING, equal=FLAT, unrotated=FLAT))
    assert text.count("late tokens get more in no layer: there is no bias to explain.") == 2 and "cause" not in text


def test_the_demonstration(monkeypatch):
    """A common direction makes late tokens win, and the reversed ids turn that over; without one nothing is there."""
    monkeypatch.setattr(demo, "DRAWS", 48)
    common = demo.measured(demo.SIMILARITY)
    assert common["usual"]["interval"][0] > .2 and common["reversed"]["verdict"] == "turns over"
    for by_ids, names in ((common, ("equal", "unrotated")), (demo.measured(0.), IDS)):
        for name in names:
            assert abs(by_ids[name]["value"]) < .02, name
    key = demo.mixed(.5, torch.randn(1, 4096), torch.randn(2, 4096))
    assert float(torch.cosine_similarity(*key, dim=0)) == pytest.approx(.5, abs=.05)


# --- pictures ---------------------------------------------------------------------------------------------------------

def test_a_map_by_hand():
    """The largest of 2 x 2 patches is in the lightest colour, nothing in the darkest."""
    panel = maps.attention_map([0., 0, .5, 0], 2)
    assert panel.size == (120, 120)
    assert panel.getpixel((30, 90)) == HEAT[-1] and panel.getpixel((90, 90)) == HEAT[0]


def test_bars_by_hand():
    """Twice as many in the lower row: its bar fills the panel, the other half of it."""
    panel = maps.histogram([1 / 3, 2 / 3])
    lengths = [sum(panel.getpixel((x, y)) == maps.BAR for x in range(panel.width)) for y in (30, 90)]
    assert lengths == [61, 120]


# --- the command ------------------------------------------------------------------------------------------------------

def test_one_prompt(capsys, tmp_path):
    """The layers that are named, the picture, and all numbers."""
    status, out, err = done(capsys, "attention", SCENE, QUESTION, "--layers", "1,2", "--out", tmp_path / "a.png",
                            "--json", tmp_path / "a.json")
    assert status == 0, err
    result = json.loads((tmp_path / "a.json").read_text())
    attention = torch.tensor(result["attention"])
    assert attention.shape == (8, 144)
    assert [line.split()[0] for line in out.splitlines()[3:5]] == ["1", "2"]
    layer = result["layers"][2]
    assert layer["share"] == pytest.approx(float(attention[2].sum()))
    assert f"{layer['share']:.0%}" in out.splitlines()[4]
    assert Image.open(tmp_path / "a.png").width > 900, "two panels"


@pytest.fixture
def few(tmp_path):
    """The words of a study of three questions about one picture."""
    benchmark.write(tmp_path / "data", count=1, pictures=1)
    questions = tmp_path / "data" / "questions.jsonl"
    lines = questions.read_text().splitlines()
    questions.write_text("\n".join(lines[:3]))
    return ["attention", "--data", tmp_path / "data", "--method", "fastv", "--positions", "reversed",
            "--out", tmp_path / "a.png", "--json", tmp_path / "a.json"]


def test_an_interrupted_study_goes_on(capsys, few, tmp_path, monkeypatch):
    """Stopped in its second question it measures the other two, and the result is the same to the bit."""
    status, out, err = done(capsys, *few)
    assert status == 0, err
    for words in ("random 0.25", "uniform 0.25", "fastv 0.25", "reversed: index r is", "over 3 questions"):
        assert words in out
    whole = (tmp_path / "a.json").read_text()
    random, uniform, fastv = load_file(tmp_path / "a.safetensors")["kept"].unbind(dim=1)
    assert len(random.unique(dim=0)) == 3, "other random tokens for each question"
    assert len(uniform.unique(dim=0)) == 1
    assert (fastv.sum(dim=1) == 36).all()
    (tmp_path / "a.safetensors").unlink()
    measure = Study.measure
    calls = []

    def stopped(study, measured, i):
        calls.append(i)
        if len(calls) == 2:
            raise KeyboardInterrupt
        measure(study, measured, i)

    monkeypatch.setattr(Study, "measure", stopped)
    status, out, err = done(capsys, *few)
    assert status == 130 and "a.safetensors: the same command goes on from there" in err
    status, out, err = done(capsys, *few)
    assert status == 0 and calls == [0, 1, 1, 2]
    assert (tmp_path / "a.json").read_text() == whole
    status, out, err = done(capsys, *few, "--rows", "text")
    assert status == 2 and "a.safetensors is of a run with rows 'last', not 'text'" in err


@pytest.mark.parametrize("words, message", [
    ([SCENE], "one picture and one question"),
    ([SCENE, "is it red ?", "--method", "fastv"], "--method is for many questions"),
    ([SCENE, "is it red ?", "--set", "fastv.layer=3"], "--set is for many questions"),
    ([SCENE, QUESTION, "--layers", "8"], "8 layers, 0 to 7"),
    ([SCENE, QUESTION, "--layers", "1,x"], "1,x"),
    ([SCENE, "what is a zebra ?"], "'zebra'"),
    (["--positions", "usual,mirrored"], "mirrored: use some of usual, reversed, equal, unrotated"),
    (["--method", "nothing"], "'nothing' is not known"),
    (["--demo", "--out", "a.jpg"], "name it *.png"),
    (["--demo", "--json", "/no/such/folder/a.json"], "/no/such/folder"),
])
def test_bad_input_is_one_line(capsys, words, message):
    status, out, err = done(capsys, "attention", "--count", 1, *words)
    assert status == 2 and message in err and err.count("\n") == 1 and not out


def test_text_must_follow_the_image():
    model = llava(layers=3)
    tokens = model.embed(ids(3, MARK), [picture(model)])
    with pytest.raises(UserError, match="put the question last"):
        attention_of(model, tokens, cases([]), "text")
