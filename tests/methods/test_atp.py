"""ATP by hand, equation by equation, and against a recording of our own reading: there is no released code."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from build import close, tokens
from golden import golden
from minivlm.attention import rope
from minivlm.lab.cli import modules
from minivlm.lab.cli.options import build, check
from pruning import READINGS
from pruning.atp import ATP, Thresholds, budget_losses, full_loss
from pruning.base import LayerView, UserError, whole_grid
from pruning.controls import lattice
from pruning.readings import (ATP2D, ATPCentres, ATPDetached, ATPFixedRatio, ATPFixedRatioMax, ATPFixedRatioRedundant,
                              ATPGiven, ATPMaskedSelf, ATPMoreRates, ATPPooled, ATPProbs, ATPRankedScores, ATPRawScores,
                              ATPRenumbered, ATPSoftmaxScores, ATPUnnormalised)
from tiny import MARK, SETTINGS, Chosen, ids, llava, picture, prefill, thresholds

RECORDED, FACTS = golden("atp_recommended")


def constant(theta_r, theta_s, N=4, count=1):
    """Modules that predict these thresholds, whatever they read."""
    predictors = nn.ModuleList(Thresholds(N, 2, theta_r=theta_r, theta_s=theta_s) for _ in range(count))
    return predictors.requires_grad_(False)


def atp(theta_r, theta_s, N=4, method=ATP, **options):
    """An ATP with one module, before layer 4, that predicts these thresholds."""
    return method(layers=(4,), module=constant(theta_r, theta_s, N), **options)


def entering(received, text, grid):
    """A text row, an image whose tokens receive these logits from each visual row, and a text row that pays it `text`.

    received: (n,) of each row, or (n, n); text: (n,), or (H, n) of several heads.
    """
    text = torch.tensor(text).reshape(-1, 1, len(received))                        # (H, 1, n)
    n = text.shape[-1]
    logits = torch.full((n + 2, n + 2), 9.)            # what is not of visual tokens must not count
    logits[1:-1, 1:-1] = torch.tensor(received)
    attention = torch.full((len(text), 1, n + 2), 9.)
    attention[:, :, 1:-1] = text
    return tokens("t" + "v" * n + "t", attention, grid=grid, layer=4, before=dict(logits=logits))


# --- 3.3.1: the scores ------------------------------------------------------------------------------------------------

def test_redundant_pruning():
    """2 x 2 patches receive logits -1 0 1 1 (normalised 0 1/2 1 1) and from the text .1 .3 .2 .1 (0 1 1/2 0).

    S_redundant is 0 .75 .75 .5: above theta_r .6 are 1 and 2. theta_s .99 lets no place pass. By what the text pays,
    only 1 would be kept; by the logits, 2 and 3.
    """
    prompt = entering([-1., 0, 1, 1], [.1, .3, .2, .1], (2, 2))
    r = atp(.6, .99).reduce(prompt)
    close(r.score, [0, .75, .75, .5], atol=1e-4)
    assert r.keep.tolist() == [1, 2]
    assert atp(.6, .99, score="cross").reduce(prompt).keep.tolist() == [1]
    assert atp(.6, .99, score="self").reduce(prompt).keep.tolist() == [2, 3]


@pytest.mark.parametrize("score", ["self", "cross"])
def test_heads_are_averaged(score):
    """One head gives .1 .6 .2, the other .1 0 .5: the mean .1 .3 .35, normalised 0 .8 1, and above theta_r .9 is 2.

    The maximum over heads, .1 .6 .5, would keep 1.
    """
    by_head = torch.tensor([[.1, .6, .2], [.1, 0, .5]])
    equal = torch.full((5, 5), .1)
    logits = torch.stack([equal, equal])
    attention = logits.clone()
    which = logits if score == "self" else attention
    which[:, :, 1:4] = by_head[:, None]
    prompt = tokens("tvvvt", attention, layer=4, before=dict(logits=logits))
    assert atp(.9, .99, 3, score=score).reduce(prompt).keep.tolist() == [2]
    raw = ATP().scores(prompt, torch.ones(3))
    close(raw[0 if score == "self" else 1], [.1, .3, .35])


def test_what_is_received_and_what_is_given():
    """Token 0 gives logits 0 3 3, token 1 gives 0 3 0, token 2 gives none: received means are 0 2 1, given means 2 1 0.

    theta_r .6 keeps 1 by what is received, 0 by what is given. The weights 1 0 0, .5 .5 0, .2 .2 .6 have column means
    .57 .23 .2, and keep 0.
    """
    prompt = entering([[0., 3, 3], [0, 3, 0], [0, 0, 0]], [.1, .1, .1], (1, 3))
    assert atp(.6, .99, 3, score="self").reduce(prompt).keep.tolist() == [1]
    assert atp(.6, .99, 3, ATPGiven, score="self").reduce(prompt).keep.tolist() == [0]
    attention = torch.zeros(5, 5)
    attention[1:4, 1:4] = torch.tensor([[1., 0, 0], [.5, .5, 0], [.2, .2, .6]])
    prompt = tokens("tvvvt", attention, layer=4, before=dict(logits=torch.zeros(5, 5)))
    assert atp(.6, .99, 3, ATPProbs, score="self").reduce(prompt).keep.tolist() == [0]


def test_only_text_after_the_image_counts():
    """The row before the image cannot see it: Eq. 4 is the mean of the last two rows, .2 .6 and .4 0, so .3 .3."""
    attention = [[0, 0, 0, 0, 0], [0, 99., 99., 0, 0], [0, 0, 0, 0, 0], [0, .2, .6, 0, 0], [0, .4, 0, 0, 0]]
    prompt = tokens("tvvtt", attention, before=dict(logits=torch.zeros(5, 5)))
    _, S_cross = ATP().scores(prompt, torch.ones(2))
    close(S_cross, [.3, .3])


def test_tokens_that_are_pruned_ask_nothing():
    """In training, rows count by their masks. The first token's row is 0 4, the second's 2 0; the masks are 1 and 1/3.

    Then Eq. 3 is (0 * 1 + 2 / 3) / (4 / 3) = .5 and (4 * 1 + 0) / (4 / 3) = 3. With masks 1 and 0 it is the first row.
    """
    prompt = entering([[0., 4], [2, 0]], [.1, .1], (1, 2))
    close(ATP().scores(prompt, torch.tensor([1, 1 / 3]))[0], [.5, 3])
    close(ATP().scores(prompt, torch.tensor([1., 0]))[0], [0., 4])


@pytest.mark.parametrize("method, expected", [
    (ATP, [0, .5, 1, 1]), (ATPRankedScores, [0, 1 / 3, 1, 2 / 3]), (ATPUnnormalised, [-1, 0, 1, 1]),
    (ATPSoftmaxScores, [.05407, .14697, .39948, .39948])])
def test_normalised(method, expected):
    """-1 0 1 1: the span, the ranks (of equals the first), as they are, e^x over the sum 1/e + 1 + 2e = 6.80444."""
    S = torch.tensor([[-1., 0, 1, 1], [0, 0, 0, 0]])
    close(method().normalised(S, torch.ones(4))[0], torch.tensor(expected))


def test_normalised_over_what_is_left():
    """Masks 1 .9 .4 .6: the third token is gone for the hard rule, so that the span is that of 0 2 4."""
    S = torch.tensor([[0., 2, 100, 4]] * 2)
    close(ATP().normalised(S, torch.tensor([1, .9, .4, .6]))[0, [0, 1, 3]], [0, .5, 1])
    close(ATPRankedScores().normalised(S, torch.tensor([1, .9, .4, .6]))[0, [0, 1, 3]], [0, .5, 1])


def test_spatial_pruning():
    """3 x 3 patches: the corners 0 2 6 8 are sampled at stride 2 (1 - 3/4 = .25), 0 at stride 4 too (1 - 3/16 = .8125).

    theta_s .2 keeps the corners, .5 keeps 0 alone. theta_r .99 lets only the token with both scores 1 pass, 4, which is
    kept besides.
    """
    prompt = entering([0.] * 4 + [5.] + [0.] * 4, [0.] * 4 + [.5] + [0.] * 4, (3, 3))
    close(ATP(strides=(4, 2)).spatial_pruning_score(prompt.grid), [.8125, 0, .25, 0, 0, 0, .25, 0, .25])

    def kept(theta_s, **options):
        return atp(.99, theta_s, 9, strides=(4, 2), **options).reduce(prompt).keep.tolist()

    assert kept(.2) == [0, 2, 4, 6, 8]
    assert kept(.5) == [0, 4]
    assert kept(.5, strategy="spatial") == [0]
    assert kept(.5, strategy="redundant") == [4]


def test_more_rates():
    """4 x 4 patches, strides 2 and 4: samples of 4, 2 and 1 patches with the rates 1/4, 1/8 and 1/16.

    0 2 8 10 have 1 - 3/4 = .25; of them 0 8, in every 2nd row and 4th column, 1 - 3/8 = .625; and 0 has 1 - 3/16.
    """
    S_spatial = ATPMoreRates(strides=(2, 4)).spatial_pruning_score(whole_grid(4, 4))
    expected = torch.zeros(16)
    expected[[0, 2, 8, 10]] = torch.tensor([.8125, .25, .625, .25])
    close(S_spatial, expected)
    of_rates = ATPMoreRates().spatial_pruning_score(whole_grid(12, 12))
    assert [int((of_rates >= 1 - 3 * R).sum()) for R in (1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)] == [36, 18, 9, 6, 4]


def test_samples_in_the_middle_of_squares():
    """4 x 4 patches: stride 2 has 5 7 13 15, stride 4 has 10. Of 24 x 24 they are the blocks of the control `uniform`.
    """
    expected = torch.zeros(16)
    expected[[5, 7, 13, 15, 10]] = torch.tensor([.25, .25, .25, .25, .8125])
    close(ATPCentres(strides=(2, 4)).spatial_pruning_score(whole_grid(4, 4)), expected)
    for stride in (2, 4, 8):
        S_spatial = ATPCentres(strides=(stride,)).spatial_pruning_score(whole_grid(24, 24))
        assert S_spatial.nonzero().squeeze(1).equal(lattice(24 // stride, 24 // stride, 24, 24))


def test_newlines_are_in_no_sample():
    """A newline token is on no grid, row -1, not even in the sample of stride 1, which has every patch (1 - .5)."""
    grid = torch.tensor([[0, 0, 1], [0, 0, 2], [0, -1, -1]])
    close(ATP(strides=(1, 2), lambda_sample=.5).spatial_pruning_score(grid), [.5, 1 - .5 / 4, 0])


def test_reasons():
    """Which thresholds a kept token passes: both, one of them, or none where at least one token is to be left."""
    corners = entering([0.] * 4 + [5.] + [0.] * 4, [0.] * 4 + [.5] + [0.] * 4, (3, 3))
    assert reasons(atp(.99, .2, 9), corners) == ["spatial", "spatial", "redundant", "spatial", "spatial"]
    assert reasons(atp(.9, .2), entering([1., 0, 0, 0], [.1, 0, 0, 0], (2, 2))) == ["both"]
    assert reasons(atp(.9, .99), entering([1., 0, 0, 0], [0, .1, 0, 0], (2, 2))) == ["at least one"]
    assert atp(.9, .99, 9, strategy="redundant").reduce(corners).reason is None


def reasons(method, prompt):
    r = method.reduce(prompt)
    return [r.reasons[i] for i in r.reason]


# --- 3.3.2: the thresholds and masks ----------------------------------------------------------------------------------

def test_thresholds_by_hand():
    """Two tokens, z of width 1: Linear [1 0 2 0] on [self; cross] = [.5 0 1 .3] plus 1 is 3.5 (Eq. 6).

    theta_r = sigmoid(2 * 3.5 - 8) = sigmoid(-1) (Eq. 7), theta_s = sigmoid(-3.5 + 3) = sigmoid(-.5) (Eq. 8).
    """
    module = Thresholds(2, 1)
    weights = dict(linear=([[1., 0, 2, 0]], [1.]), linear_r=([[2.]], [-8.]), linear_s=([[-1.]], [3.]))
    for name, (weight, bias) in weights.items():
        getattr(module, name).weight.copy_(torch.tensor(weight))
        getattr(module, name).bias.copy_(torch.tensor(bias))
    method = ATP(layers=(4,), module=nn.ModuleList([module]))
    theta = method.thresholds(0, torch.tensor([[.5, 0], [1, .3]]), tokens("tvvt"))
    close(torch.cat(theta), torch.tensor([-1., -.5]).sigmoid())


def test_the_activation_acts_on_z():
    """z = -2 without one and 0 after relu: theta_r = sigmoid(z)."""
    thetas = []
    for activation in ("none", "relu"):
        module = Thresholds(1, 1, activation)
        module.linear.weight.zero_()
        module.linear.bias.fill_(-2.)
        module.linear_r.weight.fill_(1.)
        module.linear_r.bias.zero_()
        method = ATP(layers=(4,), module=nn.ModuleList([module]))
        thetas.append(method.thresholds(0, torch.zeros(2, 1), tokens("tvt"))[0])
    close(torch.cat(thetas), torch.tensor([-2., 0]).sigmoid())


def reading(module):
    """A list that gets what the Linear of a module reads."""
    inputs = []
    module.linear.register_forward_hook(lambda linear, args, out: inputs.append(args[0]))
    return inputs


def test_each_score_is_read_at_its_own_place():
    """After an earlier reduction the scores are read where the tokens were at first, and 0 where one is gone."""
    method = atp(.5, .5, 5)
    inputs = reading(method.module[0])
    whole = tokens("tvvvvvt")
    after = tokens("tvvt", source=torch.tensor([1, 4]), prompt=whole)
    method.thresholds(0, torch.tensor([[.1, .2], [.3, .4]]), after)
    close(inputs[0], [0, .1, 0, 0, .2, 0, .3, 0, 0, .4])


def test_raw_scores_are_read():
    """Logits -1 1 and text .2 .6: Eq. 6 reads these, or 0 1 and 0 1; Eq. 9 compares 0 1 in both."""
    prompt = entering([-1., 1], [.2, .6], (1, 2))
    for kind, expected in ((ATP, [0, 1, 0, 1]), (ATPRawScores, [-1, 1, .2, .6])):
        method = atp(.5, .99, 2, kind)
        inputs = reading(method.module[0])
        close(method.reduce(prompt).score, [0, 1])
        close(inputs[0], expected)


@pytest.mark.parametrize("score, expected", [("self", [0, 1, 0, 0]), ("cross", [0, 0, 0, 1])])
def test_a_score_that_does_not_count_is_not_read(score, expected):
    """Logits -1 1 and text .2 .6, both 0 1 after normalisation: Eq. 6 reads zeros in place of the other one."""
    method = atp(.5, .99, 2, score=score)
    inputs = reading(method.module[0])
    method.reduce(entering([-1., 1], [.2, .6], (1, 2)))
    close(inputs[0], expected)


def test_at_first_all_prompts_have_the_same_thresholds():
    method = ATP(layers=(4,), module=nn.ModuleList([Thresholds(4)]))
    close(torch.cat(method.thresholds(0, torch.rand(2, 4), tokens("tvvvvt"))), [.3, .5])


def test_soft_mask_by_hand():
    """T = 10, the text's scores 0 .5 1, theta_r .4: sigmoids of -4, 1, 6 (Eq. 9). Places 0, 1, 2 of one row, stride 2.

    0 and 2 have .25: theta_s .3 gives sigmoid(-.5) for them and sigmoid(-3) for 1 (Eq. 10). The larger counts (Eq. 11),
    times the mask before.
    """
    prompt = entering([0., 0, 0], [.1, .2, .3], (1, 3))
    method = atp(.4, .3, 3, score="cross", strides=(2,), temperature=10.)
    alive = torch.tensor([1., 1, .6])
    close(method.running_mask(prompt, 0, alive), alive * torch.tensor([-.5, 1, 6]).sigmoid(), atol=1e-4)


@SETTINGS
@given(st.integers(0, 999), st.sampled_from(["both", "redundant", "spatial"]))
def test_the_hard_rule_is_half_of_the_soft_mask(seed, strategy):
    """What `reduce` keeps is where the mask of Eq. 11 at T = 100 is at least 1/2; if that is nowhere, only the best."""
    method = ATP(module=thresholds(), strategy=strategy)
    prompt = random_prompt(seed)
    mask = method.running_mask(prompt, 0, torch.ones(16))
    passes = (mask >= .5).nonzero().squeeze(1)
    r = method.reduce(prompt)
    assert r.keep.equal(passes) if len(passes) else r.keep.tolist() == [int(r.score.argmax())]


# --- 3.3.3: the losses ------------------------------------------------------------------------------------------------

def test_losses_by_hand():
    """Table 2: of 576 tokens 126, 88, 20 left before layers 4, 14, 24 of 32.

    (126 * 4 + 88 * 14 + 20 * 24) / 576 = 3.847 (Eq. 12). The average is (4 * 576 + 10 * 126 + 10 * 88 + 8 * 20) / 32 =
    143.875, .125 from 144 (Eq. 13). 2 + .1 * 3.8472 + .2 * .125 is the sum (Eq. 14).
    """
    masks = torch.zeros(3, 1, 576)
    for mask, kept in zip(masks, (126, 88, 20)):
        mask[:, :kept] = 1
    example = FACTS["loss_example"]
    L_ATP, L_target, N_bar = budget_losses(masks, (4, 14, 24), 32, 144)
    expected = [example[name] for name in ("L_ATP", "L_target", "N_bar")]
    assert [L_ATP.item(), L_target.item(), N_bar.item()] == pytest.approx(expected)
    assert full_loss(2., L_ATP, L_target, .1, .2).item() == pytest.approx(2 + .38472 + .025, abs=1e-4)


def test_the_average_is_of_the_batch():
    """One prompt far above the target and one as far below: together they meet it."""
    masks = torch.stack([torch.ones(1, 8), torch.zeros(1, 8)], dim=1)
    assert budget_losses(masks, (2,), 4, 6)[1].item() == 0


@pytest.mark.parametrize("kept, layers, average", [((98, 79, 16), (1, 13, 25), 87.9), ((162, 54, 18), (4, 14, 24), 144),
                                                   ((130,), (1,), 143.9)])
def test_averages_of_table_2(kept, layers, average):
    masks = torch.stack([(torch.arange(576) < k).float()[None] for k in kept])
    assert budget_losses(masks, layers, 32, 0)[2].item() == pytest.approx(average, abs=.05)


# --- the recording ----------------------------------------------------------------------------------------------------

def recorded():
    """The ATP of the recording: its two modules share their weights but for the biases of the heads."""
    predictors = nn.ModuleList(Thresholds(144, 16) for _ in range(2))
    for g, module in enumerate(predictors):
        module.load_state_dict({"linear.weight": RECORDED["Wz"], "linear.bias": RECORDED["bz"],
                                "linear_r.weight": RECORDED["wr"], "linear_r.bias": RECORDED[f"module{g}.br"],
                                "linear_s.weight": RECORDED["ws"], "linear_s.bias": RECORDED[f"module{g}.bs"]})
    return ATP(layers=(1, 2), module=predictors.requires_grad_(False), strides=tuple(FACTS["strides"]),
               lambda_sample=FACTS["lambda_sample"], temperature=FACTS["temperature"])


@pytest.mark.parametrize("g", [0, 1])
def test_golden(g):
    """Scores, thresholds, soft mask and survivors of both modules."""
    def expected(name):
        return RECORDED[f"module{g}.{name}"]

    source = expected("surviving_in").long()
    system, text = FACTS["sys_len"], FACTS["n_text"]
    whole = tokens("t" * system + "v" * 144 + "t" * text, grid=FACTS["grid"])
    view = dict(query=expected("q"), key=expected("k"))
    kinds = "t" * system + "v" * len(source) + "t" * text
    prompt = tokens(kinds, grid=whole.grid[source], layer=g + 1, before=view, source=source, prompt=whole)
    method = recorded()
    alive = torch.ones(len(source))
    raw = method.scores(prompt, alive)
    close(raw, torch.stack([expected("s_self_raw"), expected("s_cross_raw")]), atol=1e-6)
    S = method.normalised(raw, alive)
    close(torch.cat(method.thresholds(g, S, prompt)), expected("theta"))
    S_redundant, masks = method.soft_masks(prompt, g, alive)
    close(S_redundant, expected("s_redundant"))
    close(masks.amax(dim=0), expected("soft_mask"), atol=1e-3)                     # 100 times 1e-5
    r = method.reduce(prompt)
    close(r.score, expected("s_redundant"))
    assert source[r.keep].tolist() == expected("surviving_out").tolist()
    assert len(r.keep) == FACTS["survivors"][g]


def test_golden_spatial_score_and_softmax():
    close(recorded().spatial_pruning_score(whole_grid(12, 12)), RECORDED["spatial_score"])
    logits = RECORDED["softmask.logits"]
    causal = torch.full((6, 6), -torch.inf).triu(1)
    mask = ATP().softmax_mask(causal, torch.arange(6), RECORDED["softmask.column_mask"])
    close((logits + mask).softmax(dim=-1), RECORDED["softmask.probs"], atol=1e-6)


# --- the softmax mask -------------------------------------------------------------------------------------------------

def attention_under(mask, logits, method=ATP):
    """Attention (4, 4) where tokens 1 and 2 are visual and have these masks."""
    causal = torch.full((4, 4), -torch.inf).triu(1)
    return (logits + method().softmax_mask(causal, torch.tensor([1, 2]), mask)).softmax(dim=-1)


def test_softmax_mask_by_hand():
    """All logits equal, columns 1 and 2 masked by 1/2 and 0.

    Row 3 has weights 1, 1/2, 0, 1 of 2.5. Row 2 sees itself: 1, 1/2, 1 of 2.5; if the mask counts there, too, 1, 1/2, 0
    of 1.5.
    """
    mask = torch.tensor([.5, 0])
    close(attention_under(mask, torch.zeros(4, 4))[2:], [[.4, .2, .4, 0], [.4, .2, 0, .4]])
    close(attention_under(mask, torch.zeros(4, 4), ATPMaskedSelf)[2], [2 / 3, 1 / 3, 0, 0])


@SETTINGS
@given(st.integers(0, 999), st.sampled_from([ATP, ATPMaskedSelf]))
def test_softmax_rows_sum_to_one(seed, method):
    """No row sees a later one; masks of 1 change nothing."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(2, generator=generator).round(decimals=1)
    logits = 5 * torch.randn(4, 4, generator=generator)
    rows = attention_under(mask, logits, method)
    close(rows.sum(dim=-1), torch.ones(4))
    assert (rows.triu(1) == 0).all()
    plain = (logits + torch.full((4, 4), -torch.inf).triu(1)).softmax(dim=-1)
    assert attention_under(torch.ones(2), logits, method).equal(plain)


# --- in a model -------------------------------------------------------------------------------------------------------

PROMPT = ids(3, MARK, 5)


class LowScores(ATP):
    """The best normalised score is below 1."""

    eps = .1


class KeepsSix(LowScores):
    """At least six tokens are left."""

    min_keep = 6


class MayKeepNone(LowScores):
    """Nothing that fails both thresholds is kept."""

    min_keep = 0


def test_survivors_are_nested_and_differ_between_questions():
    counts = set()
    for seed in range(4):
        *_, trace = prefill(llava(), ids(3, MARK, 5, seed=seed), [picture(llava(), seed)], ATP(module=thresholds()))
        kept = [set(step.kept.tolist()) for step in trace.steps]
        assert kept[2] <= kept[1] <= kept[0]
        assert [step.layer for step in trace.steps] == [4, 14, 24]
        counts.add(tuple(map(len, kept)))
    assert len(counts) > 1


@pytest.mark.parametrize("theta_r, theta_s, kept",
                         [(1e-6, .5, 16), (1 - 1e-6, .24, 4), (1 - 1e-6, .3, 1), (1 - 1e-6, 1 - 1e-6, 1)])
def test_extreme_thresholds(theta_r, theta_s, kept):
    """4 x 4 patches. theta_r near 0: all, but perhaps the least, whose score 0 is below it, and which is in no sample.

    theta_r above every score: what the samples of stride 2 (4 patches) and 4 (one) have; none: the best alone.
    """
    method = atp(theta_r, theta_s, 16, LowScores, score="cross")
    counts = prefill(llava(), PROMPT, [picture(llava())], method)[2].visual
    assert counts[3] == 16
    assert counts[4] in (kept, 15 if kept == 16 else kept)
    if theta_r > .5:
        method = atp(theta_r, theta_s, 16, KeepsSix, score="cross")
        assert prefill(llava(), PROMPT, [picture(llava())], method)[2].visual[4] == max(6, kept)


def test_nothing_may_be_kept():
    method = MayKeepNone(module=constant(1 - 1e-6, 1 - 1e-6, 16, 3), score="cross")
    logits, cache, trace = prefill(llava(), PROMPT, [picture(llava())], method)
    assert trace.visual[4:] == [0] * 28
    assert len(trace.steps) == 1
    assert logits.isfinite().all()


def test_counts_keep_the_best():
    """A fixed ratio without samples: that many, by S_redundant 0 .75 .75 .5, or what is there; soft masks are hard."""
    prompt = entering([-1., 0, 1, 1], [.1, .3, .2, .1], (2, 2))

    def fixed(*counts):
        return ATPFixedRatioRedundant(layers=(4,), counts=counts)

    assert fixed(3).reduce(prompt).keep.tolist() == [1, 2, 3]
    assert fixed(9).reduce(prompt).keep.tolist() == [0, 1, 2, 3]
    assert fixed(2).running_mask(prompt, 0, torch.tensor([1., 0, 1, 1])).tolist() == [0, 0, 1, 1]
    one = torch.tensor([1., 0, 0, 0])
    assert fixed(2).running_mask(prompt, 0, one).equal(one)                        # what is gone does not come back


def test_a_fixed_ratio_keeps_the_samples():
    """3 x 3 patches, strides 2 and 4: S_spatial .8125 of 0 and .25 of 2 6 8. S_redundant 1 of 4, .5 of 6, .4 of 8.

    Samples first: 0 6 8 2 4, of which 6 is before 8 and 2 by S_redundant. The larger score: 4 0 6 8 2.
    S_redundant: 4 6 8 0.
    """
    S = [0., 0, 0, 0, 10, 0, 5, 0, 4]
    prompt = entering(S, [x / 100 for x in S], (3, 3))

    def kept(method, k):
        return method(layers=(4,), counts=(k,), strides=(2, 4)).reduce(prompt).keep.tolist()

    assert [kept(ATPFixedRatio, k) for k in (1, 2, 3, 4, 5)] == [[0], [0, 6], [0, 6, 8], [0, 2, 6, 8], [0, 2, 4, 6, 8]]
    assert [kept(ATPFixedRatioMax, k) for k in (1, 2, 3, 4)] == [[4], [0, 4], [0, 4, 6], [0, 4, 6, 8]]
    assert [kept(ATPFixedRatioRedundant, k) for k in (1, 2, 3, 4)] == [[4], [4, 6], [4, 6, 8], [0, 4, 6, 8]]
    some_left = torch.tensor([0., 1, 1, 1, 1, 1, 1, 1, 0])
    mask = ATPFixedRatio(layers=(4,), counts=(2,), strides=(2, 4)).running_mask(prompt, 0, some_left)
    assert mask.nonzero().squeeze(1).tolist() == [2, 6]                            # samples that are left


def test_schedule_of_a_fixed_ratio():
    counts = ATPFixedRatio(counts=(126, 88, 20)).schedule(100, 32)
    assert counts == [100] * 14 + [88] * 10 + [20] * 8
    assert ATP().schedule(100, 32) is None


def test_a_needle_may_be_dropped():
    """No law: the token that the text looks at has S_cross 1 and, where its self score is least, S_redundant 1/2."""
    prompt = entering([1., 1, 0], [.01, .01, .98], (1, 3))
    assert 2 not in atp(.6, .7, 3).reduce(prompt).keep.tolist()


def test_one_token_is_kept():
    assert atp(.5, .99, 1).reduce(entering([3.], [.1], (1, 1))).keep.tolist() == [0]


def test_all_attention_alike():
    """Every score is 0, and places decide: of one row 0 and 2."""
    r = atp(.5, .2).reduce(entering([0.] * 4, [.1] * 4, (1, 4)))
    assert r.keep.tolist() == [0, 2]
    assert r.score.tolist() == [0] * 4


def test_half_precision_is_averaged_in_single():
    """256 heads, of which one pays 1 and the others 1/256: in bfloat16 their running sum would stay at 1."""
    logits = torch.zeros(256, 4, 4, dtype=torch.bfloat16)
    logits[0, :, 1] = 1
    logits[1:, :, 1] = 1 / 256
    prompt = tokens("tvvt", torch.zeros(1, 4), before=dict(logits=logits))
    close(ATP().scores(prompt, torch.ones(2))[0], [(1 + 255 / 256) / 256, 0], atol=1e-7)


def test_two_dimensional_positions():
    """Two words, 2 x 3 patches, two words: the patches are at (2 + r, 2 + c), the text goes on at 2 + 3.

    Half of the pairs rotate by the row, the others by the column; text rotates as in one dimension.
    """
    prompt = tokens("tt vvvvvv tt", grid=(2, 3))
    placed = ATP2D().with_positions(prompt)
    assert placed.position.tolist() == [[0, 0], [1, 1], [2, 2], [2, 3], [2, 4], [3, 2], [3, 3], [3, 4], [5, 5], [6, 6]]
    assert placed.next_position == 7
    assert ATP().with_positions(prompt) is prompt
    cos, _ = rope(placed.position, 8, 10000., torch.float32)
    plain, _ = rope(torch.arange(7), 8, 10000., torch.float32)
    assert cos[[0, 1, 8, 9]].equal(plain[[0, 1, 5, 6]])
    assert cos[3, [0, 1, 4, 5]].equal(plain[2, [0, 1, 4, 5]])
    assert cos[3, [2, 3, 6, 7]].equal(plain[3, [2, 3, 6, 7]])


def test_survivors_keep_their_pair_of_positions():
    """And a generated token goes on after the last."""
    method = ATP2D(module=thresholds())
    _, cache, trace = prefill(llava(), PROMPT, [picture(llava())], method)
    assert {layer.next_position for layer in cache.layers} == {3 + 4 + 5}
    stepped = llava().step([7], cache)
    again = Chosen({step.layer: step.reduction for step in trace.steps})
    again.with_positions = method.with_positions
    whole = prefill(llava(), PROMPT + [7], [picture(llava())], again)[0]
    close(stepped, whole, atol=1e-4)


def test_survivors_may_be_numbered_anew():
    cache = prefill(llava(), PROMPT, [picture(llava())], ATPRenumbered(module=thresholds()))[1]
    assert [layer.next_position for layer in cache.layers] == cache.lengths


# --- soft and hard ----------------------------------------------------------------------------------------------------

def soft_prefill(model, prompt, masks, method):
    """Normed hidden states (T, D): nothing is dropped, and masks {layer: (N,)} act inside the softmax from there on."""
    decoder = model.language_model
    hidden = prompt.hidden[None]                                                   # (1, T, D)
    T = hidden.shape[1]
    causal = torch.full((T, T), -torch.inf).triu(1)
    mask = torch.ones(prompt.n)
    for l, layer in enumerate(decoder.layers):
        mask = mask * masks.get(l, 1)
        softmax_mask = method.softmax_mask(causal, prompt.visual, mask)
        hidden = layer(hidden, decoder.rope(prompt.position, hidden.dtype), mask=softmax_mask)
    return decoder.norm(hidden[0])


def test_soft_mask_of_zeros_and_ones_is_hard_pruning():
    """The text rows are those of the pruned sequence, and the survivors' too."""
    model = llava()
    method = ATP(module=thresholds())
    hard, _, trace = prefill(model, PROMPT, [picture(model)], method, last=False)
    prompt = model.embed(PROMPT, [picture(model)])
    masks = {step.layer: torch.zeros(16).index_fill(0, step.kept, 1) for step in trace.steps}
    soft = soft_prefill(model, prompt, masks, method)
    kept = prompt.visual[trace.steps[-1].kept]
    close(torch.cat([soft[:3], soft[kept], soft[-5:]]), hard, atol=1e-4)


def random_prompt(seed):
    """Two rows of text, 4 x 4 patches, three rows of text, before layer 4; logits of two heads, and their softmax."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 21, 21, generator=generator)
    return with_logits(tokens("tt" + "v" * 16 + "ttt", grid=(4, 4), layer=4), logits)


def with_logits(prompt, logits):
    """The tokens, where the layer before has these logits (H, T, T), and attention that is their softmax."""
    attention = (logits + torch.full(logits.shape[1:], -torch.inf).triu(1)).softmax(dim=-1)
    return replace(prompt, before=LayerView.of(attention=attention, logits=logits).on(prompt))


def distances(seed, temperatures):
    """Mean distance of the soft masks after two modules from what `reduce` keeps, [first, second] for each temperature.

    Tokens that are gone do not enter the second module's scores either. No soft mask grows again.
    """
    prompt = random_prompt(seed)
    logits = prompt.before.logits("all")
    method = ATP(module=thresholds())
    first = method.reduce(prompt)
    after = prompt.reduced(first)
    left = torch.cat([torch.arange(2), prompt.visual[first.keep], torch.arange(18, 21)])
    # the same numbers, of what is left: attention is of all tokens, as in the soft pass
    attention = prompt.before.attention("all")[:, left][..., left]
    view = LayerView.of(attention=attention, logits=logits[:, left][..., left])
    after = replace(after, layer=14, prompt=prompt)
    second = method.reduce(replace(after, before=view.on(after)))
    hard = [torch.zeros(16).index_fill(0, kept, 1) for kept in (first.keep, first.keep[second.keep])]
    for temperature in temperatures:
        soft = replace(method, temperature=temperature)
        mask = soft.running_mask(prompt, 0, torch.ones(16))
        twice = soft.running_mask(prompt, 1, mask)
        assert (twice <= mask).all()
        assert (mask <= 1).all()
        yield [(a - b).abs().mean().item() for a, b in zip((mask, twice), hard)]


@SETTINGS
@given(st.integers(0, 999))
def test_soft_mask_tends_to_the_hard_one(seed):
    """As T grows, the distance to what `reduce` keeps falls; at 1e6 there is none, as no token is at a threshold."""
    far = list(distances(seed, (10., 100., 1e6)))
    assert far[0][0] >= far[1][0] >= far[2][0]
    assert max(far[2]) < 1e-3, far


def test_how_far_the_soft_mask_is_from_the_hard_one():
    """Mean over 40 prompts, after both modules: .192 and .144 at T = 10, .018 and .019 at 100, .001 and 0 at 1000."""
    far = torch.tensor([list(distances(seed, (10., 100., 1000.))) for seed in range(40)]).mean(dim=0)
    close(far, [[.192, .144], [.018, .019], [.001, 0]], atol=.002)


@SETTINGS
@given(seed=st.integers(0, 999), factor=st.sampled_from([.25, 4., 64.]), offset=st.integers(-8, 8),
       kind=st.sampled_from([ATP, ATPRankedScores]))
def test_scale_of_the_scores(seed, factor, offset, kind):
    """Logits times a factor plus a number, attention times a factor: the same scores, thresholds and tokens."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(19, 19, generator=generator)
    attention = torch.rand(19, 19, generator=generator)
    kinds = "tt" + "v" * 16 + "t"
    one = tokens(kinds, attention, grid=(4, 4), layer=4, before=dict(logits=logits))
    two = tokens(kinds, factor * attention, grid=(4, 4), layer=4, before=dict(logits=factor * logits + offset))
    first, second = (kind(module=thresholds()).reduce(prompt) for prompt in (one, two))
    close(first.score, second.score, atol=1e-4)
    assert first.keep.equal(second.keep)


@pytest.mark.parametrize("kind", [ATP, ATPDetached, ATPRawScores])
@SETTINGS
@given(seed=st.integers(0, 999))
@torch.enable_grad()
def test_gradients_reach_every_parameter(kind, seed):
    """What Linear reads, both heads, and the scores, unless they are detached (then only through S_redundant).

    Eq. 11 takes the larger mask, so a head learns exactly if its rule has the larger one for some token.
    """
    module = nn.ModuleList([Thresholds(16, 8), Thresholds(16, 8)])
    for p in module.parameters():                      # thresholds near .5: nearly always, each passes some
        nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(p.numel() + seed))
    logits = torch.randn(1, 21, 21, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    prompt = with_logits(tokens("tt" + "v" * 16 + "ttt", grid=(4, 4), layer=4), logits)
    method = kind(layers=(4, 14), module=module, temperature=5.)
    mask = torch.ones(16)
    learns = set()
    for i in range(2):
        _, (redundant, spatial) = method.soft_masks(prompt, i, mask)
        learns |= {f"{i}.linear"}
        learns |= {f"{i}.linear_r"} if (redundant > spatial).any() else set()
        learns |= {f"{i}.linear_s"} if (spatial > redundant).any() else set()
        mask = method.running_mask(prompt, i, mask)
    mask.sum().backward(retain_graph=True)
    gradients = {name: p.grad for name, p in module.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert {name.rpartition(".")[0] for name, g in gradients.items() if (g != 0).any()} == learns
    assert logits.grad.isfinite().all()
    assert (logits.grad != 0).any()
    places = replace(method, strategy="spatial").running_mask(prompt, 0, torch.ones(16))
    assert places.requires_grad
    through_scores = torch.autograd.grad(places.sum(), logits, allow_unused=True)[0]
    assert (through_scores is None) == (kind is ATPDetached)


@torch.enable_grad()
def test_no_gradient_at_inference():
    module = nn.ModuleList([Thresholds(4, 2)])
    r = ATP(layers=(4,), module=module).reduce(entering([-1., 0, 1, 1], [.1, .3, .2, .1], (2, 2)))
    assert not r.score.requires_grad


# --- files and what is refused ----------------------------------------------------------------------------------------

def test_a_saved_module_is_read_with_its_options(tmp_path):
    method = ATP(layers=(2, 5, 9), module=thresholds(), temperature=50., strides=(2, 6), depth=32)
    modules.save(method, tmp_path)
    back = build("atp", settings=[f"module={tmp_path}", "temperature=9"])
    assert replace(back, module=None) == replace(method, module=None, temperature=9.)
    theirs = method.module.state_dict()
    assert all(x.equal(theirs[name]) for name, x in back.module.state_dict().items())


@pytest.mark.parametrize("name", [name for name in READINGS if name.startswith("atp_")])
def test_a_file_names_the_reading_that_was_trained(tmp_path, name):
    """It is read as that, and not by another name; a module of plain ATP may be read in any way."""
    layers = (4, 14, 24)
    modules.save(READINGS[name](layers=layers, module=thresholds()), tmp_path)
    assert type(modules.read(tmp_path)) is READINGS[name]
    assert type(build(name, settings=[f"module={tmp_path}"])) is READINGS[name]
    with pytest.raises(UserError, match=f"trained as {name}: use --method {name}"):
        build("atp", settings=[f"module={tmp_path}"])
    modules.save(ATP(layers=layers, module=thresholds()), tmp_path)
    assert type(build(name, settings=[f"module={tmp_path}"])) is READINGS[name]


def test_a_method_of_ones_own_has_no_name_for_a_file(tmp_path):
    with pytest.raises(UserError, match="LowScores is no reading"):
        modules.save(LowScores(module=thresholds()), tmp_path)


def test_a_module_in_the_models_folder_is_used(tmp_path):
    model = llava(blocks=2, layers=32)
    model.folder = tmp_path
    with pytest.raises(UserError, match="train atp"):
        check(ATP(), model)
    modules.save(ATP(module=thresholds(), depth=32), tmp_path)
    method = check(build("atp", settings=["temperature=2"]), model)
    assert method.temperature == 2
    assert method.depth == 32
    assert method.module[0].N == 16


def test_a_fixed_ratio_takes_no_module_from_the_models_folder(tmp_path):
    """Its options in such a file are used, but those of another method's are not."""
    model = llava(blocks=2, layers=32)
    model.folder = tmp_path
    modules.save(ATP(module=thresholds(), depth=32), tmp_path)
    method = ATPFixedRatio(layers=(3, 5), counts=(9, 4))
    assert check(method, model) == method
    modules.save(method, tmp_path)
    assert check(ATPFixedRatio(), model) == method


@pytest.mark.parametrize("options, words", [
    (dict(layers=()), "layers must rise"), (dict(layers=(0, 4)), "layers must rise"),
    (dict(layers=(4, 4)), "layers must rise"), (dict(layers=(9, 4)), "layers must rise"),
    (dict(strides=(1, 2)), "lambda_sample"), (dict(strides=()), "strides"), (dict(strides=(0, 4)), "strides"),
    (dict(strides=(2,), lambda_sample=4.), "lambda_sample"), (dict(lambda_sample=-1.), "lambda_sample"),
    (dict(temperature=0.), "temperature"), (dict(score="all"), "score is one of"),
    (dict(strategy="none"), "strategy is one of"), (dict(module=thresholds(), layers=(4, 14)), "2 layers")])
def test_bad_options(options, words):
    with pytest.raises(UserError, match=words) as error:
        ATP(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("counts", [(9, 4), (9, 4, 0), ()])
def test_bad_counts(counts):
    with pytest.raises(UserError, match="counts"):
        ATPFixedRatio(counts=counts)


def test_no_module():
    with pytest.raises(UserError, match="train atp"):
        ATP(layers=(4,)).reduce(entering([0., 1, 2], [.1, .2, .3], (1, 3)))


def test_a_prompt_of_another_length():
    """Refused, or pooled: the module reads four scores, 0 1/2 .. of three tokens, and these thresholds keep 1 and 2."""
    prompt = entering([0., 1, 2], [.1, .2, .3], (1, 3))
    with pytest.raises(UserError, match="trained on 4 visual tokens, and here are 3"):
        atp(.5, .5, 4).reduce(prompt)
    assert atp(.4, .99, 4, ATPPooled).reduce(prompt).keep.tolist() == [1, 2]


def test_pooled_scores():
    """Scores 1 3 5 7 of four tokens at a length of two: means 2 and 6. Those of two tokens at that length stay."""
    close(ATPPooled().at_length(torch.tensor([[1., 3, 5, 7]] * 2), 2), [[2., 6]] * 2)
    two = torch.rand(2, 2)
    assert ATPPooled().at_length(two, 2) is two


def test_no_text_after_the_image():
    with pytest.raises(UserError, match="no text follows"):
        atp(.5, .5, 2).reduce(tokens("tvv", torch.zeros(3, 3), layer=4, before=dict(logits=torch.zeros(3, 3))))


@pytest.mark.parametrize("kind", [ATP, ATPRankedScores, ATPUnnormalised])
@pytest.mark.parametrize("score", ["both", "self", "cross"])
@pytest.mark.parametrize("where", ["logits", "attention", "module"])
def test_nan(kind, score, where):
    """NaN in the logits, the attention or the module's weights: nothing passed, and the best by no score was kept."""
    received = [0., 1, torch.nan] if where == "logits" else [0., 1, 2]
    text = [.1, torch.nan, .3] if where == "attention" else [.1, .2, .3]
    method = atp(.5, .2, 3, kind, score=score)
    if where == "module":
        method.module[0].linear.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN"):
        method.reduce(entering(received, text, (1, 3)))


@pytest.mark.parametrize("received, text", [([0., torch.nan], [.1, .2]), ([0., 1.], [torch.nan, .2])])
def test_nan_without_a_module(received, text):
    with pytest.raises(UserError, match="NaN"):
        ATPFixedRatio(layers=(4,), counts=(1,)).reduce(entering(received, text, (1, 2)))


@pytest.mark.parametrize("method, words", [
    (ATP(module=thresholds(), depth=24), "24 decoder layers and the model has 32"),
    (ATP(module=thresholds(N=9)), "trained on 9 visual tokens, and here are 16"),
    (ATP(layers=(4, 14, 32), module=thresholds()), "layer 32")])
def test_a_module_for_another_model(tmp_path, method, words):
    model = llava(blocks=2, layers=32)
    model.folder = tmp_path
    with pytest.raises(UserError, match=words):
        check(method, model)


@pytest.mark.parametrize("content", ["missing", "zip", "other tensors"])
def test_files_that_hold_no_module(tmp_path, content):
    path = tmp_path / modules.NAME
    if content == "zip":
        path.write_bytes(b"PK\x03\x04")
    if content == "other tensors":
        save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="holds no module") as error:
        modules.read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("header, words", [
    (dict(method="atp_psychic"), "holds no module"), (dict(method="fastv"), "holds no module"),
    (dict(options='{"self_rows": "received"}'), "'self_rows', and the options of atp are layers, strategy"),
    (dict(options='{"module": 1}'), "'module', and the options"),
    (dict(options="[1]"), "no table of names"), (dict(options="null"), "holds no module"),
    (dict(options='{"layers": [4, 14]}'), "2 layers"), (dict(activation="tanh"), "activation")])
def test_bad_headers(tmp_path, header, words):
    """One line each; an option that ATP no longer has is named."""
    modules.save(ATP(module=thresholds()), tmp_path)
    path = tmp_path / modules.NAME
    good = dict(method="atp", options=json.dumps(dict(layers=[4, 14, 24])), activation="none")
    save_file(load_file(path), path, metadata=good | header)
    with pytest.raises(UserError, match=words) as error:
        modules.read(tmp_path)
    assert "\n" not in str(error.value)


def test_bad_settings_for_a_file(tmp_path):
    modules.save(ATP(module=thresholds()), tmp_path)
    with pytest.raises(UserError, match="2 layers"):
        modules.read(tmp_path, layers=(1, 2))
