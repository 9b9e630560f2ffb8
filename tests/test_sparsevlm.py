"""SparseVLM: equal to its released codes' recordings, examples by hand, what its options change, and its edges."""

from copy import deepcopy
from dataclasses import replace
from itertools import product

import pytest
import torch
from safetensors.torch import load_file

from golden import FOLDER, golden, prompt, run
from minivlm.attention import frequency
from minivlm.cache import Cache
from minivlm.config import TextConfig
from minivlm.llama import Decoder
from pruning.base import Reduction, Tokens, UserError, top
from pruning.fastv import FastV
from pruning.sparsevlm import TABLES, SparseVLM, clustered, relevant_text
from tiny import MARK, Around, ids, llava, picture, prefill

CLUSTER, CLUSTER_FACTS = golden("sparsevlm_cluster_merge")
RANK, RANK_FACTS = golden("sparsevlm_score_rank_v1_0")
TOPK, TOPK_FACTS = golden("sparsevlm_score_topk_v1_5")
SCHEDULES = [(version, case["run"]) for version in ("v1.0", "v1.5", "v2.0")
             for case in golden(f"sparsevlm_schedule_{version.replace('.', '_')}")[1]["cases"]]


def look(attn, relevance, hidden=None, position=None, N=None, layer=3):
    """Tokens of one text token, n visual and m text tokens: `attn` (m, n) or (H, m, n) is what the visual columns got.

    Before layer 0 all N visual tokens were 1 and the text `relevance` (m numbers), which so decides who rates.
    """
    attn = torch.as_tensor(attn, dtype=torch.float32)
    attn = attn[None] if attn.ndim == 2 else attn
    H, m, n = attn.shape
    N, visual = N or n, torch.arange(1, n + 1)
    weights = torch.zeros(H, m, 1 + n + m)
    weights[:, :, visual] = attn
    values = torch.tensor([-1., *(hidden or range(n)), *[-2.] * m])[:, None]
    before = torch.tensor([0., *[1.] * N, *relevance])[:, None]
    position = torch.arange(1 + n + m) if position is None else torch.tensor(position)
    index = torch.arange(n)
    cell = torch.stack([0 * index, 0 * index, index], dim=1)
    return Tokens(values, position, visual, cell, index, int(position[-1]) + 1, prompt=before, layer=layer,
                  rows=torch.arange(n + 1, 1 + n + m), attn=weights, prompt_visual=torch.arange(1, 1 + N), frequency=torch.ones(1))


def rows(tokens, r, pruner):
    """What stands in the sequence after reduction `r`; -1 and -2 are text."""
    return tokens.reduced(r, pruner.positions).hidden[:, 0].tolist()


def one(k, **fields):
    """A single cut to k tokens after layer 2."""
    return SparseVLM(**dict(dict(layers=(2,), table=(k,)), **fields))


# --- the recordings ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("noise", [True, False], ids=["noise", "no noise"])
@pytest.mark.parametrize("case", CLUSTER_FACTS["cases"], ids=lambda case: str(case["case"]))
def test_recorded_clusters(case, noise):
    """Cluster means from recorded rows, with the recorded noise on the densities or with none."""
    name, c = f"case{case['case']}", case["cluster_num"]
    x, noise_ = CLUSTER[f"{name}.x"][0], CLUSTER[f"{name}.noise"][0]
    weight, centre = clustered(x, c, noise=noise_ if noise else torch.zeros_like(noise_))
    ours, theirs = weight @ x / weight.sum(dim=1, keepdim=True), CLUSTER[f"{name}.{'noise' if noise else 'nonoise'}.out"][0]
    if c == 2 and not noise and not ours.allclose(theirs, atol=1e-5):      # see recorded_order
        ours = ours.flip(0)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert weight[torch.arange(c), centre].eq(1).all() and weight.sum(dim=0).eq(1).all()


@pytest.mark.parametrize("case", RANK_FACTS["cases"], ids=lambda case: str(case["case"]))
def test_recorded_rank(case):
    """v1.0 from recorded attention: the score of every visual token, and the kept ones, as many as the rank allows."""
    name, pre, n = f"case{case['case']}", case["pre"], case["num_visual"]
    raters = RANK[f"{name}.rater_idx_rel"].tolist()
    tokens = look(RANK[f"{name}.text_rows"][:, :, pre:pre + n], [float(i in raters) for i in range(case["num_text"])])
    r = SparseVLM("v1.0", table=(case["scale"], case["bias"])).reduce(tokens)
    torch.testing.assert_close(r.score, RANK[f"{name}.score"][0], atol=1e-5, rtol=0)
    assert r.keep[:case["kept"]].tolist() == RANK[f"{name}.keep"].tolist()


@pytest.mark.parametrize("budget", [192, 128, 96, 64])
@pytest.mark.parametrize("case", TOPK_FACTS["cases"], ids=lambda case: f"layer {case['layer']}")
def test_recorded_tables(case, budget):
    """v1.5 at its three cuts: the table's number of the tokens left of 576, earlier clusters among them."""
    name, pre, n = f"case{case['case']}", case["pre"], case["num_visual"]
    raters, kept = TOPK[f"{name}.rater_idx_rel"].tolist(), TOPK[f"{name}.keep_R{budget}"].tolist()
    relevance = [float(i in raters) for i in range(case["num_text"])]
    tokens = look(TOPK[f"{name}.text_rows"][:, :, pre:pre + n], relevance, N=576, layer=case["layer"] + 1)
    for keep in (budget, budget / 576):
        r = SparseVLM(keep=keep).reduce(tokens)
        assert r.keep[:len(kept)].tolist() == kept
    torch.testing.assert_close(r.score, TOPK[f"{name}.score"][0], atol=1e-5, rtol=0)


def decoder(weights, facts):
    """The recorded decoder, and one layer more, all zeros, that changes nothing: v1.0 cuts after the last one."""
    hyper = facts["hyper"]
    sizes = {name: hyper[name] for name in ("hidden_size", "intermediate_size", "head_dim", "rms_norm_eps", "rope_theta")}
    model = Decoder(TextConfig(vocab_size=1, num_hidden_layers=hyper["num_layers"] + 1, num_attention_heads=hyper["num_heads"],
                               num_key_value_heads=hyper["num_heads"], **sizes))
    zeros = {name: torch.zeros_like(p) for name, p in model.state_dict().items()
             if name.startswith(("embed_tokens", f"layers.{hyper['num_layers']}."))}
    model.load_state_dict(load_file(FOLDER / f"{weights}.safetensors") | zeros)
    return model


def recorded_order(pruner, kept, check):
    """`check` a method equal to `pruner`, but for the order of two clusters; it keeps `kept` tokens at its cuts.

    Without noise the two nearest rows tie as the centres of two clusters; torch.topk, which the code asks, does not
    say which comes first. So for each cut: as it is, or the other way round.
    """
    failures = []
    for turned in product((False, True), repeat=len(kept)):
        def reduce(tokens):
            r, cut = pruner.reduce(tokens), pruner.cuts.index(tokens.layer - 1)
            if turned[cut] and len(r.keep) == kept[cut] + 2:
                order = torch.tensor([*range(kept[cut]), kept[cut] + 1, kept[cut]])
                r = Reduction(r.keep[order], r.merge[order], r.score)
            return r
        try:
            return check(Around(pruner, reduce))
        except AssertionError as error:
            failures.append(error)
    raise failures[0]


@pytest.mark.parametrize("version", ["v1.0", "v1.5", "v2.0"])
def test_recorded_end_to_end(version):
    """Raters, scores, kept tokens, what is recycled and into what, positions, lengths and last keys of each layer's
    cache, all rows after the prefill, and two decoded tokens, on a 6-layer decoder."""
    recorded, facts = golden(f"sparsevlm_e2e_{version.replace('.', '_')}")
    hyper, hidden = facts["hyper"], recorded["input.inputs_embeds"][0]
    a, n, cuts = hyper["pre_prompt_len"], hyper["num_visual"], tuple(hyper["prune_layers_0based"])
    table = hyper["retain_table"] or (hyper["scale"], hyper["bias"])
    pruner = SparseVLM(version, layers=cuts, table=tuple(table), heads=hyper["num_priority_heads"] or 14, ties="none")
    kept = [recorded[f"prune{i}.keep_idx"].tolist() for i in range(len(cuts))]
    raters = relevant_text(hidden[a:a + n], hidden[a + n:])
    assert raters.tolist() == recorded["rater_idx_rel"].tolist()
    model, side = decoder("sparsevlm_tiny_llama_weights", facts), round(n ** .5)

    def check(method):
        saw, reduce = [], method.reduce
        method.reduce = lambda tokens: saw.append((tokens, reduce(tokens))) or saw[-1][1]
        cache = Cache.empty(len(model.layers))
        prefill = model.prefill(prompt(hidden, a, (side, side)), cache, method, last=False)
        for i, (tokens, r) in enumerate(saw):
            score, k = recorded[f"prune{i}.score"][0], len(kept[i])
            close(r.score, score)
            assert r.keep[:k].tolist() == kept[i]
            new = tokens.reduced(r, method.positions)
            assert new.position.tolist() == recorded[f"prefill.position_ids.layer{cuts[i] + 1}"][0].tolist()
            assert (len(r.keep) > k) == (f"prune{i}.recycle_in" in recorded)
            if len(r.keep) > k:
                lost = r.merge[k:].sum(dim=0).nonzero().squeeze(1)
                lost = lost[r.score[lost].argsort(descending=True)]
                before, after = (recorded[f"prune{i}.recycle_{which}"][0] for which in ("in", "out"))
                of_largest = 2e-6 * before.abs().max().item()                      # not normed: values up to 11
                close(tokens.hidden[tokens.visual[lost]], before, of_largest)
                close(new.hidden[new.visual[k:]], after, of_largest)
        close(prefill, recorded["prefill.last_hidden_state"][0])
        assert cache.lengths[:-1] == recorded["prefill.kv_len"].tolist()
        for l, layer in enumerate(cache.layers[:-1]):
            close(layer.key[0, :, -2:].transpose(0, 1), recorded[f"prefill.cache_key.layer{l}"])
        for t, token in enumerate(recorded["input.decode_embeds"][0]):
            close(model.step(token[None], cache), recorded[f"decode{t}.last_hidden_state"][0])
        assert cache.lengths[:-1] == recorded["decode.kv_len"].tolist()

    recorded_order(pruner, [len(k) for k in kept], check)


@pytest.mark.parametrize("version, case", SCHEDULES, ids=[f"{version} {case}" for version, case in SCHEDULES])
def test_recorded_schedules(version, case):
    """The released layers and budgets on 576 visual tokens and 20 layers: kept tokens, cache lengths, the last rows."""
    recorded, facts = golden(f"sparsevlm_schedule_{version.replace('.', '_')}")
    (told,) = [c for c in facts["cases"] if c["run"] == case]
    config, hyper = told["config"], facts["hyper"]
    of_scale_and_bias = {(13.5, 0): 192, (9, 6): 128, (.8, 0): 64}
    keep = config if isinstance(config, int) else of_scale_and_bias.get(tuple(config.values()))
    budget = dict(table=tuple(config.values())) if keep is None else dict(keep=keep)
    pruner = SparseVLM(version, ties="none", **budget)
    assert pruner.cuts == tuple(hyper["prune_layers_0based"])
    model, tokens = decoder("sparsevlm_schedule_weights", facts), prompt(recorded["input.inputs_embeds"][0], 35, (24, 24))

    def check(method):
        prefill, _, trace, _ = run(model, tokens, method, torch.zeros(1, hyper["hidden_size"]))
        assert trace.tokens[:-1] == told["kv_len"]
        for i, (step, k) in enumerate(zip(trace.steps, told["kept"], strict=True)):
            assert step.reduction.keep[:k].tolist() == recorded[f"{case}.prune{i}.keep_idx"].tolist()
        close(prefill[-4:], recorded[f"{case}.last_hidden_last4"][0])

    recorded_order(pruner, told["kept"], check)


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


# --- examples by hand ----------------------------------------------------------------------------------------------------

def test_the_relevant_text_rates():
    """Four visual tokens, three of text. exp(2), 1, 1 over their sum are .79 .11 .11: the first is above a third and rates
    alone: .1 .4 .3 .2 keeps tokens 1 and 2. The last token (FastV) would keep 0 and 3, the mean of all text 0 and 1:
    .4 .17 .1 .17."""
    tokens = look([[.1, .4, .3, .2], [.5, 0., 0., .1], [.6, .1, 0., .2]], relevance=[2, 0, 0])
    assert one(2, recycle=0).reduce(tokens).keep.tolist() == [1, 2]
    last = replace(tokens, rows=tokens.rows[-1:], attn=tokens.attn[:, -1:])
    assert FastV(keep=2).reduce(last).keep.tolist() == [0, 3]


def test_two_raters_and_two_heads():
    """Relevance 1 0 1: the first and the third rate. Head means: [.2 .4 .1 .0] and [.4 .0 .1 .3]; mean .3 .2 .1 .15."""
    heads = [[[.4, .2, .2, 0.], [0., 0., 1., 0.], [.2, 0., .2, .6]], [[0., .6, 0., 0.], [0., 0., 1., 0.], [.6, 0., 0., 0.]]]
    r = one(3, recycle=0).reduce(look(heads, relevance=[1, 0, 1]))
    close(r.score, torch.tensor([.3, .2, .1, .15]))
    assert r.keep.tolist() == [0, 1, 3]


def test_recycling():
    """Nine tokens of value 0, 10, .. 80, of which 1 and 4 are kept. Of the seven others int(.3 * 7) + 1 = 3 are
    recycled: 5, 3, 7, with .10 .08 .07. int(.1 * 3) + 1 = 1 cluster: (50 + 30 + 70) / 3 = 50, in the cell of its centre,
    the best rated of equals, 5. It stands after the kept, and positions count anew. Without recycling 10 40 would be left;
    each dropped token joined to the nearest kept would change these two, and add none."""
    tokens = look([NINE], [0.], hidden=range(0, 90, 10))
    r = one(2).reduce(tokens)
    assert r.keep.tolist() == [1, 4, 5]
    assert rows(tokens, r, one(2)) == [-1, 10, 40, 50, -2]
    assert tokens.reduced(r, one(2).positions).position.tolist() == [0, 1, 2, 3, 4]
    assert r.merge[2].nonzero().squeeze(1).tolist() == [3, 5, 7]


NINE = [.05, .30, .02, .08, .25, .10, .01, .07, .03]


def test_density_peaks():
    """Rows 0, 1, 10, 12, two clusters. Each row's squares of distance to itself and the nearest: mean .5 .5 2 2, so the
    densities are e^-.5 = .61, the same, e^-2 = .14, the same. The first of equals is the denser: delta is 12 (no denser
    one: the largest distance of all), 1, 9, 2, and rho * delta 7.3 .61 1.2 .27. Centres 0 and 10, clusters 0 1 | 10 12.
    The two best rated, or the two densest, as centres would give 0 | 1 10 12."""
    weight, centre = clustered(torch.tensor([[0.], [1], [10], [12]]), 2)
    assert centre.tolist() == [0, 2] and weight.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_rank():
    """Two raters, [.4 .2 .1 .1 0] and half of it: rank 1, scale 2 and bias 0 keep int(2 * 1) = 2 of five. With a second
    row that is no multiple, [.1 0 .1 .1 .3], the rank is 2, and 4 stay. Counting raters would keep 4 both times."""
    first, half = [.4, .2, .1, .1, 0.], [.2, .1, .05, .05, 0.]
    pruner = SparseVLM("v1.0", layers=(2,), table=(2, 0), recycle=0)
    assert pruner.reduce(look([first, half], [0, 0])).keep.tolist() == [0, 1]
    assert pruner.reduce(look([first, [.1, 0., .1, .1, .3]], [0, 0])).keep.tolist() == [0, 1, 2, 4]


def test_gravity():
    """v2.0, heads of width 2: two rotated vectors of ones give 2 cos(p - q) / sqrt(2). Four visual tokens 4, 3, 2, 1 before
    the rater: -.92 -1.40 -.59 .76. Of weights .2 .2 .2 .1 this makes -.22 -.14 -.34 .13: tokens 1 and 3 stay; the weights
    alone would keep 0 and 1."""
    tokens, gravity = look([[.2, .2, .2, .1]], [0.]), torch.tensor([-.9244, -1.4001, -.5885, .7641])
    r = one(2, version="v2.0").reduce(tokens)
    torch.testing.assert_close(r.score, torch.tensor([.2, .2, .2, .1]) / gravity, atol=1e-4, rtol=0)
    assert r.keep.tolist() == [1, 3]
    assert one(2, recycle=0).reduce(tokens).keep.tolist() == [0, 1]


def test_gravity_of_the_model():
    """Heads of width 4 turn by 1 and by theta^-1/2 radians a position; for theta = 4, 4 .. 1 positions away: cos d +
    cos(d / 2) = -1.07 -.92 .12 1.42, and equal weights rank token 2 first; for theta = 10000 it is .35 .01 .58 1.54: token 1."""
    for theta, best in ((4., 2), (10000., 1)):
        tokens = replace(look([[.2, .2, .2, .2]], [0.]), frequency=frequency(4, theta))
        assert one(1, version="v2.0").reduce(tokens).keep.tolist() == [best]


def test_heads_that_look_most():
    """Distances 6, 5, 1: gravity 1.36 .40 .76. Head A .5 .1 .1 becomes .37 .25 .13, in all .75; head B .1 .35 .2 becomes
    .07 .87 .26, in all 1.21, and rates alone: tokens 1 and 2. Before the correction A gives more (.7 against .65), and
    both heads together score .22 .56 .20: either would keep 0 and 1."""
    tokens = look([[[.5, .1, .1]], [[.1, .35, .2]]], [0.], position=[0, 1, 2, 6, 7])
    assert one(2, version="v2.0", heads=1).reduce(tokens).keep.tolist() == [1, 2]
    assert one(2, version="v2.0", heads=2).reduce(tokens).keep.tolist() == [0, 1]


# --- paper says, code does -------------------------------------------------------------------------------------------------

def test_raters_at_the_mean():
    """Four visual tokens vote, for text 0, 0, 1, 2 of four: .5 .25 .25 0, mean .25. Above it is one, at or above three."""
    visual, text = torch.eye(4)[[0, 0, 1, 2]], 1000 * torch.eye(4)
    assert relevant_text(visual, text).tolist() == [0]
    assert relevant_text(visual, text, ">=").tolist() == [0, 1, 2]
    tokens = replace(look([[.1, .9], [.5, .0], [.5, 0.], [0., 0.]], [0.] * 4, N=4), prompt=torch.cat([visual[:1], visual, text]))
    assert one(1, recycle=0).reduce(tokens).keep.tolist() == [1]
    assert one(1, recycle=0, raters=">=").reduce(tokens).keep.tolist() == [0]


def test_what_the_rank_decides():
    """n = 5, rank 1 or 2. The paper drops int(.5 * (5 - rank)) = 2 or 1; scale * rank + bias with 2, 0 keeps 2 or 4. At
    full rank, or where lam says zero, nothing is dropped."""
    attn = [[.4, .2, .1, .1, 0.], [.2, .1, .05, .05, 0.]]
    def kept(attn, **rule):
        return len(SparseVLM("v1.0", layers=(2,), recycle=0, **rule).reduce(look(attn, [0] * len(attn))).keep)
    assert kept(attn, lam=.5) == 3 and kept(attn, table=(2, 0)) == 2
    assert kept([attn[0], [.1, 0., .1, .1, .3]], lam=.5) == 4
    assert kept(attn, lam=.2) == 5 and kept(attn, lam=9.) == 1
    assert kept(torch.eye(3), lam=9.) == kept(torch.eye(3), table=(0, 1)) == 3


def test_sum_of_a_cluster():
    """The cluster of test_recycling: 150, not 50."""
    tokens = look([NINE], [0.], hidden=range(0, 90, 10))
    assert rows(tokens, one(2, merge="sum").reduce(tokens), one(2)) == [-1, 10, 40, 150, -2]


def test_no_extra():
    """int(.3 * 7) = 2 recycled: tokens 5 and 3, whose mean is 40; a share of .1 is then none at all, and gives nothing.
    Of int(.6 * 7) = 4 recycled half are 2 clusters; with one more of both 5 make 3."""
    tokens = look([NINE], [0.], hidden=range(0, 90, 10))
    assert rows(tokens, one(2, extra=0).reduce(tokens), one(2)) == [-1, 10, 40, 40, -2]
    r = one(2, extra=0, recycle=.1).reduce(tokens)
    assert r.merge is None and r.keep.tolist() == [1, 4]
    assert one(2, recycle=0).reduce(tokens).merge is None
    assert [len(one(2, recycle=.6, clusters=.5, extra=extra).reduce(tokens).keep) for extra in (0, 1)] == [2 + 2, 2 + 3]


def test_neighbours():
    """test_density_peaks with three neighbours: mean squares 33.7 27.3 28.3 41.7, so 1 is the densest, then 10, and these
    are the centres."""
    x = torch.tensor([[0.], [1], [10], [12]])
    assert clustered(x, 2, neighbours=3)[1].tolist() == [1, 2]
    tokens = look([[.4, .1, .09, .08, .07]], [0.], hidden=[50., 0, 1, 10, 12])
    share = dict(recycle=1., clusters=.3)                                          # 4 recycled, int(.3 * 4) + 1 = 2 clusters
    assert one(1, **share).reduce(tokens).keep.tolist() == [0, 1, 3]
    assert one(1, neighbours=3, **share).reduce(tokens).keep.tolist() == [0, 2, 3]


def test_ties_of_density():
    """test_density_peaks without noise: neither 0 nor 1 is denser, both have delta 12, and the two nearest rows of all are
    the centres: 0 | 1 10 12. With noise one of them is denser, as with the first of equals."""
    tokens = look([[.4, .1, .09, .08, .07]], [0.], hidden=[50., 0, 1, 10, 12])
    def after(**fields):
        pruner = one(1, recycle=1., clusters=.3, **fields)
        return rows(tokens, pruner.reduce(tokens), pruner)[1:-1]
    assert after() == [50, .5, 11]
    assert after(ties="none") == pytest.approx([50, 0, 23 / 3])
    for seed in range(4):
        assert after(ties="noise", seed=seed) == [50, .5, 11]


def test_noise_decides():
    """The centre of 0 1 is 0 or 1, of equal density, as the seed says; the first of equals is always 0."""
    tokens = look([[.4, .1, .09, .08, .07]], [0.], hidden=[50., 0, 1, 10, 12])
    centres = {tuple(one(1, recycle=1., clusters=.3, ties="noise", seed=seed).reduce(tokens).keep.tolist()) for seed in range(20)}
    assert {keep[1] for keep in centres} == {1, 2}


# --- budgets ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("version", ["v1.5", "v2.0"])
def test_schedule(version):
    """The tokens that enter each layer, clusters among them, are those of a run; counted as the authors count (layers 2, 6
    and 15 after their cut) their average is what `keep` says, within three tokens, between the rows of the table too."""
    attn = torch.rand(1, 3, 576, generator=torch.Generator().manual_seed(0))
    for keep in (64, 80, 96, 100, 128, 160, 192, 300, 500, 575, 576):
        pruner, entering = SparseVLM(version, keep=keep), [576]
        for layer in pruner.reduce_at(32):
            tokens = look(attn[:, :, :entering[-1]], [1., 0., 0.], N=576, layer=layer)
            entering.append(len(pruner.reduce(tokens).keep))
        a, b, c, d = entering
        assert pruner.schedule(576, 32) == [a] * 3 + [b] * 4 + [c] * 9 + [d] * 16
        assert abs((2 * a + 4 * b + 9 * c + 17 * d) / 32 - keep) < 3


def test_average():
    """Row 192 with its clusters is 309, 204, 113: (3 * 576 + 4 * 309 + 9 * 204 + 16 * 113) / 32 = 206.5 enter a layer. For 192
    that enter, less is to be kept. The rank of v1.0 is not known before the prompt is."""
    assert SparseVLM(keep=192).schedule(576, 32) == [576] * 3 + [309] * 4 + [204] * 9 + [113] * 16
    assert sum(SparseVLM(keep=192).schedule(576, 32)) / 32 == 206.5
    for version in ("v1.5", "v2.0"):
        pruner = SparseVLM(version).with_average(192, 576, 32)
        assert 192 <= sum(pruner.schedule(576, 32)) / 32 < 193.5 and 170 < pruner.keep < 192
        with pytest.raises(UserError, match="out of reach"):
            SparseVLM(version).with_average(40, 576, 32)
    assert SparseVLM("v1.0").schedule(576, 32) is None
    with pytest.raises(UserError, match="the prompt decides"):
        SparseVLM("v1.0").with_average(192, 576, 32)


def test_share_and_other_grids():
    """Of 2880 tokens a third keeps five times the row 192; below 64 of 576 the row 64 shrinks; one token always stays."""
    def kept(n, keep, version="v2.0"):
        return len(SparseVLM(version, keep=keep).reduce(look(torch.rand(1, n), [0.])).keep)
    assert [kept(576, 1 / 3), kept(2880, 1 / 3), kept(2880, 960), kept(576, 192)] == [300, 1500, 1500, 300]
    assert kept(576, 32) == 33 and kept(576, 1) == 1 and kept(9, .01) == 1
    assert SparseVLM("v1.0").reduce_at(32) == (3, 7, 16, 20)


# --- laws ------------------------------------------------------------------------------------------------------------------

def test_laws():
    """v2.0 selects, in order; v1.x merges, with weights that sum to 1 unless clusters are summed."""
    assert SparseVLM("v2.0").laws == {"select", "ordered", "scale"}
    assert SparseVLM("v1.0").laws == SparseVLM("v1.5").laws == {"convex", "scale", "needle"}
    assert SparseVLM(merge="sum").laws == {"scale", "needle"}
    assert SparseVLM.preconditions == {"text"}


@pytest.mark.parametrize("version", TABLES)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 16, 100])
def test_shape_of_a_reduction(version, n):
    """The best rated k stand first, ascending; of the others the best int(.3 (n - k)) + 1 are in one cluster each, with
    equal weights that sum to 1. Four times the attention gives the same."""
    generator = torch.Generator().manual_seed(n)
    attn, hidden = torch.rand(2, 4, n, generator=generator), torch.rand(n, generator=generator).tolist()
    pruner = SparseVLM(version, table=(1, 2) if version == "v1.0" else (5, 3, 2))
    k = max(1, min(5, n - 1)) if version != "v1.0" else n if n < 3 else min(2 + 2, n - 1)        # two raters: rank 2
    r, again = (pruner.reduce(look(times * attn, [1, 0, 1, 0], hidden)) for times in (1, 4))
    assert r.keep[:k].equal(top(r.score, k)) and r.keep.equal(again.keep)
    if version == "v2.0" or k == n:
        assert r.merge is None and len(r.keep) == k
        return
    lost = r.score.argsort(descending=True)[k:][:int(.3 * (n - k)) + 1]
    own = r.merge[k:] > 0
    assert len(r.keep) == k + int(.1 * len(lost)) + 1 == len(r.merge)
    assert r.merge[:k].equal(torch.eye(n)[r.keep[:k]]) and again.merge.equal(r.merge)
    assert own.sum(dim=0).equal(torch.zeros(n).index_fill(0, lost, 1).long())
    close(r.merge[k:], own / own.sum(dim=1, keepdim=True))
    assert own[:, r.keep[k:]].equal(torch.eye(len(own), dtype=torch.bool))        # a centre is in its own cluster


def test_needle():
    """A token with .9 of the raters' attention is kept by v1.x wherever it is. v2.0 divides token 2's by -.59 (see
    test_gravity), which makes it the worst."""
    for needle in range(4):
        attn = torch.full((1, 4), .03).index_fill(1, torch.tensor([needle]), .9)
        assert one(1).reduce(look(attn, [0.])).keep[0] == needle
        assert SparseVLM("v1.0", layers=(2,), table=(1, 0)).reduce(look(attn, [0.])).keep[0] == needle
    assert 2 not in one(3, version="v2.0").reduce(look([[.03, .03, .9, .03]], [0.])).keep


def test_laws_not_declared():
    """The reduction of test_recycling does not select and is not ordered, its sums are not convex; and the number left is
    another at each cut, so there is no budget(n)."""
    tokens = look([NINE], [0.])
    r = one(2).reduce(tokens)
    assert r.merge is not None and r.keep.tolist() == [1, 4, 5] and SparseVLM().budget(576) is None
    assert one(2, merge="sum").reduce(tokens).merge.sum(dim=1).tolist() == [1, 1, 3]


# --- edges -----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("version", TABLES)
def test_one_visual_token(version):
    """It stays, whatever the table says: the code would drop it."""
    tokens = look([[.5], [.2]], [0., 1.])
    for pruner in (SparseVLM(version), SparseVLM(version, keep=1), SparseVLM(version, table=(0, 0) if version == "v1.0" else (0, 0, 0))):
        r = pruner.reduce(tokens)
        assert r.keep.tolist() == [0] and r.merge is None


def test_text_all_alike():
    """One text token, or several that relate to the image alike: none is above the mean, and all rate."""
    assert relevant_text(torch.ones(3, 2), torch.ones(1, 2)).tolist() == [0]
    assert relevant_text(torch.ones(3, 2), torch.ones(4, 2)).tolist() == [0, 1, 2, 3]


def test_ties():
    """Flat attention: the first are kept, the next recycled. Equal rows: as many clusters, none of them empty."""
    r = one(3).reduce(look(torch.full((2, 9), .1), [0., 0.], hidden=[5.] * 9))
    assert r.keep.tolist() == [0, 1, 2, 3] and r.merge[3].nonzero().squeeze(1).tolist() == [3, 4]
    for ties in (None, torch.zeros(6)):
        weight, centre = clustered(torch.zeros(6, 3), 3, noise=ties)
        assert centre.tolist() == [0, 1, 2] and weight.sum(dim=1).tolist() == [4, 1, 1]


def test_half_precision():
    """A bfloat16 model: the numbers of the table, and values that are finite; the same tokens in float32 rows."""
    model = deepcopy(llava()).bfloat16()
    for version in TABLES:
        logits, cache, trace = prefill(model, ids(5, MARK, 7), [picture(model).bfloat16()], SparseVLM(version))
        assert logits.dtype == torch.bfloat16 and logits.isfinite().all() and trace.visual[-1] < 16
        assert model.step(ids(2), cache).isfinite().all()
    tokens = look([NINE], [0.], hidden=range(0, 90, 10))
    half = replace(tokens, hidden=tokens.hidden.bfloat16(), prompt=tokens.prompt.bfloat16())
    assert rows(half, one(2).reduce(half), one(2)) == [-1, 10, 40, 50, -2]


@pytest.mark.parametrize("version", TABLES)
def test_keeping_all_is_the_unpruned_model(version):
    """keep = 1.0, or the number of tokens, to the bit."""
    question, image = ids(5, MARK, 7), [picture(llava())]
    unpruned, cache_unpruned, _ = prefill(llava(), question, image)
    after = llava().step(ids(3), cache_unpruned)
    for keep in (1.0, 16):
        logits, cache, trace = prefill(llava(), question, image, SparseVLM(version, keep=keep))
        assert logits.equal(unpruned) and llava().step(ids(3), cache).equal(after)
        assert trace.steps and trace.visual == [16] * 32


@pytest.mark.parametrize("version", TABLES)
def test_decoding(version):
    """v1.x: each layer counts on from its own length, as in its released code; v2.0: all from the unpruned length."""
    _, cache, trace = prefill(llava(), ids(5, MARK, 7), [picture(llava())], SparseVLM(version))
    assert [layer.next_position for layer in cache.layers] == ([28] * 32 if version == "v2.0" else cache.lengths)
    assert cache.lengths[0] == 28 and cache.lengths[-1] < 20 and cache.lengths == trace.tokens
    llava().step(ids(3), cache)
    assert [layer.next_position for layer in cache.layers] == ([31] * 32 if version == "v2.0" else cache.lengths)


@pytest.mark.parametrize("version", TABLES)
def test_images_side_by_side(version):
    """Two images are one set of tokens; a cluster stands in the image of its centre."""
    question, pictures = ids(3, MARK, MARK, 6), [picture(llava(), seed) for seed in (0, 1)]
    logits, cache, trace = prefill(llava(), question, pictures, SparseVLM(version))
    assert logits.isfinite().all() and trace.N == 32 and trace.visual[0] == 32 and trace.visual[3] < 24
    if version != "v1.0":
        close(trace.sources().sum(dim=1), torch.ones(trace.visual[-1]))


def test_text_between_images():
    """Two images of four, a text token after each, of which the first relates to the images, and so rates, at the second
    cut as at the first: t v v v v T v v v v t keeps 1, 2, 3 by .2 .3 .4, then of these the first by .7."""
    images = torch.tensor([1, 2, 3, 4, 6, 7, 8, 9])
    attn = torch.zeros(1, 2, 11)
    attn[0, 0, 1:5], attn[0, 1, 6:10] = torch.tensor([.1, .2, .3, .4]), torch.tensor([.4, .3, .2, .1])
    before = torch.tensor([0., 1, 1, 1, 1, 9, 1, 1, 1, 1, 2])[:, None]
    tokens = Tokens(torch.arange(11.)[:, None], torch.arange(11), images, torch.zeros(8, 3), torch.arange(8), 11, prompt=before,
                    layer=3, rows=torch.tensor([5, 10]), attn=attn, prompt_visual=images)
    pruner = SparseVLM(layers=(2, 3, 5), table=(3, 1, 1), recycle=0)
    after = tokens.reduced(pruner.reduce(tokens), pruner.positions)
    assert after.hidden[:, 0].tolist() == [0, 2, 3, 4, 5, 10]
    attn = torch.tensor([[[.0, .7, .1, .2, 0., 0.], [.0, .1, .8, .1, 0., 0.]]])
    r = pruner.reduce(replace(after, layer=4, rows=torch.tensor([4, 5]), attn=attn))
    assert r.keep.tolist() == [0]


@pytest.mark.parametrize("version", TABLES)
def test_two_images_and_text(version):
    """The whole model."""
    pictures = [picture(llava(), seed) for seed in (0, 1)]
    logits, cache, trace = prefill(llava(), ids(3, MARK, 4, MARK, 6), pictures, SparseVLM(version))
    assert logits.isfinite().all() and cache.lengths == trace.tokens and trace.tokens[-1] < trace.tokens[0] == 45


def test_no_text_after_the_image():
    """Nothing can rate."""
    with pytest.raises(UserError, match="no text follows the image"):
        prefill(llava(), ids(5, MARK), [picture(llava())], SparseVLM())
    logits, _, trace = prefill(llava(), ids(5), (), SparseVLM())
    assert not trace.steps and logits.equal(prefill(llava(), ids(5))[0])


@pytest.mark.parametrize("version", TABLES)
def test_nan(version):
    """Named, not ranked."""
    with pytest.raises(UserError, match="NaN"):
        SparseVLM(version).reduce(look(torch.full((2, 9), torch.nan), [0., 1.]))


@pytest.mark.parametrize("fields, words", [
    (dict(version="v3"), "version is one of v1.0, v1.5, v2.0"), (dict(raters=">>"), "raters"), (dict(merge="max"), "merge"),
    (dict(ties="last"), "ties"), (dict(layers=(3, 2)), "layers must rise"), (dict(layers=(-1, 2, 3)), "layers must rise"),
    (dict(layers=(1, 2)), "2 numbers, one a cut"), (dict(table=(5, 4)), "3 numbers"), (dict(table=(5, 4, -1)), "negative"),
    (dict(version="v1.0", table=(5, 4, 3)), "scale and bias"), (dict(lam=.5), "v1.0"), (dict(version="v1.0", lam=-1.), "lam"),
    (dict(version="v1.0", lam=1., table=(1, 1)), "lam"), (dict(recycle=1.5), "shares"), (dict(clusters=-.1), "shares"),
    (dict(extra=-1), "extra"), (dict(heads=0), "heads"), (dict(neighbours=0), "neighbours")])
def test_bad_options(fields, words):
    """One line that names the option."""
    with pytest.raises(UserError, match=words) as caught:
        SparseVLM(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, 10])
def test_bad_keep(keep):
    """Nine tokens: said when they are there."""
    with pytest.raises(UserError, match="out of range"):
        SparseVLM(keep=keep).reduce(look([NINE], [0.]))


def test_too_few_layers():
    """A model of six has no layer 7 to cut before."""
    with pytest.raises(UserError, match="layer 7"):
        prefill(llava(layers=6), ids(5, MARK, 7), [picture(llava())], SparseVLM())
