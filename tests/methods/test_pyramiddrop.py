"""PyramidDrop by hand, and equal to the released code's recorded behaviour."""

from dataclasses import replace

import pytest
import torch

from build import close, tokens
from golden import golden, prompt, run, tiny_decoder
from pruning.base import LayerView, Reduction, UserError
from pruning.pyramiddrop import PyramidDrop
from pruning.readings import PyramidDropKept
from tiny import MARK, ids, llava, picture, prefill

SELECT, SELECT_FACTS = golden("pdrop_select")
E2E, E2E_FACTS = golden("tiny_llama_e2e")
E2E_RUNS = [name for name in E2E_FACTS["runs"] if name.startswith("pdrop")]
STAGES = [(case, b) for case, facts in SELECT_FACTS["cases"].items() for b in range(len(facts["samples"]))]


def entering(paid, layer, N=None):
    """Tokens that enter `layer`: of N visual tokens those are left to which the last token will pay `paid` (H, n)
    there."""
    paid = torch.tensor(paid)
    n = paid.shape[-1]
    attention = torch.nn.functional.pad(paid, (1, 1))[:, None]                     # (H, 1, T)
    start = tokens("t" + "v" * (N or n) + "t")
    return tokens("t" + "v" * n + "t", here=dict(attention=attention), layer=layer, prompt=start)


def kept(paid, layer, N=None, **options):
    """Which tokens PyramidDrop keeps."""
    return PyramidDrop(**options).reduce(entering(paid, layer, N)).keep.tolist()


# --- by hand ----------------------------------------------------------------------------------------------------------

TWO_STAGES = dict(layers=(2, 4), ratios=(.5, .25))


def test_two_stages():
    """Eight tokens, ratios 1/2 and 1/4. The first stage keeps 4, the best of .1 .3 .0 .2 .05 .15 .08 .12: 1 3 5 7. Of
    these four the second keeps 8/4 = 2, by the attention of its own layer, .1 .2 .4 .3: the third and fourth."""
    assert kept([[.1, .3, .0, .2, .05, .15, .08, .12]], 2, **TWO_STAGES) == [1, 3, 5, 7]
    assert kept([[.1, .2, .4, .3]], 4, N=8, **TWO_STAGES) == [2, 3]


def test_ratios_are_of_the_original_tokens():
    """The second stage keeps 1/4 of the eight, 2, not 1/4 of the four that are there, 1."""
    assert len(kept([[.1, .2, .4, .3]], 4, N=8, **TWO_STAGES)) == 2


def test_heads_are_averaged():
    """Heads .5 .3 .2 0 and 0 .3 .4 .1: means .25 .3 .3 .05, so that 1 and 2 are kept; the largest weight is token
    0's."""
    assert kept([[.5, .3, .2, 0], [0, .3, .4, .1]], 2, layers=(2,), ratios=(.5,)) == [1, 2]


def test_this_layer_not_the_one_before():
    """The layer that has run prefers tokens 0 and 1, the one about to run 2 and 3."""
    both = tokens("tvvvvt", [0, .4, .4, .1, .1, 0], here=dict(attention=[0, .1, .1, .4, .4, 0]))
    assert PyramidDrop((2,), (.5,)).reduce(both).keep.tolist() == [2, 3]


# --- recorded ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case, b", STAGES, ids=[f"{case}-{b}" for case, b in STAGES])
def test_recorded_stage(case, b):
    """From the stream that enters the rank layer: what is kept of the whole sequence, and its new position ids."""
    facts = SELECT_FACTS["cases"][case]
    sample = facts["samples"][b]
    system, n, T = sample["sys_len"], sample["n_visual_now"], sample["seq_len"]
    k = int(sample["n_visual_original"] * facts["ratio_list"][facts["stage"] + 1])
    amount = k if facts["stage"] else facts["ratio_list"][1]
    pruner = PyramidDrop((1,), (amount,))
    start = prompt(SELECT[f"{case}.features"][b, :T], system, (1, n))
    _, _, trace, _ = run(after_nothing(facts["rank_layer"]), start, pruner, E2E["decode_embeds"][:1])
    (step,) = trace.steps
    rows = [*range(system), *(system + step.kept).tolist(), *range(system + n, T)]
    assert rows == SELECT[f"{case}.kept_{b}"].tolist()
    assert len(step.kept) == k
    position = start.reduced(step.reduction, pruner.positions).position.tolist()
    assert position == SELECT[f"{case}.new_positions"][b, :len(rows)].tolist() == list(range(len(rows)))


def after_nothing(layer):
    """The recorded decoder's `layer`, behind one that leaves the stream as it is."""
    decoder = tiny_decoder()
    decoder.layers = decoder.layers[layer - 1:layer + 1]
    for linear in (decoder.layers[0].self_attn.o_proj, decoder.layers[0].mlp.down_proj):
        linear.weight.data.zero_()
    return decoder


@pytest.mark.parametrize("name", E2E_RUNS)
def test_end_to_end(name):
    """Survivors of both stages, text rows, three decode steps, cache lengths and the position of each layer's next
    token."""
    facts = E2E_FACTS["runs"][name]
    start = prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    pruner = PyramidDrop(tuple(facts["layer_list"]), tuple(facts["ratios"]))
    hidden, decoded, trace, after = run(tiny_decoder(), start, pruner, E2E["decode_embeds"])
    close(hidden[-12:], E2E[f"{name}.text_hidden"])
    close(decoded, E2E[f"{name}.decode_hidden"])
    for stage, step in enumerate(trace.steps):
        rows = [*range(35), *(35 + step.kept).tolist(), *range(611, 623)]
        assert rows == E2E[f"{name}.kept_stage{stage}"].tolist()
    assert [lengths for lengths, _ in after] == facts["kv_decode"]
    assert trace.tokens == facts["kv_prefill"] == facts["decode_positions_per_layer"][0]
    assert trace.visual == pruner.schedule(576, 6)


# --- readings and edges -----------------------------------------------------------------------------------------------

def test_positions():
    """The recorded numbering from 0 and the kept ids are two: other values, in the prefill and in each layer's next
    token."""
    start = prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    renumbered = run(tiny_decoder(), start, PyramidDrop(**TWO_STAGES), E2E["decode_embeds"][:1])
    kept_ids = run(tiny_decoder(), start, PyramidDropKept(**TWO_STAGES), E2E["decode_embeds"][:1])
    hidden, decoded, trace, _ = renumbered
    hidden_kept, decoded_kept, trace_kept, _ = kept_ids
    assert trace_kept.tokens == trace.tokens
    assert (hidden_kept[-12:] - hidden[-12:]).abs().max() > 1e-3
    assert (decoded_kept - decoded).abs().max() > 1e-3


@pytest.mark.parametrize("rounding, left", [("floor", 57), ("round", 58), ("ceil", 58)])
def test_rounding(rounding, left):
    """576 * .1 = 57.6 tokens; a number is a number."""
    class Rounded(PyramidDrop):
        pass

    Rounded.rounding = rounding
    assert Rounded((2,), (.1,)).budget(576) == left
    assert Rounded((2,), (64,)).budget(576) == 64


def test_budget_is_of_the_last_stage():
    """So the law "budget" is not declared: the first stage leaves more."""
    pruner = PyramidDrop(**TWO_STAGES)
    assert pruner.budget(8) == 2
    assert PyramidDrop().budget(576) == 72
    assert len(pruner.reduce(entering([[.1] * 8], 2)).keep) == 4
    assert "budget" not in pruner.laws


def test_nothing_comes_back():
    """A later ratio that is larger keeps what is there."""
    rising = dict(layers=(2, 4), ratios=(.25, .5))
    assert PyramidDrop(**rising).schedule(8, 6) == [8, 8, 2, 2, 2, 2]
    assert kept([[.1, .2]], 4, N=8, **rising) == [0, 1]


def test_schedule():
    """8 layers each of 576, 288, 144 and 72: 270 on average."""
    assert PyramidDrop().schedule(576, 32) == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8


def test_average():
    """For 144 with full layers before 4: share r, then r ** 2 and r ** 3: (4 * 576 + 10 * k + 10 * k2 + 8 * k3) / 32
    is 144 or just above."""
    pruner = PyramidDrop(layers=(4, 14, 24)).with_average(144, 576, 32)
    r = pruner.ratios[0]
    assert pruner.ratios == (r, r ** 2, r ** 3)
    counts = pruner.schedule(576, 32)
    assert 144 <= sum(counts) / 32 < 145
    assert counts[:4] == [576] * 4
    assert counts[4] == int(576 * r)
    with pytest.raises(UserError, match="average of 100 .* out of reach for PyramidDrop: it can be"):
        PyramidDrop().with_average(100, 576, 32)


def test_masked_tokens_are_counted():
    """Masked and not dropped, 8 tokens are still in the sequence: the original number is 8 all the same, and 2 of the
    4 are kept: by .1 .2 .4 .3 the third and fourth. The masked ones, which would get .9, are no visual tokens any
    more."""
    whole = entering([[.1] * 8], 2)
    left = whole.reduced(Reduction(torch.tensor([1, 3, 5, 7]), drop=False))
    paid = [0, .9, .1, .9, .2, .9, .4, .9, .3, 0]
    left = replace(left, layer=4, here=LayerView.of(attention=paid).on(left))
    assert left.N == 8
    assert PyramidDrop(**TWO_STAGES).reduce(left).keep.tolist() == [2, 3]


def test_one_token():
    """A share leaves at least one."""
    assert kept([[.3]], 2, layers=(2,), ratios=(.1,)) == [0]


def test_all_tokens():
    """All are kept at ratio 1, or by their number."""
    for ratio in (1.0, 3):
        assert kept([[.3, .1, .2]], 2, layers=(2,), ratios=(ratio,)) == [0, 1, 2]


def test_ties():
    """Of equals the first."""
    assert kept([[.25] * 4], 2, layers=(2,), ratios=(.5,)) == [0, 1]


def test_needle():
    """The token that gets nearly all."""
    assert kept([[.01, .01, .9, .01]], 2, layers=(2,), ratios=(1,)) == [2]


def test_scale():
    """700 times the attention selects the same."""
    two = dict(layers=(2,), ratios=(2,))
    assert kept([[.1, .3, .2, .05]], 2, **two) == kept([[70., 210., 140., 35.]], 2, **two) == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """The weights are in float32 for a model in half precision: the ranking is done there, and the counts are as they
    should be."""
    start = prompt(E2E["inputs_embeds"][0].to(dtype), 35, (24, 24))
    step = E2E["decode_embeds"][:1].to(dtype)
    _, _, trace, _ = run(tiny_decoder().to(dtype), start, PyramidDrop(**TWO_STAGES), step)
    assert [step.reduction.score.dtype for step in trace.steps] == [torch.float32] * 2
    assert trace.visual == [576, 576, 288, 288, 144, 144]


def test_two_images():
    """They are one set of 32 tokens."""
    pictures = [picture(llava(), i) for i in range(2)]
    logits, _, trace = prefill(llava(), ids(3, MARK, 4, MARK, 6), pictures, PyramidDrop())
    assert trace.visual == [32] * 8 + [16] * 8 + [8] * 8 + [4] * 8
    assert logits.isfinite().all()


def test_no_image():
    """A prompt without one is left as it is."""
    logits, _, trace = prefill(llava(), ids(9), (), PyramidDrop())
    assert not trace.steps
    assert logits.equal(prefill(llava(), ids(9))[0])


def test_not_a_number():
    """Named, not ranked."""
    with pytest.raises(UserError, match="NaN.*float32"):
        kept([[.1, float("nan")]], 2, layers=(2,), ratios=(1,))


@pytest.mark.parametrize("options, message", [
    (dict(layers=(8, 16)), "one ratio per layer; got 2 layers and 3 ratios"),
    (dict(layers=(), ratios=()), "one ratio per layer"),
    (dict(layers=(0, 8, 16)), "rise from 1"),
    (dict(layers=(8, 8, 16)), "rise from 1"),
    (dict(ratios=(.5, .25, 0.)), "keep 0.0 is out"),
    (dict(ratios=(1.5, .5, .2)), "keep 1.5 is out")])
def test_bad_options(options, message):
    """One line that names the option."""
    with pytest.raises(UserError, match=message) as caught:
        PyramidDrop(**options)
    assert "\n" not in str(caught.value)


def test_layer_that_the_model_has_not():
    """The model of the recordings has six."""
    start = prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    with pytest.raises(UserError, match="PyramidDrop reduces before layer 8"):
        run(tiny_decoder(), start, PyramidDrop(), ())
