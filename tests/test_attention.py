"""Rotary embedding and attention, by their formulas and by hand: fused, explicit, grouped, masked, observed."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import assume, given, strategies as st

from minivlm.attention import STRETCH, Look, attention, rope, rotate
from tiny import SETTINGS


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def by_definition(query, key, value, dead, causal):
    """(output, weights, logits), one head, one query, one key at a time."""
    (B, H, T, Dh), (Hk, S) = query.shape, key.shape[1:3]
    weights, logits = torch.zeros(B, H, T, S), torch.zeros(B, H, T, S)
    for b in range(B):
        for h in range(H):
            for t in range(T):
                own = t + S - T
                may = [s for s in range(S) if not causal or s <= own and not (dead is not None and dead[s])] or [own]
                for s in range(S):
                    logits[b, h, t, s] = query[b, h, t] @ key[b, h * Hk // H, s] / math.sqrt(Dh)
                weights[b, h, t, may] = logits[b, h, t, may].softmax(dim=0)
    return weights @ value.repeat_interleave(H // Hk, dim=1), weights, logits


@st.composite
def inputs(draw):
    """query, key, value, dead, causal: some queries (or one) at the end of some keys, heads in groups, hidden keys."""
    T, before, seed = draw(st.integers(1, 5)), draw(st.integers(0, 4)), draw(st.integers(0, 999))
    (H, Hk), B, causal = draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1)])), draw(st.integers(1, 2)), draw(st.booleans())
    S = T + before if causal else draw(st.integers(1, 6))
    hidden = draw(st.lists(st.booleans(), min_size=S, max_size=S)) if causal and draw(st.booleans()) else None
    return (2 * random(B, H, T, 8, seed=seed), 2 * random(B, Hk, S, 8, seed=seed + 1), random(B, Hk, S, 8, seed=seed + 2),
            None if hidden is None else torch.tensor(hidden), causal)


@SETTINGS
@given(inputs())
def test_fused_and_explicit_by_definition(case):
    """All rows observed, some observed, none: one output, softmax(query key^T / sqrt(Dh)) value over the keys allowed."""
    query, key, value, dead, causal = case
    out, weights, logits = by_definition(*case)
    close(attention(query, key, value, dead, causal), out)
    for rows in (torch.arange(query.shape[2]), torch.tensor([query.shape[2] - 1]), torch.arange(0, query.shape[2], 2)):
        look = Look(rows)
        close(attention(query, key, value, dead, causal, look), out)
        close(look.attn, weights[:, :, rows])
        close(look.logits, logits[:, :, rows])


@SETTINGS
@given(inputs())
def test_a_method_s_mask_in_place_of_the_causal_one(case):
    """A mask that gives back the causal mask (hidden keys in it) changes nothing; rows are cut from the whole after that."""
    query, key, value, dead, causal = case
    assume(causal)
    out, weights, logits = by_definition(*case)
    look, seen = Look(torch.tensor([query.shape[2] - 1]), lambda *given: seen.append(given) or given[2]), []
    close(attention(query, key, value, dead, look=look), out)
    close(look.attn, weights[:, :, -1:])
    (*given, mask), = seen
    assert given[0].equal(query) and given[1].equal(key)
    assert mask.shape == logits.shape[2:] and (mask == 0).equal(weights[0, 0] > 0)


@SETTINGS
@given(inputs(), st.integers(1, 40))
def test_stretches_and_heads(case, stretch):
    """However few rows are explicit at a time, the output and what is seen of each head are the same, gradients too; the mean
    and the largest over heads are those of what is seen of each."""
    query, key, value, dead, causal = case
    query.requires_grad_()
    (B, H, T, _), S, seen = query.shape, key.shape[2], {}
    for limit in (STRETCH, stretch * B * H * S // 8):
        with mock.patch("minivlm.attention.STRETCH", limit), torch.enable_grad():
            looks = {across: Look(torch.arange(T), across_heads=across) for across in ("each", "mean", "max")}
            out = [attention(query, key, value, dead, causal, look) for look in looks.values()]
            seen[limit] = *out, *torch.autograd.grad(out[0].square().sum(), query), looks["each"].attn, looks["each"].logits
        each, mean, most = looks.values()
        assert mean.attn.shape == most.logits.shape == (B, 1, T, S)
        for name in ("attn", "logits"):
            close(getattr(mean, name), getattr(each, name).mean(dim=1, keepdim=True))
            close(getattr(most, name), getattr(each, name).amax(dim=1, keepdim=True))
    for whole, parts in zip(*seen.values()):
        close(whole, parts, atol=1e-4)


def test_a_gradient_reaches_the_mask_alone():
    """Query, key and value fixed, as in a frozen decoder: the mask learns, and what is seen is what it is without a gradient."""
    (query, key, value), soft = torch.randn(3, 1, 2, 6, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 1, 6, 6, requires_grad=True)
    looks = [Look(torch.arange(6), mask=lambda query, key, causal: causal + soft) for _ in range(2)]
    with torch.enable_grad():
        out = attention(query, key, value, look=looks[0])
        assert torch.autograd.grad(out.square().sum(), soft)[0].tril().abs().sum() > 0
    close(attention(query, key, value, look=looks[1]), out)
    close(looks[0].attn, looks[1].attn)
    close(looks[0].logits, looks[1].logits)


def test_a_mask_may_look_ahead():
    """Two tokens with equal logits. Causal, the first sees itself alone: value 1. With 0 above the diagonal it sees both:
    (1 + 3) / 2 = 2; with log(1/3) there, weights 3/4 and 1/4: 1.5. The second row is (1 + 3) / 2 in each case."""
    query, key, value = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), torch.tensor([1., 3.]).view(1, 1, 2, 1)
    for above, first in ((-math.inf, 1.), (0., 2.), (math.log(1 / 3), 1.5)):
        look = Look(mask=lambda query, key, causal: torch.tensor([[0., above], [0., 0.]]))
        close(attention(query, key, value, look=look).flatten(), torch.tensor([first, 2.]))


def test_by_hand():
    """Logits of the last row 0, ln 2, 0 (Dh = 1): weights 1/4, 1/2, 1/4, so values 4, 8, 0 give 5. With the middle key
    hidden: 1/2, 1/2, so 2."""
    query, key = torch.tensor([0., 0., 1.]).view(1, 1, 3, 1), torch.tensor([0., math.log(2), 0.]).view(1, 1, 3, 1)
    value = torch.tensor([4., 8., 0.]).view(1, 1, 3, 1)
    assert attention(query, key, value)[0, 0, -1].item() == pytest.approx(5)
    assert attention(query, key, value, torch.tensor([False, True, False]))[0, 0, -1].item() == pytest.approx(2)


def test_a_row_left_with_nothing_sees_itself():
    """The first keys are hidden: row 0 would have none, and NaN would spread. It reads its own value."""
    value = random(1, 1, 4, 8, seed=2)
    dead = torch.tensor([True, True, False, False])
    for look in (None, Look(torch.arange(4))):
        out = attention(random(1, 1, 4, 8), random(1, 1, 4, 8, seed=1), value, dead, look=look)
        assert out.isfinite().all()
        close(out[0, 0, :3], value[0, 0, :3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ranks_in_float32(dtype):
    """What is observed is float32, summing to 1 as float32 does; the output keeps the model's dtype."""
    query, key, value = (random(1, 2, 600, 8, seed=s).to(dtype) for s in range(3))
    for rows in (torch.tensor([599]), torch.arange(600)):
        look = Look(rows)
        assert attention(query, key, value, look=look).dtype == dtype and look.attn.dtype == torch.float32
        close(look.attn.sum(dim=-1), torch.ones(1, 2, len(rows)))


@SETTINGS
@given(inputs(), st.integers(1, 12), st.sampled_from([torch.float16, torch.bfloat16]))
def test_one_token_in_half_precision(case, part, dtype):
    """In however many parts the keys are read, hidden ones among them: the output by definition, as exact as the dtype."""
    query, key, value = (x.to(dtype) for x in case[:3])
    query, dead, causal = query[:, :, -1:], *case[3:]
    out, *_ = by_definition(*(x.float() for x in (query, key, value)), dead, causal)
    with mock.patch("minivlm.attention.PART", part):
        close(attention(query, key, value, dead, causal), out.to(dtype), atol=.06)


def test_observing_some_rows_leaves_the_output_to_the_bit():
    """Only with all rows does the explicit matrix give the output."""
    query, key, value = random(1, 4, 9, 8), random(1, 2, 9, 8, seed=1), random(1, 2, 9, 8, seed=2)
    plain = attention(query, key, value)
    assert attention(query, key, value, look=Look(torch.tensor([8]))).equal(plain)
    assert attention(query, key, value, look=Look(torch.arange(8))).equal(plain)


def test_no_rows():
    """A method may ask for rows of which there are none (text after an image that ends the prompt)."""
    look = Look(torch.empty(0, dtype=torch.long))
    attention(random(1, 2, 3, 8), random(1, 2, 3, 8), random(1, 2, 3, 8), look=look)
    assert look.attn.shape == (1, 2, 0, 3)


# --- rotary embedding ----------------------------------------------------------------------------------------------------

def test_rotation_by_hand():
    """Dh = 4, theta = 100: pairs (0, 2) and (1, 3) turn by position and position / 10. At position 10
    (1, 1, 0, 0) -> (cos 10, cos 1, sin 10, sin 1)."""
    cos, sin = rope(torch.tensor([10]), 4, 100., torch.float32)
    turned = rotate(torch.tensor([[1., 1., 0., 0.]]), cos, sin)
    close(turned, torch.tensor([[math.cos(10), math.cos(1), math.sin(10), math.sin(1)]]))


@SETTINGS
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 99))
def test_products_depend_on_the_distance(i, j, shift, seed):
    """Query at i with key at j gives what query at i + s with key at j + s gives; lengths stay."""
    query, key = random(1, 8, seed=seed), random(1, 8, seed=seed + 1)
    def turned(x, position):
        return rotate(x, *rope(torch.tensor([position]), 8, 1e4, torch.float32))
    close(turned(query, i) @ turned(key, j).T, turned(query, i + shift) @ turned(key, j + shift).T, atol=1e-3)
    close(turned(query, i).norm(), query.norm(), atol=1e-4)


def test_angles_in_float32_whatever_the_dtype():
    """bfloat16 has no 2047: the angle is taken in float32 and only its cosine is rounded."""
    exact, _ = rope(torch.tensor([2047]), 8, 1e4, torch.float32)
    half, _ = rope(torch.tensor([2047]), 8, 1e4, torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.equal(exact.bfloat16())
