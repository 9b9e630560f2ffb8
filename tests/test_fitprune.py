"""FitPrune by hand, and equal to the released code's recorded behaviour: scores, deletions, whole decoder; the fit."""

from dataclasses import replace

import pytest
import torch

from golden import golden, prompt, run, tiny_decoder
from minivlm.trace import Trace
from pruning.base import Reduction, UserError
from pruning.fitprune import TABLES, FitPrune, SingleFitPrune, fit, flops, received
from tiny import MARK, ids, llava, picture, prefill

SELECT, SELECT_FACTS = golden("fitprune_select")
E2E, E2E_FACTS = golden("tiny_llama_e2e")
E2E_RUNS = [name for name in E2E_FACTS["runs"] if name.startswith("fitprune")]


def observed(attn, system, n, layer=1):
    """Tokens that enter `layer`, the one before having shown these weights (H, T, T)."""
    T = attn.shape[-1]
    tokens = prompt(torch.arange(T).float()[:, None], system, (1, n))
    return replace(tokens, prompt=tokens.hidden, layer=layer, rows=torch.arange(T), attn=attn)


def maps(cross, own, heads=1):
    """(H, T, T) weights of one text token, n visual ones, one text token: the last visual token pays `own`, the last text
    token `cross`; every other row pays all to the first token, which is text."""
    n = len(cross)
    attn = torch.zeros(heads, n + 2, n + 2)
    attn[:, :, 0] = 1
    for row, paid in ((n, own), (n + 1, cross)):
        attn[:, row, 1:n + 1], attn[:, row, 0] = torch.tensor(paid), 1 - sum(paid)
    return attn


# --- by hand -------------------------------------------------------------------------------------------------------------

CROSS, OWN = [.44, .30, .16, .10], [.10, .16, .30, .44]


def test_product():
    """Cross .44 .30 .16 .10 times self .10 .16 .30 .44: .044 .048 .048 .044 (a quarter of it, self being a mean over four
    rows). Two deletions: 0 and 3. Cross attention alone, which is FastV's, would delete 2 and 3, self attention 0 and 1."""
    tokens = observed(maps(CROSS, OWN), 1, 4)
    r = FitPrune(table=(2, 0, 0), visual=4).reduce(tokens)
    assert r.keep.tolist() == SingleFitPrune(keep=2).reduce(tokens).keep.tolist() == [1, 2]
    torch.testing.assert_close(r.score, torch.tensor([.044, .048, .048, .044]) / 4)
    cross, own = received(tokens)
    assert cross.topk(2).indices.tolist() == [0, 1] and own.topk(2).indices.tolist() == [3, 2]


def test_largest_over_heads():
    """Two heads pay token 0 .4 and 0, token 1 .25 and .25, tokens 2 and 3 .1 twice; self attention is alike. Of the largest
    weights token 0 has most, of the means token 1."""
    attn = maps([.4, .25, .1, .1], [.1] * 4, heads=2)
    attn[1, 5, 1] = 0
    tokens = observed(attn, 1, 4)
    assert SingleFitPrune(keep=1).reduce(tokens).keep.tolist() == [0]
    assert SingleFitPrune(keep=1, heads="mean").reduce(tokens).keep.tolist() == [1]


def test_all_text_rows_count():
    """Two text rows pay .5 .1 .2 and .0 .5 .4: sums .5 .6 .6, self alike for 1 and 2. The last row alone would keep 1; with self
    .2 .1 .2 the products are .10 .06 .12: token 2."""
    attn = torch.zeros(1, 6, 6)
    attn[0, 3, 1:4] = torch.tensor([.2, .1, .2])
    attn[0, 4, 1:4], attn[0, 5, 1:4] = torch.tensor([.5, .1, .2]), torch.tensor([.0, .5, .4])
    tokens = observed(attn, 1, 3)
    assert SingleFitPrune(keep=1).reduce(tokens).keep.tolist() == [2] and tokens.attn[0, 5, 1:4].argmax() == 1
    torch.testing.assert_close(received(tokens)[0], torch.tensor([.5, .6, .6]))


def test_late_tokens_receive_less_from_the_image():
    """Causal and uniform: row i of the image pays 1/(i+1) to each token up to its own, so that self falls from token to token:
    (1 + 1/2 + 1/3) / 3, (1/2 + 1/3) / 3, 1/9."""
    attn = torch.tril(torch.ones(4, 4)) / torch.arange(1, 5)[:, None]
    torch.testing.assert_close(received(observed(attn[None], 0, 3))[1], torch.tensor([11 / 18, 5 / 18, 1 / 9]))


# --- recorded ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", SELECT_FACTS["cases"])
def test_recorded_layer(case):
    """Cross and self attention, the deleted tokens, the mask over the sequence."""
    facts = SELECT_FACTS["cases"][case]
    n, d = facts["n_visual"], facts["n_delete"]
    tokens = observed(SELECT[f"{case}.attn"], facts["sys_len"], n)
    cross, own = received(tokens)
    torch.testing.assert_close(cross, SELECT[f"{case}.cross"], atol=1e-5, rtol=0)
    torch.testing.assert_close(own, SELECT[f"{case}.self"], atol=1e-5, rtol=0)
    r = FitPrune(table=(d,), visual=n).reduce(tokens)
    assert r.score.argsort()[:d].tolist() == SELECT[f"{case}.deleted_local_in_order"].tolist()
    assert tokens.reduced(r).hidden[:, 0].long().tolist() == SELECT[f"{case}.keep_mask"].nonzero().squeeze(1).tolist()
    assert r.keep.tolist() == SingleFitPrune(keep=n - d).reduce(tokens).keep.tolist()


def test_recorded_tables():
    tables = SELECT_FACTS["per_layer_delete_counts_llava15_7b"]
    assert {str(ratio): list(table) for ratio, table in TABLES.items()} == tables


@pytest.mark.parametrize("name", E2E_RUNS)
def test_end_to_end(name):
    """The tokens that enter each layer, text rows, three decode steps, cache lengths."""
    facts, tokens = E2E_FACTS["runs"][name], prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    pruner = FitPrune(facts["reduction_ratio"])
    hidden, decoded, trace, after = run(tiny_decoder(), tokens, pruner, E2E["decode_embeds"])
    torch.testing.assert_close(hidden[-12:], E2E[f"{name}.text_hidden"], atol=1e-5, rtol=0)
    torch.testing.assert_close(decoded, E2E[f"{name}.decode_hidden"], atol=1e-5, rtol=0)
    assert trace.tokens == facts["kv_prefill"] and [lengths for lengths, _ in after] == facts["kv_decode"]
    for step in trace.steps:
        rows = [*range(35), *(35 + step.kept).tolist(), *range(611, 623)]
        assert rows == E2E[f"{name}.positions_in_layer{step.layer}"].tolist()
    assert trace.visual == pruner.schedule(576, 6)


# --- the fit -------------------------------------------------------------------------------------------------------------

def replay(attn, pruner):
    """A prefill of which the attention (L, H, T, T) is recorded: what is deleted leaves the later maps."""
    T = attn.shape[-1]
    tokens, trace = observed(attn[0], 1, T - 2, layer=0), Trace()
    for l in range(len(attn)):
        if l in pruner.reduce_at(len(attn)):
            there = tokens.position
            tokens = replace(tokens, layer=l, rows=torch.arange(len(there)), attn=attn[l - 1][:, there][:, :, there])
            tokens = tokens.reduced(pruner.reduce(tokens))
        trace.enter(tokens)
    return trace


RECORDED = maps(CROSS, OWN)[None].expand(3, -1, -1, -1)                    # three layers alike


def test_fit_by_hand():
    """Three layers, cross .44 .30 .16 .10 and self the other way round. At tolerance alpha the lightest tokens by cross may go while 1 -
    alpha remains: 3 2 at .5, 3 2 1 from .56 on; by self 0 1 at .5, 0 1 2 from .56 on. In both: none, then 1 and 2. Of the
    two left, cross gives up 3 and self 0: nothing more. Width 1 and no MLP: m tokens entering and k leaving cost 3 m + 2 m^2 + k. Unpruned
    3 * 48 = 144; with 4 2 2 entering 46 + 16 + 16 = 78, saving 46 %: enough for 40 %, and nothing gives 50 %.
    The search tries .5 .75 .625 .5625 .53 .547 .5547: the last misses. Inference, by the product, deletes 0 and 3 instead."""
    assert flops([4, 4, 4], 1, 0) == 144 and flops([4, 2, 2], 1, 0) == 78
    assert fit(replay, [RECORDED], .4, 1, 0) == FitPrune(table=(2, 0, 0), visual=4)
    with pytest.raises(UserError, match="no tolerance saves 50%"):
        fit(replay, [RECORDED], .5, 1, 0)


def test_last_tried():
    """The released search prints what it tried last, here a tolerance that deletes nothing and misses the budget."""
    assert fit(replay, [RECORDED], .4, 1, 0, last_tried=True) == FitPrune(table=(0, 0, 0), visual=4)


def test_fit_is_a_mean():
    """Beside the prompt above one whose cross attention .1 .2 .35 .35 gives up 0 and 1 from tolerance .3 to .65, whose self attention
    .1 .35 .2 .35 gives up 0 and 2: token 0 in both. For 30 % both prompts must lose: 78 and, with 4 3 3 entering, 107, of 288.
    Layer 0 deletes 2 and 1, on average, rounded down, 1."""
    other = maps([.1, .2, .35, .35], [.1, .35, .2, .35])[None].expand(3, -1, -1, -1)
    assert flops([4, 3, 3], 1, 0) == 107
    assert fit(replay, [RECORDED, other], .3, 1, 0) == FitPrune(table=(1, 0, 0), visual=4)


def test_deletions_end_where_the_budget_is_met():
    """Token 0 receives nothing in layer 0, token 1 nothing from layer 1 on, where the image receives .4 in all,
    not 1: at any tolerance 4 3 2 tokens enter. For 20 % of 144, 115.2, 4 3 3
    are enough, 47 + 30 + 30 = 107: layer 1 deletes none. For 30 %, 100.8, it deletes token 1 too: 47 + 29 + 16 = 92."""
    first, later = maps([0, .4, .3, .3], [0, .4, .3, .3]), maps([0, 0, .2, .2], [0, 0, .2, .2])
    layers = torch.stack([first, later, later])
    assert fit(replay, [layers], .2, 1, 0).table == (1, 0, 0) and fit(replay, [layers], .3, 1, 0).table == (1, 1, 0)


def test_fit_on_a_model():
    """A table for two prompts of a small model saves what was asked for, and the recipe runs."""
    model = llava(layers=8)
    prompts = [(ids(3, MARK, 9, seed=i), [picture(model, i)]) for i in range(2)]

    def traced(prompt, pruner):
        return prefill(model, *prompt, pruner)[2]

    one = fit(traced, prompts[:1], .3, 32, 48)
    counts = traced(prompts[0], one).visual
    assert counts == one.schedule(16, 8) and flops(counts, 32, 48) <= .7 * flops([16] * 8, 32, 48)
    both = fit(traced, prompts, .3, 32, 48)
    assert both.visual == 16 and len(both.table) == 8 and sum(both.table) > 0
    with pytest.raises(UserError, match="same number of visual tokens"):
        fit(traced, [*prompts, (ids(2, MARK, 3, MARK, 4), [picture(model), picture(model)])], .3, 32, 48)


# --- options and edges ---------------------------------------------------------------------------------------------------

def test_other_numbers_of_tokens():
    """Half as many tokens: half the deletions, rounded down in sum; 60 % deletes 14, 47, 136 of 576 before layers 1 to 3."""
    assert FitPrune().schedule(576, 4) == [576, 562, 529, 440] and FitPrune().schedule(288, 4) == [288, 281, 265, 220]
    assert FitPrune(table=(2, 0, 1), visual=4).schedule(4, 5) == [4, 2, 2, 1, 1]
    assert FitPrune(table=(2, 0, 1), visual=4).reduce_at(5) == (1, 3) and FitPrune(table=(2, 0, 1), visual=4).reduce_at(3) == (1,)
    assert FitPrune(0).reduce_at(32) == ()


def test_savings_of_the_released_tables():
    """The share of the FLOPs of the visual tokens that each saves: the first three fall well short of their names."""
    saved = [round(100 * (1 - flops(FitPrune(r).schedule(576, 32), 4096, 11008) / flops([576] * 32, 4096, 11008)), 1) for r in TABLES]
    assert saved == [0, 6.4, 15.3, 27.9, 38.8, 49.7, 54.5, 59.7, 69.7, 79.7, 89.7]


def test_average():
    """At least 192 of 576 on average: the table 60 leaves about 209, 70 only 153."""
    average = {r: sum(FitPrune(r).schedule(576, 32)) / 32 for r in TABLES}
    chosen = FitPrune().with_average(192, 576, 32).ratio
    assert chosen == max(r for r in TABLES if average[r] >= 192) and average[chosen] >= 192


def test_masked_rows_are_not_read():
    """After a mask only the rows alive are observed, 6 of 8: they are found by their numbers. Of four tokens
    1 and 2 are alive: rows 0 2 3 5 of six. Token 2 pays them .16 and .30, of which self attention is half, the text .5 and .2:
    products .04 and .03."""
    tokens = observed(maps(CROSS, OWN), 1, 4).reduced(Reduction(torch.tensor([1, 2]), drop=False))
    rows = tokens.rows("all")
    attn = torch.zeros(1, 4, 6)
    attn[0, 2, 2:4], attn[0, 3, 2:4] = torch.tensor([.16, .30]), torch.tensor([.50, .20])
    tokens = replace(tokens, layer=2, rows=rows, attn=attn)
    torch.testing.assert_close(received(tokens)[0], torch.tensor([.5, .2]))
    torch.testing.assert_close(received(tokens)[1], torch.tensor([.08, .15]))
    assert FitPrune(table=(2, 1), visual=4).reduce(tokens).keep.tolist() == [0]


def test_one_token_all_tokens_none_and_ties():
    one = observed(maps([.3], [.5]), 1, 1)
    assert SingleFitPrune().reduce(one).keep.tolist() == FitPrune().reduce(one).keep.tolist() == [0]
    four = observed(maps(CROSS, OWN), 1, 4)
    assert SingleFitPrune(keep=4).reduce(four).keep.tolist() == SingleFitPrune(keep=1.0).reduce(four).keep.tolist() == [0, 1, 2, 3]
    assert FitPrune(table=(4,), visual=4).reduce(four).keep.tolist() == []
    ties = observed(maps([.2] * 4, [.2] * 4), 1, 4)
    assert SingleFitPrune(keep=2).reduce(ties).keep.tolist() == [0, 1]


def test_needle_and_scale():
    needle = observed(maps([.01, .97, .01, .01], [.01, .97, .01, .01]), 1, 4)
    assert SingleFitPrune(keep=1).reduce(needle).keep.tolist() == [1]
    more = replace(needle, attn=needle.attn * 100)
    assert SingleFitPrune(keep=2).reduce(more).keep.equal(SingleFitPrune(keep=2).reduce(needle).keep)


def test_laws():
    """FitPrune has no one number that is left: a table is many. Its last layer's is seen in the schedule."""
    assert "budget" not in FitPrune.laws and FitPrune().budget(576) is None and "budget" in SingleFitPrune.laws
    tokens = observed(maps(CROSS, OWN), 1, 4)
    assert len(FitPrune(table=(2, 1), visual=4).reduce(tokens).keep) == 2 != FitPrune(table=(2, 1), visual=4).schedule(4, 3)[-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Weights are observed in float32 whatever the model's precision: scores are products of small numbers."""
    tokens = prompt(E2E["inputs_embeds"][0].to(dtype), 35, (24, 24))
    _, _, trace, _ = run(tiny_decoder().to(dtype), tokens, FitPrune(90), E2E["decode_embeds"][:1].to(dtype))
    assert {step.reduction.score.dtype for step in trace.steps} == {torch.float32} and trace.visual == FitPrune(90).schedule(576, 6)


def test_two_images_and_none():
    model = llava()
    for pruner, counts in ((FitPrune(90), FitPrune(90).schedule(32, 32)), (SingleFitPrune(keep=.25), [32] * 2 + [8] * 30)):
        logits, _, trace = prefill(model, ids(3, MARK, 4, MARK, 6), [picture(model, i) for i in range(2)], pruner)
        assert trace.visual == counts and logits.isfinite().all()
        assert prefill(model, ids(9), (), pruner)[0].equal(prefill(model, ids(9))[0])


def test_image_at_the_end():
    """Without text after the image nobody asks."""
    with pytest.raises(UserError, match="text after the image"):
        prefill(llava(), ids(3, MARK), [picture(llava())], SingleFitPrune())


def test_not_a_number():
    with pytest.raises(UserError, match="NaN.*float32"):
        SingleFitPrune().reduce(observed(torch.full((1, 4, 4), torch.nan), 1, 2))


@pytest.mark.parametrize("method, options, told", [
    (FitPrune, dict(ratio=65), "no table for ratio 65: use one of 0, 10"), (FitPrune, dict(table=(3, 3), visual=5), "deletes 6 of 5"),
    (FitPrune, dict(table=(3, -1)), "at least 0"), (FitPrune, dict(visual=0), "of 0 tokens"), (SingleFitPrune, dict(heads="sum"), "'sum'"),
    (SingleFitPrune, dict(layer=0), "at least 1"), (SingleFitPrune, dict(keep=0.), "keep 0.0"), (SingleFitPrune, dict(rounding="up"), "'up'")])
def test_bad_options(method, options, told):
    with pytest.raises(UserError, match=told):
        method(**options)
