"""VisionZip by hand, and equal to the released code's recorded behaviour.

A token's hidden state is one number; keys are vectors in the plane, written with their angles. Token 0 is the class
token.
"""

import math

import pytest
import torch

from build import close, plane, tiles
from golden import golden
from pruning.base import UserError
from pruning.readings import VisionZipAverage
from pruning.tile_grid import TileGrid
from pruning.visionzip import VisionZip

RECORDED, FACTS = golden("visionzip")
NEXT, NEXT_FACTS = golden("visionzip_next")

ATTENTION = (.3, .1, .2, .05, .15, .05)
DEGREES = (45, 0, 10, 90, 80, 30)
VALUES = (10., 1, 2, 3, 4, 5, 6)


def image(attention=ATTENTION, degrees=DEGREES, values=VALUES, cls=True):
    """Tokens of one tile: of each patch the attention, of all tokens 1 in sum, the key's angle and the hidden state."""
    attention = torch.tensor([[max(0., 1 - sum(attention)), *attention]])
    key = torch.cat([torch.zeros(1, 2), plane(*degrees)])[None]
    return tiles(torch.tensor(values)[None, :, None], attention, key=key, cls=cls)


def zipped(method, tokens):
    """(keep, hidden states of the tokens left)"""
    r = method.reduce(tokens)
    left = tokens.reduced(r)
    return r.keep.tolist(), left.hidden[left.visual, 0].tolist()


# --- by hand ----------------------------------------------------------------------------------------------------------

def test_dominant_and_contextual():
    """Four left, two of them contextual. Dominant: the class token and token 1. The rest is 2 3 4 5 6 (0 10 90 80 30
    degrees); targets 5 // 2 = 2 apart, 2 and 4. 3 and 6 are nearer to 2, 5 is nearer to 4: 2 + (3 + 6) / 2 = 6.5 and
    4 + 5 = 9. Targets chosen by attention would be 3 and 5."""
    assert zipped(VisionZip(keep=4, contextual=2), image()) == ([0, 1, 2, 4], [10, 1, 6.5, 9])


def test_average():
    """The same as averages: (2 + 3 + 6) / 3 and (4 + 5) / 2."""
    expected = ([0, 1, 2, 4], [10, 1, pytest.approx(11 / 3), 4.5])
    assert zipped(VisionZipAverage(keep=4, contextual=2), image()) == expected


def test_without_the_class_token():
    """cls=False leaves patches alone, counted from 0: dominant 0 and 2, the rest 1 3 4 5 (0 90 80 30 degrees),
    targets 2 apart, 1 and 4; 3 joins 4, 5 joins 1: their hidden states are 2 + 6 and 5 + 4."""
    assert zipped(VisionZip(keep=4, contextual=2, cls=False), image(cls=False)) == ([0, 2, 1, 4], [1, 3, 8, 9])


def test_the_class_token_is_no_candidate():
    """It is kept although it looks at itself least of all, and it takes one of the dominant places."""
    tokens = image(attention=(.4, .3, .1, .1, .05, .05))
    assert tokens.before.cls_attention()[0, 0] == 0
    assert zipped(VisionZip(keep=2, contextual=0), tokens) == ([0, 1], [10, 1])


def test_the_end_of_the_rest_has_no_target():
    """Rest of 5, three contextual tokens: 5 // 3 = 1 apart, so the targets are its first three, 2 3 4, and none of
    the last."""
    assert zipped(VisionZip(keep=5, contextual=3), image())[0] == [0, 1, 2, 3, 4]


def test_keys_are_averaged_over_heads():
    """Token 3 has keys (1, 0) and (0, 1) in its two heads, target 1 (0, 1) and (1, 0), target 2 (1, 0) and (0, 0).
    In the mean 3 is target 1, and 45 degrees from 2; side by side it is at right angles to 1, and 45 degrees from 2."""
    first_head = [[0, 0], [0, 1], [1, 0], [1, 0]]
    second_head = [[0, 0], [1, 0], [0, 0], [0, 1.]]
    key = torch.tensor([[first_head, second_head]])                                # (1, H, 4, 2)
    tokens = tiles(torch.tensor([[[0.], [1], [2], [4]]]), torch.full((1, 2, 4), .25), key=key, cls=True)
    assert zipped(VisionZip(keep=3, contextual=2), tokens) == ([0, 1, 2], [0, 5, 2])


def test_attention_is_averaged_over_heads():
    """.6 .3 .1 and 0 .4 .2: the mean ranks token 2, .35, above token 1, .3."""
    attention = torch.tensor([[[0, .6, .3, .1], [0, 0, .4, .2]]])                  # (1, H, 4)
    tokens = tiles(torch.zeros(1, 4, 1), attention, key=torch.ones(1, 4, 2), cls=True)
    assert zipped(VisionZip(keep=2, contextual=0), tokens)[0] == [0, 2]


# --- paper and code ---------------------------------------------------------------------------------------------------

def test_weights_are_not_convex():
    """A target with members weighs 2 in all, and without any 1: the law is declared only for averages."""
    for method, total in ((VisionZip, [1, 1, 2, 2]), (VisionZipAverage, [1, 1, 1, 1])):
        weights = method(keep=4, contextual=2).reduce(image()).merge
        close(weights.sum(dim=1), total)
        assert (weights >= 0).all()
        assert ("convex" in method.laws) == (method is VisionZipAverage)
    alone = VisionZip(keep=7, contextual=3).reduce(image()).merge
    assert alone.sum(dim=1).tolist() == [1] * 7


def test_no_token_goes_into_two():
    """Of test_dominant_and_contextual every token is in exactly one row: 0 and 1 alone, 2 3 6, 4 5."""
    merge = VisionZip(keep=4, contextual=2).reduce(image()).merge
    assert [row.nonzero().squeeze(1).tolist() for row in merge] == [[0], [1], [2, 3, 6], [4, 5]]
    assert "disjoint" in VisionZip.laws


def test_keep_counts_tokens_of_a_tile():
    """Commands read it from `per`: 128 tokens of a prompt with four tiles are keep=32."""
    assert VisionZip.per == VisionZipAverage.per == "tile"


def test_share_of_contextual_tokens():
    """10 of 64, 20 of 128, 30 of 192 by the same share; 30 of 221 is a number; a share is rounded down."""
    assert [VisionZip().counts(k) for k in (64, 128, 192)] == [(54, 10), (108, 20), (162, 30)]
    assert VisionZip(contextual=30).counts(221) == (191, 30) and VisionZip().counts(32) == (27, 5)
    assert VisionZip().counts(6) == (6, 0) and VisionZip(contextual=.5).counts(7) == (4, 3)


# --- recorded ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("c", FACTS["cases"], ids=lambda c: f"{c['case']}-{c['dominant']}-{c['contextual']}")
def test_recorded(c):
    """Dominant indices and features of the released code, the batch as tiles of one image; its keys are recorded as
    the mean."""
    name = f"case{c['case']}"
    run = f"{name}.d{c['dominant']}c{c['contextual']}"
    tokens = tiles(RECORDED[f"{name}.hidden"], RECORDED[f"{name}.cls_row"], key=RECORDED[f"{name}.metric"], cls=True)
    r = VisionZip(c["tokens"], c["contextual"]).reduce(tokens)
    first_of_tile = (c["N"] + 1) * torch.arange(c["B"])[:, None]
    dominant = r.keep.view(c["B"], -1)[:, :c["dominant"]] - first_of_tile
    assert dominant.tolist() == RECORDED[f"{run}.all_indices"].sort(dim=1).values.tolist()
    left = tokens.reduced(r)
    close(left.hidden[left.visual], RECORDED[f"{run}.tokens"].flatten(0, 1))


@pytest.mark.parametrize("grid, name", [((2, 2), "assembled"), ((1, 4), "assembled_w4h1"), ((4, 1), "assembled_w1h4")])
def test_recorded_tiles(grid, name):
    """LLaVA-NeXT: 28 + 4 of each of 5 tiles. The inputs are not recorded; here they are such that each tile gives
    its recorded tokens. The base tile is sent on first, then the grid of tiles's dominant patches in its raster, the
    tiles' class tokens and their contextual tokens."""
    recorded = NEXT["per_tile_tokens"]
    index = NEXT["all_indices"].long()
    attention = torch.zeros(5, 577).scatter(1, index, torch.arange(28, 0, -1.).expand(5, 28))
    hidden = torch.zeros(5, 577, 4)
    hidden.scatter_(1, index.sort(dim=1).values[..., None].expand(5, 28, 4), recorded[:, :28])
    for t in range(5):                                 # targets hold the contextual tokens, what joins them is zero
        rest = torch.tensor(sorted(set(range(577)) - set(index[t].tolist())))
        hidden[t, rest[::len(rest) // 4][:4]] = recorded[t, 28:]
    tokens = tiles(hidden, attention, key=torch.ones(5, 577, 2), grid=(24, 24), cls=True)
    method = VisionZip(32, 4)
    left = tokens.reduced(method.reduce(tokens))
    values = left.hidden[left.visual]
    assert values.view(5, 32, 4).equal(recorded)
    order = method.output_order(left.grid, TileGrid(24, grid, (1, 1)))
    close(values[order], NEXT[name], 1e-6)


# --- edges ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("n", range(1, 9))
def test_every_count(cls, n):
    """Any number left of any n, with any number of contextual ones: no NaN, no place twice, as many as were asked
    for."""
    tokens = image([1 / (n + 1)] * n, [30 * i for i in range(n)], list(range(n + 1)), cls)
    for k in range(1, tokens.n + 1):
        for contextual in (*range(k + 1), 0., .5, 1.):
            r = VisionZip(k, contextual, cls=cls).reduce(tokens)
            assert len(set(r.keep.tolist())) == len(r.keep) == len(r.merge) == k
            assert r.merge.isfinite().all()
    assert sorted(zipped(VisionZip(keep=1.0, cls=cls), tokens)[1]) == list(range(1 - cls, n + 1))


def test_ties():
    """Flat attention and equal keys: the first patches are dominant, and all of the rest join the first target."""
    r = VisionZip(5, 2).reduce(image((1e-3,) * 575, (0,) * 575, (1.,) * 576))
    assert r.keep.tolist() == [0, 1, 2, 3, 289]
    assert r.merge[3].count_nonzero() == 572
    assert r.merge[4].count_nonzero() == 1


def test_zero_keys():
    """No NaN: a zero key is like none, and joins the first target. The rest is 1 2 3 4, its targets 1 and 3, keys 2
    and 3 are zero: 4 joins 1, which is its like."""
    key = torch.tensor([[[0., 0], [1, 0], [0, 0], [0, 0], [1, 0]]])
    tokens = tiles(torch.ones(1, 5, 1), torch.full((1, 5), .2), key=key, cls=True)
    assert VisionZip(3, 2).reduce(tokens).merge.tolist() == [[1, 0, 0, 0, 0], [0, 1, .5, 0, .5], [0, 0, 0, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Token 3's key, (1, 1/48), is nearer to (1, 1/32) than to (1, 0); of length 1 in half precision the three are
    too close."""
    key = torch.tensor([[[0, 0], [1, 0], [1, 1 / 32], [1, 1 / 48]]], dtype=dtype)
    tokens = tiles(torch.tensor([[[0.], [1], [2], [4]]], dtype=dtype), torch.full((1, 4), .25), key=key, cls=True)
    assert zipped(VisionZip(keep=3, contextual=2), tokens) == ([0, 1, 2], [0, 1, 6])


def test_each_tile_by_itself():
    """Two tiles as one image: the second tile's tokens, 7 to 13, are reduced as they are alone; all are below the
    first's."""
    hidden = torch.tensor([VALUES, [100 * v for v in VALUES]])[..., None]
    attention = torch.tensor([[.15, *ATTENTION], [.15, *ATTENTION]]) * torch.tensor([[1], [.01]])  # (2, 7)
    key = torch.cat([torch.zeros(1, 2), plane(*DEGREES)]).expand(2, 7, 2)
    keep, values = zipped(VisionZip(keep=4, contextual=2), tiles(hidden, attention, key=key, cls=True))
    assert keep == [0, 1, 2, 4, 7, 8, 9, 11]
    assert values == [10, 1, 6.5, 9, 1000, 100, 650, 900]
    assert VisionZip(4, 2).tokens_left(14, {"tile": (2, 7)}) == 8


def test_not_a_number():
    with pytest.raises(UserError, match="NaN.*float32"):
        VisionZip(2, 0).reduce(image(attention=(.1, math.nan, .1, .1, .1, .1)))


def test_a_needle_may_be_merged():
    """keep=1 is the class token alone, so the needle law is not declared; nor the order: contextual tokens come
    last."""
    needle = image(attention=(0, .98, 0, 0, 0, 0))
    assert zipped(VisionZip(keep=1), needle)[0] == [0]
    assert zipped(VisionZip(keep=2), needle)[0] == [0, 2]
    assert zipped(VisionZip(keep=4, contextual=2), needle)[0] == [0, 2, 1, 4]
    assert not {"needle", "ordered", "select"} & VisionZip().laws


def test_what_it_says():
    assert VisionZip().laws == {"budget", "scale", "disjoint"}
    assert VisionZipAverage().laws == {"budget", "scale", "disjoint", "convex"}
    assert VisionZip.site == "vision"
    assert VisionZip.preconditions == {"cls"}
    assert VisionZip().budget(577) == VisionZip().budget(576) == 64
    assert VisionZip(64).tokens_left(5 * 577, {"tile": (5, 577)}) == 320
    assert VisionZip().cls
    assert not VisionZip(cls=False).cls


def test_scale():
    """A tenth of the attention: the same tokens and the same weights."""
    whole = VisionZip(4, 2).reduce(image())
    tenth = VisionZip(4, 2).reduce(image(attention=[a * .1 for a in ATTENTION]))
    assert whole.keep.equal(tenth.keep)
    assert whole.merge.equal(tenth.merge)
    close(whole.score[1:], ATTENTION)


def test_reasons():
    r = VisionZip(4, 2).reduce(image())
    assert [r.reasons[i] for i in r.reason] == ["dominant", "dominant", "contextual", "contextual"]


@pytest.mark.parametrize("options, message", [
    (dict(keep=0), "keep 0 is out of range"), (dict(keep=1.5), "keep 1.5 is out of range"),
    (dict(contextual=-1), "a share from 0 to 1.0"), (dict(contextual=-.1), "a share from 0 to 1.0"),
    (dict(contextual=1.5), "a share from 0 to 1.0"), (dict(contextual=2 ** 20 + 1), "a number from 0"),
    (dict(keep=4, contextual=5), "contextual 5 is more than the 4 tokens kept")])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        VisionZip(**options)


def test_more_contextual_tokens_than_a_share():
    with pytest.raises(UserError, match="contextual 5 is more than the 3 tokens kept"):
        VisionZip(keep=.5, contextual=5).reduce(image())
