"""ASAP: equal to its recorded reading, right by hand, each rung of its Figure 4 another method, text never touched."""

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from golden import golden, prompt
from minivlm.attention import Look, attention
from pruning.adaptprune import AdaptPrune
from pruning.asap import ASAP, anchors_of
from pruning.base import Tokens, UserError, top
from pruning.bimask import FastVBiMask, SGBiMask
from pruning.fastv import FastV
from test_adaptprune import Waits
from tiny import MARK, SETTINGS, Around, ids, llava, picture, prefill

RECORDED, FACTS = golden("asap_recommended")
INF = float("inf")


def tokens_of(visual, T, **fields):
    """Tokens of T rows, these visual, on a row of cells; hidden rows 0 where `hidden` (n, D) or (T, D) does not say."""
    visual = torch.as_tensor(visual)
    index, hidden = torch.arange(len(visual)), torch.as_tensor(fields.pop("hidden", torch.zeros(T, 1)), dtype=torch.float32)
    if len(hidden) != T:
        hidden = torch.zeros(T, hidden.shape[1]).index_copy(0, visual, hidden)
    return Tokens(hidden, torch.arange(T), visual, torch.stack([index * 0, index * 0, index], dim=1), index, T, **fields)


def causal(T):
    return torch.full((T, T), -INF).triu(1)


def seen(method, tokens, query, key, across_heads=None):
    """`tokens` with what the method sees of a layer with these queries and keys (H, T, Dh), its mask in force."""
    mask = (lambda query, key, causal: method.mask(tokens, query[0], key[0], causal)) if method.mask_at(32) else None
    look = Look(tokens.query_rows(method.rows), mask, across_heads=across_heads or method.across_heads)
    attention(query[None], key[None], key[None], look=look)
    return replace(tokens, rows=look.rows, attn=look.attn[0], turned_query=query, turned_key=key)


def asking(logits):
    """Queries and keys (H, T, T) that have these logits (H, T, T): each key one of the axes."""
    H, T, _ = logits.shape
    return logits * T ** .5, torch.eye(T).expand(H, T, T)


def of(logits):
    """The same as fields of Tokens."""
    return dict(zip(("turned_query", "turned_key"), asking(logits)))


def drawn(method, n=12, seed=0, system=2, text=3, D=4, H=2, gap=0):
    """A random prompt as `method` sees it: hidden states in a few directions, so that some are alike; `gap` text in the image."""
    g, T = torch.Generator().manual_seed(seed), system + n + text + gap
    visual = torch.arange(n) + system
    visual[n // 2:] += gap
    hidden = torch.randn(3, D, generator=g)[torch.randint(3, (T,), generator=g)] + .2 * torch.randn(T, D, generator=g)
    tokens = tokens_of(visual, T, hidden=hidden, layer=2)
    return seen(method, tokens, torch.randn(H, T, D, generator=g), torch.randn(H, T, D, generator=g))


def result(n=12, seed=0, gap=0, **options):
    method = ASAP(**{"keep": n // 2, **options})
    return method.reduce(drawn(method, n, seed, gap=gap))


def kept(**options):
    return result(**options).keep.tolist()


# the recorded reading

@pytest.mark.parametrize("case", FACTS["cases"])
def test_recorded(case):
    """Saliency, mask, attention, score, first top-k, anchors, destinations, salvaged, final tokens and their values."""
    facts = FACTS["cases"][case]
    want = {key.removeprefix(case + "."): x for key, x in RECORDED.items() if key.startswith(case + ".")}
    method = ASAP(keep=facts["k"], threshold=facts["threshold"], lambda_max=facts["lambda_max"])
    tokens = replace(prompt(want["hidden"], facts["sys_len"], facts["grid"]), layer=2)
    tokens = seen(method, tokens, want["q"], want["k"], across_heads="each")
    close = lambda x, name: torch.testing.assert_close(x, want[name], atol=1e-5, rtol=1e-5)
    s, s_hat = method.masses(tokens)
    close(s, "s"), close(s_hat, "s_hat")
    if "A" in want:
        close(method.mask(tokens, want["q"], want["k"], causal(len(tokens.hidden)))[0], "mask")
        close(tokens.attn, "A")
    r = method.reduce(tokens)
    close(r.score, "score")
    first = top(r.score, facts["k"])
    assert first.tolist() == want["keep0"].tolist()
    anchors, weight = method.consolidation(tokens, want["s_hat"], first)
    assert sorted(anchors.tolist()) == sorted(want["anchors"].tolist())
    owner = {int(j): int(anchors[i]) for i, j in weight.nonzero() if j != anchors[i]}
    assert owner == {j: i for j, i in zip(want["sources"].tolist(), want["dest"].tolist()) if want["s_hat"][j] > 0}
    salvaged = method.reallocation(tokens, want["s"], first, anchors)
    assert sorted(salvaged.tolist()) == sorted(want["salvaged"].tolist())
    assert r.keep.tolist() == want["final"].tolist()
    close(tokens.reduced(r).hidden[facts["sys_len"]:][:facts["k"]], "final_hidden")


# 4.1 by hand

W = torch.tensor([[9., 0, 0, 0, 0],        # a system row, three visual tokens a b c, a text row
                  [9., 1, 0, 2, 0],        # a
                  [9., 0, 1, 3, 0],        # b
                  [9., 0, 2, 1, 0],        # c
                  [9., 7, 1, 1, 0]])[None]


def test_mask_by_hand():
    """Column sums over the rows of a b c: s = 1 3 6, so s_hat = 0 .4 1; with lambda_max .5 lambda = 0 .2 .5.

    a sees b by ln .2 and c by ln .5, b sees c by ln .5. Everything else stays causal: the text row, the 7 it gives to a,
    and the system row count for nothing. A uniform mask would show b and c alike.
    """
    tokens, method = tokens_of([1, 2, 3], 5), ASAP(lambda_max=.5)
    s, s_hat = method.masses(replace(tokens, **of(W)))
    assert s.tolist() == pytest.approx([1, 3, 6]) and s_hat.tolist() == pytest.approx([0, .4, 1])
    want = causal(5)
    want[1, 2], want[1, 3], want[2, 3] = torch.tensor([.2, .5, .5]).log()
    torch.testing.assert_close(method.mask(tokens, *asking(W), causal(5)), want[None])


def test_saliency_by_hand():
    """Counting only the queries from j on, a keeps 1 + 0 + 0, b 1 + 2, c 1: s = 1 3 1. A floor of 2 lifts 1 3 6 to 2 3 6.

    As two images, a | b c, a has 1 alone, b 1 + 2 and c 3 + 1: s = 1 3 4 with s_hat 0, 0 1.
    """
    def saliency(rows=(1, 2, 3), logits=W, **options):
        return [pytest.approx(x.tolist(), abs=1e-5) for x in ASAP(**options).masses(tokens_of(rows, 5, **of(logits)))]

    assert saliency(saliency_rows="causal") == [[1, 3, 1], [0, 1, 0]]
    assert saliency(saliency_floor=2.) == [[2, 3, 6], [0, .25, 1]]
    apart = W[:, [0, 1, 4, 2, 3]][:, :, [0, 1, 4, 2, 3]]                           # the text row between a and b
    assert saliency((1, 3, 4), apart) == [[1, 3, 4], [0, 0, 1]]
    heads = [x[:, 1:4] for x in asking(torch.cat([W, 3 * W.flip(2)]))]
    two = ASAP().saliency(*heads, per_head=True)[0]
    torch.testing.assert_close(two.mean(dim=0, keepdim=True), ASAP().saliency(*heads)[0])
    assert two.shape == (2, 3) and not torch.equal(two[0], two[1])


def test_penalty_is_a_factor_by_hand():
    """Logits of row a: 0 for itself, 0 for b of lambda .5. exp(0 + ln .5) = .5 of exp(0): a gives itself 2/3 and b 1/3.

    s = 0 1 0 for a b c with s_hat 0 1 0 and lambda_max .5; c, of least saliency, keeps the floor 1e-6.
    """
    logits = torch.tensor([[0., 0, 0], [0, 1, 0], [0, 0, 0]])[None]
    tokens = tokens_of([0, 1, 2], 3)
    attn = (logits + ASAP(lambda_max=.5).mask(tokens, *asking(logits), causal(3))).softmax(dim=-1)
    assert attn[0, 0].tolist() == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-5) and attn[0, 1, 2] == pytest.approx(0, abs=1e-6)


def test_ranking_by_hand():
    """Rows a b and text give a b c: (.5 .4 .1), (.2 .6 .2), (0 .1 .9), and c's row (.3 .3 .4). One stays.

    Over all rows a has 1.0, b 1.4, c 1.6 of 4: c. Over visual rows a 1.0, b 1.3, c .7: b. The last row alone: c. The
    system row is no row from the image on, and its weights do not count.
    """
    rows = torch.tensor([[1, 0, 0, 0, 0], [0, .5, .4, .1, 0], [0, .2, .6, .2, 0], [0, .3, .3, .4, 0], [0, 0, .1, .9, 0]])
    tokens = tokens_of([1, 2, 3], 5, attn=rows[None], **of(W))
    for which, want in dict(all=2, visual=1, text=2, last=2, saliency=2).items():
        assert ASAP(keep=1, rank_query=which).reduce(tokens).keep.tolist() == [want]
    r = ASAP(keep=1).reduce(tokens)
    torch.testing.assert_close(r.score, torch.tensor([1., 1.4, 1.6]) / 4)


# 4.2 by hand

def consolidated(hidden, s_hat, kept=None, **options):
    """{anchor: {token: weight}} for visual tokens with these hidden states (n, D) and saliencies (n,)."""
    tokens = tokens_of(range(len(hidden)), len(hidden), hidden=hidden)
    kept = torch.arange(len(hidden)) if kept is None else torch.tensor(kept)
    anchors, weight = ASAP(**options).consolidation(tokens, torch.tensor(s_hat), kept)
    return {int(a): {j: pytest.approx(w, abs=1e-4) for j, w in enumerate(row.tolist()) if w} for a, row in zip(anchors, weight)}


def angles(*degrees):
    """(n, 2) unit vectors: their cosines are those of the differences."""
    return torch.stack([torch.tensor(degrees).deg2rad().cos(), torch.tensor(degrees).deg2rad().sin()], dim=1)


def test_consolidation_by_hand():
    """Equal directions, saliencies 1 and .5 with lengths 4 and 1: Eq. 6 gives (1 * 4 + .5 * 1) / 1.5 = 3; the mean is 2.5.

    A third token at 60 degrees (cosine .5) stays as it is.
    """
    hidden = torch.tensor([[4., 0], [1, 0], [.5, .75 ** .5]])
    assert consolidated(hidden, [1, .5, .2]) == {0: {0: 2 / 3, 1: 1 / 3}, 2: {2: 1}}
    method = ASAP(keep=3, rank_query="saliency", salvage=False)
    logits = torch.zeros(1, 3, 3).index_copy(1, torch.tensor([0]), torch.tensor([[[1., .5, 0]]]))     # s = 1 .5 0
    tokens = tokens_of([0, 1, 2], 3, hidden=hidden, attn=logits, **of(logits))
    new = tokens.reduced(method.reduce(tokens))
    torch.testing.assert_close(new.hidden, torch.tensor([[3., 0], [.5, .75 ** .5]]))
    assert new.position.tolist() == [0, 2]


def test_flow_is_towards_the_salient():
    """The later of two equal tokens is the more salient: it absorbs the earlier, and stands in its place. Ties: the first absorbs."""
    assert consolidated(angles(0., 0.), [.2, .8]) == {1: {0: .2, 1: .8}}
    assert consolidated(angles(0., 0.), [.5, .5]) == {0: {0: .5, 1: .5}}
    assert consolidated(angles(0., 0., 0.), [.1, .6, .4], kept=[0, 2]) == {2: {0: .2, 2: .8}}          # token 1 is not kept


def test_chains_by_hand():
    """a 0, b 20, c 40 degrees with saliencies 1, .6, .4; t = .9 (25.8 degrees): a ~ b ~ c, but not a ~ c.

    anchor   b is a source, so it can absorb nothing: c is an anchor too. a: (1 a + .6 b) / 1.6.
    root     c follows b to a: (1 a + .6 b + .4 c) / 2.
    cascade  b' = (.6 b + .4 c) / 1, and a takes b' by b's weight: (a + .6 b') / 1.6 = .625 a + .225 b + .15 c.
    literal  b is gone, and c with it: (1 a + .6 b) / 1.6 alone.
    """
    hidden, s_hat = angles(0., 20., 40.), [1., .6, .4]
    assert consolidated(hidden, s_hat) == {0: {0: .625, 1: .375}, 2: {2: 1}}
    assert consolidated(hidden, s_hat, chain="root") == {0: {0: .5, 1: .3, 2: .2}}
    assert consolidated(hidden, s_hat, chain="cascade") == {0: {0: .625, 1: .225, 2: .15}}
    assert consolidated(hidden, s_hat, chain="literal") == {0: {0: .625, 1: .375}}


def test_routes_by_hand():
    """c at 22 degrees is like both anchors, a at 0 (saliency 1) and b at 40 (.8), and nearer to b: b absorbs it; by salience, a."""
    hidden, s_hat = angles(0., 40., 22.), [1., .8, .2]
    assert consolidated(hidden, s_hat) == {0: {0: 1}, 1: {1: .8, 2: .2}}
    assert consolidated(hidden, s_hat, route="salient") == {0: {0: 1 / 1.2, 2: .2 / 1.2}, 1: {1: 1}}
    between = torch.tensor([[1., 1], [1, 0], [0, 1]])                              # as near to both: the more salient, or the first
    assert consolidated(between, [.2, .8, 1], threshold=.5) == {1: {1: 1}, 2: {0: .2 / 1.2, 2: 1 / 1.2}}
    assert consolidated(between, [.2, 1., 1], threshold=.5) == {1: {0: .2 / 1.2, 1: 1 / 1.2}, 2: {2: 1}}


def test_reallocation_by_hand():
    """Tokens 0 1 2 of 6 are kept, 1 is absorbed by 0. Masses of the pool 3 4 5: 1 3 2, so 4 takes the place, whatever

    the attention that ranked (5 would be next). 1 was best of all but never returns.
    """
    s = torch.tensor([9., 8, 7, 1, 3, 2])
    tokens = tokens_of(range(6), 6, hidden=angles(0., 0., 90., 90., 180., 180.))
    salvaged = lambda **o: ASAP(**o).reallocation(tokens, s, torch.tensor([0, 1, 2]), torch.tensor([0, 2])).tolist()
    assert salvaged() == [4]
    assert salvaged(salvage=False) == []


def test_salvage_dedup_by_hand():
    """Of 0 1 2 kept, 0 absorbs two: two places. Pool by mass: 3 (like 0), 4, 5 (like 4), 6. Unchecked 3 and 4, checked 4 and 6."""
    s = torch.tensor([9., 8, 7, 6, 5, 4, 3])
    tokens = tokens_of(range(7), 7, hidden=angles(0., 0., 0., 0., 90., 90., 180.))
    salvaged = lambda **o: ASAP(**o).reallocation(tokens, s, torch.tensor([0, 1, 2]), torch.tensor([0])).tolist()
    assert salvaged() == [3, 4] and salvaged(salvage_dedup=True) == [4, 6]


def test_a_small_pool_leaves_fewer():
    """4 of 5 equal tokens are kept, three are absorbed, the pool has one: two tokens are left, or one without salvage."""
    method = ASAP(keep=4)
    tokens = replace(drawn(method, 5), hidden=torch.ones(10, 4))
    assert len(method.reduce(tokens).keep) == 2 and len(replace(method, salvage=False).reduce(tokens).keep) == 1
    assert "budget" not in ASAP(keep=4).laws and "budget" in ASAP(keep=.5).laws


# Figure 4, section 7.2 of the reading, appendix C.1

def test_ladder():
    """FastV; bidirectional selection; consolidation and salvage: three results, the first FastV's own (by all rows, too)."""
    rungs = [dict(bidirectional=False, consolidate=False), dict(consolidate=False), dict()]
    for query in ("last", "all"):
        fastv = FastV(keep=6, query=query)
        first = ASAP(keep=6, rank_query=query, **rungs[0])
        assert first.reduce(drawn(first)).keep.tolist() == fastv.reduce(drawn(fastv)).keep.tolist()
    differ = [[kept(seed=seed, **rung) for rung in rungs] for seed in range(9)]
    assert any(len({tuple(k) for k in sets}) == 3 for sets in differ)


@given(st.integers(0, 999), st.booleans())
@SETTINGS
def test_the_last_row_does_not_see_the_mask(seed, output):
    """Ranked by the last row, with the mask in the scoring layer alone, the selection is FastV's."""
    fastv = FastV(keep=5)
    method = ASAP(keep=5, rank_query="last", consolidate=False, apply_to_output=output)
    assert method.reduce(drawn(method, seed=seed)).keep.tolist() == fastv.reduce(drawn(fastv, seed=seed)).keep.tolist()


def test_the_last_row_does_not_see_the_mask_in_the_model():
    """The same in a model: FastV's tokens, but of other content; with the mask a layer earlier, other tokens."""
    model = llava(layers=4)
    traces, logits = {}, {}
    for name, method in dict(fastv=FastV(3, 6), last=ASAP(3, 6, rank_query="last", consolidate=False),
                             early=ASAP(3, 6, rank_query="last", consolidate=False, bidir_layers=(0, 1, 2)),
                             plug=FastVBiMask(3, 6, query="last"), all=FastVBiMask(3, 6)).items():
        logits[name], _, trace = prefill(model, ids(3, MARK, 4), [picture(model)], method)
        traces[name] = trace.steps[0].kept.tolist()
    assert traces["fastv"] == traces["last"] == traces["plug"] != traces["early"]
    assert not torch.allclose(logits["fastv"], logits["last"], atol=1e-4)
    torch.testing.assert_close(logits["last"], logits["plug"])
    assert traces["all"] != traces["fastv"]


def test_plug_in():
    """FastV with the mask is the second rung of the ladder; any other method takes it in two lines."""
    for seed in range(5):
        rung, plug = ASAP(keep=6, consolidate=False), FastVBiMask(keep=6)
        assert rung.reduce(drawn(rung, seed=seed)).keep.tolist() == plug.reduce(drawn(plug, seed=seed)).keep.tolist()

    @dataclass(frozen=True)
    class AdaptPruneBiMask(SGBiMask, AdaptPrune):
        pass

    model, other = llava(layers=4), AdaptPruneBiMask(keep=6, lambda_max=.9)
    assert other.mask_at(4) == (1,) and other.reduce_at(4) == (2,)
    masked, plain = (prefill(model, ids(3, MARK, 4), [picture(model)], m) for m in (other, AdaptPrune(keep=6)))
    assert not torch.equal(masked[0], plain[0]) and masked[1].lengths == plain[1].lengths
    with pytest.raises(UserError):
        FastVBiMask(lambda_max=2.)
    with pytest.raises(UserError):
        FastVBiMask(layer=0)


def test_progressive():
    """Stages cut the original 16 tokens to a half before layer 2 and to a quarter before layer 4; the mask is in layers 1 and 3."""
    model, method = llava(layers=6), ASAP(stages=((2, .5), (4, .25)))
    _, cache, trace = prefill(model, ids(3, MARK, 4), [picture(model)], method)
    assert trace.visual == [16, 16, 8, 8, 4, 4] and cache.lengths == [23, 23, 15, 15, 11, 11]
    assert method.mask_at(6) == (1, 3) and method.budget(16) == 4 and "budget" not in method.laws
    assert set(trace.steps[1].kept.tolist()) <= set(trace.steps[0].kept.tolist())


# what each option changes

@pytest.mark.parametrize("option", [dict(rank_query="visual"), dict(rank_query="text"), dict(rank_query="last"),
                                    dict(rank_query="saliency"), dict(bidirectional=False), dict(consolidate=False),
                                    dict(salvage=False), dict(salvage_dedup=True), dict(threshold=.5), dict(lambda_max=.01),
                                    dict(per_head=True), dict(saliency_rows="causal"), dict(saliency_floor=0.),
                                    dict(chain="root"), dict(chain="cascade"), dict(chain="literal"), dict(route="salient"),
                                    dict(keep=.4), dict(keep=.44, rounding="ceil"), dict(eps=.9)])
def test_options_differ(option):
    """Each option changes the reduction somewhere: what is kept or of what it is made."""
    base = dict(keep=.44, rounding="floor", threshold=.95)
    pairs = ((result(n=16, seed=seed, **base), result(n=16, seed=seed, **{**base, **option})) for seed in range(40))
    matrix = lambda r: torch.eye(16)[r.keep] if r.merge is None else r.merge
    assert any(matrix(a).shape != matrix(b).shape or not torch.allclose(matrix(a), matrix(b), atol=1e-3) for a, b in pairs)


def test_scoring_only():
    """apply_to_output=False ranks by the same attention, but the layer computes with the causal one."""
    for seed in range(5):
        through, beside = ASAP(keep=6), ASAP(keep=6, apply_to_output=False)
        a, b = through.reduce(drawn(through, seed=seed)), beside.reduce(drawn(beside, seed=seed))
        torch.testing.assert_close(a.score, b.score)
        assert a.keep.tolist() == b.keep.tolist()
    assert beside.mask_at(4) == () and through.mask_at(4) == (1,)
    with pytest.raises(UserError, match="layers 0 to 3"):
        ASAP(bidir_layers=(0, 4)).mask_at(4)
    assert ASAP(bidir_layers=(0, 1)).mask_at(4) == (0, 1) and ASAP(bidirectional=False).mask_at(4) == ()
    model = llava(layers=4)
    one, two = (prefill(model, ids(3, MARK, 4), [picture(model)], m)[0] for m in (through, beside))
    assert not torch.allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("option", [dict(lambda_max=0.), dict(lambda_max=1.5), dict(eps=0.), dict(saliency_rows="text"),
                                    dict(layer=0),
                                    dict(keep=0), dict(keep=1.2), dict(rounding="up"), dict(rank_query="first"),
                                    dict(threshold=float("nan")), dict(chain="loop"), dict(route="near"), dict(position_ids="2d"),
                                    dict(stages=((4, .5), (2, .2))),
                                    dict(stages=((0, .5),)), dict(stages=((2, 0),)), dict(stages=((2,),)), dict(stages=(2, .5)),
                                    dict(bidir_layers=(1,), apply_to_output=False)])
def test_bad_options(option):
    with pytest.raises(UserError):
        ASAP(**option)


# laws

@given(st.integers(1, 14), st.integers(0, 999), st.sampled_from(["anchor", "root", "cascade", "literal"]), st.booleans(),
       st.sampled_from([-1., .5, .9, 1.]), st.data())
@SETTINGS
def test_laws(n, seed, chain, dedup, t, data):
    """ordered, convex, scale; k is met where the pool is large enough; every merged vector lies between its sources."""
    k = data.draw(st.integers(1, n))
    method = ASAP(keep=k, threshold=t, chain=chain, salvage_dedup=dedup)
    tokens = drawn(method, n, seed)
    r = method.reduce(tokens)
    assert r.keep.tolist() == sorted(set(r.keep.tolist())) and len(r.keep) <= k
    if 2 * k - 1 <= n and not dedup:
        assert len(r.keep) == method.budget(n)
    assert (r.merge >= 0).all() and r.keep.tolist() == method.reduce(replace(tokens, attn=tokens.attn * 8)).keep.tolist()
    torch.testing.assert_close(r.merge.sum(dim=1), torch.ones(len(r.keep)))
    if chain != "cascade" and t == 1.:
        assert torch.equal(r.merge, torch.eye(n)[r.keep]) and r.keep.tolist() == top(r.score, k).tolist()


@given(st.integers(2, 14), st.integers(0, 999), st.sampled_from([.5, .8, .95]), st.sampled_from(["similar", "salient"]))
@SETTINGS
def test_routing_laws(n, seed, t, route):
    """Each token is made into one anchor alone; a source is like its anchor and no more salient; no two anchors are alike;

    sources, anchors and salvaged are disjoint.
    """
    method = ASAP(keep=n // 2 + 1, threshold=t, route=route)
    tokens = drawn(method, n, seed)
    s, s_hat = method.masses(tokens)
    first = top(s, n // 2 + 1)
    anchors, weight = method.consolidation(tokens, s_hat, first)
    unit = F.normalize(tokens.hidden[tokens.visual], dim=1)
    S = unit @ unit.T
    sources = set(first.tolist()) - set(anchors.tolist())
    assert ((weight > 0).sum(dim=0) <= 1).all()
    for i, row in zip(anchors.tolist(), weight):
        absorbed = [j for j in row.nonzero().squeeze(1).tolist() if j != i]
        assert all(S[i, j] > t - 1e-6 and s_hat[i] >= s_hat[j] and j in sources for j in absorbed)
        assert all(S[i, j] <= t + 1e-6 for j in anchors.tolist() if j != i)
    salvaged = method.reallocation(tokens, s, first, anchors).tolist()
    assert not set(salvaged) & set(first.tolist()) and len(salvaged) == min(len(sources), n - len(first))


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=7, max_size=7))
@SETTINGS
def test_anchors_are_the_greedy_ones(above):
    """One after the other from the most salient: an anchor unless an anchor before it may absorb it."""
    above, greedy = torch.tensor(above).tril(-1), torch.zeros(7, dtype=torch.bool)
    for j in range(7):
        greedy[j] = not (above[j] & greedy).any()
    assert torch.equal(anchors_of(above), greedy)


@given(st.integers(0, 999), st.floats(.1, 8), st.floats(-50, 50))
@SETTINGS
def test_mask_laws(seed, scale, shift):
    """Never positive; 0 on and below the diagonal; text and system rows causal; saliency in [0, 1], blind to c s + d;

    lambda_max to 0 is the causal mask.
    """
    method = ASAP(lambda_max=.7)
    tokens = drawn(method, seed=seed, gap=2 * (seed % 2))
    T, visual = len(tokens.hidden), tokens.visual
    query, key = tokens.turned_query, tokens.turned_key
    mask = method.mask(tokens, query, key, causal(T))[0]
    others = torch.ones(T, dtype=torch.bool).index_fill(0, visual, False)
    assert (mask <= 0).all() and (mask.tril() == 0).all()
    assert torch.equal(mask[others], causal(T)[others]) and torch.equal(mask[:, others], causal(T)[:, others])
    s_hat = method.masses(tokens)[1]
    assert ((0 <= s_hat) & (s_hat <= 1)).all() and s_hat.min() == 0
    moved = replace(tokens, turned_query=F.pad(query * scale, (0, 1), value=shift), turned_key=F.pad(key, (0, 1), value=1.))
    torch.testing.assert_close(method.masses(moved)[1], s_hat, atol=1e-3, rtol=0)
    logits = query @ key.mT / 2
    plain = (logits + causal(T)).softmax(dim=-1)
    faint = (logits + ASAP(lambda_max=1e-6).mask(tokens, query, key, causal(T))).softmax(dim=-1)
    torch.testing.assert_close(faint, plain, atol=1e-3, rtol=0)


def entering(model, words, pictures, method, layer):
    """Hidden states (T, D) and visual rows as they enter `layer`, where nothing has been dropped yet."""
    told = []

    def spy(tokens):
        told.append(tokens)
        return method.reduce(tokens)

    prefill(model, words, pictures, Around(method, spy))
    assert told[0].layer == layer
    return told[0].hidden, told[0].visual


def test_text_causality():
    """A later text token changes no row before it, not even an image's that stands between; an image changes no row before it."""
    model, method = llava(layers=4), ASAP(3, 5, bidir_layers=(0, 1, 2))
    pictures = [picture(model, seed) for seed in range(3)]
    words = ids(3, MARK, 2, MARK, 4)
    hidden, visual = entering(model, words, pictures[:2], method, 3)
    for place, row in ((5, 20), (8, 38)):                                          # between the images, after them
        other = list(words)
        other[place] = 3 + (words[place] + 1) % 90
        changed = entering(model, other, pictures[:2], method, 3)[0]
        assert torch.equal(hidden[:row], changed[:row]) and not torch.allclose(hidden[row:], changed[row:], atol=1e-4)
    for image, row in ((0, 3), (1, 21)):
        swapped = pictures[:2]
        swapped[image] = pictures[2]
        changed = entering(model, words, swapped, method, 3)[0]
        assert torch.equal(hidden[:row], changed[:row]) and not torch.allclose(hidden[row], changed[row], atol=1e-4)
    assert visual.tolist() == [*range(3, 19), *range(21, 37)]


def test_a_merged_needle_is_not_kept():
    """So "needle" is declared only without consolidation: token 0 has all the attention, but is absorbed by 1, more salient.

    Nor is "select", as merging is no selection.
    """
    attn = torch.tensor([[.98, .01, .01]] * 3)[None]
    logits = torch.tensor([[[0., 2, 1]] * 3])
    tokens = tokens_of([0, 1, 2], 3, hidden=angles(0., 0., 90.), attn=attn, **of(logits))
    assert ASAP(keep=2, consolidate=False).reduce(tokens).keep.tolist() == [0, 1]
    assert ASAP(keep=2).reduce(tokens).keep.tolist() == [1, 2]
    assert ASAP().laws == {"ordered", "convex", "scale", "budget"}
    assert ASAP(consolidate=False).laws == {"select", "ordered", "scale", "budget", "needle"}
    assert "needle" not in ASAP(consolidate=False, rank_query="saliency").laws


# edges

def test_equal_saliency():
    """Equal logits: s_max = s_min, s_hat is 0, not 0/0; the mask is at its floor ln 1e-6; a token's copy joins it and adds nothing."""
    logits = torch.full((1, 5, 5), .3)
    tokens = tokens_of([1, 2, 3], 5, hidden=torch.tensor([[1.], [2], [3]]), attn=torch.full((1, 5, 5), .2), **of(logits))
    method = ASAP(keep=2)
    assert method.masses(tokens)[1].tolist() == [0, 0, 0]
    assert method.mask(tokens, *asking(logits), causal(5))[0, 1, 3] == pytest.approx(-13.8155, abs=1e-4)
    r = method.reduce(tokens)
    assert r.keep.tolist() == [0, 2] and r.merge.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert ASAP(keep=2, consolidate=False).reduce(tokens).keep.tolist() == [0, 1]                      # ties: the first


def test_threshold_one_merges_not_even_copies():
    """The float cosine of a vector with itself may be 1.0000001: it counts as 1."""
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        hidden = torch.randn(1, 7, generator=g) * torch.linspace(.1, 3, 8)[:, None]
        tokens = tokens_of(range(8), 8, hidden=hidden)
        assert len(ASAP(threshold=1.).consolidation(tokens, torch.rand(8, generator=g), torch.arange(8))[0]) == 8


def test_one_token_and_all_tokens():
    """n = 1 keeps it; keep = n without consolidation is everything; with it, what is alike is one."""
    assert kept(n=1, keep=1) == [0] and kept(n=7, keep=7, consolidate=False) == list(range(7))
    r = result(n=7, keep=7, threshold=.5)
    assert len(r.keep) < 7 and torch.allclose(r.merge.sum(dim=1), torch.ones(len(r.keep)))
    assert (r.merge > 0).any(dim=0).sum() == 7 - (r.merge == 0).all(dim=0).sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Half hidden states, queries and keys: the weights stay float32 and convex, the result half."""
    method = ASAP(keep=6, apply_to_output=False)
    tokens = drawn(method)
    query, key = tokens.turned_query.to(dtype), tokens.turned_key.to(dtype)
    r = method.reduce(half := replace(tokens, hidden=tokens.hidden.to(dtype), turned_query=query, turned_key=key))
    assert r.merge.dtype == torch.float32 and half.reduced(r).hidden.dtype == dtype
    torch.testing.assert_close(r.merge.sum(dim=1), torch.ones(6))
    assert method.mask(half, query, key, causal(len(half.hidden))).dtype == torch.float32
    assert method.saliency(query, key)[0].dtype == torch.float32


def test_images_apart():
    """Text between two images: saliency runs from 0 to 1 in each, neither sees the other ahead, and nothing merges across."""
    method = ASAP(keep=8, threshold=-2.)
    tokens = drawn(method, gap=1)
    s_hat = method.masses(tokens)[1]
    for half in s_hat.split(6):
        assert half.min() == 0 and half.max() == pytest.approx(1, abs=1e-3)
    mask = method.mask(tokens, tokens.turned_query, tokens.turned_key, causal(len(tokens.hidden)))[0]
    first, second = tokens.visual.split(6)
    assert (mask[first[:, None], second] == -INF).all() and (mask[first[:, None], first] > -INF).all()
    r = method.reduce(tokens)
    of = torch.arange(12) >= 6
    merged = r.merge[(r.merge > 0).sum(dim=1) > 1]
    assert len(merged) == 2 and all(of[row.nonzero()].float().var() == 0 for row in merged)


def test_in_the_model():
    """Two images, grouped keys, a prompt without an image, keep = n without consolidation and lambda_max near 0: no change."""
    model, pictures = llava(layers=4), [picture(llava(layers=4), seed) for seed in range(2)]
    logits, cache, trace = prefill(model, ids(3, MARK, 2, MARK, 4), pictures, ASAP(keep=8))
    assert cache.lengths == [41, 41, 17, 17] and logits.isfinite().all()
    torch.testing.assert_close(trace.sources().sum(dim=1), torch.ones(8))
    text = prefill(model, ids(5), (), ASAP())
    assert torch.equal(text[0], prefill(model, ids(5))[0]) and not text[2].steps
    whole = prefill(model, ids(3, MARK, 4), pictures[:1], ASAP(keep=1., lambda_max=1e-12, eps=1e-12, consolidate=False))[0]
    torch.testing.assert_close(whole, prefill(model, ids(3, MARK, 4), pictures[:1])[0], atol=1e-4, rtol=1e-4)


def test_no_text_after_the_image():
    """rank_query="text" has no rows then: an error that says so; "all" still has the image's own."""
    logits = torch.zeros(1, 3, 3)
    tokens = tokens_of([0, 1, 2], 3, attn=torch.full_like(logits, 1 / 3), **of(logits))
    with pytest.raises(UserError, match="text"):
        ASAP(keep=1, rank_query="text").reduce(tokens)
    assert ASAP(keep=1).reduce(tokens).keep.tolist() == [0]


def test_overflow_is_named():
    """NaN in the attention, in the queries or in a token's hidden state is an error, never ranked or merged."""
    method = ASAP(keep=3)
    tokens = drawn(method)
    for which in ("all", "saliency"):
        with pytest.raises(UserError, match="NaN"):
            broken = replace(tokens, attn=tokens.attn * float("nan"), turned_query=tokens.turned_query * float("nan"))
            replace(method, rank_query=which).reduce(broken)
    for value in (INF, float("nan")):
        with pytest.raises(UserError, match="finite"):
            method.reduce(replace(tokens, hidden=tokens.hidden.index_fill(0, tokens.visual[:1], value)))


@pytest.mark.parametrize("value", [INF, float("nan")])
@pytest.mark.parametrize("which", ["all", "last", "saliency"])
def test_overflow_of_a_query_is_named(which, value):
    """One query overflows and the rows that rank are finite: saliency was then NaN, which absorbed at random, or kept one token twice."""
    method = ASAP(keep=6, rank_query=which)
    tokens = drawn(method)
    query = tokens.turned_query.clone()
    query[0, tokens.visual[3], 0] = value
    with pytest.raises(UserError, match="queries or keys contain NaN"):
        method.reduce(replace(tokens, turned_query=query))
    with pytest.raises(UserError, match="queries or keys contain NaN"):
        method.mask(tokens, query, tokens.turned_key, causal(len(tokens.hidden)))


@pytest.mark.parametrize("rows", ["all", "causal"])
def test_mask_in_the_last_layer(rows):
    """The last layer computes the last row alone, which the mask leaves as it is: with the mask there too nothing changes."""
    model, given = llava(layers=4), (ids(3, MARK, 4), [picture(llava(layers=4))])
    once, twice = (ASAP(keep=6, saliency_rows=rows, bidir_layers=layers) for layers in ((1,), (1, 3)))
    torch.testing.assert_close(prefill(model, *given, once)[0], prefill(model, *given, twice)[0], atol=1e-5, rtol=0)


def test_average():
    """(2 * 576 + 30 * 99) / 32 = 128.8 is the first average of at least 128; stages: 576 twice, then 288, then 58."""
    assert ASAP().budget(576) == 98 and ASAP().with_average(128, 576, 32).keep == 99
    assert ASAP(stages=((2, .5), (3, .1))).schedule(576, 5) == [576, 576, 288, 58, 58]


def test_does_not_wait_for_each_token():
    """Six times as many kept tokens, all unlike: the host asks for as many values."""
    counts = []
    for k in (4, 24):
        method = ASAP(keep=k, threshold=.999999)
        tokens = drawn(method, 60)
        with Waits() as waits:
            method.reduce(tokens)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


def test_position_ids():
    """Three words, 16 patches, four words: 6 tokens stay. Kept ids go on at 23 in all layers; renumbered ones, after the cut, at 13."""
    model, given = llava(layers=4), (ids(3, MARK, 4), [picture(llava(layers=4))])
    (a, own, _), (b, new, _) = (prefill(model, *given, ASAP(keep=6, position_ids=which)) for which in ("keep", "renumber"))
    assert own.lengths == new.lengths == [23, 23, 13, 13] and not torch.allclose(a, b, atol=1e-4)
    assert [layer.next for layer in own.layers] == [23] * 4 and [layer.next for layer in new.layers] == [23, 23, 13, 13]


def test_past_keys_and_values():
    """Table 4's storage counts 98 tokens in all layers: prune_past_kv drops what is dropped from the layers before the cut too.

    The prompt's own pass is the same; later tokens see less of it in those layers.
    """
    model, steps = llava(layers=6), {}
    for past in (False, True):
        method = ASAP(stages=((2, .5), (4, .25)), prune_past_kv=past)
        logits, cache, _ = prefill(model, ids(3, MARK, 4), [picture(model)], method)
        steps[past] = logits, model.step([5], cache, method)
        assert cache.lengths == ([12] * 6 if past else [24, 24, 16, 16, 12, 12])
    assert torch.equal(steps[True][0], steps[False][0]) and not torch.allclose(steps[True][1], steps[False][1], atol=1e-4)
