"""Rotary embedding and attention, by their formulas and by hand: fused and by definition, grouped, masked."""

import itertools
import math

import pytest
import torch
from hypothesis import given, strategies as st

from minivlm.attention import attention, attention_by_definition, causal_mask, rope, rotate
from minivlm.parts.rope_scaling import Linear, Llama3
from build import close
from tiny import SETTINGS


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def one_by_one(query, key, value, hidden, causal):
    """The output, one head, one query, one key at a time."""
    (B, H, T, Dh), (Hk, S) = query.shape, key.shape[1:3]
    out = torch.zeros(B, H, T, value.shape[-1])
    for b, h, t in itertools.product(range(B), range(H), range(T)):
        own = t + S - T
        allowed = [s for s in range(S) if not causal or s <= own and not (hidden is not None and hidden[s])] or [own]
        logits = torch.stack([query[b, h, t] @ key[b, h * Hk // H, s] / math.sqrt(Dh) for s in allowed])
        out[b, h, t] = logits.softmax(dim=0) @ value[b, h * Hk // H, allowed]
    return out


def mask_of(query, key, hidden, causal):
    """The additive mask (T, S) of a case."""
    T, S = query.shape[2], key.shape[2]
    return causal_mask(torch.arange(S - T, S), S, hidden) if causal else torch.zeros(T, S)


@st.composite
def inputs(draw):
    """query, key, value, hidden, causal: some queries (or one) at the end of some keys, heads in groups, hidden
    keys."""
    T, before, seed = draw(st.integers(1, 5)), draw(st.integers(0, 4)), draw(st.integers(0, 999))
    H, Hk = draw(st.sampled_from([(1, 1), (2, 2), (4, 2), (4, 1)]))
    B = draw(st.integers(1, 2))
    causal = draw(st.booleans())
    S = T + before if causal else draw(st.integers(1, 6))
    hidden = draw(st.lists(st.booleans(), min_size=S, max_size=S)) if causal and draw(st.booleans()) else None
    return (2 * random(B, H, T, 8, seed=seed), 2 * random(B, Hk, S, 8, seed=seed + 1),
            random(B, Hk, S, 8, seed=seed + 2), None if hidden is None else torch.tensor(hidden), causal)


@SETTINGS
@given(inputs())
def test_attention_is_what_its_definition_says(case):
    """Fused, by definition, and one by one: softmax(query key^T / sqrt(Dh) + mask) value, heads in groups, keys
    hidden."""
    query, key, value, hidden, causal = case
    mask = mask_of(query, key, hidden, causal)
    out = one_by_one(*case)
    close(attention_by_definition(query, key, value, mask), out)
    close(attention(query, key, value, mask), out)
    if hidden is None:
        close(attention(query, key, value, causal=causal), out)


@SETTINGS
@given(inputs())
def test_each_row_of_the_mask_alone(case):
    """Rows asked for one by one are the rows of the whole mask."""
    query, key, _, hidden, _ = case
    T, S = query.shape[2], max(key.shape[2], query.shape[2])
    hidden = None if hidden is None or len(hidden) != S else hidden
    rows = torch.arange(S - T, S)
    whole = causal_mask(rows, S, hidden)
    for row, one in zip(rows, whole):
        assert causal_mask(row[None], S, hidden)[0].equal(one)


def test_a_gradient_reaches_the_mask():
    """Query, key and value fixed, as in a frozen decoder: the mask learns, below the diagonal only."""
    query, key, value = torch.randn(3, 1, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    soft = torch.zeros(1, 1, 6, 6, requires_grad=True)
    with torch.enable_grad():
        out = attention(query, key, value, soft + causal_mask(torch.arange(6), 6))
        gradient, = torch.autograd.grad(out.square().sum(), soft)
    assert gradient.tril().abs().sum() > 0 and gradient.triu(1).abs().sum() == 0


def test_a_mask_may_look_ahead():
    """Two tokens with equal logits. Causal, the first sees itself only: value 1. With 0 above the diagonal it sees
    both: (1 + 3) / 2 = 2; with log(1/3) there, weights 3/4 and 1/4: 1.5. The second row is (1 + 3) / 2 in each case."""
    query, key, value = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), torch.tensor([1., 3.]).view(1, 1, 2, 1)
    for above, first in ((-math.inf, 1.), (0., 2.), (math.log(1 / 3), 1.5)):
        close(attention(query, key, value, torch.tensor([[0., above], [0., 0.]])).flatten(), torch.tensor([first, 2.]))


def test_by_hand():
    """Logits of the last row 0, ln 2, 0 (Dh = 1): weights 1/4, 1/2, 1/4, so values 4, 8, 0 give 5. With the middle key
    hidden: 1/2, 1/2, so 2."""
    query, key = torch.tensor([0., 0., 1.]).view(1, 1, 3, 1), torch.tensor([0., math.log(2), 0.]).view(1, 1, 3, 1)
    value = torch.tensor([4., 8., 0.]).view(1, 1, 3, 1)
    assert attention(query, key, value)[0, 0, -1].item() == pytest.approx(5)
    hidden = causal_mask(torch.arange(3), 3, torch.tensor([False, True, False]))
    assert attention(query, key, value, hidden)[0, 0, -1].item() == pytest.approx(2)


def test_a_row_left_with_nothing_sees_itself():
    """The first keys are hidden: row 0 would have none, and NaN would spread. It reads its own value."""
    value = random(1, 1, 4, 8, seed=2)
    mask = causal_mask(torch.arange(4), 4, torch.tensor([True, True, False, False]))
    out = attention(random(1, 1, 4, 8), random(1, 1, 4, 8, seed=1), value, mask)
    assert out.isfinite().all()
    close(out[0, 0, :3], value[0, 0, :3])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """The output keeps the model's dtype, with a float32 mask too."""
    query, key, value = (random(1, 2, 60, 8, seed=s).to(dtype) for s in range(3))
    mask = causal_mask(torch.arange(60), 60)
    exact = attention_by_definition(query.float(), key.float(), value.float(), mask)
    for out in (attention(query, key, value), attention(query, key, value, mask)):
        assert out.dtype == dtype
        close(out.float(), exact, atol=.03)


# --- rotary embedding -------------------------------------------------------------------------------------------------

def test_rotation_by_hand():
    """Dh = 4, theta = 100: pairs (0, 2) and (1, 3) turn by position and position / 10. At position 10
    (1, 1, 0, 0) -> (cos 10, cos 1, sin 10, sin 1)."""
    cos, sin = rope(torch.tensor([10]), 4, 100., torch.float32)
    rotated = rotate(torch.tensor([[1., 1., 0., 0.]]), (cos, sin))
    close(rotated, torch.tensor([[math.cos(10), math.cos(1), math.sin(10), math.sin(1)]]))


@SETTINGS
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 99))
def test_products_depend_on_the_distance(i, j, shift, seed):
    """Query at i with key at j gives what query at i + s with key at j + s gives; lengths stay."""
    query, key = random(1, 8, seed=seed), random(1, 8, seed=seed + 1)

    def at(x, position):
        return rotate(x, rope(torch.tensor([position]), 8, 1e4, torch.float32))

    close(at(query, i) @ at(key, j).T, at(query, i + shift) @ at(key, j + shift).T, atol=1e-3)
    close(at(query, i).norm(), query.norm(), atol=1e-4)


def test_angles_in_float32_whatever_the_dtype():
    """bfloat16 has no 2047: the angle is taken in float32 and only its cosine is rounded."""
    exact, _ = rope(torch.tensor([2047]), 8, 1e4, torch.float32)
    half, _ = rope(torch.tensor([2047]), 8, 1e4, torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.equal(exact.bfloat16())


# --- scaled frequencies -----------------------------------------------------------------------------------------------

def test_linear_scaling():
    """Positions divided by 4: what position 8 is turned by is what position 2 is turned by without scaling."""
    scaled = rope(torch.tensor([8]), 4, 1e4, torch.float32, Linear(4.0))
    plain = rope(torch.tensor([2]), 4, 1e4, torch.float32)
    for ours, expected in zip(scaled, plain):
        assert ours.allclose(expected)


def test_llama3_scaling_by_hand():
    """An original context of 2 pi * 8 positions holds 8 waves of frequency 1, 4 of 1/2, 2 of 1/4 and 1 of 1/8. Up to
    1 is long (divided by 8), from 4 on short (kept); 2 lies a third of the way from 1 to 4: 1/4 (1/3 + 2/3 / 8)."""
    scaling = Llama3(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                     original_max_position_embeddings=2 * math.pi * 8)
    scaled = scaling.scaled(torch.tensor([1., 1 / 2, 1 / 4, 1 / 8]))
    assert scaled.allclose(torch.tensor([1., 1 / 2, 5 / 48, 1 / 64]))
