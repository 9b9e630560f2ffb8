"""Several methods in one command: variants, sweeps and budgets have one label everywhere; bad words are one line."""

import io
import json

import pytest
from PIL import Image

from command import done
from minivlm.lab.cli.shipped import FOLDER
from minivlm.lab.cost.shapes import shape_of
from minivlm.lab.lineup.lineup import fitted, lineup
from minivlm.lab.lineup.variants import MOST, Variant, variants
from paths import MODEL, PICTURE
from pruning import METHODS
from pruning.asap import ASAP
from pruning.base import UserError
from pruning.compose import Both, Schedule
from pruning.divprune import DivPrune
from pruning.fastv import FastV
from pruning.vispruner import VisPruner
from tiny import SHAPE

COMPARE = ["compare", PICTURE, "What is shown?", "--model", MODEL, "--max-new-tokens", "2"]


def names(text, *settings):
    return [variant.name for variant in variants(text, settings)]


def pruners(text, keep=None, average=None, settings=(), schedule=None):
    """{label: pruner} on 16 tokens and 4 layers."""
    return fitted(lineup(text, keep, average, settings, SHAPE, schedule), SHAPE)


# --- names ------------------------------------------------------------------------------------------------------------

def test_a_variant_has_its_settings_in_its_name():
    """A list in brackets has commas of its own."""
    assert names("fastv,asap@layer=3@threshold=.8") == ["fastv", "asap@layer=3@threshold=.8"]
    assert names("pyramiddrop@layers=[2,4,6],fastv") == ["pyramiddrop@layers=[2,4,6]", "fastv"]
    assert names("all") == list(METHODS)


def test_several_values_are_a_variant_each():
    """Of two settings every combination: 2 x 2. A setting with one value is no part of the name."""
    assert names("asap", "threshold=.8,.9,.95") == ["asap@threshold=.8", "asap@threshold=.9", "asap@threshold=.95"]
    assert names("asap,fastv", "asap.threshold=.8,.9", "asap.layer=1,3", "asap.keep=4") == [
        "asap@threshold=.8@layer=1", "asap@threshold=.8@layer=3",
        "asap@threshold=.9@layer=1", "asap@threshold=.9@layer=3", "fastv",
    ]
    assert names("divprune", "positions=keep,renumber") == ["divprune@positions=keep", "divprune@positions=renumber"]
    assert names("vispruner+fastv", "fastv.layer=1,3") == ["vispruner+fastv@layer=1", "vispruner+fastv@layer=3"]


def test_a_list_is_one_value():
    """2,4,6 are the layers of one variant; two lists in brackets are two."""
    assert variants("pyramiddrop", ["layers=2,4,6"]) == [Variant("pyramiddrop", ("layers=2,4,6",))]
    assert names("pyramiddrop", "layers=[2,4],[3,6]") == ["pyramiddrop@layers=[2,4]", "pyramiddrop@layers=[3,6]"]


def test_a_setting_is_for_all_variants_of_its_method():
    assert variants("asap,asap@layer=3,fastv", ["asap.threshold=.8"]) == [
        Variant("asap", ("threshold=.8",)), Variant("asap@layer=3", ("threshold=.8",)), Variant("fastv")
    ]
    assert variants("asap,asap@layer=3", ["threshold=.8"]) == variants("asap,asap@layer=3", ["asap.threshold=.8"])


def test_variants_are_what_their_names_say():
    assert pruners("asap,divprune@positions=keep", "4", settings=["asap.threshold=.8,.95"]) == {
        "asap@threshold=.8 4": ASAP(keep=4, threshold=.8), "asap@threshold=.95 4": ASAP(keep=4, threshold=.95),
        "divprune@positions=keep 4": DivPrune(keep=4, positions="keep"),
    }
    assert pruners("vispruner+fastv@layer=3", "9+4") == {
        "vispruner+fastv@layer=3 9+4": Both((VisPruner(keep=9), FastV(keep=4, layer=3)))
    }


# --- budgets ----------------------------------------------------------------------------------------------------------

def test_a_label_has_the_method_and_its_budget():
    """On 16 tokens in 4 layers FastV before layer 1 keeps 8 for 10 on average, (16 + 3 * 8) / 4; before layer 2 it
    keeps 4. A method without a keep is there once."""
    assert pruners("fastv,fastv@layer=1", average="10,13") == {
        "fastv average 10": FastV(keep=4), "fastv average 13": FastV(keep=10),
        "fastv@layer=1 average 10": FastV(keep=8, layer=1), "fastv@layer=1 average 13": FastV(keep=12, layer=1),
    }
    assert list(pruners("fastv,vtw@layer=2", "4,0.5")) == ["fastv 4", "fastv 0.5", "vtw@layer=2"]
    assert pruners("fastv", schedule="1:8,2:4") == {"fastv 1:8,2:4": Schedule(FastV(), (1, 2), (8, 4))}
    assert list(pruners("fastv", average="10", schedule="1:8,2:4")) == ["fastv 1:8,2:4 average 10"]


def test_a_variant_may_have_its_own_keep():
    """--keep is for the others."""
    assert list(pruners("fastv,fastv@keep=2", "4,8")) == ["fastv 4", "fastv 8", "fastv@keep=2"]
    assert pruners("fastv,divprune", "4", settings=["fastv.keep=2,3"]).keys() == {
        "fastv@keep=2", "fastv@keep=3", "divprune 4"
    }


def test_all_leaves_out_what_cannot():
    """With "all" a method that cannot meet the budget is reported. Among several a method without a keep has its own
    schedule; named by itself it refuses --keep."""
    at_four = pruners("all", "4")
    assert isinstance(pruners("all", "99")["fastv 99"], UserError)
    assert isinstance(pruners("all", average="1")["fastv average 1"], UserError)
    assert at_four["vtw"] == METHODS["vtw"]() and at_four["fastv 4"] == FastV(keep=4)
    assert pruners("vtw,fastv", "4") == {label: at_four[label] for label in ("vtw", "fastv 4")}
    with pytest.raises(UserError, match="keep"):
        pruners("vtw", "4")


# --- commands ---------------------------------------------------------------------------------------------------------

def test_one_label_in_table_and_json(capsys, tmp_path):
    """FastV before layer 1 and 2 of three."""
    methods = ["--method", "fastv,fastv@layer=1", "--keep", "4", "--model", MODEL]
    labels = ["fastv 4", "fastv@layer=1 4"]
    out = done(capsys, *COMPARE, *methods, "--json", tmp_path / "a.json")[1]
    rows = json.loads((tmp_path / "a.json").read_text())[1:]
    assert [row["contestant"] for row in rows] == labels and all(f"\n{label} " in out for label in labels)
    assert [row["visual"] for row in rows] == [[16, 16, 4], [16, 4, 4]]
    counted = json.loads(done(capsys, "cost", *methods, "--json")[1])["rows"][1:]
    assert [row["method"] for row in counted] == labels
    assert [row["image_tokens"] for row in counted] == [row["visual"] for row in rows]
    measured = ["--steps", "1", "--repeat", "1", "--threads", "1", "--json", tmp_path / "b.json"]
    assert done(capsys, "bench", *methods, *measured)[0] == 0
    assert [row["method"] for row in json.loads((tmp_path / "b.json").read_text())["rows"]] == ["unpruned", *labels]


def test_cost_and_bench_read_what_the_model_needs():
    """methods.json of the shipped model moves PyramidDrop's cuts to its eight layers, as in `eval`. A variant's own
    layers come first."""
    shape = shape_of(model=FOLDER)
    entrants = lineup("pyramiddrop,pyramiddrop@ratios=[.5,.5,.5],pyramiddrop@layers=[1,3,5]", None, None, [], shape)
    assert [entrant.pruner.layers for entrant in entrants] == [(2, 4, 6), (2, 4, 6), (1, 3, 5)]


def test_a_block_and_a_row_for_each_budget(capsys, tmp_path):
    """In the table a block per budget, unpruned first and what has no budget last; on the sheet each block begins a
    row, so that there are four rows of panels where one budget has one."""
    high = {}
    for keep in ("8", "8,4"):
        words = ["--method", "vtw@layer=1,last,fastv", "--keep", keep, "--out", tmp_path / "a.png"]
        status, out, err = done(capsys, *COMPARE, *words, "--json", tmp_path / "a.json")
        assert status == 0, err
        high[keep] = Image.open(tmp_path / "a.png").height
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [row["contestant"] for row in rows] == [
        "none", "last 8", "fastv 8", "last 4", "fastv 4", "vtw@layer=1"
    ]
    table = out.splitlines()[3:]
    assert [line.split("  ")[0] for line in table[:9]] == [
        "none", "", "last 8", "fastv 8", "", "last 4", "fastv 4", "", "vtw@layer=1"
    ]
    assert high["8,4"] > 3 * high["8"]


def test_ask_and_chat_take_a_variant(capsys, monkeypatch):
    """Before layer 1 of three."""
    method = ["--model", MODEL, "--max-new-tokens", "2", "--method", "fastv@layer=1", "--keep", "4"]
    status, out, _ = done(capsys, "ask", PICTURE, "What is shown?", *method)
    assert status == 0 and "layers 1-2: " in out and "4 of them visual" in out
    monkeypatch.setattr("sys.stdin", io.StringIO("What is shown?\n\n"))
    status, _, err = done(capsys, "chat", PICTURE, *method)
    assert status == 0 and "layers 1-2: " in err


@pytest.mark.parametrize("words, message", [
    (["fastv,asap,fastv"], "--method fastv,asap,fastv: fastv is there twice"),
    (["fastv,fastv@layer=2"], "fastv and fastv@layer=2 are the same: give it once"),
    (["fastv", "--keep", ".5,0.50"], "fastv .5 and fastv 0.50 are the same"),
    (["asap@layer=1", "--set", "layer=1,2"], "asap: layer is given twice, as 1 and as 1"),
    (["asap,asap@threshold=.8", "--set", "asap.layer=1,1"], "--set layer 1,1: 1 is there twice"),
    (["fastv@layer=1@layer=2"], "fastv: layer is given twice, as 1 and as 2"),
    (["fastv", "--set", "layer=1", "--set", "layer=2"], "fastv: layer is given twice, as 1 and as 2"),
    (["fastv", "--set", "keep=4", "--keep", "4"], "fastv: keep is given twice"),
    (["fastv@keep=4", "--average", "12"], "fastv@keep=4 has a keep of its own, which --average would replace"),
    (["fastv@layer"], "--method fastv@layer: write a variant as METHOD@OPTION=VALUE"),
    (["fastv@"], "write a variant as METHOD@OPTION=VALUE"),
    (["fastv,"], "--method 'fastv,': there is an empty value"),
    ([""], "--method '': there is an empty value"),
    (["fastv", "--keep", ""], "--keep '': there is an empty value"),
    (["fastv", "--average", "12,"], "--average '12,': there is an empty value"),
    (["fastv", "--average", "12,few"], "--average few: give a number of tokens"),
    (["fastv", "--average", "nan"], "--average nan: must be finite"),
    (["asap", "--set", "threshold=.8,"], "--set threshold '.8,': there is an empty value"),
    (["fastv@layer="], "layer is a whole number from 1 to 10000; got ''"),
    (["fastv@layer=last"], "layer is a whole number from 1 to 10000; got 'last'"),
    (["fastv", "--set", "layer=1,last"], "layer is a whole number from 1 to 10000; got 'last'"),
    (["fastv@rows=all"], "fastv has no option 'rows': its options are layer, keep"),
    (["fastv", "--set", "rows=last,all"], "fastv has no option 'rows': its options are layer, keep"),
    (["fastv,asap", "--set", "layer=1,2"], "write METHOD.OPTION=VALUE, with a METHOD of fastv, asap"),
    (["fastv,asap", "--set", "dart.layer=1,2"], "write METHOD.OPTION=VALUE, with a METHOD of fastv, asap"),
    (["slowv@layer=1"], "'slowv' is not known"),
    (["asap", "--set", "threshold=1e+0,.5"], "a value with @ or + cannot be in the name of a variant"),
    (["asap", "--set", f"threshold={','.join(map(str, range(51)))}", "--set", "layer=1,2"],
     f"--set sweeps 102 variants of asap: at most {MOST} are compared"),
])
def test_bad_words_are_one_line(capsys, words, message):
    status, out, err = done(capsys, "cost", "--model", MODEL, "--method", *words)
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not out


def test_a_sweep_is_counted_before_it_is_built(capsys):
    """Ten settings of forty values each would fill the memory."""
    values = ",".join(map(str, range(40)))
    settings = [word for i in range(10) for word in ("--set", f"layer={values}")]
    status, _, err = done(capsys, "cost", "--method", "fastv", *settings)
    assert status == 2 and f"--set sweeps {40 ** 10} variants of fastv" in err
