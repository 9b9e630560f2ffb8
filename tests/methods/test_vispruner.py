"""VisPruner by hand, and equal to the released code's recorded behaviour.

Features are vectors in the plane, written with their angles: the smaller the angle between two, the more alike they
are.
"""

import math

import pytest
import torch

from build import close, plane, tiles
from golden import golden
from pruning.base import UserError
from pruning.ranked import cosines, top
from pruning.readings import FasterVLM
from pruning.tile_grid import TileGrid
from pruning.vispruner import VisPruner

SELECT, SELECT_FACTS = golden("vispruner_select")
NEXT, NEXT_FACTS = golden("vispruner_next")


def patches(features, attention, grid=None):
    """Tokens of tiles from their patches: features (tiles, P, C), attention (tiles, H, P). A class token of zeros is
    put before."""
    attention = torch.cat([torch.zeros_like(attention[..., :1]), attention], dim=-1)
    hidden = torch.cat([torch.zeros_like(features[:, :1]), features], dim=1)
    return tiles(hidden, attention, grid=grid)


def kept(degrees, attention, **options):
    """What is kept of one tile, whose features have these angles."""
    entering = patches(plane(*degrees)[None], torch.tensor(attention)[None, None])
    return VisPruner(**options).reduce(entering).keep.tolist()


# --- by hand ----------------------------------------------------------------------------------------------------------

DEGREES = (0, 5, 90, 92, 180, 40)
ATTENTION = (.30, .25, .15, .12, .10, .08)


def test_important_and_diverse():
    """T = 4. Attention falls from token to token: 0 and 1 are important. The rest is 2 3 4 5, halves 2 4 and 3 5;
    token 2 is 2 degrees from 3, token 4 is 88 from it: 2 goes. Now 4 3 5, halves 4 5 and 3: 5 is 52 degrees from 3,
    4 is 88: 5 goes. The best four by attention alone would be 0 1 2 3."""
    assert kept(DEGREES, ATTENTION, keep=4, removed=1) == [0, 1, 3, 4]


def test_several_at_a_time():
    """The same, both surplus tokens in one round: the whole first half, 2 and 4, goes, although 4 is like no other."""
    assert kept(DEGREES, ATTENTION, keep=4, removed=8) == kept(DEGREES, ATTENTION, keep=4) == [0, 1, 3, 5]


def test_only_likeness_across_the_halves_counts():
    """T = 5, none by attention, of 0 90 1 130 100 200 degrees. Halves 0 1 100 and 90 130 200: to the nearest of the
    other half 90, 89 and 10 degrees, so the token of 100 goes. Of all pairs the tokens of 0 and 1 are most alike:
    both stay."""
    attention = (.6, .5, .4, .3, .2, .1)
    assert kept((0, 90, 1, 130, 100, 200), attention, keep=5, important=0.) == [0, 1, 2, 3, 5]


def test_halves_follow_attention():
    """The same picture; only the attention says who meets whom. Order 0 1 2: halves {0, 2} and {1}; to token 1 (10
    degrees) it is 10 from token 0 and 80 from token 2, 0 goes. Order 0 2 1: halves {0, 1} and {2}; to 90 it is 90
    and 80, 1 goes."""
    assert kept((0, 10, 90), (.5, .3, .2), keep=2, important=0.) == [1, 2]
    assert kept((0, 10, 90), (.5, .2, .3), keep=2, important=0.) == [0, 2]


def test_order_after_a_round():
    """What stays of the first half is sorted by likeness, and this decides the next halves. T = 3 of 0 8 40 43 90 96
    150 degrees, none by attention. Halves 0 40 90 150 and 8 43 96: nearest 8 3 6 54: sorted 40 90 0 150, and 40
    goes. Now 90 0 150 8 43 96: halves 90 150 43 and 0 8 96: nearest 6 54 35: 90 goes. Now 43 150 0 8 96: halves 43 0
    96 and 150 8: 35 8 54: 0 goes. Now 43 96 150 8: halves 43 150 and 96 8: 35 54: 43 goes. Left: 150 96 8. Without
    the sorting the second round would begin with 0 90 150 8 43 96: halves 0 150 43 and 90 8 96: 8 53 35, and 0 would
    go before 90."""
    attention = (.7, .6, .5, .4, .3, .2, .1)
    assert kept((0, 8, 40, 43, 90, 96, 150), attention, keep=6, important=0., removed=1) == [0, 1, 3, 4, 5, 6]
    assert kept((0, 8, 40, 43, 90, 96, 150), attention, keep=5, important=0., removed=1) == [0, 1, 3, 5, 6]
    assert kept((0, 8, 40, 43, 90, 96, 150), attention, keep=4, important=0., removed=1) == [1, 3, 5, 6]
    assert kept((0, 8, 40, 43, 90, 96, 150), attention, keep=3, important=0., removed=1) == [1, 5, 6]


def test_each_tile_by_itself():
    """Two tiles of three patches, T = 1 by attention: the best of each, although the second tile's best (.2) is
    below all of the first. The class tokens, rows 0 and 4 of the sequence, are no patches."""
    attention = torch.tensor([[[.3, .4, .3]], [[.1, .2, .1]]])
    tokens = patches(plane(0, 90, 180).expand(2, 3, 2), attention)
    r = VisPruner(keep=1, important=1.).reduce(tokens)
    assert r.keep.tolist() == [1, 4]
    assert tokens.visual[r.keep].tolist() == [2, 6]
    assert VisPruner(keep=1).tokens_left(6, {"tile": (2, 3)}) == 2


def test_keep_counts_tokens_of_a_tile():
    """Commands read it from `per`: 128 tokens of a prompt with four tiles are keep=32."""
    assert VisPruner.per == "tile"


def test_mean_over_heads():
    """Heads .6 .4 and 0 .3: the means .3 and .35 rank the second first; the first head alone would not."""
    tokens = patches(plane(0, 90)[None], torch.tensor([[[.6, .4], [0, .3]]]))
    r = VisPruner(keep=1, important=1.).reduce(tokens)
    assert r.keep.tolist() == [1]
    close(r.score, [.3, .35])


def test_fastervlm():
    """All of T by attention: of test_important_and_diverse's tokens the first four, in whatever direction they point."""
    tokens = patches(plane(*DEGREES)[None], torch.tensor(ATTENTION)[None, None])
    r = FasterVLM(keep=4, removed=1).reduce(tokens)
    assert r.keep.tolist() == top(torch.tensor(ATTENTION), 4).tolist() == [0, 1, 2, 3]
    assert not r.reason.any()
    assert FasterVLM.laws == VisPruner.laws | {"needle"}
    with pytest.raises(UserError, match="important"):
        FasterVLM(important=.5)


def test_reasons():
    """Of the four that test_important_and_diverse keeps, 0 and 1 are important, 3 and 4 diverse."""
    r = VisPruner(keep=4, removed=1).reduce(patches(plane(*DEGREES)[None], torch.tensor(ATTENTION)[None, None]))
    assert [r.reasons[i] for i in r.reason] == ["important", "important", "diverse", "diverse"]


# --- recorded ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("c", SELECT_FACTS["cases"], ids=lambda c: f"{c['case']}-{c['visual_token_num']}-{c['important_ratio']}")
def test_recorded(c):
    """Kept tokens of the released code, the batch as tiles of one image: each its T. "T64.r50" needs float64
    cosines."""
    k = c["visual_token_num"]
    r = c["important_ratio"]
    name = f"case{c['case']}"
    tokens = patches(SELECT[f"{name}.features"], SELECT[f"{name}.cls_attn"])
    keep = VisPruner(keep=k, important=r).reduce(tokens).keep.view(c["B"], k)
    expected = SELECT[f"{name}.T{k}.r{round(r * 100)}.kept"]
    first_of_tile = c["N"] * torch.arange(c["B"])[:, None]
    assert (keep - first_of_tile).tolist() == expected.tolist()


@pytest.mark.parametrize("k", [16, 12])
def test_recorded_tiles(k):
    """LLaVA-NeXT: T of each of 5 tiles; the grid of tiles's are sent on in the raster of the whole grid of tiles."""
    side = NEXT_FACTS["patches_per_side"]
    tokens = patches(NEXT["features"], NEXT["cls_attn"], grid=(side, side))
    method = VisPruner(keep=k)
    keep = method.reduce(tokens).keep
    tile_grid = TileGrid(side, tuple(NEXT_FACTS["grid"]), (1, 1))
    packed = keep[method.output_order(tokens.grid[keep], tile_grid)]
    assert packed.tolist() == NEXT[f"T{k}.r50.source_flat"].tolist()
    assert tokens.hidden[tokens.visual[packed]].equal(NEXT[f"T{k}.r50.visual_tokens"])


# --- edges ------------------------------------------------------------------------------------------------------------

def test_one_token_and_all_tokens():
    assert kept((30,), (1.,), keep=1) == kept((30,), (1.,)) == [0]
    assert kept((0, 90, 180), (.1, .2, .3), keep=3) == kept((0, 90, 180), (.1, .2, .3), keep=1.0) == [0, 1, 2]
    assert kept((0, 90, 180), (.1, .2, .3), keep=1, important=1.) == [2]


@pytest.mark.parametrize("n", range(1, 10))
def test_every_count(n):
    """Any T of any n, odd rests too, where the released code stops: T tokens, each once, in order."""
    for k in range(1, n + 1):
        for important in (0., .3, .5, 1.):
            keep = kept([40 * i for i in range(n)], [1 / n] * n, keep=k, important=important)
            assert len(keep) == k and keep == sorted(set(keep))


def test_ties():
    """Flat attention and equal features: the first ones are important; of the rest, 2 .. 5, the first half loses its
    first."""
    assert kept((0,) * 6, (.1,) * 6, keep=5, removed=1) == [0, 1, 3, 4, 5]
    long = patches(torch.ones(1, 576, 4), torch.full((1, 2, 576), 1 / 576))
    assert VisPruner(keep=64, important=1.).reduce(long).keep.tolist() == list(range(64))
    left = VisPruner(keep=571, important=0.).reduce(long).keep.tolist()
    assert set(range(576)) - set(left) == {0, 2, 4, 6, 8}


def test_the_important_are_rounded_down():
    """3 * .9 = 2.7: two important tokens, 0 and 1. Of the rest 2 3 4, halves 2 4 and 3, 2 is like 3 and goes; then 4
    3: 4 goes."""
    assert kept((0, 0, 90, 91, 180), (.5, .4, .3, .2, .1), keep=3, important=.9, removed=1) == [0, 1, 3]


def test_zero_vectors():
    """No NaN: a zero feature is like none. Rest 1 2 3 with T_div = 2: halves 1 3 and 2; 3 is like 2, so 3 goes."""
    features = torch.tensor([[1., 0], [0, 0], [.6, .8], [.6, .8]])
    assert cosines(features).isfinite().all()
    r = VisPruner(keep=3, important=.34).reduce(patches(features[None], torch.tensor([[[.4, .3, .2, .1]]])))
    assert r.keep.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """The same tokens as from the same features in float32."""
    features = torch.randn(1, 100, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    attention = torch.rand(1, 2, 100, generator=torch.Generator().manual_seed(1))
    keep = VisPruner(keep=20).reduce(patches(features, attention)).keep
    assert keep.equal(VisPruner(keep=20).reduce(patches(features.float(), attention)).keep)


@pytest.mark.parametrize("bad, name", [("features", "image features"), ("attention", "attention scores")])
def test_not_a_number(bad, name):
    inputs = dict(features=plane(0, 90)[None], attention=torch.tensor([[[.5, .5]]]))
    inputs[bad][0, 0, 0] = math.nan
    with pytest.raises(UserError, match=f"{name} contain NaN.*float32"):
        VisPruner(keep=1).reduce(patches(**inputs))


def test_a_needle_may_be_dropped():
    """T = 1 at important = .5 leaves no important token: that with nearly all of the attention, like its neighbour,
    goes. So the needle law is not declared. T = 2 keeps it."""
    degrees = (0, 1, 90)
    attention = (.98, .01, .01)
    assert "needle" not in VisPruner().laws
    assert kept(degrees, attention, keep=1) == [1]
    assert kept(degrees, attention, keep=2) == [0, 2]
    assert kept(degrees, attention, keep=1, important=1.) == [0]


def test_what_it_says():
    assert VisPruner().laws == {"select", "ordered", "budget", "scale"}
    assert VisPruner.preconditions == {"cls"}
    assert VisPruner.site == "vision"
    assert VisPruner().budget(576) == 128
    assert VisPruner(keep=128).tokens_left(5 * 576, {"tile": (5, 576)}) == 640


@pytest.mark.parametrize("options, message", [
    (dict(keep=0), "keep 0 is out of range"), (dict(keep=1.5), "keep 1.5 is out of range"),
    (dict(important=-.1), "important must be at least 0"), (dict(important=1.1), "important must be at most 1"),
    (dict(removed=0), "removed must be at least 1")])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        VisPruner(**options)
