"""Methods side by side, methods composed, scheduled and fitted, all from the command line, on a tiny checkpoint."""

import json
import re
from dataclasses import dataclass, field

import pytest
import torch
from PIL import Image

from command import done
from minivlm.lab.draw.evidence import entering
from minivlm.lab.cli.options import build
from minivlm.lab.compare.compare import Run, agreement
from minivlm.lab.draw import draw
from minivlm.toy.benchmark import on_patches
from minivlm.trace import Step, Trace
from paths import IMAGES, MODEL, PARITY, PICTURE
from pruning import EVERY, METHODS, READINGS
from pruning.base import Reduction, UserError
from pruning.compose import Both, Schedule
from pruning.fastv import FastV
from pruning.fields import option
from pruning.vispruner import VisPruner

COMPARE = ["compare", PICTURE, "What is shown?", "--model", MODEL, "--max-new-tokens", "4"]


def test_every_method_in_one_table_and_on_one_sheet(capsys, tmp_path):
    """Each method has its row: numbers, or why it does not run on three layers and sixteen tokens."""
    status, out, _ = done(capsys, *COMPARE, "--keep", "4", "--out", tmp_path / "a.png", "--json", tmp_path / "a.json")
    assert status == 0 and all(f"\n{name} " in out for name in METHODS)
    rows = {row["method"]: row for row in json.loads((tmp_path / "a.json").read_text())}
    assert set(rows) == {"none", *METHODS}
    assert rows["none"]["agreement"] == "same" and rows["none"]["flops_share"] == 1 and rows["none"]["average"] == 16
    assert rows["fastv"]["visual"] == [16, 16, 4]
    assert rows["fastv"]["average"] == 12
    assert .8 < rows["fastv"]["flops_share"] < .9
    assert rows["divprune"]["visual"] == [4, 4, 4]
    tokens = 16 * rows["none"]["kv_bytes"] // rows["none"]["visual"][0] // 16
    assert rows["divprune"]["kv_bytes"] < rows["fastv"]["kv_bytes"] < rows["none"]["kv_bytes"] and tokens
    assert Image.open(tmp_path / "a.png").width > 1000


def test_maps_of_each_method(capsys, tmp_path):
    """Below the kept patches is a row of scores of ASAP and AdaptPrune, and one of ASAP's merges; `last` has none."""
    high = {}
    for methods in ("last", "last,adaptprune", "last,adaptprune,asap"):
        for maps in ([], ["--maps"]):
            words = [*COMPARE, "--method", methods, "--keep", "4", "--out", tmp_path / "a.png", *maps]
            assert done(capsys, *words)[0] == 0
            high[methods, bool(maps)] = Image.open(tmp_path / "a.png").height
    assert high["last", True] == high["last", False] == high["last,adaptprune", False]
    one, two = (high[methods, True] - high[methods, False] for methods in ("last,adaptprune", "last,adaptprune,asap"))
    assert one > 300 and two > 1.8 * one


def test_one_average_for_all(capsys, tmp_path):
    """On average 12 of 16 in three layers: FastV keeps 4 from layer 2 on, DivPrune 12 in all."""
    status, _, _ = done(
        capsys, *COMPARE, "--method", "fastv,divprune", "--average", "12", "--json", tmp_path / "a.json"
    )
    rows = {row["method"]: row for row in json.loads((tmp_path / "a.json").read_text())}
    assert status == 0 and rows["fastv"]["visual"] == [16, 16, 4] and rows["divprune"]["visual"] == [12] * 3


def test_one_average_for_all_methods_that_solve(capsys, tmp_path):
    """Without --method: the unpruned model comes first, methods without a budget say why, the others are solved."""
    status, _, _ = done(capsys, *COMPARE, "--average", "12", "--json", tmp_path / "a.json")
    rows = {row["method"]: row for row in json.loads((tmp_path / "a.json").read_text())}
    assert status == 0 and list(rows)[0] == "none" and set(rows) == {"none", *METHODS}
    assert rows["none"]["visual"] == [16] * 3
    assert rows["fastv"]["visual"] == [16, 16, 4]
    assert rows["vispruner"]["visual"] == [12] * 3
    assert "no keep to solve for" in rows["blind"]["why_not"] and "no keep to solve for" in rows["atp"]["why_not"]


@pytest.mark.parametrize("words", [["compare", PICTURE, "What?"], ["eval"], ["cost"], ["bench"]])
def test_what_is_named_twice_is_refused(capsys, words):
    """Its two rows would have one name, and one would be lost; so would two of one budget."""
    status, out, err = done(capsys, *words, "--model", MODEL, "--method", "asap,fastv,asap")
    assert "--method asap,fastv,asap: asap is there twice" in err
    assert status == 2 and len(err.splitlines()) == 1 and not out
    if words[0] != "compare":
        status, out, err = done(capsys, *words, "--model", MODEL, "--method", "fastv", "--keep", "0.5,4,0.5")
        assert status == 2 and "--keep 0.5,4,0.5: 0.5 is there twice" in err and len(err.splitlines()) == 1 and not out


def test_a_setting_of_one_method(capsys):
    status, out, _ = done(capsys, *COMPARE, "--method", "fastv,divprune", "--keep", "4", "--set", "fastv.layer=1")
    assert status == 0 and "1x16 2x4" in out and "3x4" in out


@pytest.mark.parametrize("words, message", [
    (["--method", "fastv,slowv"], "slowv"),
    (["--keep", "4", "--average", "12"], "not both"),
    (["--method", "fastv", "--average", "1"], "out of reach"),
    (["--method", "fastv,last", "--set", "layer=1"], "METHOD.OPTION"),
    (["--method", "fastv", "--keep", "99"], "keep 99"),
])
def test_bad_comparisons(capsys, words, message):
    status, out, err = done(capsys, *COMPARE, *words)
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not out


def test_evidence_is_where_the_picture_says(capsys, tmp_path):
    """Patches 1 and 26 of 12 x 12 lie on cell (0, 0) of a grid of 4 x 4, and 12 r + 11 on its last column.

    Before the first of these cells comes the class token, which is on no patch: the indices move on by one.
    """
    cells = torch.tensor([(0, -1, -1), *((0, r, c) for r in range(4) for c in range(4))])
    trace = Trace(cells, visual=[3])
    assert on_patches(cells, [1, 26]).tolist() == [1] and on_patches(cells, [11]).tolist() == [4]
    assert on_patches(cells[1:], [0, 143]).tolist() == [0, 15] and on_patches(cells, []).tolist() == []
    trace.steps.append(Step("vision", 1, torch.arange(17), Reduction(torch.tensor([0, 4, 5]))))
    assert entering(trace, [1, 11, 35]) == [1]
    assert on_patches(torch.cat([cells, cells + 1]), [1]).tolist() == []           # tiles: where is not known
    Image.open(PICTURE).save(tmp_path / "a.png")
    row = dict(image="a.png", question="What is shown?", answer="noise", evidence=[0, 143])
    (tmp_path / "questions.jsonl").write_text(json.dumps(row))
    words = ["compare", tmp_path / "a.png", *COMPARE[2:], "--method", "last", "--keep", "4"]
    status, out, _ = done(capsys, *words, "--json", tmp_path / "a.json")
    assert status == 0 and "What is shown?  (right: noise)" in out
    unpruned, last = json.loads((tmp_path / "a.json").read_text())
    assert unpruned["evidence"] == [2, 2, 2] and last["evidence"] == [2, 2, 1]
    assert "  83%  " in next(line for line in out.splitlines() if line.startswith("last"))


def test_the_table_says_how_to_read_it(capsys, tmp_path):
    """A line each on agreement and on 2x16 1x4; on evidence if it is known, as it is not here."""
    out = done(capsys, *COMPARE, "--method", "last", "--keep", "4")[1]
    *_, agreement_, tokens = out.splitlines()
    assert agreement_.startswith("agreement: ") and tokens.startswith("2x144 6x14: ")
    Image.open(PICTURE).save(tmp_path / "a.png")
    row = dict(image="a.png", question="What is shown?", answer="noise", evidence=[0, 143])
    (tmp_path / "questions.jsonl").write_text(json.dumps(row))
    out = done(capsys, "compare", tmp_path / "a.png", *COMPARE[2:], "--method", "last", "--keep", "4")[1]
    assert out.splitlines()[-1].startswith("evidence: ")


def test_agreement():
    """The ids of the unpruned answer 1 2 3 4 up to the first that differs; an answer that stops early agrees so far."""
    unpruned = Run("none", ids=(1, 2, 3, 4))
    assert agreement(Run("a", ids=(1, 2, 3, 4)), unpruned) == "same"
    assert agreement(Run("a", ids=(1, 2, 9, 4)), unpruned) == "2 of 4 ids"
    assert agreement(Run("a", ids=(1, 2)), unpruned) == "2 of 4 ids"


def test_lists():
    assert build("atp_fixed_ratio", settings=["layers=[2,4]", "counts=[9,3]"]).counts == (9, 3)
    assert build("pyramiddrop", settings=["layers=1,2", "ratios=0.5,0.25"]).layers == (1, 2)


def test_composed_and_scheduled():
    assert build("vispruner+fastv", "256+64", ["fastv.layer=3"]) == Both((VisPruner(keep=256), FastV(keep=64, layer=3)))
    assert build("fastv", schedule="4:136,14:.25") == Schedule(FastV(), (4, 14), (136, .25))
    assert build("vispruner+fastv", schedule="4:9").methods[1] == Schedule(FastV(), (4,), (9,))


@pytest.mark.parametrize("words, message", [
    (["vispruner+fastv", "256"], r"--keep 256: give one number for each of vispruner\+fastv, like 256\+64"),
    (["fastv", None, [], "4"], "--schedule 4: write LAYER:KEEP,LAYER:KEEP"),
    (["fastv+vispruner"], "compose in the order image, vision, embed, decoder; got decoder, vision"),
    (["divprune", None, [], "4:9"], "DivPrune cannot be scheduled: only a decoder method with a layer and a keep")])
def test_what_cannot_be_composed_or_scheduled(words, message):
    with pytest.raises(UserError, match=message):
        build(*words)


@pytest.mark.parametrize("method, title", [
    ([], "no pruning"),
    (["--method", "fastv", "--keep", "4"], "fastv, keep 4"),
    (["--method", "fastv", "--average", "12"], "fastv, keep 4"),
    (["--method", "fastv@layer=1", "--keep", "4"], "fastv@layer=1, keep 4"),
    (["--method", "vispruner+fastv", "--keep", "9+4"], "vispruner+fastv, keep 9+4"),
    (["--method", "vtw", "--set", "layer=1"], "vtw"),
])
def test_ask_names_method_and_budget_on_the_picture(capsys, monkeypatch, tmp_path, method, title):
    """Below every panel."""
    titles = []
    captioned = draw.captioned
    def recording(picture, title, text):
        titles.append(title)
        return captioned(picture, title, text)

    monkeypatch.setattr(draw, "captioned", recording)
    words = ["ask", PICTURE, "What?", "--model", MODEL, "--max-new-tokens", "1", *method]
    status, _, err = done(capsys, *words, "--out", tmp_path / "a.png")
    assert status == 0, err
    assert titles and set(titles) == {title}


def test_ask_with_two_methods_and_with_a_schedule(capsys):
    ask = ["ask", PICTURE, "What is shown?", "--model", MODEL, "--max-new-tokens", "2"]
    status, out, _ = done(capsys, *ask, "--method", "vispruner+fastv", "--keep", "9+4")
    assert status == 0 and "9 of them visual" in out and "4 of them visual" in out
    status, out, _ = done(capsys, *ask, "--method", "fastv", "--schedule", "1:8,2:3")
    assert status == 0 and "layer 1" in out and "8 of them visual" in out and "3 of them visual" in out


def questions(folder):
    names = ["land_500x333.png", "gray_250x170.png"]
    rows = [dict(question_id=i, image=name, text="What is shown?") for i, name in enumerate(names)]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["--questions", folder / "q.jsonl", "--images", IMAGES, "--model", MODEL]


def test_ask_with_an_average(capsys):
    """16 tokens, three layers, FastV before layer 2: 12 on average are 16 16 4."""
    ask = ["ask", PICTURE, "What is shown?", "--model", MODEL, "--max-new-tokens", "2"]
    status, out, _ = done(capsys, *ask, "--method", "fastv", "--average", "12")
    assert status == 0 and "layer 2" in out and "4 of them visual" in out
    for words, message in (
        (["--average", "12"], "--method"),
        (["--method", "fastv", "--average", "12", "--keep", "4"], "not both"),
        (["--method", "fitprune"], "run.py fit"),
        (["--method", "pyramiddrop"], "layer 8"),
    ):
        status, out, err = done(capsys, *ask, *words)
        assert status == 2 and message in err and len(err.splitlines()) == 1 and not out


def test_bytes_without_reduction_are_the_prompts(capsys, tmp_path):
    """Of tiles the tower gives 80 patches, of which 70 tokens would enter the decoder, newlines and all: with and
    without a method of the vision site."""
    reports = []
    for method in (["--method", "vispruner", "--keep", "20"], []):
        status, _, _ = done(capsys, "ask", PICTURE, "What?", "--model", PARITY / "next_vicuna", "--max-new-tokens", "1",
                            *method, "--json", tmp_path / "a.json")
        reports.append(json.loads((tmp_path / "a.json").read_text()))
    assert status == 0 and reports[0]["visual_tokens"] == 80 and reports[1]["visual_tokens"] == 70
    pruned, unpruned = reports
    assert pruned["kv_bytes_unpruned"] == unpruned["kv_bytes_unpruned"] == unpruned["kv_bytes"]
    assert pruned["kv_bytes"] < unpruned["kv_bytes"]


def test_average_of_tiles(capsys):
    """5 tiles of 16 patches: 41 on average are 9 of each tile for VisPruner, which counts them so, and 41 of all for
    DivPrune, of which the prompt has 70. One after the other they would count different things."""
    next_ask = ["ask", PICTURE, "What is shown?", "--model", PARITY / "next_vicuna", "--max-new-tokens", "2"]
    for method, left in (("vispruner", 45), ("divprune", 41)):
        status, out, _ = done(capsys, *next_ask, "--method", method, "--average", "41")
        assert status == 0 and f"{left} of them visual" in out
    status, _, err = done(capsys, *next_ask, "--method", "vispruner+fastv", "--average", "41")
    assert status == 2 and "counts the tokens of each tile: give --keep for both" in err


@pytest.mark.parametrize(
    "name, counted", [("vispruner", "each tile"), ("hired", "each image"), ("fastv", "a prompt together")]
)
def test_methods_says_what_keep_counts(capsys, name, counted):
    assert re.search(f"keep counts .*{counted}", done(capsys, "methods", name)[1])


@pytest.mark.parametrize("name, reading", [("vispruner", "vispruner_received"), ("hired", "hired_received"), ("prumerge", "prumerge_received"),
                                           ("prumerge_plus", "prumerge_plus_received"), ("visionzip", "visionzip_received")])
def test_methods_says_what_stands_in_for_the_class_token(capsys, name, reading):
    assert f"needs a vision tower with a class token; {reading} stands in without one" in done(capsys, "methods", name)[1]
    assert f" Without cls: {reading}." in done(capsys, "methods")[1]
    assert "class token" not in "\n".join(line for line in done(capsys, "methods", reading)[1].splitlines() if line.startswith("needs"))


def test_methods_describes_each(capsys):
    """The table has a row for each; one method shows every option with what its field means."""
    status, out, _ = done(capsys, "methods")
    assert status == 0 and [line.split()[0] for line in out.splitlines()[1::3]] == list(METHODS)
    for name in METHODS:
        status, out, _ = done(capsys, "methods", name)
        assert status == 0 and all(f"  {field}=" in out for field in METHODS[name].__dataclass_fields__)
    assert "K: the first layer that runs on the kept tokens" in done(capsys, "methods", "fastv")[1]
    assert json.loads(done(capsys, "methods", "--json")[1])[0]["name"] == next(iter(METHODS))
    assert done(capsys, "methods", "slowv")[0] == 2


@pytest.mark.parametrize("name, reads", [
    ("fastv_rerank", "fastv"), ("fastv_bimask_last", "fastv_bimask"), ("asap_mask_last_similar", "asap"),
    ("prumerge_paper", "prumerge"), ("prumerge_plus_released", "prumerge_plus"), ("hired_grid", "hired"),
])
def test_methods_names_what_a_reading_reads(capsys, name, reads):
    """The nearest method above it: fastv_rerank changes fastv_mask, itself a reading, and so reads fastv.
    Its paper is shown. The file of a reading has the name of the method's."""
    shown = done(capsys, "methods", name)[1].splitlines()
    file = METHODS[reads].__module__.split(".")[-1]
    assert shown[0].startswith(f"{name} (pruning/readings/{file}.py): A reading of {reads}. ")
    assert shown[1] == done(capsys, "methods", reads)[1].splitlines()[1]


def test_methods_lists_readings_apart(capsys):
    """Three lines each, the second with the method that it reads; the registry's table has none of them."""
    lines = done(capsys, "methods", "--readings")[1].splitlines()
    assert [line.split()[0] for line in lines[1::3]] == list(READINGS)
    assert all(re.match(rf"    A reading of ({'|'.join(METHODS)})\. .", line) for line in lines[2::3])
    assert not set(READINGS) & set(METHODS)


@dataclass(frozen=True)
class Bare(FastV):
    """A method of one's own."""

    plain: int = 3
    built: tuple[int, ...] = field(default_factory=tuple)
    wide: tuple[int, ...] = option((1, 2), "two numbers")
    about: str = "# no comment"


def test_methods_describes_fields_that_do_not_say_what_they_mean(capsys, monkeypatch):
    """The field and its default, and no more: a missing text was a traceback, and so was a default built by a call."""
    monkeypatch.setitem(METHODS, "bare", Bare)
    monkeypatch.setitem(EVERY, "bare", Bare)
    status, out, err = done(capsys, "methods", "bare")
    assert status == 0, err
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert {"plain=3", "built=()", "wide=(1, 2) two numbers", "about=# no comment"} <= set(lines)
    for words in (["methods"], ["methods", "--json"], ["methods", "bare", "--json"]):
        assert done(capsys, *words)[0] == 0


@pytest.mark.parametrize("method, options", [("vtw", ["--eta", "0.5"]), ("fitprune", ["--ratio", "0.1"])])
def test_fit_writes_what_method_reads(capsys, tmp_path, method, options):
    file = tmp_path / "fitted.json"
    status, out, err = done(capsys, "fit", method, *questions(tmp_path), *options, "--out", file)
    assert status == 0, err
    assert repr(build(str(file))) in out
    status, out, _ = done(capsys, "ask", PICTURE, "What?", "--model", MODEL, "--max-new-tokens", "2", "--method", file)
    assert status == 0 and "KV cache" in out


def test_bad_fits(capsys, tmp_path):
    good = questions(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"text": "no picture"}')
    for words, message in (
        (["fastv", *good], "fastv"),
        (["vtw", "--questions", tmp_path / "bad.jsonl", "--model", MODEL], "line 1"),
        (["vtw", "--questions", tmp_path / "none.jsonl", "--model", MODEL], "none.jsonl"),
    ):
        status, _, err = done(capsys, "fit", *words, "--out", tmp_path / "a.json")
        assert status == 2 and message in err and len(err.splitlines()) == 1 and not (tmp_path / "a.json").exists()
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(UserError, match="b.json"):
        build(str(tmp_path / "b.json"))
