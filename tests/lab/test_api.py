"""The API: what a notebook gets from `minivlm` and `pruning`, equal to what the commands give."""

import json
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import minivlm
import pruning
import run
from minivlm import Answer, Pruned, Trace, UserError, ask, prune, shipped
from minivlm.lab.cli.shipped import SAMPLES
from pruning import ATP, DivPrune, FastV, FitPrune, LayerView, Reduction, Tokens, VisPruner
from pruning.controls import Blind
from weights import load

ROOT = Path(__file__).parent.parent.parent
MODEL = ROOT / "tests" / "parity" / "llava15_mha"      # 16 visual tokens
PICTURE = ROOT / "tests" / "parity" / "images" / "land_500x333.png"
SCENE = SAMPLES / "00003.png"
QUESTION = "what shape is the red object ?"


@pytest.fixture(scope="module")
def toy():
    """The shipped model."""
    return shipped()


@pytest.fixture(scope="module")
def tiny():
    """A random model that knows all words."""
    return load(MODEL)


def test_answer_is_that_of_the_command(toy, tmp_path):
    """The text and the kept indices are those that `ask --json` writes; 14 of 144 is a tenth, rounded down."""
    answer = ask(toy, SCENE, QUESTION, FastV(keep=0.1))
    file = tmp_path / "answer.json"
    assert run.main(["ask", str(SCENE), QUESTION, "--method", "fastv", "--keep", "0.1", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert answer.text == written["answer"] == "triangle"
    assert answer.kept.tolist() == written["reductions"][0]["kept"]
    assert answer.trace.visual == written["visual_entering_layer"] == [144, 144, 14, 14, 14, 14, 14, 14]
    assert toy.tokenizer.decode(answer.ids) == answer.text


def test_places_are_rows_and_columns(toy):
    """On the 12 x 12 grid of one tile: index = 12 row + column."""
    pruned = prune(toy, SCENE, QUESTION, FastV(keep=0.1))
    tile, row, column = pruned.places.T
    assert tile.eq(0).all()
    assert (12 * row + column).equal(pruned.kept)


def test_prune_keeps_what_ask_keeps(toy):
    """It gives no answer."""
    pruned = prune(toy, SCENE, QUESTION, FastV(keep=0.1))
    assert pruned.kept.equal(ask(toy, SCENE, QUESTION, FastV(keep=0.1)).kept)
    assert not hasattr(pruned, "text")


def test_without_a_method_everything_is_kept(toy):
    answer = ask(toy, SCENE, QUESTION)
    assert answer.kept.tolist() == list(range(144))
    assert answer.text == "triangle"


def test_nothing_kept(toy):
    """No visual token is left, and there is an answer and a picture still."""
    answer = ask(toy, SCENE, QUESTION, Blind())
    assert answer.kept.tolist() == []
    assert answer.places.shape == (0, 3)
    assert answer.picture().width > 400


def brightness(picture):
    """Mean grey value."""
    return np.asarray(picture.convert("L")).mean()


def test_picture_darkens_what_is_dropped(toy):
    """The fewer tokens, the darker; a PIL image, which a notebook shows."""
    pictures = [ask(toy, SCENE, QUESTION, method).picture() for method in (None, FastV(keep=0.5), FastV(keep=0.1))]
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    levels = [brightness(picture) for picture in pictures]
    assert levels[0] > levels[1] + 5
    assert levels[1] > levels[2] + 5


@pytest.mark.parametrize("given", [str, Image.open, lambda path: np.asarray(Image.open(path)),
                                   lambda path: torch.tensor(np.asarray(Image.open(path))), lambda path: [path]],
                         ids=["str", "PIL", "array", "tensor", "list"])
def test_kinds_of_images(toy, given):
    expected = prune(toy, SCENE, QUESTION, DivPrune(keep=5))
    assert prune(toy, given(SCENE), QUESTION, DivPrune(keep=5)).kept.equal(expected.kept)


def test_several_images(tiny):
    """At the vision site 3 of each image's 16 tokens; indices of the second image count from 16. One row per image."""
    two = ask(tiny, [PICTURE, PICTURE], "What is shown?", VisPruner(keep=3), max_new_tokens=2)
    first, second = two.kept[:3], two.kept[3:]
    assert second.equal(first + 16)
    one = ask(tiny, PICTURE, "What is shown?", VisPruner(keep=3), max_new_tokens=2)
    assert one.kept.equal(first)
    assert two.picture().height > 1.8 * one.picture().height


def test_tiles():
    """LLaVA-NeXT: tokens of two grids and newlines."""
    model = load(ROOT / "tests" / "parity" / "next_vicuna")
    answer = ask(model, PICTURE, "What is shown?", DivPrune(keep=9), max_new_tokens=2)
    assert len(answer.kept) == 9
    assert answer.places.shape == (9, 3)
    assert answer.picture().width > 400


def test_without_an_image(tiny):
    answer = ask(tiny, None, "What is this?", max_new_tokens=2)
    assert len(answer.kept) == 0
    with pytest.raises(UserError, match="without an image"):
        answer.picture()


@pytest.mark.parametrize("images, question, method, sentence", [
    ("no.png", QUESTION, None, "no.png: no picture that can be read"),
    (np.zeros((3, 96, 96), np.float32), QUESTION, None, "no picture can be made of this ndarray"),
    (3, QUESTION, None, "no picture can be made of this int|: no picture that can be read"),
    (SCENE, None, None, "the question is a NoneType: give a str"),
    (SCENE, "what is a zebra ?", None, "does not know 'zebra'"),
    (SCENE, QUESTION, FastV, "give an instance, such as FastV"),
    (SCENE, QUESTION, "fastv", "give an instance, such as FastV"),
    (SCENE, QUESTION, FastV(layer=9), "layer"),
    (SCENE, QUESTION, FitPrune(), "run.py fit"),
    (SCENE, "<image> <image> what scene is this ?", None, "2 <image> marks"),
])
def test_refusals_are_sentences(toy, images, question, method, sentence):
    """Each is a UserError, before anything is generated."""
    with pytest.raises(UserError, match=sentence):
        ask(toy, images, question, method)


def test_trained_module_comes_from_the_folder(toy):
    """ATP's thresholds are in the shipped model's folder, as for the command."""
    assert 0 < len(prune(toy, SCENE, QUESTION, ATP(layers=(1, 3, 6))).kept) < 144


def test_a_photograph_is_a_warning_for_the_shipped_model(toy):
    with pytest.warns(UserWarning, match="shipped model"):
        ask(toy, PICTURE, QUESTION)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(toy, SCENE, QUESTION)


# --- what a REPL prints ----------------------------------------------------------------------------------------------


def test_reprs(toy):
    """Shapes, not numbers: one line each."""
    view = LayerView.of(attention=[[.1, .2, .5, .2]])
    tokens = Tokens.start(torch.zeros(4, 8), [0, 1, 2], before=view, layer=2)
    merge = Reduction(torch.tensor([1]), torch.tensor([[.5, .5, 0]]))
    assert repr(tokens) == "Tokens(layer 2, hidden (4, 8), 3 visual of 3)"
    assert repr(tokens.reduced(merge)) == "Tokens(layer 2, hidden (2, 8), 1 visual of 1)"
    assert repr(merge) == "Reduction(merges 3 into 1: [1])"
    assert repr(FastV(keep=2).reduce(tokens)) == "Reduction(selects 2: [1, 2])"
    assert repr(tokens.before) == "LayerView.of(attention)"
    answer = ask(toy, SCENE, QUESTION, FastV(keep=14))
    assert repr(answer) == "Answer('triangle', 14 of 144 visual tokens kept)"
    assert repr(prune(toy, SCENE, QUESTION, FastV(keep=14))) == "Pruned(14 of 144 visual tokens kept)"
    assert repr(answer.trace) == "Trace(144 visual tokens; entering the layers: 2x144 6x14)"
    assert repr(answer.trace.steps) == "[Step(decoder, before layer 2: 14 of 144 tokens)]"
    assert repr(Trace()) == "Trace(0 visual tokens; entering the layers: )"


# --- the packages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [minivlm, pruning], ids=["minivlm", "pruning"])
def test_public_names(package):
    """Each exists, explains itself and is offered by completion."""
    for name in package.__all__:
        assert getattr(package, name).__doc__
    assert set(package.__all__) <= set(dir(package))


def test_every_method_of_a_paper_is_exported():
    methods = {method.__name__ for method in pruning.METHODS.values() if method.__module__ != "pruning.controls"}
    assert methods <= set(pruning.__all__)


@pytest.mark.parametrize("package", [minivlm, pruning], ids=["minivlm", "pruning"])
def test_docstring_shows_what_runs(package, monkeypatch):
    """The indented lines are a program."""
    monkeypatch.chdir(ROOT)
    lines = [line for line in package.__doc__.splitlines() if line.startswith("    ")]
    assert len(lines) >= 4
    program = textwrap.dedent("\n".join(lines)).replace('"..."', repr(QUESTION))
    names = {}
    exec(program, names)
    if "answer" in names:
        assert isinstance(names["answer"], Answer) and isinstance(names["answer"], Pruned)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(AttributeError, match="no attribute 'prun': its names are ask, prune"):
        minivlm.prun
