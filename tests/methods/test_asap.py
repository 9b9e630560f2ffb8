"""ASAP: equal to its recorded reading, right by hand, each rung of Figure 4 another method, text never touched."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from build import close, tokens
from golden import golden, of_case
from pruning.adaptprune import AdaptPrune
from pruning.asap import ASAP, FastVBiMask, SGBiMask, by_anchors, image_of, masses
from pruning.base import LayerView, Reduction, UserError
from pruning.fastv import FastV
from pruning.ranked import top
from pruning.readings import ASAPDedup, ASAPMaskLast, ASAPMaskLastSimilar, ASAPMeanMerge, ASAPPrunePast
from pruning.readings import ASAPRenumbered, ASAPSaliencyRank, ASAPSimilarRoute, ASAPUniformMask
from pruning.readings import FastVAllRows, FastVBiMaskLast, FastVMask
from tiny import MARK, SETTINGS, Around, ids, llava, picture, prefill
from waits import waits

RECORDED, FACTS = golden("asap_recommended")
INF = float("inf")
READINGS = [ASAP, ASAPMaskLast, ASAPMaskLastSimilar, ASAPSaliencyRank, ASAPUniformMask, ASAPMeanMerge,
            ASAPSimilarRoute, ASAPDedup]


def causal(T):
    return torch.full((T, T), -INF).triu(1)


def after_layer(method, kinds, query, key, **fields):
    """Tokens after layer K-1, with its queries and keys (H, T, Dh), which has run under the mask of the method."""
    view = dict(query=query, key=key)
    entering = tokens(kinds, here=view, **fields)
    mask = method.mask(entering) if method.mask_at(32) else entering.here.mask()
    attention = (entering.here.logits().float() + mask).softmax(dim=-1)            # (H, T, T)
    return tokens(kinds, attention, before=view, here=view, **fields)


def drawn(method, n=12, seed=0, gap=0, H=2, D=4):
    """A random prompt; hidden states in a few directions, so that some are similar. gap: text tokens amid the image."""
    kinds = "tt" + "v" * (n // 2) + "t" * gap + "v" * (n - n // 2) + "ttt"
    generator = torch.Generator().manual_seed(seed)
    T = len(kinds)
    directions = torch.randn(3, D, generator=generator)
    hidden = directions[torch.randint(3, (T,), generator=generator)] + .2 * torch.randn(T, D, generator=generator)
    query = torch.randn(H, T, D, generator=generator)
    key = torch.randn(H, T, D, generator=generator)
    return after_layer(method, kinds, query, key, hidden=hidden)


def with_views(entering, hidden=None, **changed):
    """The same tokens with other attention, queries or keys, and other hidden states."""
    given = dict(query=entering.here.query(), key=entering.here.key(), attention=entering.before.attention())
    view = LayerView.of(**{**given, **changed})
    entering = replace(entering, hidden=entering.hidden if hidden is None else hidden)
    return replace(entering, before=view.on(entering), here=view.on(entering))


def result(n=12, seed=0, gap=0, method=ASAP, **options):
    pruner = method(**{"keep": n // 2, **options})
    return pruner.reduce(drawn(pruner, n, seed, gap))


def kept(**case):
    return result(**case).keep.tolist()


def with_logits(W):
    """Queries and keys of one head, (T, T) each, whose logits are W (T, T): each key is one of the axes."""
    T = len(W)
    return dict(query=W * T ** .5, key=torch.eye(T))


# --- the recorded reading ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", FACTS["cases"])
def test_recorded(case):
    """Saliency, mask, attention, score, first top-k, anchors, destinations, salvaged, final tokens and their values."""
    facts = FACTS["cases"][case]
    recorded = of_case(RECORDED, case)
    k = facts["k"]
    system, n, T = (facts[name] for name in ("sys_len", "n_visual", "seq_len"))
    kinds = "t" * system + "v" * n + "t" * (T - system - n)
    method = ASAPMaskLastSimilar(keep=k, threshold=facts["threshold"], lambda_max=facts["lambda_max"])
    entering = after_layer(method, kinds, recorded["q"], recorded["k"], hidden=recorded["hidden"])

    s, s_hat = masses(entering, entering.before)
    close(s, recorded["s"], rtol=1e-5)
    close(s_hat, recorded["s_hat"], rtol=1e-5)
    if "A" in recorded:
        close(method.mask(entering), recorded["mask"], rtol=1e-5)
        close(entering.before.attention(), recorded["A"], rtol=1e-5)

    first = top(method.score(entering), k)
    destination = method.routing(entering, recorded["s_hat"], first)
    anchors = first[destination[first] == first]
    salvaged = method.reallocation(entering, recorded["s"], first, anchors)
    assert first.tolist() == recorded["keep0"].tolist()
    assert sorted(anchors.tolist()) == sorted(recorded["anchors"].tolist())
    assert destination[recorded["sources"]].tolist() == recorded["dest"].tolist()
    assert sorted(salvaged.tolist()) == sorted(recorded["salvaged"].tolist())

    r = method.reduce(entering)
    close(r.score, recorded["score"], rtol=1e-5)
    assert r.keep.tolist() == recorded["final"].tolist()
    after = entering.reduced(r)
    close(after.hidden[after.visual], recorded["final_hidden"], rtol=1e-5)


# --- 4.1 by hand ------------------------------------------------------------------------------------------------------

W = torch.tensor([[9., 0, 0, 0, 0],            # a system row, three visual tokens a b c, a text row
                  [9., 1, 0, 2, 0],            # a
                  [9., 0, 1, 3, 0],            # b
                  [9., 0, 2, 1, 0],            # c
                  [9., 7, 1, 1, 0]])


def test_mass_and_saliency():
    """Eq. 2: the columns of a b c, over the rows of a b c alone, sum to s = 1 3 6. Eq. 3: s_hat = (s - 1) / 5 = 0 .4 1.

    The 7 that the text row gives to a, and the system row, count for nothing.
    """
    entering = tokens("tvvvt", before=with_logits(W))
    s, s_hat = masses(entering, entering.before)
    close(s, [1, 3, 6])
    close(s_hat, [0, .4, 1])


def test_mass_is_the_mean_over_heads():
    """The logits of a second head are three times those of the first: s = (1 + 3) / 2 times 1 3 6, and s_hat is the
    same.

    Two query heads that share a key head have as their mean what two key heads of the same values give.
    """
    view = with_logits(W)
    query = torch.stack([view["query"], 3 * view["query"]])                        # (2, T, T)
    for key in (view["key"][None], view["key"].expand(2, -1, -1)):
        entering = tokens("tvvvt", before=dict(query=query, key=key))
        s, s_hat = masses(entering, entering.before)
        close(s, [2, 6, 12])
        close(s_hat, [0, .4, 1])


def test_each_image_has_its_own_saliency():
    """Text between a and b parts them: a has its own 1 alone, b 1 + 2 = 3 and c 3 + 1 = 4, so s_hat = 0 | 0 1."""
    order = [0, 1, 4, 2, 3]
    entering = tokens("tvtvv", before=with_logits(W[order][:, order]))
    s, s_hat = masses(entering, entering.before)
    assert image_of(entering).tolist() == [0, 1, 1]
    close(s, [1, 3, 4])
    close(s_hat, [0, 0, 1])


def test_mask():
    """Eq. 4: s_hat = 0 .4 1 and lambda_max .5 give lambda = 0 .2 .5. a sees b by ln .2 and c by ln .5, b sees c by ln
    .5.

    Everything else stays causal: above all, no text row sees a later one, nor an image that comes later.
    """
    expected = causal(5)
    expected[1, 2] = torch.tensor(.2).log()
    expected[1, 3] = expected[2, 3] = torch.tensor(.5).log()
    close(ASAP(lambda_max=.5).mask(tokens("tvvvt", here=with_logits(W))), expected)


def test_uniform_mask():
    """The foil shows b and c alike: ln .5 for all three pairs."""
    expected = causal(5)
    expected[1, 2] = expected[1, 3] = expected[2, 3] = torch.tensor(.5).log()
    close(ASAPUniformMask(lambda_max=.5).mask(tokens("tvvvt", here=with_logits(W))), expected)


def test_the_penalty_is_a_factor():
    """Logits of row a: 0 for itself, 0 for b of lambda .5. exp(0 + ln .5) = .5 exp(0): a gives itself 2/3 and b 1/3.

    s = 0 1 0 for a b c with s_hat 0 1 0 and lambda_max .5; c, the least salient, has the floor of 1e-6.
    """
    logits = torch.tensor([[0., 0, 0],
                           [0., 1, 0],
                           [0., 0, 0]])
    entering = after_layer(ASAP(lambda_max=.5), "vvv", **with_logits(logits))
    attention = entering.before.attention()[0]
    close(attention[0], [2 / 3, 1 / 3, 0])
    close(attention[1, 2], 0, atol=1e-6)


def test_mask_of_several_images():
    """Text between two images: no token of the first sees the second ahead, and each sees its own image ahead."""
    method = ASAP()
    entering = drawn(method, gap=1)
    mask = method.mask(entering)
    first, second = entering.visual.split(6)
    for image in (first, second):
        assert (mask[image[:, None], image] > -INF).all()
    assert (mask[first[:, None], second] == -INF).all()


def test_masked_tokens_do_not_part_an_image():
    """b is masked: nobody is open to it, and a and c are one image still. Their rows give s = 1 + 0 and 2 + 1, so c has
    s_hat 1, and a sees it by ln .5."""
    entering = tokens("tvvvt", here=with_logits(W))
    left = entering.reduced(Reduction(torch.tensor([0, 2]), drop=False))
    left = replace(left, here=entering.here.on(left))
    assert image_of(left).tolist() == [0, 0]
    expected = causal(5)
    expected[1, 3] = torch.tensor(.5).log()
    close(FastVBiMask(lambda_max=.5).mask(left), expected)


def test_the_plug_in_with_a_method_that_masks():
    """In a model: what is masked before layer 2 is not seen in layers 2 and 3, whose mask is that of SG-BiMask, too:
    the text rows are those of the method that drops."""

    @dataclass(frozen=True)
    class Masks(SGBiMask, FastVMask):
        """Masks before layer 2, with SG-BiMask in all four layers."""

        def mask_at(self, layers):
            return tuple(range(layers))

    @dataclass(frozen=True)
    class Drops(SGBiMask, FastV):
        """The same, but drops."""

        def mask_at(self, layers):
            return tuple(range(layers))

    model = llava(layers=4)
    prompt = ids(3, MARK, 4)
    masked, dropped = (prefill(model, prompt, [picture(model)], method(keep=6))[0] for method in (Masks, Drops))
    close(masked, dropped, atol=1e-4)


def test_whose_attention_ranks():
    """Rows a b c and text give a b c: (.5 .4 .1), (.2 .6 .2), (.3 .3 .4), (0 .1 .9). One stays.

    The last row (ASAP, as FastV) prefers c with .9; all rows from the image on give a 1.0, b 1.4, c 1.6 of 4: c, too.
    By mass, s = 1 3 6, c again; with the text row's .9 and .1 the other way round the three part: b, b, c. The system
    row is no row from the image on, and its weights do not count.
    """
    rows = torch.tensor([[1, .0, .0, .0, .0],
                         [0, .5, .4, .1, .0],
                         [0, .2, .6, .2, .0],
                         [0, .3, .3, .4, .0],
                         [0, .0, .1, .9, .0]])
    swapped = rows.clone()
    swapped[4] = torch.tensor([0, .0, .9, .1, .0])
    for attention, expected in ((rows, [2, 2, 2]), (swapped, [1, 1, 2])):
        entering = tokens("tvvvt", attention, before=with_logits(W))
        for method, best in zip((ASAP, ASAPMaskLast, ASAPSaliencyRank), expected):
            assert method(keep=1).reduce(entering).keep.tolist() == [best]
    entering = tokens("tvvvt", rows, before=with_logits(W))
    close(ASAPMaskLast().score(entering), torch.tensor([1., 1.4, 1.6]) / 4)
    close(ASAP().score(entering), [0, .1, .9])


# --- 4.2 by hand ------------------------------------------------------------------------------------------------------

def consolidated(hidden, s_hat, kept=None, method=ASAP, **options):
    """{anchor: {token: weight}} for visual tokens with these hidden states (n, D) and saliencies (n,)."""
    pruner = method(**options)
    s_hat = torch.tensor(s_hat)
    kept = torch.arange(len(s_hat)) if kept is None else torch.tensor(kept)
    destination = pruner.routing(tokens("v" * len(s_hat), hidden=hidden), s_hat, kept)
    anchors = kept[destination[kept] == kept]
    weights = pruner.consolidation(anchors, destination == anchors[:, None], s_hat)
    return {anchor: {j: pytest.approx(w, abs=1e-4) for j, w in enumerate(row) if w}
            for anchor, row in zip(anchors.tolist(), weights.tolist())}


def angles(*degrees):
    """(n, 2) unit vectors: their cosines are those of the differences."""
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_consolidation():
    """Eq. 6. Equal directions, saliencies 1 and .5, lengths 4 and 1: (1 * 4 + .5 * 1) / 1.5 = 3. The plain mean is 2.5.

    A third token at 60 degrees (cosine .5) stays as it is.
    """
    hidden = torch.tensor([[4., 0], [1, 0], [.5, .75 ** .5]])
    assert consolidated(hidden, [1, .5, .2]) == {0: {0: 2 / 3, 1: 1 / 3}, 2: {2: 1}}
    assert consolidated(hidden, [1, .5, .2], method=ASAPMeanMerge) == {0: {0: .5, 1: .5}, 2: {2: 1}}

    logits = torch.zeros(3, 3)
    logits[0] = torch.tensor([1., .5, 0])                                          # s = 1 .5 0
    entering = tokens("vvv", torch.full((3, 3), 1 / 3), hidden=hidden, before=with_logits(logits))
    for method, length in ((ASAP, 3.), (ASAPMeanMerge, 2.5)):
        after = entering.reduced(method(keep=3, salvage=False).reduce(entering))
        close(after.hidden, torch.tensor([[length, 0], [.5, .75 ** .5]]))
        assert after.position.tolist() == [0, 2]


def test_flow_is_towards_the_salient():
    """The later of two equal tokens is the more salient: it absorbs the earlier, and keeps its own place. Of equally
    salient ones the first absorbs. What is not among the kept is not merged."""
    assert consolidated(angles(0., 0.), [.2, .8]) == {1: {0: .2, 1: .8}}
    assert consolidated(angles(0., 0.), [.5, .5]) == {0: {0: .5, 1: .5}}
    assert consolidated(angles(0., 0., 0.), [.1, .6, .4], kept=[0, 2]) == {2: {0: .2, 2: .8}}


def test_disjoint_source_sets():
    """a 0, b 20, c 40 degrees with saliencies 1, .6, .4; t = .9 (25.8 degrees): a ~ b ~ c, but not a ~ c.

    b is absorbed by a, (1 a + .6 b) / 1.6, so it can absorb nothing: c is an anchor, too.
    """
    assert consolidated(angles(0., 20., 40.), [1., .6, .4]) == {0: {0: .625, 1: .375}, 2: {2: 1}}


def test_routes():
    """c at 22 degrees is similar to both anchors, a at 0 (saliency 1) and b at 40 (.8), and nearer to b. The most
    salient one absorbs it: a. The other reading: the most similar one, b."""
    hidden = angles(0., 40., 22.)
    s_hat = [1., .8, .2]
    assert consolidated(hidden, s_hat) == {0: {0: 1 / 1.2, 2: .2 / 1.2}, 1: {1: 1}}
    assert consolidated(hidden, s_hat, method=ASAPSimilarRoute) == {0: {0: 1}, 1: {1: .8, 2: .2}}


@pytest.mark.parametrize("method", [ASAP, ASAPSimilarRoute])
def test_a_source_between_two_anchors(method):
    """As similar to both: the more salient absorbs it, 2; of equally salient ones the first, 1."""
    between = torch.tensor([[1., 1], [1, 0], [0, 1]])
    assert consolidated(between, [.2, .8, 1], method=method, threshold=.5) == {1: {1: 1}, 2: {0: .2 / 1.2, 2: 1 / 1.2}}
    assert consolidated(between, [.2, 1., 1], method=method, threshold=.5) == {1: {0: .2 / 1.2, 1: 1 / 1.2}, 2: {2: 1}}


def test_reallocation():
    """Tokens 0 1 2 of 6 are kept, 1 is absorbed by 0. Masses of the pool 3 4 5: 1 3 2, so 4 takes the place, whatever
    attention has ranked. 1 was best of all but never returns."""
    s = torch.tensor([9., 8, 7, 1, 3, 2])
    entering = tokens("vvvvvv", hidden=angles(0., 0., 90., 90., 180., 180.))
    given = entering, s, torch.tensor([0, 1, 2]), torch.tensor([0, 2])
    assert ASAP().reallocation(*given).tolist() == [4]
    assert ASAP(salvage=False).reallocation(*given).tolist() == []


def test_salvaging_only_what_is_new():
    """Of 0 1 2 kept, 0 absorbs two: two places. Pool by mass: 3 (similar to 0), 4, 5 (similar to 4), 6. As the paper
    says 3 and 4; of what is new 4 and 6."""
    s = torch.tensor([9., 8, 7, 6, 5, 4, 3])
    entering = tokens("vvvvvvv", hidden=angles(0., 0., 0., 0., 90., 90., 180.))
    given = entering, s, torch.tensor([0, 1, 2]), torch.tensor([0])
    assert ASAP().reallocation(*given).tolist() == [3, 4]
    assert ASAPDedup().reallocation(*given).tolist() == [4, 6]


def test_what_is_new_may_come_late_in_the_pool():
    """Of three copies one stays: two places. The best three of the pool are copies, too, and 6 and 7 follow."""
    s = torch.arange(9., 1, -1)
    entering = tokens("vvvvvvvv", hidden=angles(0., 0., 0., 0., 0., 0., 90., 180.))
    given = entering, s, torch.tensor([0, 1, 2]), torch.tensor([0])
    assert ASAPDedup().reallocation(*given).tolist() == [6, 7]


def test_a_small_pool_leaves_fewer():
    """4 of 5 equal tokens are kept, three are absorbed, the pool has one: two are left, or without salvage one."""
    method = ASAP(keep=4)
    entering = replace(drawn(method, n=5), hidden=torch.ones(10, 4))
    assert len(method.reduce(entering).keep) == 2
    assert len(replace(method, salvage=False).reduce(entering).keep) == 1
    assert "budget" not in ASAP(keep=4).laws
    assert "budget" not in ASAP(keep=.51).laws
    assert "budget" in ASAP(keep=.5).laws


def test_reasons():
    """Of 5 copies in 6 tokens three are kept with the one that differs: it is kept, an anchor absorbs two, and two of
    the pool are salvaged."""
    attention = [[.0, .3, .0, .2, .1, .4]]
    hidden = angles(0., 0., 0., 0., 0., 90.)
    logits = torch.zeros(6, 6)
    logits[0] = torch.tensor([1., 6, 2, 5, 4, 3])
    entering = tokens("vvvvvv", attention, hidden=hidden, before=with_logits(logits))
    r = ASAP(keep=4).reduce(entering)
    assert r.keep.tolist() == [0, 1, 2, 5]
    assert [r.reasons[i] for i in r.reason.tolist()] == ["salvaged", "absorbs others", "salvaged", "kept"]


# --- Figure 4 and appendix C.1 ----------------------------------------------------------------------------------------

def chosen_by(method, seed=0, layers=4):
    """What the method keeps in a model, and the logits."""
    model = llava(layers=layers)
    logits, _, trace = prefill(model, ids(3, MARK, 4), [picture(model, seed)], method)
    return trace.steps[0].kept.tolist(), logits


@pytest.mark.parametrize("rungs", [(FastV, FastVBiMask, ASAP), (FastVAllRows, FastVBiMaskLast, ASAPMaskLast)])
def test_ladder(rungs):
    """FastV; FastV under the mask, which is ASAP without its second stage; ASAP: each rung changes one thing, and the
    tokens.

    The other reading, with the mask in layer K-1 and all rows ranking, has a first rung of its own, FastV by all rows.
    """
    fastv, masked, asap = (rung(layer=6, keep=6) for rung in rungs)
    asap = replace(asap, threshold=.7)
    for seed in range(2):
        kept_masked, logits = chosen_by(masked, seed, layers=8)
        kept_without, same_logits = chosen_by(replace(asap, consolidate=False), seed, layers=8)
        assert kept_masked == kept_without
        assert torch.equal(logits, same_logits)
        kept_fastv, _ = chosen_by(fastv, seed, layers=8)
        kept_asap, _ = chosen_by(asap, seed, layers=8)
        assert kept_fastv != kept_masked != kept_asap != kept_fastv


def test_the_control_of_the_other_reading_is_not_fastv():
    """From the last row to all rows changes the tokens without any mask."""
    assert chosen_by(FastV(6, 6), layers=8)[0] != chosen_by(FastVAllRows(6, 6), layers=8)[0]


def test_control_counts_no_row_before_the_image():
    """Rows before the image give it nothing: FastV by all rows ranks as the rows from the image on do."""
    method = FastVAllRows(keep=6)
    entering = drawn(method)
    rows = entering.before.attention()[:, 2:, entering.visual].mean(dim=(0, 1))
    assert method.reduce(entering).keep.tolist() == top(rows, 6).tolist()


def test_the_last_row_needs_the_mask_in_all_layers():
    """With the mask in layer K-1 alone the last row stays as it was there: FastV's tokens, but of other content. With
    the mask in all layers before the cut other tokens are kept."""

    @dataclass(frozen=True)
    class LastLayerOnly(FastVBiMask):
        """The mask in layer K-1 alone, the last row ranks."""

        def mask_at(self, layers):
            return (self.layer - 1,)

    fastv, fastv_logits = chosen_by(FastV(3, 6))
    last_layer, last_logits = chosen_by(LastLayerOnly(3, 6))
    all_layers, _ = chosen_by(FastVBiMask(3, 6))
    assert FastVBiMask(3, 6).mask_at(4) == ASAP(3, 6).mask_at(4) == (0, 1, 2)
    assert FastVBiMaskLast(3, 6).mask_at(4) == ASAPMaskLast(3, 6).mask_at(4) == (2,)
    assert fastv == last_layer != all_layers
    assert not torch.allclose(fastv_logits, last_logits, atol=1e-4)


def test_plug_in():
    """Any other method of the decoder takes the mask in two lines."""

    @dataclass(frozen=True)
    class AdaptPruneBiMask(SGBiMask, AdaptPrune):
        """AdaptPrune under SG-BiMask."""

    method = AdaptPruneBiMask(keep=6, lambda_max=.9)
    assert method.reduce_at(4) == (2,)
    assert method.mask_at(4) == (0, 1)
    _, masked = chosen_by(method)
    _, plain = chosen_by(AdaptPrune(keep=6))
    assert not torch.allclose(masked, plain, atol=1e-4)


@pytest.mark.parametrize("kind, option, problem", [
    (ASAP, dict(lambda_max=0.), "lambda_max must be above 0"),
    (ASAP, dict(lambda_max=1.5), "lambda_max must be at most 1"),
    (ASAP, dict(layer=0), "layer must be at least 1"),
    (ASAP, dict(keep=0), "keep 0"),
    (ASAP, dict(keep=1.2), "keep 1.2"),
    (ASAP, dict(threshold=float("nan")), "threshold must be finite"),
    (ASAP, dict(consolidate="no"), "consolidate is true or false"),
    (FastVBiMask, dict(lambda_max=2.), "lambda_max must be at most 1"),
    (FastVBiMask, dict(layer=0), "layer must be at least 1")])
def test_bad_options(kind, option, problem):
    with pytest.raises(UserError, match=problem):
        kind(**option)


@pytest.mark.parametrize("base, method, option", [
    (ASAP, ASAP, dict(consolidate=False)), (ASAP, ASAP, dict(salvage=False)), (ASAP, ASAP, dict(threshold=.5)),
    (ASAP, ASAP, dict(keep=.4)), (ASAPMaskLast, ASAPMaskLast, dict(lambda_max=.01)), (ASAP, ASAPMaskLast, {}),
    (ASAP, ASAPSaliencyRank, {}), (ASAP, ASAPMeanMerge, {}), (ASAP, ASAPSimilarRoute, {}), (ASAP, ASAPDedup, {}),
    (ASAPMaskLast, ASAPMaskLastSimilar, {})])
def test_options_and_readings_differ(base, method, option):
    """Each changes the reduction somewhere: what is kept or of what it is made."""
    given = dict(n=16, keep=.44, threshold=.95)
    for seed in range(40):
        plain = matrix(result(seed=seed, method=base, **given))
        other = matrix(result(seed=seed, method=method, **{**given, **option}))
        if plain.shape != other.shape or not torch.allclose(plain, other, atol=1e-3):
            return
    pytest.fail("no difference")


def matrix(r):
    """(k, 16) the weights of a reduction."""
    return torch.eye(16)[r.keep] if r.merge is None else r.merge


# --- laws -------------------------------------------------------------------------------------------------------------

@given(st.data())
@SETTINGS
def test_laws(data):
    """ordered, convex, disjoint, scale; k is met where the pool is large enough; at t = 1 nothing is merged."""
    n = data.draw(st.integers(1, 14))
    k = data.draw(st.integers(1, n))
    t = data.draw(st.sampled_from([-1., .5, .9, 1.]))
    reading = data.draw(st.sampled_from(READINGS))
    method = reading(keep=k, threshold=t)
    entering = drawn(method, n, seed=data.draw(st.integers(0, 999)))
    r = method.reduce(entering)
    assert r.keep.tolist() == sorted(set(r.keep.tolist()))
    assert len(r.keep) <= k
    if 2 * k - 1 <= n and reading is not ASAPDedup:
        assert len(r.keep) == k
    assert (r.merge >= 0).all()
    assert ((r.merge > 0).sum(dim=0) <= 1).all()
    close(r.merge.sum(dim=1), torch.ones(len(r.keep)))
    if t == 1.:
        assert torch.equal(r.merge, torch.eye(n)[r.keep])
        assert r.keep.tolist() == top(r.score, k).tolist()


@pytest.mark.parametrize("reading", [ASAP, ASAPSimilarRoute])
@given(st.integers(2, 14), st.integers(0, 999), st.sampled_from([.5, .8, .95]))
@SETTINGS
def test_routing_laws(reading, n, seed, t):
    """A source is similar to its anchor and no more salient; no two anchors are similar; all places are refilled."""
    k = n // 2 + 1
    method = reading(keep=k, threshold=t)
    entering = drawn(method, n, seed)
    s, s_hat = masses(entering, entering.before)
    first = top(s, k)
    destination = method.routing(entering, s_hat, first)
    unit = F.normalize(entering.hidden[entering.visual], dim=1)
    S = unit @ unit.T
    anchors = [j for j in first.tolist() if destination[j] == j]
    sources = [j for j in first.tolist() if destination[j] != j]
    for j in sources:
        i = int(destination[j])
        assert i in anchors
        assert S[i, j] > t - 1e-6
        assert s_hat[i] >= s_hat[j]
    assert (S[anchors][:, anchors].triu(1) <= t + 1e-6).all()
    salvaged = method.reallocation(entering, s, first, torch.tensor(anchors)).tolist()
    assert not set(salvaged) & set(first.tolist())
    assert len(salvaged) == min(len(sources), n - k)


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=7, max_size=7))
@SETTINGS
def test_only_anchors_absorb(rows):
    """One set alone fits the rule: a token is an anchor exactly if no anchor before it may absorb it."""
    may_absorb = torch.tensor(rows).tril(-1)
    anchor = ~by_anchors(may_absorb).any(dim=1)
    assert torch.equal(anchor, ~(may_absorb & anchor).any(dim=1))
    assert torch.equal(by_anchors(may_absorb), may_absorb & anchor)


@given(st.integers(0, 999), st.floats(.1, 8), st.floats(-50, 50))
@SETTINGS
def test_mask_laws(seed, scale, shift):
    """Never positive; 0 on and below the diagonal; text and system rows causal; saliency in [0, 1], and the same for c
    s + d; with lambda_max to 0 the mask is causal."""
    method = ASAP(lambda_max=.7)
    entering = drawn(method, seed=seed, gap=2 * (seed % 2))
    T = len(entering.hidden)
    mask = method.mask(entering)
    text = ~entering.is_visual()
    assert (mask <= 0).all()
    assert (mask.tril() == 0).all()
    assert torch.equal(mask[text], causal(T)[text])
    assert torch.equal(mask[:, text], causal(T)[:, text])

    _, s_hat = masses(entering, entering.before)
    assert ((0 <= s_hat) & (s_hat <= 1)).all()
    assert s_hat.min() == 0
    query = F.pad(entering.here.query() * scale, (0, 1), value=shift)
    key = F.pad(entering.here.key(), (0, 1), value=1.)
    kinds = "".join("t" if is_text else "v" for is_text in text)
    moved = tokens(kinds, here=dict(query=query, key=key))
    close(masses(moved, moved.here)[1], s_hat, atol=1e-3)

    logits = entering.here.logits()
    plain = (logits + causal(T)).softmax(dim=-1)
    faint = (logits + ASAP(lambda_max=1e-6).mask(entering)).softmax(dim=-1)
    close(faint, plain, atol=1e-3)


def entering_the_cut(model, words, pictures, method):
    """Hidden states (T, D) as they enter the layer before which the method drops, and the visual rows."""
    calls = []

    def spy(tokens):
        calls.append(tokens)
        return method.reduce(tokens)

    prefill(model, words, pictures, Around(method, spy))
    return calls[0].hidden, calls[0].visual


def test_text_causality():
    """Neither text nor an image changes a row before it; text after an image does not change the image's rows."""
    model = llava(layers=4)
    method = ASAP(3, 5)
    pictures = [picture(model, seed) for seed in range(3)]
    words = ids(3, MARK, 2, MARK, 4)
    hidden, visual = entering_the_cut(model, words, pictures[:2], method)
    assert visual.tolist() == [*range(3, 19), *range(21, 37)]
    for place, row in ((5, 20), (8, 38)):                                          # between the images, after them
        other = list(words)
        other[place] = 3 + (words[place] + 1) % 90
        changed, _ = entering_the_cut(model, other, pictures[:2], method)
        assert torch.equal(hidden[:row], changed[:row])
        assert not torch.allclose(hidden[row:], changed[row:], atol=1e-4)
    for image, row in ((0, 3), (1, 21)):
        swapped = pictures[:2]
        swapped[image] = pictures[2]
        changed, _ = entering_the_cut(model, words, swapped, method)
        assert torch.equal(hidden[:row], changed[:row])
        assert not torch.allclose(hidden[row], changed[row], atol=1e-4)


def test_a_merged_needle_is_not_kept():
    """So "needle" is declared only without consolidation: token 0 has all the attention, but 1, more salient, absorbs
    it.

    Nor is "select", as merging is no selection.
    """
    logits = torch.tensor([[0., 2, 1]] * 3)
    attention = [[.98, .01, .01]] * 3
    entering = tokens("vvv", attention, hidden=angles(0., 0., 90.), before=with_logits(logits))
    assert ASAP(keep=2, consolidate=False).reduce(entering).keep.tolist() == [0, 1]
    assert ASAP(keep=2).reduce(entering).keep.tolist() == [1, 2]
    assert ASAP().laws == {"ordered", "convex", "disjoint", "scale", "budget"}
    assert ASAP(consolidate=False).laws == {"select", "ordered", "scale", "budget", "needle"}
    assert "needle" not in ASAPSaliencyRank(consolidate=False).laws


# --- edges ------------------------------------------------------------------------------------------------------------

def test_equal_saliency():
    """Equal logits: s_max = s_min, so s_hat is 0, not 0/0, and the mask is at its floor, ln 1e-6 = -13.8155. All
    weights of Eq. 6 are 0: a token that absorbs a copy stays as it is. Of equals the first is kept."""
    logits = torch.full((5, 5), .3)
    view = with_logits(logits)
    entering = tokens("tvvvt", torch.full((5, 5), .2), before=view, here=view)
    method = ASAP(keep=2)
    _, s_hat = masses(entering, entering.before)
    assert s_hat.tolist() == [0, 0, 0]
    close(method.mask(entering)[1, 3], -13.8155, atol=1e-4)
    r = method.reduce(entering)
    assert r.keep.tolist() == [0, 2]
    assert r.merge.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert ASAP(keep=2, consolidate=False).reduce(entering).keep.tolist() == [0, 1]


def test_threshold_one_merges_not_even_copies():
    """The float cosine of a vector with itself may be 1.0000001: it counts as 1."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        hidden = torch.randn(1, 7, generator=generator) * torch.linspace(.1, 3, 8)[:, None]
        s_hat = torch.rand(8, generator=generator)
        assert len(consolidated(hidden, s_hat.tolist(), threshold=1.)) == 8


def test_one_token_and_all_tokens():
    """n = 1 keeps it; keep = n without consolidation is everything; with it, what is similar is one."""
    assert kept(n=1, keep=1) == [0]
    assert kept(n=7, keep=7, consolidate=False) == list(range(7))
    r = result(n=7, keep=7, threshold=.5)
    assert len(r.keep) < 7
    close(r.merge.sum(dim=1), torch.ones(len(r.keep)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """The result is half, too; mask, masses and weights stay float32, and the weights convex."""
    method = ASAP(keep=6)
    full = drawn(method)
    query = full.here.query().to(dtype)
    key = full.here.key().to(dtype)
    half = with_views(full, hidden=full.hidden.to(dtype), query=query, key=key)
    r = method.reduce(half)
    assert r.merge.dtype == torch.float32
    assert half.reduced(r).hidden.dtype == dtype
    close(r.merge.sum(dim=1), torch.ones(6))
    assert method.mask(half).dtype == torch.float32
    assert masses(half, half.before)[0].dtype == torch.float32


def test_images_apart():
    """Text between two images: saliency runs from 0 to 1 in each, and nothing merges across."""
    method = ASAP(keep=8, threshold=-2.)
    entering = drawn(method, gap=1)
    _, s_hat = masses(entering, entering.before)
    for of_image in s_hat.split(6):
        assert of_image.min() == 0
        close(of_image.max(), 1, atol=1e-3)
    r = method.reduce(entering)
    merged = [row.nonzero().squeeze(1).tolist() for row in r.merge if (row > 0).sum() > 1]
    assert len(merged) == 2
    assert all(max(sources) < 6 or min(sources) >= 6 for sources in merged)


def test_in_the_model():
    """Two images; a prompt without an image; keep = n without consolidation and lambda_max near 0: no change."""
    model = llava(layers=4)
    pictures = [picture(model, seed) for seed in range(2)]
    logits, cache, trace = prefill(model, ids(3, MARK, 2, MARK, 4), pictures, ASAP(keep=8))
    assert cache.lengths == [41, 41, 17, 17]
    assert logits.isfinite().all()
    close(trace.sources().sum(dim=1), torch.ones(8))
    without_image, _, no_steps = prefill(model, ids(5), (), ASAP())
    assert torch.equal(without_image, prefill(model, ids(5))[0])
    assert not no_steps.steps
    whole, _, _ = prefill(model, ids(3, MARK, 4), pictures[:1], ASAP(keep=1., lambda_max=1e-12, consolidate=False))
    close(whole, prefill(model, ids(3, MARK, 4), pictures[:1])[0], atol=1e-3)


def test_no_text_after_the_image():
    """The image's own rows are there to rank, and the last one of them is the last row."""
    attention = torch.tensor([[1, 0, 0], [.5, .5, 0], [.2, .3, .5]])
    entering = tokens("vvv", attention, before=with_logits(torch.zeros(3, 3)))
    assert ASAP(keep=1).reduce(entering).keep.tolist() == [2]
    assert ASAPMaskLast(keep=1).reduce(entering).keep.tolist() == [0]


def test_overflow_of_the_attention_is_named():
    method = ASAP(keep=3)
    entering = drawn(method)
    broken = with_views(entering, attention=entering.before.attention() * float("nan"))
    with pytest.raises(UserError, match="attention scores contain NaN"):
        method.reduce(broken)


@pytest.mark.parametrize("value", [INF, float("nan")])
def test_overflow_of_a_hidden_state_is_named(value):
    """It would spoil every merged token, since 0 * inf is NaN."""
    method = ASAP(keep=3)
    entering = drawn(method)
    hidden = entering.hidden.index_fill(0, entering.visual[:1], value)
    with pytest.raises(UserError, match="hidden states contain NaN or infinity"):
        method.reduce(replace(entering, hidden=hidden))


@pytest.mark.parametrize("value", [INF, float("nan")])
@pytest.mark.parametrize("reading", [ASAP, ASAPMaskLast, ASAPSaliencyRank])
def test_overflow_of_a_query_is_named(reading, value):
    """One query overflows and the rows that rank are finite: saliency was then NaN, which absorbed at random, or kept
    one token twice."""
    method = reading(keep=6)
    entering = drawn(method)
    query = entering.here.query().clone()
    query[0, entering.visual[3], 0] = value
    broken = with_views(entering, query=query)
    with pytest.raises(UserError, match="queries or keys contain NaN"):
        method.reduce(broken)
    with pytest.raises(UserError, match="queries or keys contain NaN"):
        method.mask(broken)


def test_mask_in_the_last_layer():
    """The last layer computes only the last row, which the mask leaves as it is: there it changes nothing."""

    @dataclass(frozen=True)
    class ThereToo(ASAP):
        """The mask in the last layer, too."""

        def mask_at(self, layers):
            return (*super().mask_at(layers), layers - 1)

    _, once = chosen_by(ASAP(keep=6))
    _, there_too = chosen_by(ThereToo(keep=6))
    close(once, there_too)


def test_average():
    """98 of 576, and (2 * 576 + 30 * 99) / 32 = 128.8 is the first average of at least 128."""
    assert ASAP().budget(576) == 98
    assert ASAP().with_average(128, 576, 32).keep == 99


@pytest.mark.internal
def test_does_not_wait_for_each_token():
    """Six times as many kept tokens, all unlike: the host asks for as many values."""
    counts = []
    for k in (4, 24):
        method = ASAP(keep=k, threshold=.999999)
        count, _ = waits(method.reduce, drawn(method, 60))
        counts.append(count)
    assert counts[0] == counts[1] > 0


def test_position_ids():
    """Three words, 16 patches, four words: 6 tokens stay. Kept ids go on at 23 in all layers; renumbered ones, after
    the cut, at 13."""
    model = llava(layers=4)
    given = ids(3, MARK, 4), [picture(model)]
    logits, own, _ = prefill(model, *given, ASAP(keep=6))
    other_logits, new, _ = prefill(model, *given, ASAPRenumbered(keep=6))
    assert own.lengths == new.lengths == [23, 23, 13, 13]
    assert [layer.next_position for layer in own.layers] == [23] * 4
    assert [layer.next_position for layer in new.layers] == [23, 23, 13, 13]
    assert not torch.allclose(logits, other_logits, atol=1e-4)


def test_past_keys_and_values():
    """Table 4's storage counts as many tokens in all layers: the caches of the layers before the cut lose what is
    dropped, too.

    The prompt's own pass is the same; later tokens see less of it in those layers.
    """
    model = llava(layers=6)
    steps = []
    for method, lengths in ((ASAP(keep=.5), [24] * 2 + [16] * 4), (ASAPPrunePast(keep=.5), [16] * 6)):
        logits, cache, _ = prefill(model, ids(3, MARK, 4), [picture(model)], method)
        step = model.step([5], cache, method)
        assert cache.lengths == lengths
        steps.append((logits, step))
    (logits, step), (same_logits, other_step) = steps
    assert torch.equal(logits, same_logits)
    assert not torch.allclose(step, other_step, atol=1e-4)
