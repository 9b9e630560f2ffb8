"""The controls and AdaptPrune's Table 5 by hand, each beside a simpler rule; zero visual tokens in the whole model."""

from dataclasses import replace

import pytest
import torch

from golden import prompt
from pruning.base import Reduction, UserError
from pruning.controls import (AveragePool, AverageScores, Blind, DownSample, Last, MaxPool3x3, Random, Random3x3, Skip, Unpruned,
                              Uniform, lattice, smaller, spaced)
from pruning.fastv import FastV
from tiny import MARK, ids, llava, picture, prefill

KEEPING = [Random, Last, Uniform, Skip, Random3x3, MaxPool3x3, AverageScores]
SCORED = [Skip, Random3x3, MaxPool3x3, AverageScores]
ALL = [*KEEPING, DownSample, AveragePool, Unpruned, Blind]


def tokens(score=None, grid=None, values=None):
    """Text, one image of this grid (default: one row), text; the last token pays `score` to the image."""
    n = len(score) if score is not None else len(values)
    H, W = grid or (1, n)
    hidden = torch.zeros(n + 2, 1) if values is None else torch.tensor([0., *values, 0.])[:, None]
    made = prompt(hidden, 1, (H, W))
    return made if score is None else replace(made, attn=torch.tensor([0., *score, 0.])[None, None])


def kept(method, score, grid=None):
    return method.reduce(tokens(score, grid)).keep.tolist()


def two_tiles(first, second, score=None):
    """Two images of these grids, side by side."""
    a, b = (prompt(torch.zeros(H * W, 1), 0, (H, W)) for H, W in (first, second))
    cell = torch.cat([a.cell, b.cell + torch.tensor([1, 0, 0])])
    made = prompt(torch.zeros(len(cell) + 1, 1), 0, (1, len(cell)))
    return replace(made, cell=cell, attn=None if score is None else torch.tensor([*score, 0.])[None, None])


# --- Table 5 by hand -----------------------------------------------------------------------------------------------------

def test_skip():
    """Ranks of .5 .9 .7 .4 .8 .6: token 1, 4, 2, 5, 0, 3. Two of the best four: ranks 0 and 2, tokens 1 and 2. The best two would be
    1 and 4; every other place among the best four (1 2 4 5) 1 and 4 as well."""
    assert kept(Skip(keep=2), [.5, .9, .7, .4, .8, .6]) == [1, 2]


def test_skip_where_twice_as_many_are_not_there():
    """Five of six: ranks 0 2 4, tokens 1 2 0, and of those left out the best two, tokens 4 and 5."""
    assert kept(Skip(keep=5), [.5, .9, .7, .4, .8, .6]) == [0, 1, 2, 4, 5]


def test_max_pool():
    """A row of six: cells of three. The best of each is 0 and 5; the two best of all are 0 and 1."""
    score = [.9, .8, .7, .1, .2, .3]
    assert kept(MaxPool3x3(keep=2), score) == [0, 5] and kept(FastV(keep=2), score) == [0, 1]
    assert kept(MaxPool3x3(keep=1), score) == [0]                                  # fewer than cells: the best of their best


def test_fewer_cells_than_tokens():
    """Two cells, four tokens to keep: 0 and 5, then the best of the others, 1 and 2."""
    assert kept(MaxPool3x3(keep=4), [.9, .8, .7, .1, .2, .3]) == [0, 1, 2, 5]


def test_cells_in_two_dimensions_and_at_the_rim():
    """4 x 4: cells of 3 x 3, 3 x 1, 1 x 3 and 1 x 1 patches. Scores fall from .16 in sequence: the best of each is its upper left."""
    score = [.16 - .01 * i for i in range(16)]
    assert kept(MaxPool3x3(keep=4), score, (4, 4)) == [0, 3, 12, 15] and kept(MaxPool3x3(keep=3), score, (4, 4)) == [0, 3, 12]


def test_random_of_each_cell():
    """One of 0 1 2 and one of 3 4 5, and over many seeds any of them; the max would always be 0 and 5."""
    score = [.9, .8, .7, .1, .2, .3]
    drawn = [kept(Random3x3(keep=2, seed=seed), score) for seed in range(200)]
    assert {(a // 3, b // 3) for a, b in drawn} == {(0, 1)} and len({tuple(pair) for pair in drawn}) == 9
    one = [kept(Random3x3(keep=1, seed=seed), score)[0] for seed in range(60)]
    assert set(one) == {0, 1, 2}                                                   # of the two drawn, the better
    assert kept(Random3x3(keep=2), score) == kept(Random3x3(keep=2), score)
    assert kept(Random3x3(keep=6), score) == [0, 1, 2, 3, 4, 5]


def test_average_of_scores():
    """.9 .0 .0 .5 .6: means of those that exist .45 .3 .167 .367 .55: the last token, although the first has most. Were the missing
    neighbours counted as 0, the mean of the last would be .367, that of the fourth."""
    r = AverageScores(keep=1).reduce(tokens([.9, .0, .0, .5, .6]))
    assert r.keep.tolist() == [4]
    torch.testing.assert_close(r.score, torch.tensor([.9 / 2, .9 / 3, .5 / 3, 1.1 / 3, 1.1 / 2]))


def test_averages_of_equal_scores_are_equal():
    r = AverageScores(keep=2).reduce(tokens([.1] * 12, (3, 4)))
    torch.testing.assert_close(r.score, torch.full((12,), .1))


def test_last():
    assert kept(Last(keep=2), [.9, .8, .7, .1, .2, .3]) == [4, 5] and kept(Last(keep=.5), [.9, .8, .7]) == [2]


def test_correction():
    """A row of five, u = -3 -1.75 -.5 .75 2 on an axis from floor(-2.5) to floor(2.5), sigma 2.5: weights beside the best, .50 .80 1 .98 .74.
    Times .30 .20 .25 .05 .20: .15 .16 .25 .05 .15: token 2 is first, uncorrected token 0."""
    score = [.30, .20, .25, .05, .20]
    assert kept(MaxPool3x3(keep=1), score) == [0] and kept(MaxPool3x3(keep=1, correction=True), score) == [2]
    r = Skip(keep=1, correction=True).reduce(tokens(score))
    torch.testing.assert_close(r.score, torch.tensor([.1490, .1597, .25, .0488, .1482]), atol=1e-4, rtol=0)


# --- the others by hand --------------------------------------------------------------------------------------------------

def test_random():
    """As many as asked, none twice, another set for another seed, the same for the same; every token is drawn sometimes."""
    drawn = [kept(Random(keep=3, seed=seed), [.1] * 8) for seed in range(60)]
    assert all(len(set(k)) == 3 and k == sorted(k) for k in drawn) and len({tuple(k) for k in drawn}) > 30
    assert {i for k in drawn for i in k} == set(range(8)) and kept(Random(keep=3), [.1] * 8) == drawn[0]


def test_uniform():
    """4 of 4 x 4: rows 1 and 3, columns 1 and 3. Every fourth token of the sequence would be one column, 2 6 10 14."""
    assert kept(Uniform(keep=4), [.1] * 16, (4, 4)) == [5, 7, 13, 15]
    assert spaced(4, 1, 16).tolist() == [2, 6, 10, 14]


def test_uniform_of_a_number_that_is_no_square():
    """5 of 3 x 4: two rows (the root of 5 * 3/4 is 1.9) with two and three tokens. Rows 0 and 2 (of blocks 1.5 high the centres .75
    and 2.25), columns 1 and 3, and 0, 2, 3 (centres .67, 2, 3.33)."""
    assert kept(Uniform(keep=5), [.1] * 12, (3, 4)) == [1, 3, 8, 10, 11]


def test_every_number_of_every_grid():
    """Exactly k, in order, none twice, whatever the grid; and smaller maps never hold more than k."""
    for H in range(1, 8):
        for W in range(1, 8):
            for k in range(1, H * W + 1):
                index, (h, w) = spaced(k, H, W), smaller(k, H, W)
                assert len(index) == k and bool((index.diff() > 0).all()) and index[-1] < H * W
                assert 1 <= h <= H and 1 <= w <= W and h * w <= k and bool((lattice(h, w, H, W).diff() > 0).all())
    assert smaller(128, 24, 24) == (11, 11) and smaller(144, 24, 24) == (12, 12) and smaller(72, 12, 24) == (6, 12)


def test_uniform_on_what_is_left():
    """Of a grid with holes, evenly over the sequence: of five tokens two, the second and the fourth."""
    thinned = tokens([.1] * 16, (4, 4)).reduced(Reduction(torch.tensor([0, 3, 4, 9, 15])))
    assert Uniform(keep=2).reduce(thinned).keep.tolist() == [1, 3]


def test_uniform_over_two_images():
    """4 and 12 tokens, 4 to keep: 1 and 3."""
    keep = Uniform(keep=4).reduce(two_tiles((2, 2), (3, 4))).keep
    assert (keep < 4).sum() == 1 and len(keep) == 4
    assert len(Uniform(keep=1).reduce(two_tiles((2, 2), (2, 2))).keep) == 1        # one of the two gets none


def test_average_pool():
    """2 x 4 to two tokens: the means of 1 2 5 6 and 3 4 7 8, which stand at the centres of their blocks, tokens 5 and 7."""
    t = tokens(values=[1., 2, 3, 4, 5, 6, 7, 8], grid=(2, 4))
    r = AveragePool(keep=2).reduce(t)
    assert r.keep.tolist() == [5, 7]
    left = t.reduced(r)
    assert left.hidden[left.visual, 0].tolist() == [3.5, 5.5]


def test_down_sampling():
    """4 x 4 to one token, 16 in the corners and 0 elsewhere: the plain bilinear value between the four middle patches is 0, the mean of
    all is 4, and with the filter the corners, 1.5 from the centre, weigh less than the middle, .5 from it: (4 - 1.5) to (4 - .5) on
    each axis, 2.5/12 each, so that all four weigh (5/12)^2 = .1736: 2.78."""
    corners = [16. if i in (0, 3, 12, 15) else 0. for i in range(16)]
    value = {}
    for method in (DownSample(keep=1), DownSample(keep=1, antialias=False), AveragePool(keep=1)):
        t = tokens(values=corners, grid=(4, 4))
        left = t.reduced(method.reduce(t))
        value[method] = left.hidden[left.visual, 0].item()
    assert list(value.values()) == [pytest.approx(16 * (5 / 12) ** 2), 0, 4]


def test_maps_of_two_images():
    """Of 2 x 2 and 4 x 4 tokens half: 2 and 8; maps 1 x 1 and 2 x 2, each from its own image: 5, and not budget(20) = 9, which is that
    of one square: so the law "budget" is not declared."""
    r = AveragePool(keep=.5).reduce(two_tiles((2, 2), (4, 4)))
    assert r.merge.shape == (5, 20) and r.merge[0, 4:].sum() == 0 and r.merge[1:, :4].sum() == 0
    torch.testing.assert_close(r.merge.sum(dim=1), torch.ones(5))
    assert AveragePool(keep=.5).budget(20) == 9 != 5 and "budget" not in AveragePool.laws
    assert AveragePool(keep=64).budget(576) == 64 and DownSample(keep=128).budget(576) == 121


def test_a_map_needs_a_grid():
    thinned = tokens([.1] * 16, (4, 4)).reduced(Reduction(torch.tensor([0, 3, 4, 9])))
    with pytest.raises(UserError, match="AveragePool needs the whole grid"):
        AveragePool(keep=1).reduce(thinned)
    assert AveragePool.preconditions == {"grid"}


def test_line_breaks():
    """2 x 2 patches, each row followed by a token on no grid: maps leave these out; a mean of scores leaves theirs as they are."""
    t = tokens([.1, .3, .9, .2, .4, .8])
    cell = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, -1], [0, 1, 0], [0, 1, 1], [0, -1, -1]])
    t = replace(t, cell=cell)
    r = AveragePool(keep=1).reduce(t)
    assert r.merge.tolist() == [[.25, .25, 0, .25, .25, 0]] and r.keep.tolist() == [4]
    torch.testing.assert_close(AverageScores(keep=1).reduce(t).score, torch.tensor([.25, .25, .9, .25, .25, .8]))
    assert all(len(method(keep=2).reduce(t).keep) == 2 for method in KEEPING)
    assert Uniform(keep=4).reduce(t).keep.tolist() == [0, 1, 3, 4] and Uniform(keep=5).reduce(t).keep.tolist() != [0, 1, 2, 3, 4]


def test_a_tile_of_line_breaks_alone():
    """The map of a very long picture: no patch, so no part of a smaller map."""
    t = replace(tokens([.1] * 6), cell=torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, -1, -1], [1, -1, -1]]))
    assert AveragePool(keep=6).reduce(t).keep.tolist() == [0, 1, 2, 3]
    assert AveragePool(keep=1).reduce(t).merge.tolist() == [[.25, .25, .25, .25, 0, 0]]
    assert Uniform(keep=6).reduce(t).keep.tolist() == [0, 1, 2, 3, 4, 5]


# --- the whole model -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("marks", [1, 2])
def test_blind(marks):
    """As if no image had been given, to the bit: the same prompt without the marks; positions, cache and generation too."""
    model, question = llava(), ids(3, *[MARK, 4] * marks)
    logits, cache, trace = prefill(model, question, [picture(model, i) for i in range(marks)], Blind())
    without, cache_without, _ = prefill(model, [i for i in question if i != MARK])
    assert logits.equal(without) and cache.lengths == cache_without.lengths == [3 + 4 * marks] * 32
    assert model.step([5, 6], cache, Blind()).equal(model.step([5, 6], cache_without))
    assert trace.visual == [0] * 32 and trace.sources().shape == (0, 16 * marks) and trace.steps[0].kept.tolist() == []


@pytest.mark.parametrize("method", [*KEEPING, DownSample, AveragePool], ids=lambda m: m.__name__)
def test_in_the_decoder(method):
    """Two images, 8 of 32 tokens from layer 2 on; every survivor is traced to its own image."""
    model, question = llava(), ids(3, MARK, 4, MARK, 6)
    logits, cache, trace = prefill(model, question, [picture(model, i) for i in range(2)], method(keep=8))
    assert trace.visual == [32] * 2 + [8] * 30 == method(keep=8).schedule(32, 32)[:2] + [8] * 30 and logits.isfinite().all()
    sources = trace.sources()
    torch.testing.assert_close(sources.sum(dim=1), torch.ones(8))
    assert ((sources[:, :16].sum(dim=1) > 0) != (sources[:, 16:].sum(dim=1) > 0)).all()
    assert prefill(model, ids(9), (), method())[0].equal(prefill(model, ids(9))[0])


@pytest.mark.parametrize("method", [Random, Last, Uniform, DownSample, AveragePool], ids=lambda m: m.__name__)
def test_before_the_decoder(method):
    """At the site "embed" no layer sees more than what is kept, and positions are contiguous."""
    model, question = llava(layers=6), ids(3, MARK, 6)
    logits, cache, trace = prefill(model, question, [picture(model)], method(keep=4, site="embed"))
    assert trace.visual == [4] * 6 == method(keep=4, site="embed").schedule(16, 6) and cache.layers[0].next == 13
    assert method(keep=4, site="embed").reduce_at(6) == () and method(keep=4).reduce_at(6) == (2,)
    decoder = prefill(model, question, [picture(model)], method(keep=4))[0]
    assert (logits - decoder).abs().max() > 1e-3


@pytest.mark.parametrize("method", [*KEEPING, DownSample, AveragePool, Unpruned], ids=lambda m: m.__name__)
def test_keeping_all_is_the_unpruned_model(method):
    model, question = llava(layers=6), ids(3, MARK, 6)
    pruner = Unpruned() if method is Unpruned else method(keep=1.0)
    logits = prefill(model, question, [picture(model)], pruner)[0]
    torch.testing.assert_close(logits, prefill(model, question, [picture(model)])[0], atol=1e-5, rtol=0)


# --- edges ---------------------------------------------------------------------------------------------------------------

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
    """The law is not declared. Of 3 x 3 patches the middle one is one of nine for a draw, and not the last; token 1 is not in the middle,
    where a single token of a grid is taken; and the mean over a corner's four patches is more than that over the middle's nine."""
    needle, seeds = (1 if method is Uniform else 4), range(20) if method in (Random, Random3x3) else [None]
    score = [.95 if i == needle else .01 for i in range(9)]
    chosen = [kept(method(keep=1) if seed is None else method(keep=1, seed=seed), score, (3, 3)) for seed in seeds]
    assert "needle" not in method.laws and any(needle not in keep for keep in chosen)


def test_laws():
    """All keep exactly what they are asked for, in order; a share is rounded as it says."""
    for method in KEEPING:
        assert {"select", "ordered", "budget", "scale"} <= method.laws
        assert [method(keep=.1, rounding=r).budget(576) for r in ("floor", "round", "ceil")] == [57, 58, 58]
        for k in (1, 5, 11, 12):
            keep = kept(method(keep=k), [.02 * (7 * i % 12) for i in range(12)], (3, 4))
            assert len(keep) == k == len(set(keep)) and keep == sorted(keep)
    assert Blind().budget(576) == 0 and Blind().schedule(576, 4) == [0] * 4 and Unpruned().schedule(576, 4) == [576] * 4


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
    t = tokens(values=[1.] * 576, grid=(24, 24))
    t = replace(t, hidden=t.hidden.to(dtype))
    left = t.reduced(method(keep=64).reduce(t))
    assert left.hidden.dtype == dtype and left.n == 64 and (left.hidden[left.visual] == 1).all()


def test_heads_are_averaged():
    """Two heads .5 .3 0 and 0 .3 .4: means .25 .3 .2: token 1."""
    t = tokens([.5, .3, 0.])
    t = replace(t, attn=torch.tensor([[[0, .5, .3, 0, 0]], [[0, 0, .3, .4, 0]]]))
    assert Skip(keep=1).reduce(t).keep.tolist() == [1]


@pytest.mark.parametrize("method, options, told", [
    (Random, dict(keep=0), "keep 0 is out"), (Random, dict(site="vision"), "'vision'"), (Last, dict(layer=0), "at least 1"),
    (Skip, dict(site="embed"), "Skip ranks by attention"), (Uniform, dict(rounding="up"), "'up'")])
def test_bad_options(method, options, told):
    with pytest.raises(UserError, match=told):
        method(**options)
