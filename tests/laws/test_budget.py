"""One budget for all: a number means the whole prompt's visual tokens, whatever a method counts, on tiles and on
several images."""

from dataclasses import replace

import pytest

from command import done
from minivlm.lab.cli.options import averaged, build, entering
from paths import PARITY, PICTURE
from pruning import METHODS
from pruning.base import UserError
from pruning.compose import Both, Schedule
from pruning.fastv import FastV
from pruning.hired import HiRED
from pruning.visionzip import VisionZip
from pruning.vispruner import VisPruner
from tiny import MARK, built, has_keep, ids, llava, next_llava, picture, prefill, refusal, tiled  # noqa: F401

NEXT = PARITY / "next_vicuna"
AT_MOST = {"hired", "downsample", "downsample_image", "avgpool"}   # round down once more: shares of tiles, whole rows and columns


def prompt(kind):
    """The model, the ids and the images of a prompt: one picture of five tiles, two of five and three, or two without
    tiles."""
    if kind == "two plain":
        model = llava(context=2048)
        return model, ids(3, MARK, 2, MARK, 4), [picture(model), picture(model, 1)]
    model = next_llava(context=2048)
    first, second = tiled(model, 100, 100), tiled(model, 100, 200, seed=1)
    if kind == "tiles":
        return model, ids(3, MARK, 4), [first]
    return model, ids(3, MARK, 2, MARK, 4), [first, second]


def budget(model, images, pruner, average=None):
    """The pruner as a command makes it of the words, and the visual tokens that it says enter each layer."""
    n, layers, parts = sum(map(model.visual_tokens, images)), len(model.language_model.layers), model.parts(images)
    pruner = averaged(pruner, average, n, layers, parts)
    return pruner, entering(pruner, n, layers, parts)


@pytest.mark.parametrize("kind, number", [("tiles", 40), ("two of tiles", 40), ("two plain", 16)])
@pytest.mark.parametrize("name", [name for name in METHODS if has_keep(name)])
def test_a_number_is_the_prompts(name, kind, number):
    """As many tokens are left of all tiles and images together, whichever method, and as many as is said beforehand."""
    if kind != "tiles" and refusal(name):
        pytest.skip(f"takes no text between images: {refusal(name)}")
    model, words, images = prompt(kind)
    pruner, expected = budget(model, images, built(name, number))
    _, _, trace = prefill(model, words, images, pruner)
    if name in AT_MOST:
        assert number / 2 <= trace.visual[-1] <= number
    elif name == "sparsevlm":                          # its number is an average over the layers
        assert trace.visual == expected
    elif name == "feather":                            # its number counts those chosen by attention, without its grid
        assert expected is None and number < trace.visual[8] < sum(map(model.visual_tokens, images))
    else:
        assert trace.visual == expected and expected[-1] == number


@pytest.mark.parametrize("name", [name for name in METHODS if has_keep(name) and name != "sparsevlm"])
def test_a_share_stays_a_share(name):
    pruner = built(name, .5)
    assert budget(*[prompt("tiles")[i] for i in (0, 2)], pruner)[0] == pruner


def test_what_does_not_divide_is_left_over():
    """Five tiles of 16: 23 tokens are 4 of each, and 3 are not given out; of 4 or 81 a tile would get none, or more
    than it has."""
    model, words, images = prompt("tiles")
    pruner, expected = budget(model, images, VisPruner(keep=23))
    _, _, trace = prefill(model, words, images, pruner)
    assert pruner.keep == 4 and trace.visual == expected == [20] * 32
    for keep in (4, 81):
        message = f"keep {keep} is out of range: VisPruner divides it among 5 tiles of 16 tokens.* from 5 to 80"
        with pytest.raises(UserError, match=message):
            budget(model, images, VisPruner(keep=keep))


def test_parts_are_tiles_or_images():
    """Eight tiles, two images: 48 are 6 a tile and 24 an image. In Python the fields stay what the paper means."""
    model, _, images = prompt("two of tiles")
    assert budget(model, images, VisPruner(keep=48))[0].keep == 6
    assert budget(model, images, HiRED(keep=48))[0].keep == 24
    assert budget(model, images, FastV(keep=48))[0].keep == 48
    assert VisPruner(keep=6).tokens_left(16 * 8, {"tile": (8, 16)}) == 48


def test_methods_one_after_the_other():
    """VisPruner leaves 40 of the prompt, 8 a tile, and of these FastV 24; 24 is more than one tile's 8, and no
    error."""
    model, words, images = prompt("tiles")
    pruner, expected = budget(model, images, build("vispruner+fastv", "40+24"))
    _, _, trace = prefill(model, words, images, pruner)
    assert pruner == Both((VisPruner(keep=8), FastV(keep=24))) and trace.visual == expected == [40] * 2 + [24] * 30
    with pytest.raises(UserError, match="keep 41 is out of range"):
        budget(model, images, build("vispruner+fastv", "40+41"))


def test_several_layers():
    model, words, images = prompt("tiles")
    pruner, expected = budget(model, images, Schedule(FastV(), (2, 5), (24, .1)))
    _, _, trace = prefill(model, words, images, pruner)
    n = model.visual_tokens(images[0])
    assert trace.visual == expected == [n] * 2 + [24] * 3 + [n // 10] * 27


def test_an_average_is_solved_once():
    """25 on average are 5 of each of five tiles: the solution is not divided again."""
    model, words, images = prompt("tiles")
    pruner, expected = budget(model, images, VisionZip(), average=25)
    _, _, trace = prefill(model, words, images, pruner)
    assert pruner.keep == 5 and trace.visual == expected == [25] * 32


def test_commands_agree(capsys):
    """compare leaves 20 under each method, ask too, and cost has said so."""
    words = [PICTURE, "What?", "--model", NEXT, "--keep", "20", "--max-new-tokens", "1"]
    methods = "vispruner,visionzip,hired,prumerge,divprune,uniform"
    early = ["--set", "uniform.site=embed"]
    _, out, err = done(capsys, "compare", *words, "--method", methods, *early)
    assert "run.py" not in err
    assert out.count(" 2x20;") == 5 and " 2x18;" in out, "HiRED's shares of tiles are rounded down"
    _, out, _ = done(capsys, "ask", *words, "--method", "visionzip")
    assert "20 of them visual" in out
    _, out, _ = done(capsys, "cost", "--model", NEXT, "--method", methods, "--keep", "20", *early)
    assert out.count(" 2x20\n") == 6, out


def test_a_contest_divides_for_each_picture():
    """What a number means is decided by the picture that is asked about: here of five tiles, and of three."""
    for kind in ("tiles", "two of tiles"):
        model, _, images = prompt(kind)
        pruner = VisPruner(keep=24).divided(model.parts(images[-1:]))
        assert pruner == replace(pruner, keep=24 // len(images[-1]))
