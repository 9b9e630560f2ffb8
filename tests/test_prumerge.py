"""PruMerge and PruMerge+ by hand, and equal to the released code's recorded behaviour.

Keys are vectors in the plane, written with their angles. The attention is that of the penultimate layer, typed, where an
example is not about the layer: `weights` are the rows of the merge, one column a patch.
"""

import math

import pytest
import torch

from golden import golden
from pruning.base import UserError
from pruning.prumerge import PruMerge, PruMergePlus, outliers
from test_vispruner import plane, vision

RECORDED, FACTS = golden("prumerge")
RUNS = {"prumerge": PruMerge(), "plus": PruMergePlus(),
        "prumerge_fixed_r125": PruMerge(73), "plus_fixed_r125": PruMergePlus(145, duplicates=True),
        "prumerge_fixed_r0625": PruMerge(37), "plus_fixed_r0625": PruMergePlus(73, duplicates=True)}


def patches(attn, degrees):
    """Tokens of one image: each patch's attention from the class token, in all 1, and its key's angle."""
    attn = torch.tensor([max(0., 1 - sum(attn)), *attn])[None, None]
    key = torch.cat([torch.zeros(1, 2), plane(*degrees)])[None]
    hidden = torch.arange(len(degrees) + 1.)[None, :, None]
    return vision(hidden, attn=attn, past_key=key)


def reduced(method, attn, degrees):
    """(keep, merge) as lists, from the typed attention."""
    r = method.reduce(patches(attn, degrees))
    return r.keep.tolist(), r.merge


def penultimate(kind=PruMerge, **options):
    return kind(attention="penultimate", **options)


# --- by hand -------------------------------------------------------------------------------------------------------------

ATTN, DEGREES = (.1, .6, .1, .05, .05), (10, 0, 90, 5, 180)


def test_one_outlier():
    """Attention in order: .05 .05 .1 .1 .6; Q1 = .05, Q3 = .1, the fence .1 + 1.5 * .05 = .175: patch 1 alone is above. Its two
    nearest keys are 3 and 0 (5 and 10 degrees): x1 + .05 x3 + .1 x0. The pooled token is the sum of all others, in the
    place of the strongest of them, of equals the first: 0."""
    keep, weights = reduced(penultimate(neighbours=2), ATTN, DEGREES)
    assert keep == [1, 0]
    torch.testing.assert_close(weights, torch.tensor([[.1, 1, 0, .05, 0], [.1, 0, .1, .05, .05]]))
    every = reduced(penultimate(), ATTN, DEGREES)[1][0]    # 32 neighbours are all others: not the patch itself once more
    torch.testing.assert_close(every, torch.tensor([.1, 1, .1, .05, .05]))


def test_the_fence_is_not_the_mean():
    """.20 .18 .16 and six below .06: Q1 = .04, Q3 = .16, the fence .34. Three patches are above the mean, .087, and none is an
    outlier: all that is left is the pooled token, in the place of the strongest."""
    attn = (.05, .20, .05, .18, .04, .16, .04, .03, .03)
    assert sum(a > sum(attn) / 9 for a in attn) == 3
    keep, weights = reduced(penultimate(), attn, [0] * 9)
    assert keep == [1]
    torch.testing.assert_close(weights, torch.tensor([attn]))


def test_percentiles_are_interpolated():
    """.05 .1 .15 .35: Q1 at .75 of the way from .05 to .1, .0875; Q3 a quarter from .15 to .35, .2; the fence .2 + 1.5 * .1125 =
    .36875: no outlier. The values at hand, .05 and .15, would put it at .3, below .35. At .37 Q3 is .205 and the fence
    .38125; at .5 Q3 is .2375, the fence .4625: an outlier."""
    assert [outliers(torch.tensor([.05, .1, .15, last])) for last in (.35, .37, .5)] == [0, 0, 1]


def test_the_fence_itself_is_inside():
    """0 0 2 2 5, in sixteenths: Q1 = 0, Q3 = 2, the fence 5."""
    assert outliers(torch.tensor([0, 2, 0, 2, 5.]) / 16) == 0 and outliers(torch.tensor([0, 2, 0, 2, 6.]) / 16) == 1


def test_order_is_that_of_attention():
    """Three left of four: the two strongest, the strongest first, then the pooled token in the place of the third."""
    assert reduced(penultimate(keep=3), (.1, .3, .2, .4), (0, 90, 180, 270))[0] == [3, 1, 2]


def test_a_grid_beside_the_outliers():
    """PruMerge+: one outlier, 3, of nine (the fence is .02 + 1.5 * .01), so a patch in 9 / 3 = 3: 0, 3, 6, of which 3 is kept
    already. The grid ends before 8. The pooled token stands in for the strongest of the rest, 1."""
    attn = (.01, .03, .01, .7, .02, .01, .01, .01, .02)
    assert reduced(penultimate(PruMergePlus), attn, [0] * 9)[0] == [3, 0, 6, 1]
    assert reduced(penultimate(PruMergePlus, density=2), attn, [0] * 9)[0] == [3, 0, 4, 1]     # a patch in 9 // 2 = 4


def test_the_last_patch_is_on_no_grid():
    """All seven alike but one: stride 7 // 1 // 3 = 2 would come to 6, the last patch; the grid is 0 2 4."""
    assert reduced(penultimate(PruMergePlus), (.01, .9, .02, .01, .01, .01, .01), [0] * 7)[0] == [1, 0, 2, 4, 3]


STRONG = (.01, .02, .3, .04, .05, .2, .07, .08)                                    # 2 5 7 6 4 3 1 0 by attention


def test_fixed_number_of_plus():
    """Five left of eight: two strong ones, 2 and 5; two of a grid, 2 and 6 (the middles of 0-3 and 4-7), but 2 is kept already,
    so the next strongest, 7, fills up; and the pooled token, in the place of 4."""
    assert reduced(penultimate(PruMergePlus, keep=5), STRONG, [0] * 8)[0] == [2, 5, 6, 7, 4]


def test_released_plus_keeps_twice():
    """duplicates=True: 2 5 and the grid 2 6. Patch 2 is its own copy's nearest neighbour: 1 + .3. As four entries are taken out of
    the rest where three patches left it, its first, 0, is lost: the pooled token is the sum of 1 3 4 7."""
    degrees = (0, 30, 60, 90, 120, 150, 180, 210)
    keep, weights = reduced(penultimate(PruMergePlus, keep=5, duplicates=True, neighbours=1), STRONG, degrees)
    assert keep == [2, 5, 2, 6, 7]
    torch.testing.assert_close(weights[[0, 2]], torch.tensor([[0, 0, 1.3, 0, 0, 0, 0, 0]]).expand(2, 8))
    torch.testing.assert_close(weights[4], torch.tensor([0, .02, 0, .04, .05, 0, 0, .08]))


# --- paper and code --------------------------------------------------------------------------------------------------------

def test_weights_are_not_convex():
    """The rows of test_one_outlier sum to 1.15 and .3: that law is not declared. The average divides .6 x1 + .05 x3 + .1 x0 by
    .75, and the pooled row by .3."""
    assert reduced(penultimate(neighbours=2), ATTN, DEGREES)[1].sum(dim=1).tolist() == pytest.approx([1.15, .3])
    keep, weights = reduced(penultimate(neighbours=2, normalise=True), ATTN, DEGREES)
    torch.testing.assert_close(weights * torch.tensor([[.75], [.3]]),
                               torch.tensor([[.1, .6, 0, .05, 0], [.1, 0, .1, .05, .05]]))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
    assert "convex" in PruMerge(normalise=True).laws and "convex" not in PruMerge().laws


def test_without_the_pooled_token():
    """The paper's: the outlier alone; where there is none, the strongest patch."""
    keep, weights = reduced(penultimate(neighbours=2, pooled=False), ATTN, DEGREES)
    assert keep == [1] and weights.tolist() == [pytest.approx([.1, 1, 0, .05, 0])]
    assert reduced(penultimate(pooled=False), (.2, .3, .1), (0, 1, 2))[0] == [1]
    assert len(reduced(penultimate(pooled=False, keep=3), STRONG, [0] * 8)[0]) == 3


def test_whose_neighbours():
    """Kept 0 and 1, of keys 0 and 10 degrees; the pruned lie at 40 and 90. Of all tokens they are each other's nearest; of the
    pruned ones both are nearest to 2."""
    attn, degrees = (.4, .3, .1, .05), (0, 10, 40, 90)
    both = reduced(penultimate(keep=3, neighbours=1), attn, degrees)[1][:2]
    torch.testing.assert_close(both, torch.tensor([[1, .3, 0, 0], [.4, 1, 0, 0]]))
    pruned = reduced(penultimate(keep=3, neighbours=1, sources="pruned"), attn, degrees)[1][:2]
    torch.testing.assert_close(pruned, torch.tensor([[1, 0, .1, 0], [0, 1, .1, 0]]))


def test_whose_attention():
    """Width 4. The last block's class token asks (0, 2 ln 2, 0, 0); keys (0, j, 0, 0) for patches j = 0 .. 2 and 0 for the class
    token: logits j ln 2 after the scale 1/2, attention 1 1 2 4 over 8, patch 2 first. The block before looks at patch 0."""
    query, key = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    query[0, 0, 1], key[0, 1:, 1] = 2 * math.log(2), torch.arange(3.)
    seen = dict(attn=torch.tensor([[[.1, .7, .1, .1]]]), past_key=torch.ones(1, 4, 4))
    tokens = vision(torch.zeros(1, 4, 1), query=query, key=key, **seen)
    r = PruMerge(keep=2).reduce(tokens)
    torch.testing.assert_close(r.score, torch.tensor([1, 2, 4]) / 8)
    assert r.keep.tolist() == [2, 1] and PruMerge().needs == {"query", "key"}
    assert penultimate(keep=2).reduce(tokens).keep.tolist() == [0, 1] and penultimate().needs == {"attn", "past_key"}


# --- recorded ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case, name", [(c["case"], name) for c in FACTS["cases"] for name in RUNS
                                        if f"case{c['case']}.{name}.out" in RECORDED])
def test_recorded(case, name):
    """Attention, indices in their order and features of the released code; case 0 has the fixed ratios 1/8 and 1/16 too."""
    name, method = f"case{case}.{name}", RUNS[name]
    hidden, query = RECORDED[f"case{case}.hidden"], RECORDED[f"case{case}.q_cls"]
    query = torch.cat([query[:, None], torch.zeros_like(hidden[:, 1:])], dim=1)    # the patches' own queries do not count
    tokens = vision(hidden, query=query, key=RECORDED[f"case{case}.k"])
    r = method.reduce(tokens)
    torch.testing.assert_close(r.score, RECORDED[f"case{case}.cls_attn"][0], atol=1e-6, rtol=1e-5)
    if f"{name}.idx" in RECORDED:
        assert r.keep[:-1].tolist() == RECORDED[f"{name}.idx"].tolist()
    tokens = tokens.reduced(r)
    torch.testing.assert_close(tokens.hidden[tokens.visual], RECORDED[f"{name}.out"][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("keep", [73, 145])
def test_fixed_plus_without_duplicates(keep):
    """Of 576 patches exactly `keep` tokens, no place twice; the strong half and the released grid are among them."""
    hidden, query = RECORDED["case0.hidden"], RECORDED["case0.q_cls"][:, None].expand_as(RECORDED["case0.hidden"])
    tokens, k = vision(hidden, query=query, key=RECORDED["case0.k"]), (keep - 1) // 2
    kept, released = (PruMergePlus(keep, duplicates=d).reduce(tokens).keep for d in (False, True))
    assert len(kept) == len(set(kept.tolist())) == keep and len(set(released[:-1].tolist())) < keep - 1
    assert kept[:k].equal(released[:k]) and set(released[k:2 * k].tolist()) <= set(kept.tolist())


# --- edges ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [PruMerge, PruMergePlus])
@pytest.mark.parametrize("n", range(1, 10))
def test_every_count(kind, n):
    """Any number left of any n: no NaN, no place twice; and the adaptive form of flat attention, which has no outlier."""
    for options in ({}, {"pooled": False}, {"sources": "pruned"}, {"normalise": True}, {"neighbours": 0}):
        for k in [None, *range(1, n + 1)]:
            method = penultimate(kind, keep=k, **options)
            keep, weights = reduced(method, [1 / (n + 1)] * n, [20 * i for i in range(n)])
            assert len(set(keep)) == len(keep) == len(weights) and weights.isfinite().all()
            assert method.budget(n) in (None, len(keep)) and len(keep) >= 1


def test_every_patch_kept_by_plus():
    """With every patch but the last on the grid (stride 1) the pooled token is the last patch, weighted. Where that is the
    outlier, nothing is left over and there is no pooled token."""
    assert sorted(reduced(penultimate(PruMergePlus), (.01, .02, .02, .01, .5), [0] * 5)[0]) == [0, 1, 2, 3, 4]
    keep, weights = reduced(penultimate(PruMergePlus), (.5, .02, .02, .01, .01), [0] * 5)
    assert sorted(keep) == [0, 1, 2, 3, 4] and keep[-1] == 4
    torch.testing.assert_close(weights[-1], torch.tensor([0, 0, 0, 0, .01]))


def test_ties():
    """Six hundred equal patches: the first ones, and their neighbours are the first ones but themselves."""
    keep, weights = reduced(penultimate(keep=3, neighbours=2), (1e-3,) * 600, [0] * 600)
    assert keep == [0, 1, 2] and weights[:2].nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_zero_keys_and_zero_attention():
    """No NaN: a zero key is like none, and an average over no attention at all is one all the same."""
    attn, past_key = torch.tensor([[[1., 0, 0, 0, 0]]]), torch.zeros(1, 5, 2)
    r = penultimate(keep=3, normalise=True).reduce(vision(torch.ones(1, 5, 1), attn=attn, past_key=past_key))
    assert r.keep.tolist() == [0, 1, 2]
    torch.testing.assert_close(r.merge.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("kind", [PruMerge, PruMergePlus])
def test_each_tile_by_itself(kind):
    """Two tiles as one image: each has the outliers, neighbours and pooled token that it has alone."""
    parts = [RECORDED[f"case{c}.{name}"] for name in ("hidden", "k") for c in (0, 3)]
    query = [RECORDED[f"case{c}.q_cls"][:, None].expand(1, 577, -1) for c in (0, 3)]
    both = kind().reduce(vision(torch.cat(parts[:2]), query=torch.cat(query), key=torch.cat(parts[2:])))
    alone = [kind().reduce(vision(h, query=q, key=k)) for h, k, q in zip(parts[:2], parts[2:], query)]
    assert both.keep.tolist() == alone[0].keep.tolist() + (576 + alone[1].keep).tolist()
    torch.testing.assert_close(both.merge, torch.block_diag(*(r.merge for r in alone)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Attention, keys and sums are float32: the same tokens as from the same numbers in float32; features in half again."""
    hidden, key = (RECORDED[f"case0.{name}"].to(dtype) for name in ("hidden", "k"))
    query = RECORDED["case0.q_cls"][:, None].expand_as(hidden).to(dtype)
    tokens, exact = (vision(hidden.to(d), query=query.to(d), key=key.to(d)) for d in (dtype, torch.float32))
    r, expected = PruMerge().reduce(tokens), PruMerge().reduce(exact)
    assert r.keep.equal(expected.keep) and r.merge.equal(expected.merge) and tokens.reduced(r).hidden.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_likeness_in_half_precision(dtype):
    """Keys of (1, 0), (1, 1/32) and (1, 1/64), so that patch 2 is nearest to 0; of length 1 in half precision they are too close."""
    key = torch.tensor([[[0, 0], [1, 0], [1, 1 / 32], [1, 1 / 64]]], dtype=dtype)
    tokens = vision(torch.zeros(1, 4, 1, dtype=dtype), attn=torch.tensor([[[0, .5, .3, .2]]]), past_key=key)
    weights = penultimate(keep=2, neighbours=1).reduce(tokens).merge
    torch.testing.assert_close(weights[0], torch.tensor([1, 0, .2]))


def test_not_a_number():
    with pytest.raises(UserError, match="NaN.*float32"):
        reduced(penultimate(), (.1, math.nan), (0, 1))


def test_what_it_says():
    assert PruMerge().laws == PruMergePlus().laws == frozenset() and PruMerge.preconditions == {"cls"}
    assert PruMerge(73).laws == PruMergePlus(73).laws == {"budget"}
    assert PruMergePlus(73, duplicates=True).laws == frozenset() and penultimate().laws == {"needle"}
    assert PruMerge().budget(576) is None and PruMerge(73).budget(5 * 576, tiles=5) == 365
    assert PruMerge.site == PruMergePlus.site == "vision"


def test_laws_that_do_not_hold():
    """Not to select: rows are sums. Not in order: by attention. Not scale: twice the attention, twice the neighbours' weight. With
    duplicates=True not the budget: of 6 left of 16 three are strong, and the grid has a patch in 5, 2 7 12: 7 with the pooled."""
    attn = torch.tensor(ATTN)
    once, twice = (reduced(penultimate(neighbours=2), (attn * s).tolist(), DEGREES) for s in (.5, 1))
    assert once[0] == twice[0] == [1, 0] and not torch.allclose(once[1], twice[1])
    assert len(reduced(penultimate(PruMergePlus, keep=6, duplicates=True), [1 / 16] * 16, [0] * 16)[0]) == 7


@pytest.mark.parametrize("size", [2, 4, 30])
def test_needle(size):
    """Nearly all of the attention on one patch: it is kept, or with too few patches for an outlier the pooled token, which is
    nearly it alone, takes its place."""
    attn = [.01 / size] * size
    attn[size // 2] = .98
    for kind in (PruMerge, PruMergePlus):
        for keep in (None, 1, 2):
            for pooled in (True, False):
                assert size // 2 in reduced(penultimate(kind, keep=keep, pooled=pooled), attn, [0] * size)[0]


@pytest.mark.parametrize("options", [dict(keep=0), dict(keep=1.5), dict(neighbours=-1), dict(sources="none"),
                                     dict(attention="first")])
def test_bad_options(options):
    for kind in (PruMerge, PruMergePlus):
        with pytest.raises(UserError, match="keep|" + kind.__name__):
            kind(**options)


@pytest.mark.parametrize("options", [dict(density=0), dict(duplicates=True)])
def test_bad_options_of_plus(options):
    with pytest.raises(UserError, match="PruMergePlus"):
        PruMergePlus(**options)
