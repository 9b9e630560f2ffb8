"""FitPrune by hand, and equal to the released code's recorded behaviour: scores, deletions, whole decoder; the fit."""

from dataclasses import replace

import pytest
import torch

from build import close, tokens
from golden import golden, prompt, run, tiny_decoder
from minivlm.trace import Trace
from pruning.base import LayerView, Reduction, UserError
from pruning.fitprune import TABLES, FitPrune, SingleFitPrune, fit, flops, received
from pruning.readings import SingleFitPruneMean
from tiny import MARK, ids, llava, picture, prefill

SELECT, SELECT_FACTS = golden("fitprune_select")
E2E, E2E_FACTS = golden("tiny_llama_e2e")
E2E_RUNS = [name for name in E2E_FACTS["runs"] if name.startswith("fitprune")]


def entering(attention, system=1, text=1, layer=1):
    """Tokens that enter `layer`; the one before it has paid these weights (H, T, T)."""
    n = attention.shape[-1] - system - text
    return tokens("t" * system + "v" * n + "t" * text, attention, layer=layer)


def maps(cross, own, heads=1):
    """(H, T, T) weights of one text token, n visual ones, one text token: the last visual token pays `own`, the last
    text token `cross`; every other row pays all to the first token, which is text."""
    n = len(cross)
    attention = torch.zeros(heads, n + 2, n + 2)
    attention[:, :, 0] = 1
    for row, paid in ((n, own), (n + 1, cross)):
        attention[:, row, 1:n + 1] = torch.tensor(paid)
        attention[:, row, 0] = 1 - sum(paid)
    return attention


# --- by hand ----------------------------------------------------------------------------------------------------------

CROSS = [.44, .30, .16, .10]
OWN = [.10, .16, .30, .44]


def test_product():
    """Cross .44 .30 .16 .10 times self .10 .16 .30 .44: .044 .048 .048 .044 (a quarter of it, self being a mean over
    four rows). Two deletions: 0 and 3. Cross attention only, which is FastV's, would delete 2 and 3, self attention 0
    and 1."""
    four = entering(maps(CROSS, OWN))
    r = FitPrune(table=(2, 0, 0), visual=4).reduce(four)
    assert r.keep.tolist() == [1, 2]
    assert SingleFitPrune(keep=2).reduce(four).keep.tolist() == [1, 2]
    close(r.score, torch.tensor([.044, .048, .048, .044]) / 4)
    cross, own = received(four)
    assert cross.topk(2).indices.tolist() == [0, 1]
    assert own.topk(2).indices.tolist() == [3, 2]


def test_largest_over_heads():
    """Two heads pay token 0 .4 and 0, token 1 .25 and .25, tokens 2 and 3 .1 twice; self attention is alike. Of the
    largest weights token 0 has most, of the means token 1."""
    attention = maps([.4, .25, .1, .1], [.1] * 4, heads=2)
    attention[1, 5, 1] = 0
    assert SingleFitPrune(keep=1).reduce(entering(attention)).keep.tolist() == [0]
    assert SingleFitPruneMean(keep=1).reduce(entering(attention)).keep.tolist() == [1]


def test_all_text_rows_count():
    """Two text rows pay .5 .1 .2 and .0 .5 .4: sums .5 .6 .6, self alike for 0 and 2. The last row only would keep 1;
    with self .2 .1 .2 over three rows the products are .10 .06 .12 over three: token 2."""
    attention = torch.zeros(1, 6, 6)
    attention[0, 3, 1:4] = torch.tensor([.2, .1, .2])
    attention[0, 4, 1:4] = torch.tensor([.5, .1, .2])
    attention[0, 5, 1:4] = torch.tensor([.0, .5, .4])
    three = entering(attention, text=2)
    r = SingleFitPrune(keep=1).reduce(three)
    assert r.keep.tolist() == [2]
    close(received(three)[0], [.5, .6, .6])
    close(r.score, torch.tensor([.10, .06, .12]) / 3)


def test_text_before_the_image_does_not_count():
    """Its rows cannot see the image; here one would pay .9 to token 0, if it were read, and the others .1 and .2."""
    attention = torch.zeros(1, 4, 4)
    attention[0, 0, 1:3] = torch.tensor([.9, 0.])
    attention[0, 3, 1:3] = torch.tensor([.1, .2])
    close(received(entering(attention))[0], [.1, .2])


def test_late_tokens_receive_less_from_the_image():
    """Causal and uniform: row i of the image pays 1/(i+1) to each token up to its own, so that self falls from token to
    token: (1 + 1/2 + 1/3) / 3, (1/2 + 1/3) / 3, 1/9."""
    attention = torch.tril(torch.ones(4, 4)) / torch.arange(1, 5)[:, None]
    close(received(entering(attention, system=0))[1], [11 / 18, 5 / 18, 1 / 9])


# --- recorded ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", SELECT_FACTS["cases"])
def test_recorded_layer(case):
    """Cross and self attention, the deleted tokens, the mask over the sequence."""
    facts = SELECT_FACTS["cases"][case]
    n, d = facts["n_visual"], facts["n_delete"]
    attention = SELECT[f"{case}.attn"]
    text = attention.shape[-1] - facts["sys_len"] - n
    whole = entering(attention, facts["sys_len"], text)
    cross, own = received(whole)
    close(cross, SELECT[f"{case}.cross"])
    close(own, SELECT[f"{case}.self"])
    r = FitPrune(table=(d,), visual=n).reduce(whole)
    assert r.score.argsort()[:d].tolist() == SELECT[f"{case}.deleted_local_in_order"].tolist()
    left = whole.reduced(r).hidden[:, 0].long()
    assert left.tolist() == SELECT[f"{case}.keep_mask"].nonzero().squeeze(1).tolist()
    assert r.keep.tolist() == SingleFitPrune(keep=n - d).reduce(whole).keep.tolist()


def test_recorded_tables():
    """The eleven tables for LLaVA-1.5-7B."""
    recorded = SELECT_FACTS["per_layer_delete_counts_llava15_7b"]
    assert {str(ratio): list(table) for ratio, table in TABLES.items()} == recorded


@pytest.mark.parametrize("name", E2E_RUNS)
def test_end_to_end(name):
    """The tokens that enter each layer, text rows, three decode steps, cache lengths."""
    facts = E2E_FACTS["runs"][name]
    start = prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    pruner = FitPrune(facts["reduction_ratio"])
    hidden, decoded, trace, after = run(tiny_decoder(), start, pruner, E2E["decode_embeds"])
    close(hidden[-12:], E2E[f"{name}.text_hidden"])
    close(decoded, E2E[f"{name}.decode_hidden"])
    assert trace.tokens == facts["kv_prefill"]
    assert [lengths for lengths, _ in after] == facts["kv_decode"]
    for step in trace.steps:
        rows = [*range(35), *(35 + step.kept).tolist(), *range(611, 623)]
        assert rows == E2E[f"{name}.positions_in_layer{step.layer}"].tolist()
    assert trace.visual == pruner.schedule(576, 6)


# --- the fit ----------------------------------------------------------------------------------------------------------

def replay(attention, pruner):
    """A prefill of which the attention (L, H, T, T) is recorded: what is deleted leaves the later maps."""
    layers = len(attention)
    now = entering(attention[0], layer=0)
    trace = Trace()
    for l in range(layers):
        if l in pruner.reduce_at(layers):
            there = now.position
            seen_before = LayerView.of(attention=attention[l - 1][:, there][:, :, there])
            now = replace(now, layer=l)
            now = replace(now, before=seen_before.on(now))
            now = now.reduced(pruner.reduce(now))
        trace.enter(now)
    return trace


THREE_ALIKE = maps(CROSS, OWN)[None].expand(3, -1, -1, -1)                         # the maps of three layers


def test_flops():
    """Width 1 and no MLP: m tokens entering and k leaving cost 3 m + 2 m^2 + k, and what leaves a layer enters the
    next one. 4 4 4: 3 * (12 + 32 + 4) = 144. 4 2 2: 46 + 16 + 16 = 78. 4 3 1: (12 + 32 + 3) + (9 + 18 + 1) + (3 + 2 +
    1) = 81: the last layer deletes nothing. An MLP of 5 adds 15 k: 15 * (3 + 1 + 1)."""
    assert flops([4, 4, 4], 1, 0) == 144
    assert flops([4, 2, 2], 1, 0) == 78
    assert flops([4, 3, 1], 1, 0) == 81
    assert flops([4, 3, 1], 1, 5) == 81 + 75


def test_fit_by_hand():
    """Three layers, cross .44 .30 .16 .10 and self the other way round. At tolerance alpha the lightest tokens by
    cross may go while 1 - alpha remains: 3 2 at .5, 3 2 1 from .56 on; by self 0 1 at .5, 0 1 2 from .56 on. In both:
    none, then 1 and 2. Of the two left, cross gives up 3 and self 0: nothing more. So 4 2 2 enter (see test_flops),
    saving 46 % of 144: enough for 40 %, and nothing gives 50 %. The search tries .5 .75 .625 .5625 .53 .547 .5547:
    the last misses. Inference, by the product, deletes 0 and 3 instead."""
    assert fit(replay, [THREE_ALIKE], .4, 1, 0) == FitPrune(table=(2, 0, 0), visual=4)
    with pytest.raises(UserError, match="no tolerance saves 50%"):
        fit(replay, [THREE_ALIKE], .5, 1, 0)


def test_fit_is_a_mean():
    """With the prompt above one whose cross attention .1 .2 .35 .35 gives up 0 and 1 from tolerance .3 to .65, whose
    self attention .1 .35 .2 .35 gives up 0 and 2: token 0 in both. For 30 % both prompts must lose: 78 and, with 4 3
    3 entering, 107, of 288. Layer 0 deletes 2 and 1, on average, rounded down, 1."""
    other = maps([.1, .2, .35, .35], [.1, .35, .2, .35])[None].expand(3, -1, -1, -1)
    assert flops([4, 3, 3], 1, 0) == 107
    assert fit(replay, [THREE_ALIKE, other], .3, 1, 0) == FitPrune(table=(1, 0, 0), visual=4)


def test_deletions_end_where_the_budget_is_met():
    """Token 0 receives nothing in layer 0, token 1 nothing from layer 1 on, where the image receives .4 in all, not
    1: at any tolerance 4 3 2 tokens enter. For 20 % of 144, 115.2, 4 3 3 are enough, 47 + 30 + 30 = 107: layer 1
    deletes none. For 30 %, 100.8, it deletes token 1 too: 47 + 29 + 16 = 92."""
    first = maps([0, .4, .3, .3], [0, .4, .3, .3])
    later = maps([0, 0, .2, .2], [0, 0, .2, .2])
    layers = torch.stack([first, later, later])
    assert fit(replay, [layers], .2, 1, 0).table == (1, 0, 0)
    assert fit(replay, [layers], .3, 1, 0).table == (1, 1, 0)


def test_fit_on_a_model():
    """A table for two prompts of a small model saves what was asked for, and the recipe runs."""
    model = llava(layers=8)
    prompts = [(ids(3, MARK, 9, seed=i), [picture(model, i)]) for i in range(2)]

    def traced(prompt, pruner):
        return prefill(model, *prompt, pruner)[2]

    of_one = fit(traced, prompts[:1], .3, 32, 48)
    counts = traced(prompts[0], of_one).visual
    assert counts == of_one.schedule(16, 8)
    assert flops(counts, 32, 48) <= .7 * flops([16] * 8, 32, 48)
    of_both = fit(traced, prompts, .3, 32, 48)
    assert of_both.visual == 16
    assert len(of_both.table) == of_both.fitted == 8
    assert sum(of_both.table) > 0
    two_images = ids(2, MARK, 3, MARK, 4), [picture(model), picture(model)]
    with pytest.raises(UserError, match="same number of visual tokens"):
        fit(traced, [*prompts, two_images], .3, 32, 48)


# --- options and edges ------------------------------------------------------------------------------------------------

def test_other_numbers_of_tokens():
    """Half as many tokens: half the deletions, rounded down in sum; 60 % deletes 14, 47, 136 of 576 before layers 1
    to 3."""
    assert FitPrune().schedule(576, 4) == [576, 562, 529, 440]
    assert FitPrune().schedule(288, 4) == [288, 281, 265, 220]
    assert FitPrune(table=(2, 0, 1), visual=4).schedule(4, 5) == [4, 2, 2, 1, 1]


def test_layers_that_delete():
    """Only before these it is called; what the last layer deletes enters none."""
    assert FitPrune(table=(2, 0, 1), visual=4).reduce_at(5) == (1, 3)
    assert FitPrune(table=(2, 0, 1), visual=4).reduce_at(3) == (1,)
    assert FitPrune(0).reduce_at(32) == ()


def test_savings_of_the_released_tables():
    """The share of the FLOPs of the visual tokens that each saves: the first three fall well short of their names."""
    whole = flops([576] * 32, 4096, 11008)
    saved = [100 - 100 * flops(FitPrune(ratio).schedule(576, 32), 4096, 11008) / whole for ratio in TABLES]
    close(saved, [0, 6.4, 15.3, 27.9, 38.8, 49.7, 54.5, 59.7, 69.7, 79.7, 89.7], .05)


def test_average():
    """At least 192 of 576 on average: the table 60 leaves 245, 70 only 188."""
    average = {ratio: sum(FitPrune(ratio).schedule(576, 32)) / 32 for ratio in TABLES}
    assert FitPrune().with_average(192, 576, 32) == FitPrune(60)
    assert average[60] == pytest.approx(245, abs=.5)
    assert average[70] == pytest.approx(188, abs=.5)


def test_masked_rows_are_not_read():
    """Of four tokens 1 and 2 are left, the others masked: six rows, of which 0 2 3 5 are read. Row 3 pays .16 and
    .30, of which self attention is half, the text .5 and .2: products .04 and .03. The masked rows 1 and 4 would add
    much."""
    whole = entering(maps(CROSS, OWN))
    left = whole.reduced(Reduction(torch.tensor([1, 2]), drop=False))
    attention = torch.zeros(6, 6)
    attention[3, 2:4] = torch.tensor([.16, .30])
    attention[5, 2:4] = torch.tensor([.50, .20])
    attention[[1, 4], 3] = 9.
    left = replace(left, layer=2, prompt=whole, before=LayerView.of(attention=attention).on(left))
    close(received(left)[0], [.5, .2])
    close(received(left)[1], [.08, .15])
    assert FitPrune(table=(2, 1), visual=4).reduce(left).keep.tolist() == [0]


def test_one_token():
    """It is kept: a share leaves at least one, and 60 % deletes 14 / 576 of it, rounded down."""
    single = entering(maps([.3], [.5]))
    assert SingleFitPrune().reduce(single).keep.tolist() == [0]
    assert FitPrune().reduce(single).keep.tolist() == [0]


def test_all_tokens_and_none():
    """All that are there, or as a table says, none."""
    four = entering(maps(CROSS, OWN))
    assert SingleFitPrune(keep=4).reduce(four).keep.tolist() == [0, 1, 2, 3]
    assert SingleFitPrune(keep=1.0).reduce(four).keep.tolist() == [0, 1, 2, 3]
    assert FitPrune(table=(4,), visual=4).reduce(four).keep.tolist() == []


def test_ties():
    """Of equals the first."""
    assert SingleFitPrune(keep=2).reduce(entering(maps([.2] * 4, [.2] * 4))).keep.tolist() == [0, 1]


def test_needle_and_scale():
    """Token 1 gets nearly all; a hundred times the attention selects the same."""
    attention = maps([.01, .97, .01, .01], [.01, .97, .01, .01])
    assert SingleFitPrune(keep=1).reduce(entering(attention)).keep.tolist() == [1]
    more = SingleFitPrune(keep=2).reduce(entering(attention * 100))
    assert more.keep.equal(SingleFitPrune(keep=2).reduce(entering(attention)).keep)


def test_laws():
    """FitPrune has no one number that is left: a table is many. Its last layer's is in the schedule."""
    pruner = FitPrune(table=(2, 1), visual=4)
    assert "budget" not in FitPrune.laws
    assert pruner.budget(576) is None
    assert "budget" in SingleFitPrune.laws
    assert len(pruner.reduce(entering(maps(CROSS, OWN))).keep) == 2
    assert pruner.schedule(4, 3)[-1] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Attention is in float32 whatever the model's precision: scores are products of small numbers."""
    start = prompt(E2E["inputs_embeds"][0].to(dtype), 35, (24, 24))
    _, _, trace, _ = run(tiny_decoder().to(dtype), start, FitPrune(90), E2E["decode_embeds"][:1].to(dtype))
    assert {step.reduction.score.dtype for step in trace.steps} == {torch.float32}
    assert trace.visual == FitPrune(90).schedule(576, 6)


@pytest.mark.parametrize("pruner, counts", [(FitPrune(90), FitPrune(90).schedule(32, 32)),
                                            (SingleFitPrune(keep=.25), [32] * 2 + [8] * 30)], ids=repr)
def test_two_images_and_none(pruner, counts):
    """Two images are one set of 32 tokens; a prompt without an image is left as it is."""
    model = llava()
    logits, _, trace = prefill(model, ids(3, MARK, 4, MARK, 6), [picture(model, i) for i in range(2)], pruner)
    assert trace.visual == counts
    assert logits.isfinite().all()
    assert prefill(model, ids(9), (), pruner)[0].equal(prefill(model, ids(9))[0])


def test_image_at_the_end():
    """Without text after the image there is no cross attention."""
    with pytest.raises(UserError, match="text after the image"):
        prefill(llava(), ids(3, MARK), [picture(llava())], SingleFitPrune())


def test_not_a_number():
    """Named, not ranked."""
    with pytest.raises(UserError, match="NaN.*float32"):
        SingleFitPrune().reduce(entering(torch.full((1, 4, 4), torch.nan)))


@pytest.mark.parametrize("method, options, message", [
    (FitPrune, dict(ratio=65), "no table for ratio 65: use one of 0, 10"),
    (FitPrune, dict(table=(3, 3), visual=5), "deletes 6 of 5"),
    (FitPrune, dict(table=(3, -1)), "table must be at least 0"),
    (FitPrune, dict(visual=0), "visual must be at least 1"),
    (SingleFitPrune, dict(layer=0), "layer must be at least 1"),
    (SingleFitPrune, dict(keep=0.), "keep 0.0")])
def test_bad_options(method, options, message):
    """One line that names the option."""
    with pytest.raises(UserError, match=message) as caught:
        method(**options)
    assert "\n" not in str(caught.value)
