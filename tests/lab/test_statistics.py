"""What the kept tokens are like: numbers of a few tokens by hand, and of methods on the tiny model."""

import json
from math import exp, log, sqrt

import pytest
import torch

from command import done
from minivlm.generate import Conversation
from minivlm.io.image import open_image
from minivlm.lab.score.statistics import (
    Watched,
    bits,
    effective_rank,
    jaccard,
    lines,
    nearest_cosine,
    nearest_distance,
    overlap,
    statistics,
)
from paths import MODEL, PICTURE
from pruning import METHODS, READINGS
from weights import load


def test_cosine_by_hand():
    """(1, 0), (1, 1) and (-1, 0): the first two are 1/sqrt(2) alike, whatever their length; the third is nearest to the
    second, -1/sqrt(2)."""
    hidden = torch.tensor([[3., 0.], [1., 1.], [-1., 0.]])
    assert nearest_cosine(hidden) == pytest.approx(1 / sqrt(2) / 3)
    assert nearest_cosine(hidden[[0, 0]]) == pytest.approx(1), "a twin"
    assert nearest_cosine(hidden[:1]) is None


def test_distance_by_hand():
    """(0, 0), (0, 1), (3, 5): 1, 1 and 5, the hypotenuse to (0, 1). On another tile, a token by itself, and a newline
    on no grid, which have no neighbours."""
    grid = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 3, 5], [1, 0, 0], [0, -1, -1]])
    assert nearest_distance(grid) == pytest.approx(7 / 3)
    assert nearest_distance(grid[2:4]) is None and nearest_distance(grid[:0]) is None


def test_effective_rank_by_hand():
    """Equal singular values: their number. 3 and 1: shares 3/4 and 1/4. Rows that are all alike: 1. Not centred."""
    assert effective_rank(torch.eye(4)[:3]) == pytest.approx(3)
    skewed = torch.tensor([[0., 3., 0.], [1., 0., 0.]])
    assert effective_rank(skewed) == pytest.approx(exp(-.75 * log(.75) - .25 * log(.25)))
    assert effective_rank(torch.ones(5, 3)) == pytest.approx(1)
    long = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    share = torch.linalg.svdvals(long.double())
    share = share / share.sum()
    assert effective_rank(long) == pytest.approx(exp(-(share * share.log()).sum()), rel=1e-12)
    assert effective_rank(long.T) == pytest.approx(effective_rank(long), rel=1e-12)
    assert effective_rank(torch.zeros(5, 3)) is None and effective_rank(torch.zeros(0, 3)) is None


def test_the_order_of_tokens_does_not_matter():
    torch.manual_seed(0)
    hidden = torch.randn(12, 5)
    grid = torch.randint(0, 6, (12, 3))
    shuffled = torch.randperm(12)
    for number, values in ((nearest_cosine, hidden), (nearest_distance, grid), (effective_rank, hidden)):
        assert number(values[shuffled]) == pytest.approx(number(values), rel=1e-9)


def test_overlap_by_hand():
    """0 2 5 and 2 5 7 share two of four. Of three questions about one picture 1/2, 1/2 and 1; the question about
    another picture has no partner."""
    assert bits([0, 2, 5]) == "25" and jaccard(int(bits([0, 2, 5]), 16), int(bits([2, 5, 7]), 16)) == .5
    assert jaccard(0, 0) == 1 and jaccard(1, 0) == 0
    kept = [[bits(each)] for each in ([0, 2, 5], [2, 5, 7], [5, 2, 7], [1])]
    assert overlap(["a", "a", "a", "b"], kept) == pytest.approx(2 / 3)
    assert overlap(["a", "b"], kept[:2]) is None
    drawn = [[bits([0]), bits([1])], [bits([0]), bits([2])]]
    assert overlap(["a", "a"], drawn) == .5, "each draw with that of the same number"


@pytest.fixture(scope="module")
def model():
    return load(MODEL)


def watched(model, pruner):
    trace = Watched()
    pixels = model.processor.pixels(open_image(PICTURE))
    ids = [1, model.config.image_token_index, 300, 301, 302]
    Conversation(model, pruner).read(ids, [pixels], trace)
    return trace


@pytest.mark.parametrize("pruner, layer", [
    (None, 0),
    (METHODS["divprune"](keep=4), 0),
    (METHODS["vispruner"](keep=4), 0),
    (METHODS["fastv"](keep=4), 2),
    (READINGS["fastv_mask"](keep=4), 2),
    (METHODS["asap"](keep=4, layer=1), 1),
    (METHODS["pyramiddrop"](layers=(1, 2), ratios=(.5, .25)), 2),
])
def test_what_is_looked_at_enters_the_layer_after_the_last_cut(model, pruner, layer):
    """Its hidden states are those of the layer's input, of the tokens that are kept there."""
    inputs = []
    norm = model.language_model.layers[layer].input_layernorm
    hook = norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    trace = watched(model, pruner)
    hook.remove()
    assert torch.equal(trace.last.hidden, inputs[-1][0])     # a method may have read the layer before it ran
    assert trace.last.source.tolist() == trace.kept.tolist()
    numbers = statistics(trace)
    assert 1 <= numbers["rank"] <= len(trace.kept) and -1 <= numbers["cosine"] <= 1 and numbers["distance"] >= 1


def test_nothing_left_has_no_numbers(model):
    assert statistics(watched(model, METHODS["vtw"](layer=1))) == dict(cosine=None, distance=None, rank=None)


def test_the_command_prints_and_writes_them(capsys, tmp_path):
    """Methods that do not read the text keep the same for two questions about one picture, and so overlap by 1: none,
    uniform, DivPrune; random tokens and FastV keep others. Evenly spaced tokens are farther apart than others, and all
    tokens are one patch apart."""
    words = ["eval", "--method", "fastv,divprune", "--keep", "0.1", "--count", "1", "--draws", "1", "--processes", "1"]
    status, plain, _ = done(capsys, *words, "--out", tmp_path / "a.json")
    assert status == 0 and "overlap" not in plain
    status, out, _ = done(capsys, *words, "--out", tmp_path / "a.json", "--statistics")
    assert status == 0 and out.startswith(plain.split("\nwrote")[0].rstrip("\n"))
    rows = json.loads((tmp_path / "a.json").read_text())["contestants"]
    numbers = {row["contestant"]: row["statistics"] for row in rows}
    blind = ("none", "uniform 0.1", "uniform embed 0.1", "divprune 0.1")
    assert all(numbers[label]["overlap"] == 1 for label in blind)
    assert numbers["random 0.1"]["overlap"] < .3 and numbers["fastv 0.1"]["overlap"] < 1
    assert numbers["none"]["distance"] == 1 < numbers["random 0.1"]["distance"] < numbers["uniform 0.1"]["distance"]
    assert numbers["divprune 0.1"]["cosine"] < numbers["random embed 0.1"]["cosine"] < numbers["none"]["cosine"]
    printed = next(line.split() for line in out.splitlines()[::-1] if line.startswith("divprune 0.1"))
    divprune = numbers["divprune 0.1"]
    assert printed[2] == f"{divprune['cosine']:.3f}" and printed[3] == f"{divprune['distance']:.2f}"
    assert printed[4] == f"{divprune['rank']:.1f}" and printed[5] == "1.00"


def test_a_number_that_is_not_known_is_blank():
    known = dict(contestant="a", statistics=dict(cosine=.5, distance=1., rank=2., overlap=1.))
    unknown = dict(contestant="b", statistics=dict(cosine=None, distance=None, rank=None, overlap=1.))
    table = list(lines([known, unknown, dict(contestant="c", why_not="too few")]))
    assert table[2].split() == ["a", "0.500", "1.00", "2.0", "1.00"]
    assert table[3].split() == ["b", "1.00"] and len(table[3]) == len(table[2])
