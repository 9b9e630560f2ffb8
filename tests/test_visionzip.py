"""VisionZip by hand, and equal to the released code's recorded behaviour.

A token's hidden state is one number; keys are vectors in the plane, written with their angles. Token 0 is the class token.
"""

import math

import pytest
import torch

from golden import golden
from pruning.base import UserError
from pruning.mosaic import Mosaic
from pruning.visionzip import VisionZip
from test_vispruner import plane, vision

RECORDED, FACTS = golden("visionzip")
NEXT, NEXT_FACTS = golden("visionzip_next")

ATTN, DEGREES, VALUES = (.3, .1, .2, .05, .15, .05), (45, 0, 10, 90, 80, 30), (10., 1, 2, 3, 4, 5, 6)


def image(attn=ATTN, degrees=DEGREES, values=VALUES, cls=True):
    """Tokens of one tile: of each patch the attention, of all tokens 1 in sum, the key's angle and the hidden state."""
    attn = torch.tensor([max(0., 1 - sum(attn)), *attn])[None, None]
    key = torch.cat([torch.zeros(1, 2), plane(*degrees)])[None]
    return vision(torch.tensor(values)[None, :, None], skip=int(not cls), attn=attn, past_key=key)


def result(tokens, **options):
    """(keep, hidden states of the tokens left)"""
    r = VisionZip(**options).reduce(tokens)
    new = tokens.reduced(r)
    return r.keep.tolist(), new.hidden[new.visual, 0].tolist()


# --- by hand -------------------------------------------------------------------------------------------------------------

def test_dominant_and_contextual():
    """Four left, two of them contextual. Dominant: the class token and token 1. The rest is 2 3 4 5 6 (0 10 90 80 30 degrees); targets
    5 // 2 = 2 apart, 2 and 4. 3 and 6 are nearer to 2, 5 is nearer to 4: 2 + (3 + 6) / 2 = 6.5 and 4 + 5 = 9. Targets chosen
    by attention would be 3 and 5."""
    assert result(image(), keep=4, contextual=2) == ([0, 1, 2, 4], [10, 1, 6.5, 9])


def test_average():
    """The same as averages: (2 + 3 + 6) / 3 and (4 + 5) / 2."""
    assert result(image(), keep=4, contextual=2, average=True) == ([0, 1, 2, 4], [10, 1, pytest.approx(11 / 3), 4.5])


def test_without_the_class_token():
    """cls=False leaves patches alone, counted from 0: dominant 0 and 2, the rest 1 3 4 5 (0 90 80 30 degrees), targets 2 apart, 1
    and 4; 3 joins 4, 5 joins 1: their hidden states are 2 + 6 and 5 + 4."""
    assert result(image(cls=False), keep=4, contextual=2, cls=False) == ([0, 2, 1, 4], [1, 3, 8, 9])


def test_the_class_token_is_no_candidate():
    """It is kept although it looks at itself least of all, and it takes one of the dominant places."""
    tokens = image(attn=(.4, .3, .1, .1, .05, .05))
    assert tokens.attn[0, 0, 0] == 0 and result(tokens, keep=2, contextual=0) == ([0, 1], [10, 1])


def test_the_end_of_the_rest_has_no_target():
    """Rest of 5, three contextual tokens: 5 // 3 = 1 apart, so the targets are its first three, 2 3 4, and none of the last."""
    assert result(image(), keep=5, contextual=3)[0] == [0, 1, 2, 3, 4]


def test_keys_are_averaged_over_heads():
    """Token 3 has keys (1, 0) and (0, 1) in its two heads, target 1 (0, 1) and (1, 0), target 2 (1, 0) and (0, 0). In the mean 3
    is target 1, and 45 degrees from 2; side by side it is at right angles to 1, and 45 degrees from 2."""
    key = torch.tensor([[[0, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1.]]])
    tokens = vision(torch.tensor([[[0.], [1], [2], [4]]]), skip=0, attn=torch.full((1, 2, 4), .25), past_key=key)
    assert result(tokens, keep=3, contextual=2) == ([0, 1, 2], [0, 5, 2])


def test_attention_is_averaged_over_heads():
    """.6 .3 .1 and 0 .4 .2: the mean ranks token 2, .35, above token 1, .3."""
    attn = torch.tensor([[[0, .6, .3, .1], [0, 0, .4, .2]]])
    tokens = vision(torch.zeros(1, 4, 1), skip=0, attn=attn, past_key=torch.ones(1, 4, 2))
    assert result(tokens, keep=2, contextual=0)[0] == [0, 2]


# --- paper and code --------------------------------------------------------------------------------------------------------

def test_weights_are_not_convex():
    """A target with members weighs 2 in all, and without any 1: the law is declared for averages alone."""
    for average in (False, True):
        method = VisionZip(keep=4, contextual=2, average=average)
        weights = method.reduce(image()).merge
        assert weights.sum(dim=1).tolist() == pytest.approx([1, 1, 1, 1] if average else [1, 1, 2, 2])
        assert (weights >= 0).all() and ("convex" in method.laws) == average
    alone = VisionZip(keep=7, contextual=3).reduce(image()).merge
    assert alone.sum(dim=1).tolist() == [1] * 7


def test_share_of_contextual_tokens():
    """10 of 64, 20 of 128, 30 of 192 by the same share; 30 of 221 is a number; a share is rounded down."""
    assert [VisionZip().counts(k) for k in (64, 128, 192)] == [(54, 10), (108, 20), (162, 30)]
    assert VisionZip(contextual=30).counts(221) == (191, 30) and VisionZip().counts(32) == (27, 5)
    assert VisionZip().counts(6) == (6, 0) and VisionZip(contextual=.5).counts(7) == (4, 3)


# --- recorded ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("c", FACTS["cases"], ids=lambda c: f"{c['case']}-{c['dominant']}-{c['contextual']}")
def test_recorded(c):
    """Dominant indices and features of the released code, the batch as tiles of one image; its keys are recorded as the mean."""
    name, run = f"case{c['case']}", f"case{c['case']}.d{c['dominant']}c{c['contextual']}"
    attn, metric = RECORDED[f"{name}.cls_row"], RECORDED[f"{name}.metric"]
    tokens = vision(RECORDED[f"{name}.hidden"], skip=0, attn=attn, past_key=metric.repeat(1, 1, attn.shape[1]))
    r = VisionZip(c["tokens"], c["contextual"]).reduce(tokens)
    keep = r.keep.view(c["B"], -1)[:, :c["dominant"]] - (c["N"] + 1) * torch.arange(c["B"])[:, None]
    assert keep.tolist() == RECORDED[f"{run}.all_indices"].sort(dim=1).values.tolist()
    new = tokens.reduced(r)
    torch.testing.assert_close(new.hidden[new.visual], RECORDED[f"{run}.tokens"].flatten(0, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid, name", [((2, 2), "assembled"), ((1, 4), "assembled_w4h1"), ((4, 1), "assembled_w1h4")])
def test_recorded_tiles(grid, name):
    """LLaVA-NeXT: 28 + 4 of each of 5 tiles. The inputs are not recorded; here they are such that each tile gives its recorded
    tokens. The base tile is sent on first, then the mosaic's dominant patches in its raster, the tiles' class tokens and their
    contextual tokens."""
    recorded, index = NEXT["per_tile_tokens"], NEXT["all_indices"].long()
    attn, hidden = torch.zeros(5, 1, 577), torch.zeros(5, 577, 4)
    attn[:, 0].scatter_(1, index, torch.arange(28, 0, -1.).expand(5, 28))
    hidden.scatter_(1, index.sort(dim=1).values[..., None].expand(5, 28, 4), recorded[:, :28])
    for t in range(5):                                 # targets hold the contextual tokens, what joins them is zero
        rest = torch.tensor(sorted(set(range(577)) - set(index[t].tolist())))
        hidden[t, rest[::len(rest) // 4][:4]] = recorded[t, 28:]
    tokens = vision(hidden, skip=0, attn=attn, past_key=torch.ones(5, 577, 2))
    new = tokens.reduced(VisionZip(32, 4).reduce(tokens))
    values = new.hidden[new.visual].view(5, 32, 4)
    assert values.equal(recorded)
    packed = values.flatten(0, 1)[VisionZip(32, 4).assemble(new.cell, Mosaic(24, grid, (1, 1)))]
    torch.testing.assert_close(packed, NEXT[name], atol=1e-6, rtol=0)


# --- edges ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("n", range(1, 9))
def test_every_count(cls, n):
    """Any number left of any n, with any number of contextual ones: no NaN, no place twice, as many as were asked for."""
    tokens = image([1 / (n + 1)] * n, [30 * i for i in range(n)], list(range(n + 1)), cls)
    for k in range(1, tokens.n + 1):
        for contextual in (*range(k + 1), 0., .5, 1.):
            r = VisionZip(k, contextual, cls=cls).reduce(tokens)
            assert len(set(r.keep.tolist())) == len(r.keep) == len(r.merge) == k and r.merge.isfinite().all()
    assert sorted(result(tokens, keep=1.0, cls=cls)[1]) == list(range(1 - cls, n + 1))


def test_ties():
    """Flat attention and equal keys: the first patches are dominant, and all of the rest join the first target."""
    r = VisionZip(5, 2).reduce(image((1e-3,) * 575, (0,) * 575, (1.,) * 576))
    assert r.keep.tolist() == [0, 1, 2, 3, 289]
    assert r.merge[3].count_nonzero() == 572 and r.merge[4].count_nonzero() == 1


def test_zero_keys():
    """No NaN: a zero key is like none, and joins the first target. The rest is 1 2 3 4, its targets 1 and 3, keys 2 and 3
    are zero: 4 joins 1, which is its like."""
    key = torch.tensor([[[0., 0], [1, 0], [0, 0], [0, 0], [1, 0]]])
    tokens = vision(torch.ones(1, 5, 1), skip=0, attn=torch.full((1, 1, 5), .2), past_key=key)
    assert VisionZip(3, 2).reduce(tokens).merge.tolist() == [[1, 0, 0, 0, 0], [0, 1, .5, 0, .5], [0, 0, 0, 1, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Token 3's key, (1, 1/64), is nearer to (1, 1/32) than to (1, 0); of length 1 in half precision the three are too close."""
    key = torch.tensor([[[0, 0], [1, 0], [1, 1 / 32], [1, 1 / 48]]], dtype=dtype)
    tokens = vision(torch.tensor([[[0.], [1], [2], [4]]], dtype=dtype), skip=0, attn=torch.full((1, 1, 4), .25), past_key=key)
    assert result(tokens, keep=3, contextual=2) == ([0, 1, 2], [0, 1, 6])


def test_each_tile_by_itself():
    """Two tiles as one image: the second tile's tokens, 7 to 13, are reduced as they are alone; all are below the first's."""
    hidden = torch.tensor([VALUES, [100 * v for v in VALUES]])[..., None]
    attn = torch.tensor([[.15, *ATTN], [.15, *ATTN]])[:, None] * torch.tensor([1, .01])[:, None, None]
    key = torch.cat([torch.zeros(1, 2), plane(*DEGREES)]).expand(2, 7, 2)
    tokens = vision(hidden, skip=0, attn=attn, past_key=key)
    keep, values = result(tokens, keep=4, contextual=2)
    assert keep == [0, 1, 2, 4, 7, 8, 9, 11] and values == [10, 1, 6.5, 9, 1000, 100, 650, 900]
    assert VisionZip(4, 2).budget(14, tiles=2) == 8


def test_not_a_number():
    with pytest.raises(UserError, match="NaN.*float32"):
        VisionZip(2, 0).reduce(image(attn=(.1, math.nan, .1, .1, .1, .1)))


def test_a_needle_may_be_merged():
    """keep=1 is the class token alone, so the needle law is not declared; nor the order: contextual tokens come last."""
    needle = image(attn=(0, .98, 0, 0, 0, 0))
    assert result(needle, keep=1)[0] == [0] and result(needle, keep=2)[0] == [0, 2]
    assert result(needle, keep=4, contextual=2)[0] == [0, 2, 1, 4] and not {"needle", "ordered", "select"} & VisionZip().laws


def test_what_it_says():
    assert VisionZip().laws == {"budget", "scale"} and VisionZip(average=True).laws == {"budget", "scale", "convex"}
    assert VisionZip.site == "vision" and VisionZip.needs == {"attn", "past_key"} and VisionZip.preconditions == {"cls"}
    assert VisionZip().budget(577) == VisionZip().budget(576) == 64 and VisionZip(64).budget(5 * 577, tiles=5) == 320
    assert VisionZip().cls and not VisionZip(cls=False).cls


def test_scale():
    """A tenth of the attention: the same tokens and the same weights."""
    r, tenth = (VisionZip(4, 2).reduce(image(attn=[a * s for a in ATTN])) for s in (1, .1))
    assert r.keep.equal(tenth.keep) and r.merge.equal(tenth.merge)
    torch.testing.assert_close(r.score[1:], torch.tensor(ATTN))


@pytest.mark.parametrize("options", [dict(keep=0), dict(keep=1.5), dict(contextual=-1), dict(contextual=-.1),
                                     dict(contextual=1.5), dict(keep=4, contextual=5), dict(contextual=2 ** 20 + 1)])
def test_bad_options(options):
    with pytest.raises(UserError, match="keep .* out of range|a share from 0 to 1.0|contextual 5 is more than the 4"):
        VisionZip(**options)


def test_more_contextual_tokens_than_a_share():
    with pytest.raises(UserError, match="contextual 5 is more than the 3 tokens kept"):
        VisionZip(keep=.5, contextual=5).reduce(image())
