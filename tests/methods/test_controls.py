"""The controls and AdaptPrune's Table 5 by hand, each next to a simpler rule; zero visual tokens in the whole model."""

import pytest
import torch

from build import close, tokens
from pruning.base import Reduction, UserError, whole_grid
from pruning.controls import (AveragePool, AverageScores, Blind, DownSample, Last, MaxPool3x3, Random, Random3x3, Skip, Unpruned,
                              Uniform, lattice, smaller, spaced)
from pruning.fastv import FastV
from tiny import MARK, ids, llava, picture, prefill

KEEPING = [Random, Last, Uniform, Skip, Random3x3, MaxPool3x3, AverageScores]
SCORED = [Skip, Random3x3, MaxPool3x3, AverageScores]
SIX = [.9, .8, .7, .1, .2, .3]


def image(score=None, grid=None, values=None, dtype=torch.float32):
    """Text, one image of this grid (default: one row), text; the last token pays `score` to the image, whose states
    are `values`."""
    n = len(score or values)
    attention = [[0., *(score or values), 0.]]
    hidden = torch.tensor([0., *(values or [0.] * n), 0.], dtype=dtype)[:, None]
    return tokens(f"t{'v' * n}t", attention, hidden=hidden, grid=grid)


def kept(method, score, grid=None):
    return method.reduce(image(score, grid)).keep.tolist()


def two_images(first, second):
    """Two images of these grids, side by side."""
    grid = torch.cat([whole_grid(*first), whole_grid(*second, tile=1)])
    return tokens(f"{'v' * len(grid)}t", grid=grid)


# --- Table 5 by hand --------------------------------------------------------------------------------------------------

def test_skip():
    """Ranks of .5 .9 .7 .4 .8 .6: token 1, 4, 2, 5, 0, 3. Two of the best four: ranks 0 and 2, tokens 1 and 2. The
    best two would be 1 and 4; every other place among the best four (1 2 4 5) 1 and 4 as well."""
    assert kept(Skip(keep=2), [.5, .9, .7, .4, .8, .6]) == [1, 2]


def test_skip_where_twice_as_many_are_not_there():
    """Five of six: ranks 0 2 4, tokens 1 2 0, and of those left out the best two, tokens 4 and 5."""
    assert kept(Skip(keep=5), [.5, .9, .7, .4, .8, .6]) == [0, 1, 2, 4, 5]


def test_max_pool():
    """A row of six: cells of three. The best of each is 0 and 5; the two best of all are 0 and 1."""
    assert kept(MaxPool3x3(keep=2), SIX) == [0, 5]
    assert kept(FastV(keep=2), SIX) == [0, 1]
    assert kept(MaxPool3x3(keep=1), SIX) == [0]            # fewer than cells: the best of their best


def test_fewer_cells_than_tokens():
    """Two cells, four tokens to keep: 0 and 5, then the best of the others, 1 and 2."""
    assert kept(MaxPool3x3(keep=4), SIX) == [0, 1, 2, 5]


def test_cells_in_two_dimensions_and_at_the_rim():
    """4 x 4: cells of 3 x 3, 3 x 1, 1 x 3 and 1 x 1 patches. Scores fall from .16 in sequence: the best of each is
    its upper left."""
    score = [.16 - .01 * i for i in range(16)]
    assert kept(MaxPool3x3(keep=4), score, (4, 4)) == [0, 3, 12, 15]
    assert kept(MaxPool3x3(keep=3), score, (4, 4)) == [0, 3, 12]


def test_random_of_each_cell():
    """One of 0 1 2 and one of 3 4 5, and over many seeds any of them; the max would always be 0 and 5."""
    pairs = [kept(Random3x3(keep=2, seed=seed), SIX) for seed in range(200)]
    assert {(a // 3, b // 3) for a, b in pairs} == {(0, 1)}
    assert len({tuple(pair) for pair in pairs}) == 9
    better_of_two = [kept(Random3x3(keep=1, seed=seed), SIX)[0] for seed in range(60)]
    assert set(better_of_two) == {0, 1, 2}
    assert kept(Random3x3(keep=2), SIX) == pairs[0]
    assert kept(Random3x3(keep=6), SIX) == [0, 1, 2, 3, 4, 5]


def test_average_of_scores():
    """.9 .0 .0 .5 .6: means of those that exist .45 .3 .167 .367 .55: the last token, although the first has most.
    Were the missing neighbours counted as 0, the mean of the last would be .367, that of the fourth."""
    r = AverageScores(keep=1).reduce(image([.9, .0, .0, .5, .6]))
    assert r.keep.tolist() == [4]
    close(r.score, [.9 / 2, .9 / 3, .5 / 3, 1.1 / 3, 1.1 / 2])


def test_averages_of_equal_scores_are_equal():
    r = AverageScores(keep=2).reduce(image([.1] * 12, (3, 4)))
    close(r.score, [.1] * 12)


def test_last():
    """Half of three is 1.5, rounded down."""
    assert kept(Last(keep=2), SIX) == [4, 5]
    assert kept(Last(keep=.5), [.9, .8, .7]) == [2]


def test_correction():
    """A row of five, u = -3 -1.75 -.5 .75 2 on an axis from floor(-2.5) to floor(2.5), sigma 2.5: weights relative
    to the best, .50 .80 1 .98 .74. Times .30 .20 .25 .05 .20: .15 .16 .25 .05 .15: token 2 is first, uncorrected
    token 0."""
    score = [.30, .20, .25, .05, .20]
    assert kept(MaxPool3x3(keep=1), score) == [0]
    assert kept(MaxPool3x3(keep=1, correction=True), score) == [2]
    r = Skip(keep=1, correction=True).reduce(image(score))
    close(r.score, [.1490, .1597, .25, .0488, .1482], 1e-4)


# --- the others by hand -----------------------------------------------------------------------------------------------

def test_random():
    """As many as asked, none twice, another set for another seed, the same for the same; every token is drawn
    sometimes."""
    drawn = [kept(Random(keep=3, seed=seed), [.1] * 8) for seed in range(60)]
    for keep in drawn:
        assert len(keep) == 3
        assert keep == sorted(set(keep))
    assert len({tuple(keep) for keep in drawn}) > 30
    assert set(sum(drawn, [])) == set(range(8))
    assert kept(Random(keep=3), [.1] * 8) == drawn[0]


def test_uniform():
    """4 of 4 x 4: rows 1 and 3, columns 1 and 3. Every fourth token of the sequence would be one column, 2 6 10 14."""
    assert kept(Uniform(keep=4), [.1] * 16, (4, 4)) == [5, 7, 13, 15]
    assert spaced(4, 1, 16).tolist() == [2, 6, 10, 14]


def test_uniform_of_a_number_that_is_no_square():
    """5 of 3 x 4: two rows (the root of 5 * 3/4 is 1.9) with two and three tokens. Rows 0 and 2 (of blocks 1.5 high
    the centres .75 and 2.25), columns 1 and 3, and 0, 2, 3 (centres .67, 2, 3.33)."""
    assert kept(Uniform(keep=5), [.1] * 12, (3, 4)) == [1, 3, 8, 10, 11]


def test_every_number_of_every_grid():
    """Exactly k, in order, none twice, whatever the grid; and smaller maps never hold more than k."""
    for H in range(1, 8):
        for W in range(1, 8):
            for k in range(1, H * W + 1):
                index = spaced(k, H, W)
                assert len(index) == k
                assert (index.diff() > 0).all()
                assert index[-1] < H * W
                h, w = smaller(k, H, W)
                assert 1 <= h <= H
                assert 1 <= w <= W
                assert h * w <= k
                assert (lattice(h, w, H, W).diff() > 0).all()
    assert smaller(128, 24, 24) == (11, 11)
    assert smaller(144, 24, 24) == (12, 12)
    assert smaller(72, 12, 24) == (6, 12)


def test_uniform_on_what_is_left():
    """Of a grid with holes, evenly over the sequence: of five tokens two, the second and the fourth."""
    thinned = image([.1] * 16, (4, 4)).reduced(Reduction(torch.tensor([0, 3, 4, 9, 15])))
    assert Uniform(keep=2).reduce(thinned).keep.tolist() == [1, 3]


def test_uniform_over_two_images():
    """4 and 12 tokens, 4 to keep: 1 and 3."""
    keep = Uniform(keep=4).reduce(two_images((2, 2), (3, 4))).keep
    assert (keep < 4).sum() == 1
    assert len(keep) == 4
    assert len(Uniform(keep=1).reduce(two_images((2, 2), (2, 2))).keep) == 1        # one of the two gets none


def test_average_pool():
    """2 x 4 to two tokens: the means of 1 2 5 6 and 3 4 7 8, which stand at the centres of their blocks, tokens 5
    and 7."""
    whole = image(values=[1., 2, 3, 4, 5, 6, 7, 8], grid=(2, 4))
    r = AveragePool(keep=2).reduce(whole)
    assert r.keep.tolist() == [5, 7]
    left = whole.reduced(r)
    assert left.hidden[left.visual, 0].tolist() == [3.5, 5.5]


def test_down_sampling():
    """4 x 4 to one token, 16 in the corners and 0 elsewhere: the plain bilinear value between the four middle
    patches is 0, the mean of all is 4, and with the filter the corners, 1.5 from the centre, weigh less than the
    middle, .5 from it: (4 - 1.5) to (4 - .5) on each axis, 2.5/12 each, so that all four weigh (5/12)^2 = .1736:
    2.78."""
    corners = [16. if i in (0, 3, 12, 15) else 0. for i in range(16)]
    whole = image(values=corners, grid=(4, 4))
    for method, value in ((DownSample(keep=1), 16 * (5 / 12) ** 2), (DownSample(keep=1, antialias=False), 0), (AveragePool(keep=1), 4)):
        left = whole.reduced(method.reduce(whole))
        close(left.hidden[left.visual, 0], [value])


def test_maps_of_two_images():
    """Of 2 x 2 and 4 x 4 tokens half: 2 and 8; maps 1 x 1 and 2 x 2, each from its own image: 5, and not budget(20)
    = 9, which is that of one square: so the law "budget" is not declared."""
    r = AveragePool(keep=.5).reduce(two_images((2, 2), (4, 4)))
    assert r.merge.shape == (5, 20)
    assert r.merge[0, 4:].sum() == 0
    assert r.merge[1:, :4].sum() == 0
    close(r.merge.sum(dim=1), [1] * 5)
    assert AveragePool(keep=.5).budget(20) == 9 != 5
    assert "budget" not in AveragePool.laws
    assert AveragePool(keep=64).budget(576) == 64
    assert DownSample(keep=128).budget(576) == 121


def test_a_map_needs_a_grid():
    thinned = image([.1] * 16, (4, 4)).reduced(Reduction(torch.tensor([0, 3, 4, 9])))
    with pytest.raises(UserError, match="AveragePool needs the whole grid"):
        AveragePool(keep=1).reduce(thinned)
    assert AveragePool.preconditions == {"grid"}


def test_newlines():
    """2 x 2 patches, each row followed by a token on no grid: maps leave these out; a mean of scores leaves theirs
    as they are."""
    lines = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, -1], [0, 1, 0], [0, 1, 1], [0, -1, -1]])
    entering = image([.1, .3, .9, .2, .4, .8], lines)
    r = AveragePool(keep=1).reduce(entering)
    assert r.merge.tolist() == [[.25, .25, 0, .25, .25, 0]]
    assert r.keep.tolist() == [4]
    close(AverageScores(keep=1).reduce(entering).score, [.25, .25, .9, .25, .25, .8])
    assert all(len(method(keep=2).reduce(entering).keep) == 2 for method in KEEPING)
    assert Uniform(keep=4).reduce(entering).keep.tolist() == [0, 1, 3, 4]
    assert Uniform(keep=5).reduce(entering).keep.tolist() != [0, 1, 2, 3, 4]


def test_a_tile_of_only_newlines():
    """The map of a very long picture: no patch, so no part of a smaller map."""
    lines = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, -1, -1], [1, -1, -1]])
    entering = image([.1] * 6, lines)
    assert AveragePool(keep=6).reduce(entering).keep.tolist() == [0, 1, 2, 3]
    assert AveragePool(keep=1).reduce(entering).merge.tolist() == [[.25, .25, .25, .25, 0, 0]]
    assert Uniform(keep=6).reduce(entering).keep.tolist() == [0, 1, 2, 3, 4, 5]


# --- the whole model --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("marks", [1, 2])
def test_blind(marks):
    """As if no image had been given, to the bit: the same prompt without the marks; positions, cache and generation
    too."""
    model = llava()
    question = ids(3, *[MARK, 4] * marks)
    logits, cache, trace = prefill(model, question, [picture(model, i) for i in range(marks)], Blind())
    without, cache_without, _ = prefill(model, [i for i in question if i != MARK])
    assert logits.equal(without)
    assert cache.lengths == cache_without.lengths == [3 + 4 * marks] * 32
    assert model.step([5, 6], cache, Blind()).equal(model.step([5, 6], cache_without))
    assert trace.visual == [0] * 32
    assert trace.sources().shape == (0, 16 * marks)
    assert trace.steps[0].kept.tolist() == []


@pytest.mark.parametrize("method", [*KEEPING, DownSample, AveragePool], ids=lambda m: m.__name__)
def test_in_the_decoder(method):
    """Two images, 8 of 32 tokens from layer 2 on; every survivor is traced to its own image."""
    model = llava()
    question = ids(3, MARK, 4, MARK, 6)
    logits, _, trace = prefill(model, question, [picture(model, i) for i in range(2)], method(keep=8))
    assert logits.isfinite().all()
    assert trace.visual == [32] * 2 + [8] * 30
    assert method(keep=8).schedule(32, 32)[:2] == [32] * 2
    sources = trace.sources()                                                      # (8, 32)
    close(sources.sum(dim=1), [1] * 8)
    of_first = sources[:, :16].sum(dim=1) > 0
    of_second = sources[:, 16:].sum(dim=1) > 0
    assert (of_first != of_second).all()
    assert prefill(model, ids(9), (), method())[0].equal(prefill(model, ids(9))[0])


@pytest.mark.parametrize("method", [Random, Last, Uniform, DownSample, AveragePool], ids=lambda m: m.__name__)
def test_before_the_decoder(method):
    """At the site "embed" no layer sees more than what is kept, and positions are contiguous."""
    model = llava(layers=6)
    question = ids(3, MARK, 6)
    embed = method(keep=4, site="embed")
    logits, cache, trace = prefill(model, question, [picture(model)], embed)
    assert trace.visual == embed.schedule(16, 6) == [4] * 6
    assert cache.layers[0].next_position == 13
    assert embed.reduce_at(6) == ()
    assert method(keep=4).reduce_at(6) == (2,)
    decoder_logits, _, _ = prefill(model, question, [picture(model)], method(keep=4))
    assert (logits - decoder_logits).abs().max() > 1e-3


@pytest.mark.parametrize("method", [*KEEPING, DownSample, AveragePool, Unpruned], ids=lambda m: m.__name__)
def test_keeping_all_is_the_unpruned_model(method):
    model = llava(layers=6)
    question = ids(3, MARK, 6)
    pruner = Unpruned() if method is Unpruned else method(keep=1.0)
    logits, _, _ = prefill(model, question, [picture(model)], pruner)
    unpruned, _, _ = prefill(model, question, [picture(model)])
    close(logits, unpruned)


# --- edges ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", [*KEEPING, DownSample, AveragePool], ids=lambda m: m.__name__)
def test_one_token_and_all_tokens(method):
    assert kept(method(), [.3]) == kept(method(keep=1), [.3]) == kept(method(keep=1.0), [.3]) == [0]
    assert kept(method(keep=6), [.3, .1, .2, .3, .1, .5], (2, 3)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("method, expected", [(Skip, [0, 2]), (MaxPool3x3, [0, 3]), (AverageScores, [0, 1])])
def test_ties(method, expected):
    """Six equal scores in a row: of equals the first."""
    assert kept(method(keep=2), [.25] * 6) == expected


@pytest.mark.parametrize("method", [Unpruned, Skip, MaxPool3x3, FastV], ids=lambda m: m.__name__)
def test_needle_kept(method):
    score = [.01, .01, .01, .01, .95, .01, .01, .01, .01]
    assert "needle" in method.laws
    assert 4 in kept(method() if method is Unpruned else method(keep=1), score, (3, 3))


@pytest.mark.parametrize("method", [Random, Last, Uniform, Random3x3, AverageScores], ids=lambda m: m.__name__)
def test_needle_lost(method):
    """The law is not declared. Of 3 x 3 patches the middle one is one of nine for a draw, and not the last; token 1
    is not in the middle, where a single token of a grid is taken; and the mean over a corner's four patches is more
    than that over the middle's nine."""
    needle = 1 if method is Uniform else 4
    score = [.95 if i == needle else .01 for i in range(9)]
    draws = [dict(seed=seed) for seed in range(20)] if method in (Random, Random3x3) else [{}]
    assert any(needle not in kept(method(keep=1, **draw), score, (3, 3)) for draw in draws)
    assert "needle" not in method.laws


def test_laws():
    """All keep exactly the number they are given, in order; a share, 57.6 here, is rounded down."""
    for method in KEEPING:
        assert {"select", "ordered", "budget", "scale"} <= method.laws
        assert method(keep=.1).budget(576) == 57
        for k in (1, 5, 11, 12):
            keep = kept(method(keep=k), [.02 * (7 * i % 12) for i in range(12)], (3, 4))
            assert len(keep) == k
            assert keep == sorted(set(keep))
    assert Blind().budget(576) == 0
    assert Blind().schedule(576, 4) == [0] * 4
    assert Unpruned().schedule(576, 4) == [576] * 4


@pytest.mark.parametrize("method", SCORED, ids=lambda m: m.__name__)
def test_scale_and_not_a_number(method):
    score = [.3, .1, .25, .05, .2, .1, .15, .0, .4]
    assert kept(method(keep=4), score, (3, 3)) == kept(method(keep=4), [100 * s for s in score], (3, 3))
    with pytest.raises(UserError, match="NaN.*float32"):
        kept(method(keep=1), [.1, float("nan"), .2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", [DownSample, AveragePool], ids=lambda m: m.__name__)
def test_half_precision(method, dtype):
    """576 tokens of value 1: their means are 1, and the dtype stays."""
    whole = image(values=[1.] * 576, grid=(24, 24), dtype=dtype)
    left = whole.reduced(method(keep=64).reduce(whole))
    assert left.hidden.dtype == dtype
    assert left.n == 64
    assert (left.hidden[left.visual] == 1).all()


def test_heads_are_averaged():
    """Two heads .5 .3 0 and 0 .3 .4: means .25 .3 .2: token 1."""
    entering = tokens("tvvvt", [[[0, .5, .3, 0, 0]], [[0, 0, .3, .4, 0]]])
    assert Skip(keep=1).reduce(entering).keep.tolist() == [1]


@pytest.mark.parametrize("method, options, message", [
    (Random, dict(keep=0), "keep 0 is out"), (Random, dict(site="vision"), "'vision'"), (Last, dict(layer=0), "at least 1"),
    (Skip, dict(site="embed"), "Skip ranks by attention")])
def test_bad_options(method, options, message):
    with pytest.raises(UserError, match=message):
        method(**options)
