"""PyramidDrop by hand, and equal to the released code's recorded behaviour."""

from dataclasses import replace

import pytest
import torch

from golden import golden, prompt, run, tiny_decoder
from pruning.base import Reduction, UserError
from pruning.pyramiddrop import PyramidDrop
from tiny import MARK, ids, llava, picture, prefill

SELECT, SELECT_FACTS = golden("pdrop_select")
E2E, E2E_FACTS = golden("tiny_llama_e2e")
STAGES = [(case, b) for case, facts in SELECT_FACTS["cases"].items() for b in range(len(facts["samples"]))]


def entering(attn, layer, n=None, system=1, text=1):
    """Tokens that enter `layer`: of n visual tokens those are left, evenly spread, to which the last token would pay attn."""
    attn = torch.tensor(attn)                                                      # (H, now)
    n = attn.shape[-1] if n is None else n
    whole = prompt(torch.zeros(system + n + text, 4), system, (1, n))
    rows = torch.cat([torch.zeros(len(attn), system), attn, torch.zeros(len(attn), text)], dim=1)[:, None]
    now = prompt(torch.zeros(rows.shape[-1], 4), system, (1, attn.shape[-1]))
    return replace(now, prompt=whole.hidden, layer=layer, own_attn=rows)


def kept(attn, layer, n=None, **options):
    return PyramidDrop(**options).reduce(entering(attn, layer, n)).keep.tolist()


# --- by hand -------------------------------------------------------------------------------------------------------------

def test_two_stages():
    """Eight tokens, ratios 1/2 and 1/4. The first stage keeps 4, the best of .1 .3 .0 .2 .05 .15 .08 .12: 1 3 5 7. Of these
    four the second keeps 8/4 = 2, and asks the attention of its own layer, .1 .2 .4 .3: the third and fourth."""
    stages = dict(layers=(2, 4), ratios=(.5, .25))
    assert kept([[.1, .3, .0, .2, .05, .15, .08, .12]], 2, **stages) == [1, 3, 5, 7]
    assert kept([[.1, .2, .4, .3]], 4, n=8, **stages) == [2, 3]


def test_ratios_are_of_the_original_tokens():
    """The second stage keeps 1/4 of the eight, 2, not 1/4 of the four that are there, 1."""
    assert len(kept([[.1, .2, .4, .3]], 4, n=8, layers=(2, 4), ratios=(.5, .25))) == 2 != int(4 * .25)


def test_heads_are_averaged():
    """Heads .5 .3 .2 0 and 0 .3 .4 .1: means .25 .3 .3 .05, so that 1 and 2 are kept; the largest single weight is token 0's."""
    assert kept([[.5, .3, .2, 0], [0, .3, .4, .1]], 2, layers=(2,), ratios=(.5,)) == [1, 2]


def test_this_layer_not_the_one_before():
    """The layer just run prefers tokens 0 and 1, the one about to run 2 and 3: FastV's attention is not looked at."""
    tokens = entering([[.1, .1, .4, .4]], 2)
    tokens = replace(tokens, attn=entering([[.4, .4, .1, .1]], 2).own_attn)
    assert PyramidDrop((2,), (.5,)).reduce(tokens).keep.tolist() == [2, 3]
    assert PyramidDrop.needs == {"own_attn"}


# --- recorded ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case, b", STAGES, ids=[f"{case}-{b}" for case, b in STAGES])
def test_recorded_stage(case, b):
    """From the stream that enters the rank layer: what is kept of the whole sequence, and its new position ids."""
    facts, sample = SELECT_FACTS["cases"][case], SELECT_FACTS["cases"][case]["samples"][b]
    a, n, T = sample["sys_len"], sample["n_visual_now"], sample["seq_len"]
    tokens = prompt(SELECT[f"{case}.features"][b, :T], a, (1, n))
    k = int(sample["n_visual_original"] * facts["ratio_list"][facts["stage"] + 1])
    pruner = PyramidDrop((1,), (k if facts["stage"] else facts["ratio_list"][1],))
    _, _, trace, _ = run(after_nothing(facts["rank_layer"]), tokens, pruner, E2E["decode_embeds"][:1])
    (step,) = trace.steps
    rows = [*range(a), *(a + step.kept).tolist(), *range(a + n, T)]
    assert rows == SELECT[f"{case}.kept_{b}"].tolist() and len(step.kept) == k
    assert tokens.reduced(step.reduction, pruner.positions).position.tolist() == \
        SELECT[f"{case}.new_positions"][b, :len(rows)].tolist() == list(range(len(rows)))


def after_nothing(layer):
    """The recorded decoder's `layer`, behind one that leaves the stream as it is."""
    decoder = tiny_decoder()
    decoder.layers = decoder.layers[layer - 1:layer + 1]
    for linear in (decoder.layers[0].self_attn.o_proj, decoder.layers[0].mlp.down_proj):
        linear.weight.data.zero_()
    return decoder


@pytest.mark.parametrize("name", [name for name in E2E_FACTS["runs"] if name.startswith("pdrop")])
def test_end_to_end(name):
    """Survivors of both stages, text rows, three decode steps, cache lengths and the position of each layer's next token."""
    facts, tokens = E2E_FACTS["runs"][name], prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    pruner = PyramidDrop(tuple(facts["layer_list"]), tuple(facts["ratios"]))
    prefill, decoded, trace, after = run(tiny_decoder(), tokens, pruner, E2E["decode_embeds"])
    torch.testing.assert_close(prefill[-12:], E2E[f"{name}.text_hidden"], atol=1e-5, rtol=0)
    torch.testing.assert_close(decoded, E2E[f"{name}.decode_hidden"], atol=1e-5, rtol=0)
    for g, step in enumerate(trace.steps):
        assert [*range(35), *(35 + step.kept).tolist(), *range(611, 623)] == E2E[f"{name}.kept_stage{g}"].tolist()
    assert [lengths for lengths, _ in after] == facts["kv_decode"]
    assert trace.tokens == facts["kv_prefill"] == facts["decode_positions_per_layer"][0]
    assert trace.visual == pruner.schedule(576, 6)


# --- options and edges ---------------------------------------------------------------------------------------------------

def test_positions():
    """The recorded numbering from 0 and the kept ids are two: other values, and in each layer another next position."""
    tokens = prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    renumbered, kept_ids = PyramidDrop((2, 4), (.5, .25)), PyramidDrop((2, 4), (.5, .25), positions="keep")
    new, old = (run(tiny_decoder(), tokens, pruner, E2E["decode_embeds"][:1]) for pruner in (renumbered, kept_ids))
    assert old[2].tokens == new[2].tokens and (old[0][-12:] - new[0][-12:]).abs().max() > 1e-3
    assert (old[1] - new[1]).abs().max() > 1e-3


def test_rounding():
    """576 * .1 = 57.6 tokens; a number is a number."""
    one = dict(layers=(2,))
    assert [PyramidDrop(ratios=(.1,), rounding=r, **one).budget(576) for r in ("floor", "round", "ceil")] == [57, 58, 58]
    assert PyramidDrop(ratios=(64,), **one).budget(576) == 64


def test_budget_is_of_the_last_stage():
    """So the law "budget" is not declared: the first stage leaves more. Nor do later ratios bring tokens back."""
    pruner = PyramidDrop((2, 4), (.5, .25))
    assert pruner.budget(8) == 2 and len(pruner.reduce(entering([[.1] * 8], 2)).keep) == 4
    assert "budget" not in pruner.laws
    assert PyramidDrop((2, 4), (.25, .5)).schedule(8, 6) == [8, 8, 2, 2, 2, 2]
    assert kept([[.1, .2]], 4, n=8, layers=(2, 4), ratios=(.25, .5)) == [0, 1]


def test_schedule_and_average():
    """8 layers each of 576, 288, 144 and 72: 270 on average. For 144 with full layers before 4: share r = 5/24 = 120/576, then
    r ** 2 and r ** 3: (4 * 576 + 10 * k + 10 * k2 + 8 * k3) / 32 is 144 or just above."""
    assert PyramidDrop().schedule(576, 32) == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    pruner = PyramidDrop(layers=(4, 14, 24)).with_average(144, 576, 32)
    r = pruner.ratios[0]
    assert pruner.ratios == (r, r ** 2, r ** 3)
    counts = pruner.schedule(576, 32)
    assert 144 <= sum(counts) / 32 < 145 and counts[4] == int(576 * r) and counts[:4] == [576] * 4
    with pytest.raises(UserError, match="average of 100 .* out of reach for PyramidDrop: it can be"):
        PyramidDrop().with_average(100, 576, 32)


def test_masked_tokens_are_counted():
    """Masked and not dropped, 8 tokens are still in the sequence: the original number is 8 all the same, and 2 of the 4 stay."""
    tokens = replace(entering([[.1] * 8], 2)).reduced(Reduction(torch.tensor([1, 3, 5, 7]), drop=False))
    attn = torch.zeros(1, 1, 10).index_put((torch.tensor(0), torch.tensor(0), torch.tensor([2, 4, 6, 8])),
                                           torch.tensor([.1, .2, .4, .3]))
    tokens = replace(tokens, layer=4, own_attn=attn)
    assert PyramidDrop((2, 4), (.5, .25)).reduce(tokens).keep.tolist() == [2, 3]


def test_one_token_all_tokens_and_ties():
    """A share leaves at least one; all are kept at ratio 1; of equals the first."""
    assert kept([[.3]], 2, layers=(2,), ratios=(.1,)) == [0]
    assert kept([[.3, .1, .2]], 2, layers=(2,), ratios=(1.0,)) == kept([[.3, .1, .2]], 2, layers=(2,), ratios=(3,)) == [0, 1, 2]
    assert kept([[.25] * 4], 2, layers=(2,), ratios=(.5,)) == [0, 1]


def test_needle_and_scale():
    assert kept([[.01, .01, .9, .01]], 2, layers=(2,), ratios=(1,)) == [2]
    assert kept([[.1, .3, .2, .05]], 2, layers=(2,), ratios=(2,)) == kept([[70., 210., 140., 35.]], 2, layers=(2,), ratios=(2,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """The weights come in float32 from a model in half precision: the ranking is done there, as the counts say."""
    E = E2E["inputs_embeds"][0].to(dtype)
    _, _, trace, _ = run(tiny_decoder().to(dtype), prompt(E, 35, (24, 24)), PyramidDrop((2, 4), (.5, .25)),
                         E2E["decode_embeds"][:1].to(dtype))
    assert [step.reduction.score.dtype for step in trace.steps] == [torch.float32] * 2
    assert trace.visual == [576, 576, 288, 288, 144, 144]


def test_two_images_and_none():
    """Two images are one set of 32 tokens; a prompt of text alone is left as it is."""
    prompts = ids(3, MARK, 4, MARK, 6)
    logits, _, trace = prefill(llava(), prompts, [picture(llava(), i) for i in range(2)], PyramidDrop())
    assert trace.visual == [32] * 8 + [16] * 8 + [8] * 8 + [4] * 8 and logits.isfinite().all()
    logits, cache, trace = prefill(llava(), ids(9), (), PyramidDrop())
    assert not trace.steps and logits.equal(prefill(llava(), ids(9))[0])


def test_not_a_number():
    with pytest.raises(UserError, match="NaN.*float32"):
        kept([[.1, float("nan")]], 2, layers=(2,), ratios=(1,))


@pytest.mark.parametrize("options, told", [
    (dict(layers=(8, 16)), "one ratio a layer; got 2 layers and 3 ratios"), (dict(layers=(), ratios=()), "one ratio a layer"),
    (dict(layers=(0, 8, 16)), "rise from 1"), (dict(layers=(8, 8, 16)), "rise from 1"), (dict(ratios=(.5, .25, 0.)), "keep 0.0 is out"),
    (dict(ratios=(1.5, .5, .2)), "keep 1.5 is out"), (dict(positions="new"), "keep.*renumber.*'new'"), (dict(rounding="up"), "rounding 'up'")])
def test_bad_options(options, told):
    with pytest.raises(UserError, match=told):
        PyramidDrop(**options)


def test_layer_that_the_model_has_not():
    with pytest.raises(UserError, match="PyramidDrop reduces before layer 8"):
        run(tiny_decoder(), prompt(E2E["inputs_embeds"][0], 35, (24, 24)), PyramidDrop(), ())
