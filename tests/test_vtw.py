"""VTW by hand, and equal to the released code's recorded behaviour; zero visual tokens in the whole model."""

from copy import deepcopy
from dataclasses import replace
from math import log

import pytest
import torch

from golden import golden, prompt, run, tiny_decoder
from pruning.base import UserError
from pruning.vtw import VTW, divergence, search
from tiny import MARK, ids, llava, picture, prefill

RECORDED, FACTS = golden("vtw")
E2E, E2E_FACTS = golden("tiny_llama_e2e")
WITHDRAWN = {name: facts for name, facts in FACTS["cases"].items() if facts["method"] == "vtw_withdraw"}


def sequence(system, n, text):
    """Tokens of which each holds its own index."""
    return prompt(torch.arange(system + n + text).float()[:, None], system, (1, n))


# --- by hand -------------------------------------------------------------------------------------------------------------

def test_text_alone_is_left():
    """t v v v t t: rows 0, 4, 5 with their position ids; the next token is at 6, or at 3 where the text is renumbered."""
    tokens, pruner = sequence(1, 3, 2), VTW()
    left = tokens.reduced(pruner.reduce(tokens), pruner.positions)
    assert left.hidden[:, 0].tolist() == left.position.tolist() == [0, 4, 5] and left.next == 6 and left.n == 0
    left = tokens.reduced(pruner.reduce(tokens), VTW(positions="renumber").positions)
    assert left.hidden[:, 0].tolist() == [0, 4, 5] and left.position.tolist() == [0, 1, 2] and left.next == 3


def told(probability):
    """Logits for two words of which the first has this probability."""
    return torch.tensor([log(probability), log(1 - probability)])


def test_divergence():
    """KL(p || q) for p = (3/4, 1/4), q = (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2 = .1308. The other way round it is
    1/2 ln 2/3 + 1/2 ln 2 = .1438."""
    torch.testing.assert_close(divergence(told(.75), told(.5)).item(), .75 * log(1.5) + .25 * log(.5))
    assert abs(divergence(told(.75), told(.5)) - .1308) < 1e-4 and abs(divergence(told(.5), told(.75)) - .1438) < 1e-4
    assert divergence(told(.3), told(.3) + 7) < 1e-7                               # logits are free up to a constant


def searched(table, **options):
    """Search where the full model says 1/2 and withdrawal at k says table[prompt][k - 5]."""
    return search(lambda i, pruner: told(table[i][pruner.layer - 5] if pruner else .5), range(len(table)),
                  5 + len(table[0]), **options).layer


def test_search_takes_the_first_layer():
    """Probabilities .75 .6 .5 .7 where the full model says .5: divergences .1308 .0201 0 .0823. At eta = .03 layer 6 is the first;
    the least divergence would be layer 7's, and layer 8 is above eta again."""
    assert searched([[.75, .6, .5, .7]], eta=.03) == 6
    assert searched([[.75, .6, .5, .7]], eta=.01) == 7 and searched([[.75, .6, .5, .7]], eta=.2) == 5


def test_search_averages_over_prompts():
    """At layer 5 one prompt diverges by 0 and one by .1308, mean .0654; a search for each prompt alone would say 5 and 6."""
    table = [[.5, .5, .5], [.75, .5, .5]]
    assert searched(table, eta=.07) == 5 and searched(table, eta=.06) == 6


def test_search_without_a_layer_that_will_do():
    """Then nothing is withdrawn: K is the number of layers, and the method reduces nowhere."""
    assert searched([[.9, .9]], eta=.01) == 7
    assert VTW(7).reduce_at(7) == () and VTW(7).schedule(9, 7) == [9] * 7 and VTW(6).reduce_at(7) == (6,)
    with pytest.raises(UserError, match="at least one prompt"):
        search(None, [], 32)


# --- recorded ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("case", WITHDRAWN)
def test_recorded_rows(case):
    facts = WITHDRAWN[case]
    a, n, T = facts["sys_len"], facts["n_visual"], facts["seq_len"]
    tokens = sequence(a, n, T - a - n)
    assert tokens.reduced(VTW().reduce(tokens)).hidden[:, 0].long().tolist() == RECORDED[f"{case}.kept_global"].tolist()


def test_recorded_search():
    """The divergences of four prompts at layers 5..31, and K for each threshold."""
    full, withdrawn, facts = RECORDED["logits_full"], RECORDED["logits_withdrawn"], FACTS["cases"]["find_k"]
    torch.testing.assert_close(divergence(withdrawn, full[:, None]), RECORDED["kl"], atol=1e-5, rtol=0)
    for eta, K in facts["k_for_eta"].items():
        logits = lambda i, pruner: withdrawn[i, pruner.layer - 5] if pruner else full[i]
        assert search(logits, range(len(full)), facts["n_layers"], float(eta)) == VTW(K)


@pytest.mark.parametrize("name", [name for name in E2E_FACTS["runs"] if name.startswith("vtw")])
def test_end_to_end(name):
    """Text rows, three decode steps, cache lengths, and the position of each layer's next token."""
    facts, tokens = E2E_FACTS["runs"][name], prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    pruner = VTW(facts["k"], positions=facts["pe"])
    hidden, decoded, trace, after = run(tiny_decoder(), tokens, pruner, E2E["decode_embeds"])
    assert len(hidden) == 47
    torch.testing.assert_close(hidden[-12:], E2E[f"{name}.text_hidden"], atol=1e-5, rtol=0)
    torch.testing.assert_close(decoded, E2E[f"{name}.decode_hidden"], atol=1e-5, rtol=0)
    assert trace.tokens == facts["kv_prefill"] and [lengths for lengths, _ in after] == facts["kv_decode"]
    (step,) = trace.steps
    left = tokens.reduced(step.reduction, pruner.positions)
    assert left.position.tolist() == facts["position_ids_after"]
    assert left.next == facts["decode_positions_per_layer"][0][-1]
    assert trace.visual == pruner.schedule(576, 6) == [576] * facts["k"] + [0] * (6 - facts["k"])


# --- a model whose last layers see no image --------------------------------------------------------------------------------

def test_zero_tokens_in_the_whole_model():
    """Two images, generated tokens, and the trace: no survivor, so no row in the matrix of what survivors are made of."""
    model, question = llava(), ids(3, MARK, 4, MARK, 6)
    logits, cache, trace = prefill(model, question, [picture(model, i) for i in range(2)], VTW())
    assert trace.visual == [32] * 15 + [0] * 17 and trace.tokens == cache.lengths == [45] * 15 + [13] * 17
    assert trace.sources().shape == (0, 32) and trace.steps[0].kept.tolist() == []
    assert logits.isfinite().all() and model.step([5], cache, VTW()).isfinite().all()


def test_withdrawn_equals_masked():
    """Tokens that stay with their keys masked in layers K.. change nothing for the text."""
    class Masked(VTW):
        def reduce(self, tokens):
            return replace(super().reduce(tokens), drop=False)

    model, question = llava(layers=6), ids(3, MARK, 6)
    dropped, masked = (prefill(model, question, [picture(model)], method(3)) for method in (VTW, Masked))
    assert masked[2].tokens == [25] * 6 and masked[2].visual == dropped[2].visual
    torch.testing.assert_close(dropped[0], masked[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.step([5, 6], dropped[1]), model.step([5, 6], masked[1]), atol=1e-5, rtol=0)


def test_never_withdrawn_is_the_unpruned_model():
    model, question = llava(layers=6), ids(3, MARK, 6)
    logits, cache, trace = prefill(model, question, [picture(model)], VTW(6))
    assert not trace.steps and logits.equal(prefill(model, question, [picture(model)])[0])
    with pytest.raises(UserError, match="VTW reduces before layer 7.* 6 layers"):
        prefill(model, question, [picture(model)], VTW(7))


def test_text_alone():
    assert prefill(llava(), ids(9), (), VTW())[0].equal(prefill(llava(), ids(9))[0])


def test_search_with_a_model():
    """Withdrawal before the last layer of six, whose output projection is nothing, changes no logit: K = 5 at eta = 0."""
    model = deepcopy(llava(layers=6))
    prompts = [(ids(3, MARK, 6, seed=i), [picture(model, i)]) for i in range(2)]
    logits = lambda prompt, pruner: model.prefill(model.embed(*prompt), pruner)[0]
    assert search(logits, prompts, 6, eta=0) == VTW(6) and search(logits, prompts, 6, eta=1e9, first=2) == VTW(2)
    model.language_model.layers[5].self_attn.o_proj.weight.zero_()
    assert search(logits, prompts, 6, eta=0) == VTW(5)


# --- options and edges ---------------------------------------------------------------------------------------------------

def test_positions_differ():
    """Kept ids and renumbered ids are two models where layers are left to read them."""
    tokens = prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    ours = [run(tiny_decoder(), tokens, VTW(3, positions=p), E2E["decode_embeds"][:1]) for p in ("keep", "renumber")]
    assert (ours[0][1] - ours[1][1]).abs().max() > 1e-4


def test_random_positions():
    """n of T positions are drawn: those that fall on text drop nothing. Drawn anew for another seed, alike for the same."""
    tokens = sequence(40, 60, 20)
    kept = [VTW(mode="random", seed=s).reduce(tokens).keep for s in (0, 0, 1)]
    drawn = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:60].tolist()
    assert kept[0].tolist() == [i for i in range(60) if i + 40 not in drawn]
    assert kept[0].equal(kept[1]) and not kept[0].equal(kept[2])
    assert 0 < len(kept[0]) < 60 and len(kept[0]) != len(kept[2])


def test_laws():
    """Random positions leave a number that the draw decides; and neither mode looks for a needle."""
    assert VTW().laws == {"select", "ordered", "budget", "scale"} and VTW(mode="random").laws == {"select", "ordered", "scale"}
    needle = replace(sequence(1, 3, 2), attn=torch.tensor([0, 0, 1., 0, 0, 0])[None, None])
    assert VTW().reduce(needle).keep.tolist() == [] and VTW().budget(3) == 0 and VTW(mode="random").budget(3) is None
    assert VTW(mode="random").schedule(9, 32) is None


def test_average():
    """576 tokens in K of 32 layers: 18 K on average; at least 192 is K = 11, 198. The draw of mode "random" is no budget."""
    assert VTW().with_average(192, 576, 32) == VTW(11) and VTW(positions="renumber").with_average(18, 576, 32).layer == 1
    with pytest.raises(UserError, match="out of reach for VTW: it can be 18.0 to 576.0"):
        VTW().with_average(10, 576, 32)
    with pytest.raises(UserError, match="no keep"):
        VTW(mode="random").with_average(192, 576, 32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """One token or many, in any precision."""
    for n in (1, 7):
        tokens = sequence(1, n, 2)
        left = replace(tokens, hidden=tokens.hidden.to(dtype)).reduced(VTW().reduce(tokens))
        assert left.n == 0 and left.hidden.dtype == dtype and len(left.hidden) == 3
    assert divergence(told(.75).to(dtype), told(.5).to(dtype)).dtype == torch.float32


@pytest.mark.parametrize("options, message", [(dict(layer=0), "at least 1"), (dict(positions="old"), "'old'"), (dict(mode="text"), "'text'")])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        VTW(**options)
