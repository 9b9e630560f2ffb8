"""VTW by hand, and equal to the released code's recorded behaviour; zero visual tokens in the whole model."""

from copy import deepcopy
from dataclasses import replace
from math import log

import pytest
import torch

from build import close, tokens
from golden import golden, prompt, run, tiny_decoder
from pruning.base import UserError
from pruning.readings import VTWRandom, VTWRenumbered
from pruning.vtw import VTW, divergence, search
from tiny import MARK, ids, llava, picture, prefill

RECORDED, FACTS = golden("vtw")
E2E, E2E_FACTS = golden("tiny_llama_e2e")
E2E_RUNS = [name for name in E2E_FACTS["runs"] if name.startswith("vtw")]
WITHDRAWN = [name for name, facts in FACTS["cases"].items() if facts["method"] == "vtw_withdraw"]
NUMBERED = {"keep": VTW, "renumber": VTWRenumbered}


# --- by hand ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pruner, position, next_position",
                         [(VTW(), [0, 4, 5], 6), (VTWRenumbered(), [0, 1, 2], 3)], ids=repr)
def test_only_text_is_left(pruner, position, next_position):
    """t v v v t t: rows 0, 4, 5 with their position ids, and the next token is at 6; or renumbered, and it is at 3."""
    start = tokens("tvvvtt")
    left = start.reduced(pruner.reduce(start), pruner.positions)
    assert left.hidden[:, 0].tolist() == [0, 4, 5]
    assert left.position.tolist() == position
    assert left.next_position == next_position
    assert left.n == 0


def two_words(probability):
    """Logits for two words of which the first has this probability."""
    return torch.tensor([log(probability), log(1 - probability)])


def test_divergence():
    """KL(p || q) for p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2 = .1308. The other way round it is
    1/2 ln 2/3 + 1/2 ln 2 = .1438. Logits are free up to a constant."""
    steep = two_words(.75)
    even = two_words(.5)
    close(divergence(steep, even), .1308, 1e-4)
    close(divergence(even, steep), .1438, 1e-4)
    assert divergence(steep, steep + 7) < 1e-7


def searched(table, **options):
    """K where the full model says 1/2, and withdrawal at layer 5, 6, .. says table[prompt][0], [1], .."""
    def logits(i, pruner):
        return two_words(table[i][pruner.layer - 5] if pruner else .5)

    return search(logits, range(len(table)), 5 + len(table[0]), **options).layer


@pytest.mark.parametrize("eta, K", [(.2, 5), (.03, 6), (.01, 7)])
def test_search_takes_the_first_layer(eta, K):
    """Probabilities .75 .6 .5 .7 where the full model says .5: divergences .1308 .0201 0 .0823. At eta = .03 layer 6
    is the first; the least divergence would be layer 7's, and layer 8 is above eta again."""
    assert searched([[.75, .6, .5, .7]], eta=eta) == K


@pytest.mark.parametrize("eta, K", [(.07, 5), (.06, 6)])
def test_search_averages_over_prompts(eta, K):
    """At layer 5 one prompt diverges by 0 and one by .1308, mean .0654; a search for each prompt by itself would say
    5 and 6."""
    assert searched([[.5, .5, .5], [.75, .5, .5]], eta=eta) == K


def test_search_without_a_layer_that_will_do():
    """Then nothing is withdrawn: K is the number of layers, and the method reduces nowhere."""
    assert searched([[.9, .9]], eta=.01) == 7
    assert VTW(7).reduce_at(7) == ()
    assert VTW(7).schedule(9, 7) == [9] * 7
    assert VTW(6).reduce_at(7) == (6,)


def test_search_without_prompts():
    """Nothing can be measured."""
    with pytest.raises(UserError, match="at least one prompt"):
        search(None, [], 32)


# --- recorded ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", WITHDRAWN)
def test_recorded_rows(case):
    """The rows that are left."""
    facts = FACTS["cases"][case]
    system, n = facts["sys_len"], facts["n_visual"]
    start = tokens("t" * system + "v" * n + "t" * (facts["seq_len"] - system - n))
    left = start.reduced(VTW().reduce(start))
    assert left.hidden[:, 0].long().tolist() == RECORDED[f"{case}.kept_global"].tolist()


def test_recorded_divergence():
    """Of four prompts at layers 5..31."""
    full = RECORDED["logits_full"]
    close(divergence(RECORDED["logits_withdrawn"], full[:, None]), RECORDED["kl"])


def test_recorded_search():
    """K for each threshold."""
    full = RECORDED["logits_full"]
    withdrawn = RECORDED["logits_withdrawn"]
    facts = FACTS["cases"]["find_k"]

    def logits(i, pruner):
        return withdrawn[i, pruner.layer - 5] if pruner else full[i]

    for eta, K in facts["k_for_eta"].items():
        assert search(logits, range(len(full)), facts["n_layers"], float(eta)) == VTW(K)


@pytest.mark.parametrize("name", E2E_RUNS)
def test_end_to_end(name):
    """Text rows, three decode steps, cache lengths, and the position of each layer's next token."""
    facts = E2E_FACTS["runs"][name]
    start = prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    pruner = NUMBERED[facts["pe"]](facts["k"])
    hidden, decoded, trace, after = run(tiny_decoder(), start, pruner, E2E["decode_embeds"])
    assert len(hidden) == 47
    close(hidden[-12:], E2E[f"{name}.text_hidden"])
    close(decoded, E2E[f"{name}.decode_hidden"])
    assert trace.tokens == facts["kv_prefill"]
    assert [lengths for lengths, _ in after] == facts["kv_decode"]
    (step,) = trace.steps
    left = start.reduced(step.reduction, pruner.positions)
    assert left.position.tolist() == facts["position_ids_after"]
    assert left.next_position == facts["decode_positions_per_layer"][0][-1]
    assert trace.visual == pruner.schedule(576, 6) == [576] * facts["k"] + [0] * (6 - facts["k"])


# --- a model whose last layers see no image ---------------------------------------------------------------------------

def test_zero_tokens_in_the_whole_model():
    """Two images, generated tokens, and the trace: no survivor, so no row in the matrix of what survivors are made
    of."""
    model = llava()
    pictures = [picture(model, i) for i in range(2)]
    logits, cache, trace = prefill(model, ids(3, MARK, 4, MARK, 6), pictures, VTW())
    assert trace.visual == [32] * 15 + [0] * 17
    assert trace.tokens == cache.lengths == [45] * 15 + [13] * 17
    assert trace.sources().shape == (0, 32)
    assert trace.steps[0].kept.tolist() == []
    assert logits.isfinite().all()
    assert model.step([5], cache, VTW()).isfinite().all()


def test_withdrawn_equals_masked():
    """Tokens that are still there with their keys masked in layers K.. change nothing for the text."""
    class Masked(VTW):
        def reduce(self, tokens):
            return replace(super().reduce(tokens), drop=False)

    model = llava(layers=6)
    question = ids(3, MARK, 6), [picture(model)]
    logits_dropped, cache_dropped, dropped = prefill(model, *question, VTW(3))
    logits_masked, cache_masked, masked = prefill(model, *question, Masked(3))
    assert masked.tokens == [25] * 6
    assert masked.visual == dropped.visual
    close(logits_dropped, logits_masked)
    close(model.step([5, 6], cache_dropped), model.step([5, 6], cache_masked))


def test_never_withdrawn_is_the_unpruned_model():
    """With K the number of layers, to the bit; a larger K is a layer that the model has not."""
    model = llava(layers=6)
    question = ids(3, MARK, 6), [picture(model)]
    logits, _, trace = prefill(model, *question, VTW(6))
    assert not trace.steps
    assert logits.equal(prefill(model, *question)[0])
    with pytest.raises(UserError, match="VTW reduces before layer 7.* 6 layers"):
        prefill(model, *question, VTW(7))


def test_no_image():
    """A prompt without one is left as it is."""
    assert prefill(llava(), ids(9), (), VTW())[0].equal(prefill(llava(), ids(9))[0])


def test_search_with_a_model():
    """Withdrawal before the last layer of six, whose output projection is nothing, changes no logit: K = 5 at eta =
    0."""
    model = deepcopy(llava(layers=6))
    prompts = [(ids(3, MARK, 6, seed=i), [picture(model, i)]) for i in range(2)]

    def logits(prompt, pruner):
        return model.prefill(model.embed(*prompt), pruner)[0]

    assert search(logits, prompts, 6, eta=0) == VTW(6)
    assert search(logits, prompts, 6, eta=1e9, first=2) == VTW(2)
    model.language_model.layers[5].self_attn.o_proj.weight.zero_()
    assert search(logits, prompts, 6, eta=0) == VTW(5)


# --- readings and edges -----------------------------------------------------------------------------------------------

def test_renumbering_changes_the_model():
    """Kept ids and renumbered ids are two models if layers are left to read them."""
    start = prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    _, kept, _, _ = run(tiny_decoder(), start, VTW(3), E2E["decode_embeds"][:1])
    _, renumbered, _, _ = run(tiny_decoder(), start, VTWRenumbered(3), E2E["decode_embeds"][:1])
    assert (kept - renumbered).abs().max() > 1e-4


def test_random_positions():
    """n of T positions are drawn: those that fall on text drop nothing. Another seed draws others, the same one the
    same."""
    start = tokens("t" * 40 + "v" * 60 + "t" * 20)
    first, same, other = (VTWRandom(seed=seed).reduce(start).keep for seed in (0, 0, 1))
    drawn = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:60].tolist()
    assert first.tolist() == [i for i in range(60) if i + 40 not in drawn]
    assert first.equal(same)
    assert not first.equal(other)
    assert 0 < len(first) < 60
    assert len(first) != len(other)


def test_laws():
    """A needle is withdrawn, too. Random positions leave a number that the draw decides."""
    needle = tokens("tvvvtt", [0, 0, 1., 0, 0, 0])
    assert VTW().laws == {"select", "ordered", "budget", "scale"}
    assert VTW().reduce(needle).keep.tolist() == []
    assert VTW().budget(3) == 0
    assert VTWRandom().laws == {"select", "ordered", "scale"}
    assert VTWRandom().budget(3) is None
    assert VTWRandom().schedule(9, 32) is None


def test_average():
    """576 tokens in K of 32 layers: 18 K on average; at least 192 is K = 11, 198. The random draw is no budget."""
    assert VTW().with_average(192, 576, 32) == VTW(11)
    assert VTWRenumbered().with_average(18, 576, 32) == VTWRenumbered(1)
    with pytest.raises(UserError, match="out of reach for VTW: it can be 18.0 to 576.0"):
        VTW().with_average(10, 576, 32)
    with pytest.raises(UserError, match="VTWRandom has no keep"):
        VTWRandom().with_average(192, 576, 32)


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, n):
    """One token or many, in any precision."""
    start = tokens("t" + "v" * n + "tt")
    left = replace(start, hidden=start.hidden.to(dtype)).reduced(VTW().reduce(start))
    assert left.n == 0
    assert left.hidden.dtype == dtype
    assert len(left.hidden) == 3


def test_divergence_in_half_precision():
    """It is computed in float32."""
    assert divergence(two_words(.75).half(), two_words(.5).half()).dtype == torch.float32


def test_bad_layer():
    """Before layer 0 the text has read nothing of the image."""
    with pytest.raises(UserError, match="VTW: layer must be at least 1"):
        VTW(layer=0)
