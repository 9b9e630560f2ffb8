"""DivPrune by hand, and equal to the released code's recorded behaviour.

The features are vectors in the plane, written with their angles: the distance of two tokens, 1 - cosine, grows with the
angle between them.
"""

import math

import pytest
import torch

from build import close, plane, tokens
from golden import golden
from pruning.base import UserError
from pruning.divprune import DivPrune, max_min
from pruning.ranked import cosines
from released import DivPruneRepeat

RECORDED, FACTS = golden("divprune_select")


def image(features, kinds=None):
    """Tokens at the embed site: text, one image of these features in one row, text."""
    kinds = kinds or f"t{'v' * len(features)}t"
    text = torch.zeros(1, features.shape[1], dtype=features.dtype)
    return tokens(kinds, hidden=torch.cat([text, features, text + 1]), layer=0)


def kept(method, features):
    return method.reduce(image(features)).keep.tolist()


# --- by hand ----------------------------------------------------------------------------------------------------------

def test_order_of_picks():
    """Angles 0 10 90 180 205. To the nearest other: 10 10 80 25 25, so 90 is first. From 90: 90 80 - 90 115, so 205
    is next. From the nearer of both: 90 80 - 25 -, so 0; then 10 and 180 remain, 10 and 25 away: 180; 10 is last."""
    order, score = max_min(1 - cosines(plane(0, 10, 90, 180, 205)), 5)
    assert order.tolist() == [2, 4, 0, 3, 1]
    gained = torch.tensor([90, 10, 80, 25, 115])           # degrees by which each one was picked
    close(score, 1 - gained.deg2rad().cos(), 1e-6)
    assert kept(DivPrune(keep=2), plane(0, 10, 90, 180, 205)) == [2, 4]
    assert kept(DivPrune(keep=3), plane(0, 10, 90, 180, 205)) == [0, 2, 4]


def test_not_farthest_from_the_first_token():
    """Angles 0 10 90 180 205. Farthest-point sampling that begins with token 0 keeps 0 and 180; the max-min greedy
    begins with the loneliest token, 90, and keeps 90 and 205."""
    features = plane(0, 10, 90, 180, 205)
    assert int(cosines(features)[0].argmin()) == 3
    assert kept(DivPrune(keep=2), features) == [2, 4]


def test_greedy_not_the_optimum():
    """(1,0) (.8,.6) (0,1) (-.8,.6) (-1,0). To the nearest other: .2 .2 .4 .2 .2, so the middle one is first. From
    it: 1 .4 - .4 1, of equals the first: tokens 0 and 2, 1 apart, although 0 and 4 are 2 apart. The third is token
    4: 2 from 0, 1 from 2."""
    features = torch.tensor([[1., 0], [.8, .6], [0, 1], [-.8, .6], [-1, 0]])
    assert cosines(features).argmin() == 4     # row 0, column 4: the best pair
    assert kept(DivPrune(keep=2), features) == [0, 2]
    assert kept(DivPrune(keep=3), features) == [0, 2, 4]


def test_copies():
    """a a b b with k = 3: a, then b; every other token is 0 away and each is kept once. The released code looks for the
    largest distance among all tokens and takes the first of the zeros, which it has already."""
    features = torch.tensor([[1., 0], [1, 0], [0, 1], [0, 1]])
    assert kept(DivPrune(keep=3), features) == [0, 1, 2]
    assert kept(DivPruneRepeat(keep=3), features) == [0, 0, 2]
    twice = image(features).reduced(DivPruneRepeat(keep=3).reduce(image(features)))
    assert twice.hidden[twice.visual].tolist() == [[1, 0], [1, 0], [0, 1]]     # sent twice, as in the released code


def test_length_does_not_count():
    """The same angles with a token a hundred times as long: the same picks."""
    features = plane(0, 10, 90, 180, 205)
    features[0] *= 100
    assert kept(DivPrune(keep=2), features) == [2, 4]


# --- recorded ---------------------------------------------------------------------------------------------------------

RATIOS = [(case["case"], ratio, k) for case in FACTS["cases"] for ratio, k in zip(case["ratios"], case["k"])]


@pytest.mark.parametrize("case, ratio, k", RATIOS)
def test_recorded(case, ratio, k):
    """Order of picks and kept tokens of the released code; case 3 has newline tokens, copies of each other."""
    x = RECORDED[f"case{case}.x"]
    assert max_min(1 - cosines(x), k)[0].tolist() == RECORDED[f"case{case}.k{k}.order"].tolist()
    for method in (DivPrune(ratio), DivPruneRepeat(ratio)):
        assert kept(method, x) == RECORDED[f"case{case}.k{k}.kept"].tolist()


# --- edges ------------------------------------------------------------------------------------------------------------

def test_one_token_and_all_tokens():
    assert kept(DivPrune(), plane(30)) == kept(DivPrune(keep=1), plane(30)) == [0]
    assert kept(DivPrune(keep=3), plane(0, 90, 180)) == kept(DivPrune(keep=1.0), plane(0, 90, 180)) == [0, 1, 2]


def test_ties():
    """Four directions, two of them opposite to two: every token is 1 from its nearest. Of equals the first: 0; from
    it 2 is farthest; then 1 and 3 are equal."""
    cross = torch.tensor([[1., 0], [0, 1], [-1, 0], [0, -1]])
    assert [kept(DivPrune(keep=k), cross) for k in (1, 2, 3)] == [[0], [0, 2], [0, 1, 2]]
    assert kept(DivPrune(keep=3), torch.ones(600, 4)) == [0, 1, 2]


def test_zero_vectors():
    """No NaN: a zero vector is at distance 1 from all, and from another zero vector."""
    features = torch.tensor([[0., 0], [1, 0], [.9, .1], [0, 0]])
    r = DivPrune(keep=3).reduce(image(features))
    assert r.score.isfinite().all()
    assert r.keep.tolist() == [0, 1, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Angles a degree apart, whose cosine is 1 in half precision: distances are computed in float32."""
    features = plane(0, 1, 2, 60, 61).to(dtype)
    assert kept(DivPrune(keep=3), features) == kept(DivPrune(keep=3), features.float())
    assert cosines(features).dtype == torch.float32


def test_not_a_number():
    with pytest.raises(UserError, match="the image features contain NaN.*float32"):
        kept(DivPrune(keep=1), torch.tensor([[1., 0], [math.nan, 0]]))


def test_two_images_compete():
    """Images of angles 0 5 and 2 90 180 in one prompt, budget 3 for both: 180 is the loneliest, 90 from its nearest;
    then 0, 180 from it; then 90: one token of the first image is left, two of the second. The 50 degrees between
    them are text."""
    entering = image(plane(0, 5, 50, 2, 90, 180), "t vv t vvv t")
    assert DivPrune(keep=3).reduce(entering).keep.tolist() == [0, 3, 4]


def test_attention_and_text_are_not_read():
    """There is no layer to look at, and other text changes nothing. The needle law is not declared: a token that
    gets all of the attention is dropped if it is like others."""
    features = plane(0, 10, 90, 180, 205)
    entering = tokens("tvvvvvt", hidden=torch.cat([torch.full((1, 2), 7.), features, torch.full((1, 2), 7.)]), layer=0)
    with pytest.raises(UserError, match="no layer has run yet"):
        entering.before.mean_attention("last")
    assert DivPrune(keep=2).reduce(entering).keep.tolist() == kept(DivPrune(keep=2), features) == [2, 4]
    assert DivPrune.site == "embed"
    assert "needle" not in DivPrune().laws


def test_laws():
    """A method that keeps a token twice (test_copies) does not promise to select."""
    assert DivPrune().laws == {"select", "ordered", "budget"}
    assert DivPruneRepeat().laws == {"ordered", "budget"}
    assert DivPrune().budget(576) == 56
    assert DivPrune(keep=.25).budget(50) == 12             # 12.5, half to even
    assert DivPrune(keep=64).budget(576) == 64


@pytest.mark.parametrize("keep", [0, -.1, 1.5])
def test_bad_options(keep):
    with pytest.raises(UserError, match=f"keep {keep} is out of range"):
        DivPrune(keep)


def test_more_than_there_is():
    with pytest.raises(UserError, match="keep 4 is out of range.*from 1 to 3"):
        kept(DivPrune(keep=4), plane(0, 1, 2))
