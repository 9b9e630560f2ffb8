"""PruMerge and PruMerge+ by hand, and equal to the released code's recorded behaviour.

Keys are vectors in the plane, written with their angles. If an example is not about whose attention it is, the
attention is typed (Typed and its like below). `weights` are the rows of the merge, one column a patch.
"""

import math

import pytest
import torch

from build import close, plane, tiles
from golden import golden
from pruning.base import UserError
from pruning.prumerge import PruMerge, PruMergePlus, full_width, outliers
from pruning.readings import PruMergeAverage, PruMergePaper, PruMergePlusReleased

RECORDED, FACTS = golden("prumerge")
RUNS = {"prumerge": PruMerge(), "plus": PruMergePlus(),
        "prumerge_fixed_r125": PruMerge(73), "plus_fixed_r125": PruMergePlusReleased(145),
        "prumerge_fixed_r0625": PruMerge(37), "plus_fixed_r0625": PruMergePlusReleased(73)}


class Typed(PruMerge):
    """Reads what an example types as attention and keys."""

    def attention_and_keys(self, tokens):
        attention = tokens.before.cls_attention().mean(dim=0)                      # (n,)
        return attention, full_width(tokens.before.key())[tokens.visual]


class TypedPlus(PruMergePlus):
    attention_and_keys = Typed.attention_and_keys


class TypedPlusReleased(PruMergePlusReleased):
    attention_and_keys = Typed.attention_and_keys


class TypedAverage(PruMergeAverage, Typed):
    pass


class Unpooled(Typed):
    pooled = 0


class UnpooledPlus(TypedPlus):
    pooled = 0


class OnlyPrunedAreMerged(Typed):
    merges_kept = False


class OnlyPrunedAreMergedPlus(TypedPlus):
    merges_kept = False


def patches(attention, degrees):
    """Tokens of one image: each patch's attention from the class token, in all 1, and its key's angle."""
    attention = torch.tensor([[max(0., 1 - sum(attention)), *attention]])
    key = torch.cat([torch.zeros(1, 2), plane(*degrees)])[None]
    hidden = torch.arange(len(degrees) + 1.)[None, :, None]
    return tiles(hidden, attention, key=key)


def reduced(method, attention, degrees):
    """(keep, weights) of one image."""
    r = method.reduce(patches(attention, degrees))
    return r.keep.tolist(), r.merge


def recorded(case, dtype=torch.float32):
    """Tokens of a recorded case; the patches' own queries do not count."""
    hidden = RECORDED[f"case{case}.hidden"].to(dtype)
    query = RECORDED[f"case{case}.q_cls"][:, None].expand_as(hidden).to(dtype)
    return tiles(hidden, here=dict(query=query, key=RECORDED[f"case{case}.k"].to(dtype)))


# --- by hand ----------------------------------------------------------------------------------------------------------

ATTENTION = (.1, .6, .1, .05, .05)
DEGREES = (10, 0, 90, 5, 180)


def test_one_outlier():
    """Attention in order: .05 .05 .1 .1 .6; Q1 = .05, Q3 = .1, the fence .1 + 1.5 * .05 = .175: patch 1 alone is
    above. Its two nearest keys are 3 and 0 (5 and 10 degrees): x1 + .05 x3 + .1 x0. The pooled token is the sum of
    all others, in the place of the strongest of them, of equals the first: 0."""
    keep, weights = reduced(Typed(neighbours=2), ATTENTION, DEGREES)
    assert keep == [1, 0]
    close(weights, [[.1, 1, 0, .05, 0], [.1, 0, .1, .05, .05]])
    every = reduced(Typed(), ATTENTION, DEGREES)[1][0]  # 32 neighbours are all others: not the patch itself once more
    close(every, [.1, 1, .1, .05, .05])


def test_the_fence_is_not_the_mean():
    """.20 .18 .16 and six below .06: Q1 = .04, Q3 = .16, the fence .34. Three patches are above the mean, .087, and
    none is an outlier: all that is left is the pooled token, in the place of the strongest."""
    attention = (.05, .20, .05, .18, .04, .16, .04, .03, .03)
    assert sum(a > sum(attention) / 9 for a in attention) == 3
    keep, weights = reduced(Typed(), attention, [0] * 9)
    assert keep == [1]
    close(weights, [attention])


def test_percentiles_are_interpolated():
    """.05 .1 .15 .35: Q1 at .75 of the way from .05 to .1, .0875; Q3 a quarter from .15 to .35, .2; the fence .2 +
    1.5 * .1125 = .36875: no outlier. The values at hand, .05 and .15, would put it at .3, below .35. At .37 Q3 is
    .205 and the fence .38125; at .5 Q3 is .2375, the fence .4625: an outlier."""
    assert [outliers(torch.tensor([.05, .1, .15, last])) for last in (.35, .37, .5)] == [0, 0, 1]


def test_the_fence_itself_is_inside():
    """0 0 2 2 5, in sixteenths: Q1 = 0, Q3 = 2, the fence 5."""
    assert outliers(torch.tensor([0, 2, 0, 2, 5.]) / 16) == 0
    assert outliers(torch.tensor([0, 2, 0, 2, 6.]) / 16) == 1


def test_order_is_that_of_attention():
    """Three left of four: the two strongest, the strongest first, then the pooled token in the place of the third."""
    assert reduced(Typed(keep=3), (.1, .3, .2, .4), (0, 90, 180, 270))[0] == [3, 1, 2]


def test_a_grid_next_to_the_outliers():
    """PruMerge+: one outlier, 3, of nine (the fence is .02 + 1.5 * .01), so a patch in 9 / 3 = 3: 0, 3, 6, of which
    3 is kept already. The grid ends before 8. The pooled token stands in for the strongest of the rest, 1."""
    attention = (.01, .03, .01, .7, .02, .01, .01, .01, .02)
    assert reduced(TypedPlus(), attention, [0] * 9)[0] == [3, 0, 6, 1]
    assert reduced(TypedPlus(density=2), attention, [0] * 9)[0] == [3, 0, 4, 1]     # a patch in 9 // 2 = 4


def test_the_last_patch_is_on_no_grid():
    """All seven alike but one: stride 7 // 1 // 3 = 2 would come to 6, the last patch; the grid is 0 2 4."""
    assert reduced(TypedPlus(), (.01, .9, .02, .01, .01, .01, .01), [0] * 7)[0] == [1, 0, 2, 4, 3]


STRONG = (.01, .02, .3, .04, .05, .2, .07, .08)                                    # 2 5 7 6 4 3 1 0 by attention


def test_fixed_number_of_plus():
    """Five left of eight: two strong ones, 2 and 5; two of a grid, 2 and 6 (the middles of 0-3 and 4-7), but 2 is
    kept already, so the next strongest, 7, fills up; and the pooled token, in the place of 4."""
    assert reduced(TypedPlus(keep=5), STRONG, [0] * 8)[0] == [2, 5, 6, 7, 4]


def test_released_plus_keeps_twice():
    """The released PruMerge+ keeps 2 5 and the grid 2 6. Patch 2 is its own copy's nearest neighbour: 1 + .3. As
    four entries are taken out of the rest where three patches left it, its first, 0, is lost: the pooled token is
    the sum of 1 3 4 7."""
    degrees = (0, 30, 60, 90, 120, 150, 180, 210)
    keep, weights = reduced(TypedPlusReleased(keep=5, neighbours=1), STRONG, degrees)
    assert keep == [2, 5, 2, 6, 7]
    close(weights[[0, 2]], [[0, 0, 1.3, 0, 0, 0, 0, 0]] * 2)
    close(weights[4], [0, .02, 0, .04, .05, 0, 0, .08])


# --- paper and code ---------------------------------------------------------------------------------------------------

def test_weights_are_not_convex():
    """The rows of test_one_outlier sum to 1.15 and .3: that law is not declared. The average divides .6 x1 + .05 x3
    + .1 x0 by .75, and the pooled row by .3."""
    _, weights = reduced(Typed(neighbours=2), ATTENTION, DEGREES)
    close(weights.sum(dim=1), [1.15, .3])
    _, average = reduced(TypedAverage(neighbours=2), ATTENTION, DEGREES)
    close(average * torch.tensor([[.75], [.3]]), [[.1, .6, 0, .05, 0], [.1, 0, .1, .05, .05]])
    close(average.sum(dim=1), [1, 1])
    assert "convex" in PruMergeAverage().laws
    assert "convex" not in PruMerge().laws


def test_without_the_pooled_token():
    """The paper's: the outlier alone; where there is none, the strongest patch."""
    keep, weights = reduced(Unpooled(neighbours=2), ATTENTION, DEGREES)
    assert keep == [1]
    close(weights, [[.1, 1, 0, .05, 0]])
    assert reduced(Unpooled(), (.2, .3, .1), (0, 1, 2))[0] == [1]
    assert len(reduced(Unpooled(keep=3), STRONG, [0] * 8)[0]) == 3


def test_whose_neighbours():
    """Kept 0 and 1, of keys 0 and 10 degrees; the pruned lie at 40 and 90. Of all tokens they are each other's
    nearest; of the pruned ones both are nearest to 2."""
    attention = (.4, .3, .1, .05)
    degrees = (0, 10, 40, 90)
    _, weights = reduced(Typed(keep=3, neighbours=1), attention, degrees)
    close(weights[:2], [[1, .3, 0, 0], [.4, 1, 0, 0]])
    _, weights = reduced(OnlyPrunedAreMerged(keep=3, neighbours=1), attention, degrees)
    close(weights[:2], [[1, 0, .1, 0], [0, 1, .1, 0]])


def test_the_paper():
    """All of it on the first example: the block before, whose attention is typed; averages; only pruned patches are
    merged; nothing is pooled. The outlier is 1, its two nearest are 3 and 0: (.6 x1 + .05 x3 + .1 x0) / .75."""
    keep, weights = reduced(PruMergePaper(neighbours=2), ATTENTION, DEGREES)
    assert keep == [1]
    close(weights * .75, [[.1, .6, 0, .05, 0]])
    both, weights = reduced(PruMergePaper(keep=2, neighbours=1), (.4, .3, .1, .05), (0, 10, 40, 90))
    assert both == [0, 1]
    close(weights, [[.8, 0, .2, 0], [0, .75, .25, 0]])     # .4 and .1, .3 and .1: not of each other
    assert PruMergePaper().laws == {"convex", "needle"}
    assert PruMergePaper(keep=2).laws == {"convex", "needle", "budget"}


def test_whose_attention():
    """Width 4. The last block's class token asks (0, 2 ln 2, 0, 0); keys (0, j, 0, 0) for patches j = 0 .. 2 and 0
    for the class token: logits j ln 2 after the scale 1/2, attention 1 1 2 4 over 8, patch 2 first. The block before
    looks at patch 0."""
    query = torch.zeros(1, 4, 4)
    query[0, 0, 1] = 2 * math.log(2)
    key = torch.zeros(1, 4, 4)
    key[0, 1:, 1] = torch.arange(3.)
    tokens = tiles(torch.zeros(1, 4, 1), torch.tensor([[0.1, 0.7, 0.1, 0.1]]), key=torch.ones(1, 4, 4),
                   here=dict(query=query, key=key))
    r = PruMerge(keep=2).reduce(tokens)
    close(r.score, [1 / 8, 2 / 8, 4 / 8])
    assert r.keep.tolist() == [2, 1]
    assert PruMergePaper(keep=1).reduce(tokens).keep.tolist() == [0]


def test_one_head_over_the_full_width():
    """Two heads of width 2, side by side one of width 4. The class token's query is (a, 0 | 0, a), patches have keys
    (1, 0 | 0, 0), (0, 0 | 0, 1) and (1, 0 | 0, 1), the class token 0. With a = 2 ln 3 the logits are ln 3 times 1,
    1, 2 and 0: attention 3 3 9 over 16. By heads they would be sqrt(2) as large, and the mean of two softmaxes."""
    a = 2 * math.log(3)
    query = torch.zeros(1, 2, 4, 2)                                                # (1, H, 4, Dh)
    query[0, :, 0] = torch.tensor([[a, 0], [0, a]])
    key = torch.zeros(1, 2, 4, 2)
    key[0, 0, :, 0] = torch.tensor([0., 1, 0, 1])
    key[0, 1, :, 1] = torch.tensor([0., 0, 1, 1])
    r = PruMerge(keep=2).reduce(tiles(torch.zeros(1, 4, 1), here=dict(query=query, key=key)))
    close(r.score, [3 / 16, 3 / 16, 9 / 16])


# --- recorded ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case, name", [(c["case"], name) for c in FACTS["cases"] for name in RUNS
                                        if f"case{c['case']}.{name}.out" in RECORDED])
def test_recorded(case, name):
    """Attention, indices in their order and features of the released code; case 0 has the fixed ratios 1/8 and 1/16
    too."""
    tokens = recorded(case)
    r = RUNS[name].reduce(tokens)
    close(r.score, RECORDED[f"case{case}.cls_attn"][0], 1e-6)
    index = RECORDED.get(f"case{case}.{name}.idx")
    if index is not None:
        assert r.keep[:-1].tolist() == index.tolist()
    left = tokens.reduced(r)
    close(left.hidden[left.visual], RECORDED[f"case{case}.{name}.out"][0])


@pytest.mark.parametrize("keep", [73, 145])
def test_fixed_plus_without_duplicates(keep):
    """Of 576 patches exactly `keep` tokens, no place twice; the strong half and the released grid are among them."""
    ours = PruMergePlus(keep).reduce(recorded(0)).keep
    released = PruMergePlusReleased(keep).reduce(recorded(0)).keep
    assert len(ours) == len(set(ours.tolist())) == keep
    assert len(set(released[:-1].tolist())) < keep - 1
    half = (keep - 1) // 2
    assert ours[:half].equal(released[:half])
    assert set(released[half:2 * half].tolist()) <= set(ours.tolist())


# --- edges ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind, options", [
    (Typed, {}),
    (TypedPlus, {}),
    (Unpooled, {}),
    (UnpooledPlus, {}),
    (OnlyPrunedAreMerged, {}),
    (OnlyPrunedAreMergedPlus, {}),
    (TypedAverage, {}),
    (PruMergePaper, {}),
    (Typed, {"neighbours": 0}),
    (TypedPlus, {"neighbours": 0}),
])
@pytest.mark.parametrize("n", range(1, 10))
def test_every_count(kind, options, n):
    """Any number left of any n: no NaN, no place twice; and the adaptive form of flat attention, which has no
    outlier."""
    for k in [None, *range(1, n + 1)]:
        method = kind(keep=k, **options)
        keep, weights = reduced(method, [1 / (n + 1)] * n, [20 * i for i in range(n)])
        assert len(set(keep)) == len(keep) == len(weights) >= 1
        assert weights.isfinite().all()
        assert method.budget(n) in (None, len(keep))


def test_every_patch_kept_by_plus():
    """With every patch but the last on the grid (stride 1) the pooled token is the last patch, weighted. Where that
    is the outlier, nothing is left over and there is no pooled token."""
    assert sorted(reduced(TypedPlus(), (.01, .02, .02, .01, .5), [0] * 5)[0]) == [0, 1, 2, 3, 4]
    keep, weights = reduced(TypedPlus(), (.5, .02, .02, .01, .01), [0] * 5)
    assert sorted(keep) == [0, 1, 2, 3, 4]
    assert keep[-1] == 4
    close(weights[-1], [0, 0, 0, 0, .01])


def test_ties():
    """Six hundred equal patches: the first ones, and their neighbours are the first ones but themselves."""
    keep, weights = reduced(Typed(keep=3, neighbours=2), (1e-3,) * 600, [0] * 600)
    assert keep == [0, 1, 2]
    assert weights[:2].nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_zero_keys_and_zero_attention():
    """No NaN: a zero key is like none, and an average over no attention at all is one all the same."""
    tokens = tiles(torch.ones(1, 5, 1), torch.tensor([[1., 0, 0, 0, 0]]), key=torch.zeros(1, 5, 2))
    r = TypedAverage(keep=3).reduce(tokens)
    assert r.keep.tolist() == [0, 1, 2]
    close(r.merge.sum(dim=1), [1, 1, 1])
    close(PruMergePaper(keep=3).reduce(tokens).merge.sum(dim=1), [1, 1, 1])


@pytest.mark.parametrize("kind", [PruMerge, PruMergePlus])
def test_each_tile_by_itself(kind):
    """Two tiles as one image: each has the outliers, neighbours and pooled token that it has alone."""
    hidden = torch.cat([RECORDED["case0.hidden"], RECORDED["case3.hidden"]])
    query = torch.cat([RECORDED["case0.q_cls"], RECORDED["case3.q_cls"]])[:, None].expand_as(hidden)
    key = torch.cat([RECORDED["case0.k"], RECORDED["case3.k"]])
    both = kind().reduce(tiles(hidden, here=dict(query=query, key=key)))
    first = kind().reduce(recorded(0))
    second = kind().reduce(recorded(3))
    assert both.keep.tolist() == [*first.keep.tolist(), *(576 + second.keep).tolist()]
    close(both.merge, torch.block_diag(first.merge, second.merge))
    assert kind.per == "tile"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Attention, keys and sums are float32: the same tokens as from the same numbers in float32; features in half
    again."""
    half = recorded(0, dtype)
    query = RECORDED["case0.q_cls"][:, None].expand_as(RECORDED["case0.hidden"])
    exact = {name: x.to(dtype).float() for name, x in dict(query=query, key=RECORDED["case0.k"]).items()}
    r = PruMerge().reduce(half)
    expected = PruMerge().reduce(tiles(RECORDED["case0.hidden"], here=exact))
    assert r.keep.equal(expected.keep)
    assert r.merge.equal(expected.merge)
    assert half.reduced(r).hidden.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_likeness_in_half_precision(dtype):
    """Keys of (1, 0), (1, 1/32) and (1, 1/64), so that patch 2 is nearest to 0; of length 1 in half precision they
    are too close."""
    key = torch.tensor([[[0, 0], [1, 0], [1, 1 / 32], [1, 1 / 64]]], dtype=dtype)
    tokens = tiles(torch.zeros(1, 4, 1, dtype=dtype), torch.tensor([[0, .5, .3, .2]]), key=key)
    weights = Typed(keep=2, neighbours=1).reduce(tokens).merge
    close(weights[0], [1, 0, .2])


def test_not_a_number():
    with pytest.raises(UserError, match="NaN.*float32"):
        reduced(Typed(), (.1, math.nan), (0, 1))


def test_what_it_says():
    assert PruMerge().laws == PruMergePlus().laws == frozenset()
    assert PruMerge(73).laws == PruMergePlus(73).laws == {"budget"}
    assert PruMergePlusReleased(73).laws == frozenset()
    assert PruMerge().budget(576) is None
    assert PruMerge(73).tokens_left(5 * 576, {"tile": (5, 576)}) == 365
    assert PruMerge().tokens_left(5 * 576, {"tile": (5, 576)}) is None
    assert PruMerge.site == PruMergePlus.site == "vision"
    assert PruMerge.preconditions == {"cls"}


def test_laws_that_do_not_hold():
    """Not to select: rows are sums. Not in order: by attention. Not scale: twice the attention, twice the
    neighbours' weight. Not disjoint: of test_one_outlier, patch 0 is in both rows. As released, PruMerge+ does not
    keep the budget: of 6 left of 16 three are strong, and the grid has a patch in 5, 2 7 12: 7 with the pooled."""
    keep, weights = reduced(Typed(neighbours=2), ATTENTION, DEGREES)
    half_keep, half_weights = reduced(Typed(neighbours=2), [a / 2 for a in ATTENTION], DEGREES)
    assert keep == half_keep == [1, 0]
    assert not torch.allclose(weights, half_weights)
    assert (weights[:, 0] > 0).all()
    assert len(reduced(TypedPlusReleased(keep=6), [1 / 16] * 16, [0] * 16)[0]) == 7


@pytest.mark.parametrize("kind", [Typed, TypedPlus, Unpooled, UnpooledPlus, PruMergePaper])
@pytest.mark.parametrize("size", [2, 4, 30])
def test_needle(kind, size):
    """Nearly all of the attention on one patch: it is kept, or with too few patches for an outlier the pooled token,
    which is nearly it alone, takes its place."""
    attention = [.01 / size] * size
    attention[size // 2] = .98
    for keep in (None, 1, 2):
        assert size // 2 in reduced(kind(keep=keep), attention, [0] * size)[0]


@pytest.mark.parametrize("kind", [PruMerge, PruMergePlus])
@pytest.mark.parametrize("options, message", [
    (dict(keep=0), "keep 0 is out of range"), (dict(keep=1.5), "keep 1.5 is out of range"),
    (dict(neighbours=-1), "neighbours must be at least 0")])
def test_bad_options(kind, options, message):
    with pytest.raises(UserError, match=message):
        kind(**options)


def test_bad_options_of_plus():
    with pytest.raises(UserError, match="PruMergePlus: density must be at least 1"):
        PruMergePlus(density=0)
    with pytest.raises(UserError, match="PruMergePlusReleased: keep is a number; got None"):
        PruMergePlusReleased(keep=None)
