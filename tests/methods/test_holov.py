"""HoloV by hand, and equal to the released code's recorded behaviour.

Crops are runs of tokens, written with a bar between them: .30 .10 .05 | .02 .12 .01.
"""

import math

import pytest
import torch

from build import close, tiles
from golden import golden, of_case
from pruning.base import UserError, whole_grid
from pruning.grid import squares
from pruning.holov import HoloV
from pruning.laws import needle
from pruning.readings import HoloVReleased

SELECT, SELECT_FACTS = golden("holov_select")
RECOMMENDED, RECOMMENDED_FACTS = golden("holov_recommended")

ATTENTION = (.30, .10, .05, .02, .12, .01)


def patches(attention, feature=None, grid=None):
    """Tokens of tiles from their patches: attention (P,) or (tiles, P), features (tiles, P, C). Each class token is of
    zeros."""
    attention = torch.atleast_2d(torch.as_tensor(attention))
    if feature is None:
        feature = torch.zeros(*attention.shape, 1)
    attention = torch.cat([torch.zeros_like(attention[:, :1]), attention], dim=1)
    hidden = torch.cat([torch.zeros_like(feature[:, :1]), feature], dim=1)
    return tiles(hidden, attention, grid=grid)


def kept(keep, crops=2, attention=ATTENTION, method=HoloV):
    """What is kept, in the order in which it is sent on."""
    return method(keep, crops).reduce(patches(attention)).keep.tolist()


# --- by hand ----------------------------------------------------------------------------------------------------------

def test_a_crop_gets_its_share():
    """Means .15 and .05: shares .75 and .25. Of 3 tokens that is 2.25 and .75, rounded down 2 and 0; the remaining one
    goes to the larger share, not to the larger remainder. The three most attended are 0 4 1."""
    assert kept(3) == [0, 1, 2]


def test_the_best_of_each_crop():
    """Of 4 tokens 3 and 1: all of the first crop, of the second the most attended, 4."""
    assert kept(4) == [0, 1, 2, 4]


def test_what_a_full_crop_cannot_take_goes_to_the_others():
    """Of 5 tokens 3.75 and 1.25, with the remaining one 4 and 1; the first crop has 3, so the second gets one more:
    4 and, less attended, 3. The released code loses it."""
    assert kept(5) == [0, 1, 2, 4, 3]
    r = HoloVReleased(5, 2).reduce(patches(ATTENTION))
    assert r.keep.tolist() == [0, 1, 2, 4, 3]
    assert r.merge.sum(dim=1).tolist() == [1, 1, 1, 1, 0]


def test_within_a_crop_the_most_attended_comes_first():
    """As the released code sends them on: so the law ordered is not declared. A full crop keeps its order."""
    assert kept(2, 1, (.1, .3, .05)) == [1, 0]
    assert kept(3, 1, (.1, .3, .05)) == [0, 1, 2]
    assert "ordered" not in HoloV.laws


def test_a_crop_may_get_nothing():
    """Means .4 .05 .05: of 2 tokens 1.6 .2 .2, so 1 and the remaining one for the first again. No crop is sure to be
    represented."""
    assert kept(2, 3, (.5, .3, .1, 0., .1, 0.)) == [0, 1]


def test_strips_and_squares():
    """A picture of 4 x 4, attended in its left upper quarter, and once in the third row. 4 strips are its rows, with
    shares 3/8 1/2 1/8 0 of 4 tokens: 1 2 0 0, and the second row gets a third, which nothing attends to. 4 squares have
    shares 7/8 0 0 1/8: that quarter gets 3 and the remaining one."""
    attention = torch.zeros(4, 4)
    attention[:2, :2] = torch.tensor([[.25, .125], [.25, .25]])
    attention[2, 3] = .125
    tokens = patches(attention.flatten(), grid=(4, 4))
    assert HoloV(4, 4).reduce(tokens).keep.tolist() == [0, 4, 5, 6]
    assert HoloV(4, 4, grid=True).reduce(tokens).keep.tolist() == [0, 1, 4, 5]


def test_squares_of_a_grid():
    """A 5 x 4 grid in about 4: rows 0 to 2 and 3 to 4, columns 0 to 1 and 2 to 3. In 16 there are squares of a token."""
    members = squares(whole_grid(5, 4), 4)
    assert [m.tolist() for m in members] == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11], [12, 13, 16, 17], [14, 15, 18, 19]]
    assert [len(m) for m in squares(whole_grid(4, 4), 16)] == [1] * 16
    two_tiles = torch.cat([whole_grid(4, 4), whole_grid(4, 4, tile=1)])
    members = squares(two_tiles, 8)
    assert [len(m) for m in members] == [4] * 8
    assert members[4].tolist() == [16, 17, 20, 21]


@pytest.mark.parametrize("keep, crops", [(64, 16), (128, 8), (192, 5), (576, 1), (1, 576)])
def test_number_of_crops(keep, crops):
    """1024 / 576 * n / keep, rounded down, and at most one for each token."""
    tokens = patches(torch.full((576,), 1 / 577))
    assert len(HoloV(keep).crops_of(tokens)) == crops


# --- paper and code ---------------------------------------------------------------------------------------------------

def test_the_variance_cancels():
    """Whatever the features are, a crop's released score is 1090 times its mean attention: 1000, and 90 for a term that
    is divided by its own mean."""
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(36, generator=generator) / 36
    for scale in (1, 100):
        feature = scale * torch.randn(36, 8, generator=generator)
        score = HoloVReleased().crop_score(attention, feature)
        close(score, 1090 * attention.mean(), rtol=1e-5)


# --- recorded ---------------------------------------------------------------------------------------------------------

def runs(facts):
    """(case, crops, keep) of each recorded run of the released code."""
    return [(case["name"], r["crops"], r["keep"]) for case in facts["cases"] for r in case["results"]]


TIES = ("flat_attention", "equal_rows", "zero_attention", "needle")    # topk chose freely: crops by quota, tokens by value


@pytest.mark.parametrize("name, crops, keep", runs(SELECT_FACTS))
def test_recorded(name, crops, keep):
    """The released code's tokens in their order, with rows of zeros (-1), quotas and scores of the crops. With ties the
    tokens kept have the same attention."""
    recorded = of_case(of_case(SELECT, name), f"c{crops}k{keep}")
    attention = SELECT[f"{name}.attn"]
    tokens = patches(attention, SELECT[f"{name}.feature"][None])
    method = HoloVReleased(keep, crops)
    members = method.crops_of(tokens)
    feature = tokens.hidden[tokens.visual]
    score = torch.stack([method.crop_score(attention[crop], feature[crop]) for crop in members])
    close(score, recorded["crop_score"], rtol=2e-6)
    r = method.reduce(tokens)
    index = r.keep
    if r.merge is not None:
        index = torch.where(r.merge.any(dim=1), r.keep, -1)
    expected = recorded["kept"].long()
    if name in TIES:
        assert (index < 0).sum() == (expected < 0).sum()
        assert attention[index[index >= 0]].sort().values.equal(attention[expected[expected >= 0]].sort().values)
        return
    assert method.quotas(keep, score, None).tolist() == recorded["quota"].tolist()
    assert index.tolist() == expected.tolist()


@pytest.mark.parametrize("c", RECOMMENDED_FACTS["cases"], ids=lambda c: c["case"])
def test_recommended(c):
    """The same inputs without lost tokens: those of the released code wherever no crop is full, or has one token."""
    name, run = c["case"].split(".")
    crops, keep = run[1:].split("k")
    assert kept(int(keep), int(crops), SELECT[f"{name}.attn"]) == RECOMMENDED[f"{c['case']}.kept"].tolist()


# --- laws -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n", range(1, 8))
def test_every_count(n):
    """Any number of any n in any number of crops: each token once. In one tile a needle is kept: its crop has the
    largest share."""
    for k in range(1, n + 1):
        for crops in (*range(1, n + 2), None):
            for place in range(n):
                attention = torch.full((n,), .01 / n)
                attention[place] = .99
                method = HoloV(k, crops)
                tokens = patches(attention)
                keep = method.reduce(tokens).keep.tolist()
                assert len(keep) == len(set(keep)) == k
                assert needle(method, tokens)


def test_a_needle_of_one_tile_may_be_lost():
    """Two tiles, crops of 2, 1 and 1 tokens: the needle's mean is .99 / 2, those of the other tile .5, and they get the
    two tokens. So the law is not declared."""
    tokens = patches([[.99, 0.], [.5, .5]])
    assert not needle(HoloV(2, 3), tokens)
    assert HoloV(2, 3).reduce(tokens).keep.tolist() == [2, 3]
    assert "needle" not in HoloV.laws


def test_declared():
    assert HoloV().laws == {"select", "budget", "scale"}
    assert HoloVReleased().laws == {"budget", "disjoint"}
    assert HoloV.per == "image" and HoloV.preconditions == {"cls"}
    assert HoloV(64).tokens_left(5 * 576, {"image": (1, 5 * 576)}) == 64


# --- edges ------------------------------------------------------------------------------------------------------------

def test_no_attention():
    """Equal shares: of 4 tokens in 3 crops of 2 each gets one, the first one more."""
    assert kept(4, 3, (0.,) * 6) == [0, 1, 2, 4]


def test_all_tokens():
    """In their order, whatever the crops are."""
    assert kept(6, 2) == kept(1.0, 4) == [0, 1, 2, 3, 4, 5]
    assert kept(1, 2, (.5,)) == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Shares are computed in float64: 1 / 3 of 300 tokens for each of three crops, equal in half precision too."""
    attention = torch.full((900,), 1 / 900, dtype=dtype)
    assert torch.tensor(kept(300, 3, attention)).div(300, rounding_mode="floor").bincount().tolist() == [100] * 3


def test_not_a_number():
    with pytest.raises(UserError, match="NaN.*float32"):
        kept(2, 2, (.1, math.nan, .1, .1))


@pytest.mark.parametrize("options, message", [
    (dict(keep=0), "keep 0 is out of range"), (dict(keep=1.5), "keep 1.5 is out of range"),
    (dict(crops=0), "crops must be at least 1"), (dict(crops=2.5), "crops"), (dict(grid=2), "grid")])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        HoloV(**options)
