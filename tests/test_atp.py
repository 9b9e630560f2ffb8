"""ATP by hand, equation by equation, and against its golden recording (our reading of the paper: there is no released code)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file
from torch import nn

from golden import golden
from minivlm.attention import Look, rope
from minivlm.lab import modules
from minivlm.lab.options import build, check
from minivlm.trace import Trace
from pruning.atp import ATP, Thresholds, budget_losses, full_loss
from pruning.base import Reduction, Tokens, UserError
from tiny import MARK, SETTINGS, Chosen, ids, llava, picture, prefill, thresholds

SEEN, FACTS = golden("atp_recommended")


def told(theta_r, theta_s, N=4, count=1):
    """Modules that answer these thresholds whatever they read."""
    made = nn.ModuleList(Thresholds(N, 2, theta_r=theta_r, theta_s=theta_s) for _ in range(count))
    return made.requires_grad_(False)


def grid(H, W, tile=0):
    """(H*W, 3) cells of an image."""
    index = torch.arange(H * W)
    return torch.stack([torch.full_like(index, tile), index // W, index % W], dim=1)


def seen(received, text, cell, layer=4, system=1):
    """Tokens: `system` rows, an image whose tokens receive these logits from each visual row, a text row that pays `text`."""
    n, T = len(received), system + len(received) + 1
    logits, attn = torch.full((1, T, T), 9.), torch.zeros(1, T, T)
    visual = torch.arange(system, system + n)
    logits[:, visual[:, None], visual] = torch.tensor(received)
    attn[:, -1, visual] = torch.tensor(text)
    return Tokens(torch.zeros(T, 2), torch.arange(T), visual, cell, torch.arange(n), T, prompt=torch.zeros(T, 2), layer=layer,
                  attn=attn, logits=logits)


# --- by hand ---------------------------------------------------------------------------------------------------------------

def test_redundant_pruning():
    """2 x 2 patches receive logits -1 0 1 1 (normalised 0 1/2 1 1) and from the text .1 .3 .2 .1 (0 1 1/2 0). S_redundant is
    0, .75, .75, .5: above theta_r .6 are 1 and 2; theta_s .99 lets no place pass. The text alone would keep 1 alone, and
    the two best by logits are 2 and 3."""
    tokens = seen([-1., 0, 1, 1], [.1, .3, .2, .1], grid(2, 2))
    atp = ATP(told(.6, .99), layers=(4,))
    r = atp.reduce(tokens)
    torch.testing.assert_close(r.score, torch.tensor([0, .75, .75, .5]), atol=1e-4, rtol=0)
    assert r.keep.tolist() == [1, 2]
    assert replace(atp, score="cross").reduce(tokens).keep.tolist() == [1]
    assert replace(atp, score="self").reduce(tokens).keep.tolist() == [2, 3]


def test_spatial_pruning():
    """3 x 3 patches, strides 2 and 4: the corners 0 2 6 8 are sampled at stride 2 (1 - 3/4), and 0 at stride 4 too
    (1 - 3/16 = .8125). theta_s .2 keeps the corners, .5 keeps 0 alone; theta_r .99 lets only the token with both scores 1
    pass, which is 4: it comes to either."""
    tokens = seen([0.] * 4 + [5.] + [0.] * 4, [0.] * 4 + [.5] + [0.] * 4, grid(3, 3))
    keep = lambda theta_s, **options: ATP(told(.99, theta_s, 9), (4,), strides=(4, 2), **options).reduce(tokens).keep.tolist()
    assert keep(.2) == [0, 2, 4, 6, 8] and keep(.5) == [0, 4]
    assert keep(.5, strategy="spatial") == [0] and keep(.5, strategy="redundant") == [4]
    r = ATP(told(.99, .2, 9), (4,), strides=(4, 2)).reduce(tokens)
    assert [r.rules[i] for i in r.rule] == ["spatial"] * 2 + ["redundant"] + ["spatial"] * 2
    r = ATP(told(.9, .2, 4), (4,)).reduce(seen([1., 0, 0, 0], [.1, 0, 0, 0], grid(2, 2)))
    assert [r.rules[i] for i in r.rule] == ["both"]


def test_self_rows_and_source():
    """Three patches. Token 0 receives logits 0 0 0 and gives 0 3 3; 1 receives 3 and gives 0 3 0; 2 receives 3, 0, 0.
    Received means 0 2 1, given means 2 1 0: theta_r .6 keeps 1 in the one, 0 in the other."""
    tokens = seen([0., 0, 0], [.1, .1, .1], grid(1, 3))
    between = torch.tensor([[0., 3, 3], [0, 3, 0], [0, 0, 0]])
    tokens.logits[:, 1:4, 1:4] = between
    atp = ATP(told(.6, .99, 3), (4,), score="self")
    assert atp.reduce(tokens).keep.tolist() == [1]
    assert replace(atp, self_rows="given").reduce(tokens).keep.tolist() == [0]
    tokens.attn[:, 1:4, 1:4] = torch.tensor([[1., 0, 0], [.5, .5, 0], [.2, .2, .6]])
    assert replace(atp, self_source="probs").reduce(tokens).keep.tolist() == [0]


def test_text_rows_after_the_image_alone_rank():
    """The row before the image cannot see it: the mean of Eq. 4 is over the last row alone."""
    tokens = seen([0., 0], [.2, .6], grid(1, 2))
    tokens.attn[:, 0, 1:3] = 99.
    seen_by = torch.tensor([0., 0, 0, 1]), torch.ones(2)
    _, S_cross, _ = ATP(score_norm="none").redundant_pruning_score(tokens.logits, tokens.attn, tokens.visual, *seen_by)
    torch.testing.assert_close(S_cross, torch.tensor([.2, .6]))
    assert ATP(told(.9, .99, 2), (4,), score="cross", score_norm="none", min_keep=1).reduce(tokens).keep.tolist() == [1]


@pytest.mark.parametrize("norm, expected", [("minmax", [0, .5, 1, 1]), ("rank", [0, 1 / 3, 1, 2 / 3]), ("none", [-1, 0, 1, 1]),
                                            ("softmax", [.05407, .14697, .39948, .39948])])
def test_score_norm(norm, expected):
    """-1 0 1 1: the span, the ranks (of equals the first), as they are, e^x over the sum 1/e + 1 + 2e = 6.80444."""
    tokens = seen([-1., 0, 1, 1], [.1] * 4, grid(2, 2))
    everything = tokens.logits, tokens.attn, tokens.visual, torch.ones(6), torch.ones(4)
    S_self = ATP(score_norm=norm).redundant_pruning_score(*everything)[0]
    torch.testing.assert_close(S_self, torch.tensor(expected, dtype=torch.float), atol=1e-5, rtol=0)


def test_thresholds_by_hand():
    """Two tokens, z of width 1: Linear [1 0 2 0] on [self; cross] = [.5 0 1 .3] plus 1 is 3.5; theta_r = sigmoid(2 * 3.5 - 8) =
    sigmoid(-1), theta_s = sigmoid(-3.5 + 3) = sigmoid(-.5)."""
    m = Thresholds(2, 1)
    with torch.no_grad():
        for p, x in ((m.linear.weight, [[1, 0, 2, 0]]), (m.linear.bias, [1]), (m.linear_r.weight, [[2]]), (m.linear_r.bias, [-8]),
                     (m.linear_s.weight, [[-1]]), (m.linear_s.bias, [3])):
            p.copy_(torch.tensor(x))
    theta = torch.cat(m(torch.tensor([.5, 0]), torch.tensor([1, .3])))
    torch.testing.assert_close(theta, torch.tensor([-1., -.5]).sigmoid())


def test_thresholds_read_each_token_in_its_own_place():
    """After an earlier reduction the scores stand where the tokens stood at first, and 0 where one is gone."""
    saw = []
    module = told(.5, .5, 5)
    module[0].register_forward_hook(lambda m, args, out: saw.append(args))
    ATP(module, (4,)).thresholds(0, torch.tensor([.1, .2]), torch.tensor([.3, .4]), torch.tensor([1, 4]), 5)
    torch.testing.assert_close(torch.stack(saw[0]), torch.tensor([[0, .1, 0, 0, .2], [0, .3, 0, 0, .4]]))


def test_at_first_all_prompts_have_the_same_thresholds():
    theta = [x.item() for x in Thresholds(4)(torch.rand(4), torch.rand(4))]
    assert theta == pytest.approx([.3, .5])


def test_soft_mask_by_hand():
    """T = 10, alone the text's scores 0 .5 1, theta_r .4: sigmoids of -4, 1, 6. Places 0, 1, 2 of one row, stride 2: 0 and 2
    have .25, theta_s .3 gives sigmoid(-.5) for them and sigmoid(-3) for 1. The larger counts, times the mask before."""
    tokens = seen([0., 0, 0], [.1, .2, .3], grid(1, 3))
    atp = ATP(told(.4, .3, 3), (4,), score="cross", strides=(2,), temperature=10)
    before = torch.tensor([1., 1, .6])
    now = atp.soft_mask(0, tokens.logits, tokens.attn, tokens.visual, torch.tensor([0., 0, 0, 0, 1]), tokens.grid, before)
    torch.testing.assert_close(now, before * torch.tensor([-.5, 1, 6]).sigmoid(), atol=1e-4, rtol=0)


def test_losses_by_hand():
    """Table 2: of 576 tokens 126, 88, 20 left before layers 4, 14, 24 of 32. (126 * 4 + 88 * 14 + 20 * 24) / 576 = 3.847; the
    average is (4 * 576 + 10 * 126 + 10 * 88 + 8 * 20) / 32 = 143.875, .125 from 144."""
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


def test_fixed_averages_of_table_2():
    for kept, layers, average in (((98, 79, 16), (1, 13, 25), 87.9), ((162, 54, 18), (4, 14, 24), 144), ((130,), (1,), 143.9)):
        masks = torch.stack([(torch.arange(576) < k).float()[None] for k in kept])
        assert budget_losses(masks, layers, 32, 0)[2].item() == pytest.approx(average, abs=.05)


# --- the recording -----------------------------------------------------------------------------------------------------------

def recorded(**options):
    made = nn.ModuleList(Thresholds(144, 16) for _ in range(2))
    for g, m in enumerate(made):
        m.load_state_dict({"linear.weight": SEEN["Wz"], "linear.bias": SEEN["bz"],
                           "linear_r.weight": SEEN["wr"], "linear_r.bias": SEEN[f"module{g}.br"],
                           "linear_s.weight": SEEN["ws"], "linear_s.bias": SEEN[f"module{g}.bs"]})
    return ATP(made.requires_grad_(False), (1, 2), strides=tuple(FACTS["strides"]), lambda_sample=FACTS["lambda_sample"],
               temperature=FACTS["temperature"], **options)


@pytest.mark.parametrize("g", [0, 1])
def test_golden(g):
    """Scores, thresholds, soft mask and survivors of both boundaries."""
    q, k, here = SEEN[f"module{g}.q"], SEEN[f"module{g}.k"], SEEN[f"module{g}.surviving_in"].long()
    logits, a = q @ k.mT * q.shape[-1] ** -.5, FACTS["sys_len"]
    T, n = logits.shape[-1], len(here)
    attn = logits.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf).softmax(dim=-1)
    tokens = Tokens(torch.zeros(T, 1), torch.arange(T), torch.arange(a, a + n), grid(*FACTS["grid"])[here], here, T,
                    prompt=torch.zeros(a + 144 + FACTS["n_text"], 1), layer=g + 1, attn=attn, logits=logits)
    atp, is_text = recorded(), (torch.arange(T) >= a + n).float()
    raw = replace(atp, score_norm="none").redundant_pruning_score(logits, attn, tokens.visual, is_text, torch.ones(n))
    for ours, name in zip(raw, ("s_self_raw", "s_cross_raw")):
        torch.testing.assert_close(ours, SEEN[f"module{g}.{name}"], atol=1e-6, rtol=0)
    r = atp.reduce(tokens)
    torch.testing.assert_close(r.score, SEEN[f"module{g}.s_redundant"], atol=1e-5, rtol=0)
    assert here[r.keep].tolist() == SEEN[f"module{g}.surviving_out"].tolist() and len(r.keep) == FACTS["survivors"][g]
    S_self, S_cross, S_redundant = atp.redundant_pruning_score(logits, attn, tokens.visual, is_text, torch.ones(n))
    theta = atp.thresholds(g, S_self, S_cross, here, 144)
    torch.testing.assert_close(torch.cat(theta), SEEN[f"module{g}.theta"], atol=1e-5, rtol=0)
    above = atp.above(S_redundant, atp.spatial_pruning_score(tokens.grid), *theta)
    soft = torch.stack([(x * atp.temperature).sigmoid() for x in above])
    torch.testing.assert_close(soft.amax(dim=0), SEEN[f"module{g}.soft_mask"], atol=1e-3, rtol=0)      # 100 times 1e-5


def test_golden_spatial_score_and_softmax():
    torch.testing.assert_close(recorded().spatial_pruning_score(grid(12, 12)), SEEN["spatial_score"])
    logits, T = SEEN["softmask.logits"], 6
    causal = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    mask = ATP().softmax_mask(causal, torch.arange(T), SEEN["softmask.column_mask"])
    torch.testing.assert_close((logits + mask[0]).softmax(dim=-1), SEEN["softmask.probs"], atol=1e-6, rtol=0)


# --- the softmax mask --------------------------------------------------------------------------------------------------------

def masked(m, logits, own_key=True):
    causal = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    return (logits + ATP(own_key=own_key).softmax_mask(causal, torch.tensor([1, 2]), m)[0]).softmax(dim=-1)


def test_softmax_mask_by_hand():
    """All logits equal, columns 1 and 2 masked by 1/2 and 0: row 3 has weights 1, 1/2, 0, 1 of 2.5; row 2 sees itself: 1, 1/2, 1
    of 2.5; without own_key 1, 1/2, 0 of 1.5."""
    m = torch.tensor([.5, 0])
    rows = masked(m, torch.zeros(4, 4))
    torch.testing.assert_close(rows[2:], torch.tensor([[.4, .2, .4, 0], [.4, .2, 0, .4]]))
    torch.testing.assert_close(masked(m, torch.zeros(4, 4), False)[2], torch.tensor([2 / 3, 1 / 3, 0, 0]))


@SETTINGS
@given(st.integers(0, 999), st.booleans())
def test_softmax_rows_sum_to_one(seed, own):
    generator = torch.Generator().manual_seed(seed)
    m, logits = torch.rand(2, generator=generator).round(decimals=1), 5 * torch.randn(4, 4, generator=generator)
    rows = masked(m, logits, own)
    torch.testing.assert_close(rows.sum(dim=-1), torch.ones(4))
    assert (rows.triu(1) == 0).all()
    assert masked(torch.ones(2), logits).equal((logits + torch.full((4, 4), -torch.inf).triu(1)).softmax(dim=-1))


# --- in a model --------------------------------------------------------------------------------------------------------------

PROMPT = ids(3, MARK, 5)


def test_survivors_are_nested_and_differ_between_questions():
    counts = set()
    for seed in range(4):
        *_, trace = prefill(llava(), ids(3, MARK, 5, seed=seed), [picture(llava(), seed)], ATP(thresholds()))
        kept = [set(step.kept.tolist()) for step in trace.steps]
        assert kept[2] <= kept[1] <= kept[0] and [step.layer for step in trace.steps] == [4, 14, 24]
        counts.add(tuple(map(len, kept)))
    assert len(counts) > 1


@pytest.mark.parametrize("theta_r, theta_s, kept",
                         [(1e-6, .5, 16), (1 - 1e-6, .24, 4), (1 - 1e-6, .3, 1), (1 - 1e-6, 1 - 1e-6, 1)])
def test_extreme_thresholds(theta_r, theta_s, kept):
    """4 x 4 patches. theta_r near 0: all; above every score: what the samples of stride 2 (4 patches) and 4 (one) have; none:
    min_keep. Each is independent of what is read."""
    atp = ATP(told(theta_r, theta_s, 16), (4,), score="cross", eps=.1)             # scores are below 1 then, and 0 for the least
    counts = prefill(llava(), PROMPT, [picture(llava())], atp)[2].visual
    assert counts[3] == 16 and counts[4] in (kept, 15 if kept == 16 else kept)     # the least has score 0 < theta_r
    if theta_r > .5:
        assert prefill(llava(), PROMPT, [picture(llava())], replace(atp, min_keep=6))[2].visual[4] == max(6, kept)


def test_counts_keep_the_best():
    """The pre-defined ratio of Table 2: so many, by S_redundant, or what is there; soft masks are hard then."""
    tokens = seen([-1., 0, 1, 1], [.1, .3, .2, .1], grid(2, 2))
    atp = ATP(counts=(3,), layers=(4,))
    assert atp.reduce(tokens).keep.tolist() == [1, 2, 3] and replace(atp, counts=(9,)).reduce(tokens).keep.tolist() == [0, 1, 2, 3]
    mask = replace(atp, counts=(2,)).soft_mask(0, tokens.logits, tokens.attn, tokens.visual, torch.tensor([0., 0, 0, 0, 0, 1]),
                                              tokens.grid, torch.tensor([1., 0, 1, 1]))
    assert mask.tolist() == [0, 0, 1, 1]
    one = torch.tensor([1., 0, 0, 0])
    mask = replace(atp, counts=(2,)).soft_mask(0, tokens.logits, tokens.attn, tokens.visual, torch.ones(6), tokens.grid, one)
    assert mask.equal(one)                         # what is gone does not come back
    assert ATP(counts=(126, 88, 20)).schedule(100, 32) == [100] * 14 + [88] * 10 + [20] * 8 and ATP().schedule(100, 32) is None


def test_min_keep_0_may_keep_nothing():
    atp = ATP(told(1 - 1e-6, 1 - 1e-6, 16, 3), score="cross", eps=.1, min_keep=0)
    logits, cache, trace = prefill(llava(), PROMPT, [picture(llava())], atp)
    assert trace.visual[4:] == [0] * 28 and len(trace.steps) == 1 and logits.isfinite().all()


def test_a_needle_may_be_dropped():
    """No law: the token that the text looks at has S_cross 1 and, where its self score is least, S_redundant 1/2."""
    tokens = seen([1., 1, 0], [.01, .01, .98], grid(1, 3))
    assert 2 not in ATP(told(.6, .7, 3), (4,)).reduce(tokens).keep.tolist()


@pytest.mark.parametrize("changed", [dict(n=1), dict(flat=True), dict(dtype=torch.bfloat16)])
def test_defined_where_it_is_degenerate(changed):
    """One token, all attention alike (every score 0: places decide), half precision."""
    n = changed.get("n", 4)
    tokens = seen([0.] * n if "flat" in changed else [float(i) for i in range(n)], [.1] * n, grid(1, n))
    if "dtype" in changed:
        tokens = replace(tokens, logits=tokens.logits.to(torch.bfloat16))
    r = ATP(told(.5, .2, n), (4,)).reduce(tokens)
    assert r.keep.tolist() == ([0, 2] if "flat" in changed else [0] if n == 1 else [0, 2, 3]) or "dtype" in changed
    assert r.score.isfinite().all()


def test_two_dimensional_positions():
    """Two words, 2 x 3 patches, two words: the patches stand at (2 + r, 2 + c), the text goes on at 2 + 3. Half of the pairs
    turn by the row, the others by the column; text turns as in one dimension."""
    tokens = Tokens(torch.zeros(10, 4), torch.arange(10), torch.arange(2, 8), grid(2, 3), torch.arange(6), 10)
    placed = ATP(position_ids="2d").placed(tokens)
    assert placed.position.tolist() == [[0, 0], [1, 1], [2, 2], [2, 3], [2, 4], [3, 2], [3, 3], [3, 4], [5, 5], [6, 6]]
    assert placed.next == 7 and ATP().placed(tokens) is tokens
    cos, _ = rope(placed.position, 8, 10000., torch.float32)
    plain, _ = rope(torch.arange(7), 8, 10000., torch.float32)
    assert cos[[0, 1, 8, 9]].equal(plain[[0, 1, 5, 6]])
    assert cos[3, [0, 1, 4, 5]].equal(plain[2, [0, 1, 4, 5]]) and cos[3, [2, 3, 6, 7]].equal(plain[3, [2, 3, 6, 7]])


def test_positions_in_a_model():
    """2d: survivors keep their pair, and a generated token goes on after the last; renumber: no gaps."""
    two = ATP(thresholds(), position_ids="2d")
    _, cache, trace = prefill(llava(), PROMPT, [picture(llava())], two)
    assert {layer.next_position for layer in cache.layers} == {3 + 4 + 5}
    stepped = llava().step([7], cache)
    again = Chosen({step.layer: step.reduction for step in trace.steps})
    again.placed = two.placed
    whole = prefill(llava(), PROMPT + [7], [picture(llava())], again)[0]
    torch.testing.assert_close(stepped, whole, atol=1e-4, rtol=0)
    cache = prefill(llava(), PROMPT, [picture(llava())], ATP(thresholds(), position_ids="renumber"))[1]
    assert [layer.next_position for layer in cache.layers] == cache.lengths


# --- soft and hard -----------------------------------------------------------------------------------------------------------

def soft_prefill(model, tokens, masks, atp):
    """Normed hidden states (T, D) where nothing is dropped, but masks {layer: (N,)} act inside the softmax from there on."""
    decoder, hidden, mask = model.language_model, tokens.hidden[None], torch.ones(tokens.n)
    for l, layer in enumerate(decoder.layers):
        mask = mask * masks.get(l, 1)
        look = Look(mask=lambda query, key, causal, mask=mask: atp.softmax_mask(causal, tokens.visual, mask[None]))
        hidden = layer(hidden, decoder.turn(tokens.position, hidden.dtype), look=look)
    return decoder.norm(hidden[0])


def test_soft_mask_of_zeros_and_ones_is_hard_pruning():
    """The text rows are those of the pruned sequence, and the survivors' too."""
    model, atp = llava(), ATP(thresholds())
    hard, _, trace = prefill(model, PROMPT, [picture(model)], atp, last=False)
    tokens = model.embed(PROMPT, [picture(model)], trace=Trace())
    masks = {step.layer: torch.zeros(16).index_fill(0, step.kept, 1) for step in trace.steps}
    soft = soft_prefill(model, tokens, masks, atp)
    kept = tokens.visual[trace.steps[-1].kept]
    torch.testing.assert_close(torch.cat([soft[:3], soft[kept], soft[-5:]]), hard, atol=1e-4, rtol=0)


def distances(seed, temperatures):
    """Mean distance of the soft masks after two modules from what `reduce` keeps, [[first, second]] of each temperature.

    Of the second module's scores too, which tokens that are gone do not enter. No soft mask grows again.
    """
    generator = torch.Generator().manual_seed(seed)
    T, visual = 21, torch.arange(2, 18)
    logits = torch.randn(2, T, T, generator=generator)
    attn = (logits + torch.full((T, T), -torch.inf).triu(1)).softmax(dim=-1)
    tokens = Tokens(torch.zeros(T, 2), torch.arange(T), visual, grid(4, 4), torch.arange(16), T, prompt=torch.zeros(T, 2), layer=4,
                    attn=attn, logits=logits)
    is_text, atp = (torch.arange(T) >= 18).float(), ATP(thresholds())
    first = atp.reduce(tokens)
    after = tokens.reduced(first)
    rows = torch.cat([torch.arange(2), visual[first.keep], torch.arange(18, T)])
    second = atp.reduce(replace(after, layer=14, logits=logits[:, rows][..., rows], attn=attn[:, rows][..., rows]))
    wanted = [torch.zeros(16).index_fill(0, kept, 1) for kept in (first.keep, first.keep[second.keep])]
    for temperature in temperatures:
        soft = replace(atp, temperature=temperature)
        mask = soft.soft_mask(0, logits, attn, visual, is_text, grid(4, 4), torch.ones(16))
        twice = soft.soft_mask(1, logits, attn, visual, is_text, grid(4, 4), mask)
        assert (twice <= mask).all() and (mask <= 1).all()
        yield [(a - b).abs().mean().item() for a, b in zip((mask, twice), wanted)]


@SETTINGS
@given(st.integers(0, 999))
def test_soft_mask_tends_to_the_hard_one(seed):
    """As T grows, the distance to what `reduce` keeps falls; at 1e6 it is that of tokens at a threshold, of which there are none."""
    far = list(distances(seed, (10., 100., 1e6)))
    assert far[0][0] >= far[1][0] >= far[2][0] and max(far[2]) < 1e-3, far


def test_how_far_the_soft_mask_is_from_the_hard_one():
    """Mean over 40 prompts, after the first module and the second: .192, .144 at T = 10; .018, .019 at the default 100; .001 at 1000."""
    far = torch.tensor([list(distances(seed, (10., 100., 1000.))) for seed in range(40)]).mean(dim=0)
    torch.testing.assert_close(far, torch.tensor([[.192, .144], [.018, .019], [.001, 0]]), atol=.002, rtol=0)


def test_batched_is_one_by_one():
    """soft_mask of two prompts at once is that of each."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 21, 21, generator=generator)
    attn, visual = logits.softmax(dim=-1), torch.stack([torch.arange(2, 18), torch.arange(3, 19)])
    is_text, mask = (torch.rand(2, 21, generator=generator) > .5).float(), torch.rand(2, 16, generator=generator)
    atp = ATP(thresholds())
    both = atp.soft_mask(0, logits, attn, visual, is_text, grid(4, 4), mask)
    for b in range(2):
        one = atp.soft_mask(0, logits[b], attn[b], visual[b], is_text[b], grid(4, 4), mask[b])
        torch.testing.assert_close(both[b], one, atol=1e-5, rtol=1e-4)


@SETTINGS
@given(st.integers(0, 999), st.sampled_from([.25, 4., 64.]), st.integers(-8, 8), st.sampled_from(["minmax", "rank"]))
def test_scale_of_the_scores(seed, factor, shift, norm):
    """Logits times a factor plus a number, attention times a factor: the same scores, thresholds and tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = seen([0.] * 16, [0.] * 16, grid(4, 4), system=2)
    tokens = replace(tokens, logits=torch.randn(tokens.logits.shape, generator=generator),
                     attn=torch.rand(tokens.attn.shape, generator=generator))
    moved = replace(tokens, logits=factor * tokens.logits + shift, attn=factor * tokens.attn)
    one, two = (ATP(thresholds(), score_norm=norm).reduce(t) for t in (tokens, moved))
    torch.testing.assert_close(one.score, two.score, atol=1e-4, rtol=0)
    assert one.keep.equal(two.keep)


@pytest.mark.parametrize("detach", [False, True])
@SETTINGS
@given(seed=st.integers(0, 999))
@torch.enable_grad()
def test_gradients_reach_every_parameter(detach, seed):
    """Of both heads and what they read; through the scores too, unless they are detached (then through S_redundant alone)."""
    module = nn.ModuleList([Thresholds(16, 8), Thresholds(16, 8)])
    for p in module.parameters():
        nn.init.normal_(p, std=.1, generator=torch.Generator().manual_seed(p.numel() + seed))  # near .5: each passes some
    logits = torch.randn(1, 21, 21, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    attn, is_text = logits.softmax(dim=-1), (torch.arange(21) >= 18).float()
    atp, mask = ATP(module, (4, 14), temperature=5., detach_scores=detach), torch.ones(16)
    for k in range(2):
        mask = atp.soft_mask(k, logits, attn, torch.arange(2, 18), is_text, grid(4, 4), mask)
    mask.sum().backward(retain_graph=True)
    assert all(p.grad is not None and (p.grad != 0).any() for p in module.parameters())
    assert logits.grad.isfinite().all() and (logits.grad != 0).any()
    places = replace(atp, strategy="spatial").soft_mask(0, logits, attn, torch.arange(2, 18), is_text, grid(4, 4), torch.ones(16))
    assert places.requires_grad and (torch.autograd.grad(places.sum(), logits, allow_unused=True)[0] is None) == detach


# --- files and what is refused -------------------------------------------------------------------------------------------------

def test_a_saved_module_is_read_with_its_options(tmp_path):
    atp = ATP(thresholds(), (2, 5, 9), temperature=50., strides=(2, 6), depth=32)
    modules.save(atp, tmp_path)
    back = build("atp", settings=[f"module={tmp_path}", "min_keep=3"])
    assert replace(back, module=None) == replace(atp, module=None, min_keep=3)
    assert all(a.equal(b) for a, b in zip(back.module.state_dict().values(), atp.module.state_dict().values()))


def test_a_module_in_the_models_folder_is_found(tmp_path):
    model = llava(blocks=2, layers=32)
    model.folder = tmp_path
    with pytest.raises(UserError, match="train atp"):
        check(ATP(), model)
    modules.save(ATP(thresholds(), depth=32), tmp_path)
    found = check(build("atp", settings=["min_keep=2"]), model)
    assert found.min_keep == 2 and found.depth == 32 and found.module[0].N == 16


@pytest.mark.parametrize("changed, words", [
    (dict(layers=()), "layers rise"), (dict(layers=(0, 4)), "layers rise"), (dict(layers=(4, 4)), "layers rise"),
    (dict(strides=(1, 2)), "lambda_sample"), (dict(strides=(2,), lambda_sample=4.), "lambda_sample"),
    (dict(strides=()), "strides"),
    (dict(temperature=0.), "temperature"), (dict(min_keep=-1), "min_keep"), (dict(score="all"), "score is one of"),
    (dict(module=thresholds(), layers=(4, 14)), "2 layers"), (dict(counts=(9, 4)), "counts"), (dict(counts=(9, 4, 0)), "counts")])
def test_bad_options(changed, words):
    with pytest.raises(UserError, match=words) as error:
        ATP(**changed)
    assert "\n" not in str(error.value)


def test_what_a_prompt_cannot_meet():
    tokens = seen([0., 1, 2], [.1, .2, .3], grid(1, 3))
    for atp, words in ((ATP(), "train atp"), (ATP(told(.5, .5, 4), (4,)), "trained on 4 visual tokens and the prompt has 3")):
        with pytest.raises(UserError, match=words):
            replace(atp, layers=(4,), module=atp.module).reduce(tokens)
    assert ATP(told(.4, .99, 4), (4,), fit="pool").reduce(tokens).keep.tolist() == [1, 2]
    tokens.logits[0, 1, 2] = torch.nan
    with pytest.raises(UserError, match="NaN"):
        ATP(told(.5, .2, 3), (4,)).reduce(tokens)
    ends = replace(seen([0.], [.1], grid(1, 1)), visual=torch.tensor([2]))
    with pytest.raises(UserError, match="no text follows"):
        ATP(told(.5, .5, 1), (4,)).reduce(ends)


@pytest.mark.parametrize("score", ["both", "self", "cross"])
@pytest.mark.parametrize("broken", ["attn", "module"])
def test_thresholds_that_are_nan(score, broken):
    """NaN in the attention of the text, or in the module's weights: nothing passed, and min_keep tokens were left without a word."""
    tokens, made = seen([0., 1, 2], [.1, .2, .3], grid(1, 3)), told(.5, .2, 3)
    (tokens.attn[0, -1, 2:3] if broken == "attn" else made[0].linear.weight).fill_(torch.nan)
    with pytest.raises(UserError, match="NaN"):
        ATP(made, (4,), score=score).reduce(tokens)


def test_a_module_for_another_model(tmp_path):
    model = llava(blocks=2, layers=32)
    model.folder = tmp_path
    for atp, words in ((ATP(thresholds(), depth=24), "24 decoder layers and the model has 32"),
                       (ATP(thresholds(N=9)), "9 visual tokens and an image of this model has 16"),
                       (ATP(thresholds(), (4, 14, 32)), "layer 32")):
        with pytest.raises(UserError, match=words):
            check(atp, model)


def test_bad_files(tmp_path):
    for content in (None, b"PK\x03\x04", "other"):
        if content == "other":
            save_file({"x": torch.zeros(1)}, tmp_path / modules.NAME)
        elif content:
            (tmp_path / modules.NAME).write_bytes(content)
        with pytest.raises(UserError, match="holds no module") as error:
            modules.read(tmp_path)
        assert "\n" not in str(error.value)
    modules.save(ATP(thresholds()), tmp_path)
    with pytest.raises(UserError, match="2 layers"):
        modules.read(tmp_path, layers=(1, 2))
