"""Fast forms are equal to plain ones; a probe chooses, one switch decides."""

import pytest
import torch
from hypothesis import given, strategies as st

from build import close
from minivlm import kernels
from minivlm.attention import attention as plain_attention, causal_mask, rope
from minivlm.llama import Layer
from minivlm.parts.config import TextConfig
from minivlm.parts.views import DecoderView
from pruning.base import Tokens
from pruning.fastv import FastV
from tiny import MARK, SETTINGS, ids, llava, picture, prefill


@pytest.fixture(autouse=True)
def choice():
    """Whatever a test chooses, the suite goes on as it was."""
    before = kernels.mode()
    yield
    kernels.use(before)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@SETTINGS
@given(st.sampled_from([(1, 1), (4, 2), (4, 1), (3, 3)]), st.integers(1, 9), st.integers(1, 2), st.booleans(),
       st.integers(0, 99))
def test_one_token(heads, S, B, hides, seed):
    """The newest of S tokens, heads in groups, some keys hidden."""
    H, Hk = heads
    query = random(B, H, 1, 8, seed=seed)
    key, value = (random(B, Hk, S, 8, seed=seed + i) for i in (1, 2))
    mask = causal_mask(torch.tensor([S - 1]), S, torch.arange(S) % 2 == 0) if hides else None
    close(kernels.one_token_attention(query, key, value, mask), plain_attention(query, key, value, mask))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("S", [1, 255, 256, 257, 700])
def test_one_token_in_half_precision(dtype, S):
    """In chunks of keys: as exact as the dtype."""
    query, key, value = (random(1, h, n, 16, seed=h + n) for h, n in ((4, 1), (2, S), (2, S)))
    exact = plain_attention(query, key, value)
    result = kernels.one_token_attention(*(x.to(dtype) for x in (query, key, value)))
    assert result.dtype == dtype
    close(result.float(), exact, atol=.03)


def test_decoding_is_the_same_by_both_forms():
    """Logits of four steps after a pruned prompt."""
    logits = {}
    for mode in ("plain", "fast"):
        kernels.use(mode)
        _, cache, _ = prefill(llava(), ids(5, MARK, 7), [picture(llava())], FastV(keep=4))
        logits[mode] = torch.stack([llava().step([word], cache) for word in ids(4, seed=1)])
    close(logits["plain"], logits["fast"], atol=1e-4)


@SETTINGS
@given(st.sampled_from([(4, 4), (4, 2), (4, 1)]), st.integers(9, 20), st.booleans(), st.booleans(), st.integers(0, 99))
def test_summed_logits(heads, n, bias, in_two_dimensions, seed):
    """Without a query or key: the same sums of logits as from the matrix of all heads,
    rotated by one or two positions."""
    H, Hk = heads
    config = TextConfig(
        hidden_size=24, intermediate_size=8, num_attention_heads=H, num_key_value_heads=Hk, head_dim=8, qkv_bias=bias
    )
    torch.manual_seed(seed)
    layer = Layer(config)
    tokens = Tokens.start(torch.randn(3 + n + 2, 24), range(3, 3 + n))
    position = torch.stack([tokens.position, tokens.position.flip(0)], dim=1) if in_two_dimensions else tokens.position
    view = DecoderView(layer, tokens, rope(position, 8, 10000., torch.float32), None)
    kernels.use("fast")
    fast = view.summed_logits("visual")
    kernels.use("plain")
    close(fast, view.summed_logits("visual"))
    close(fast, view.logits("visual").mean(dim=0).sum(dim=0))


def test_a_few_rows_are_summed_one_by_one():
    """Up to Dh rows the queries themselves cost less, and the plain form is used, whatever is faster elsewhere."""
    kernels.use("fast")
    cos_and_sin = torch.zeros(20, 8), torch.zeros(20, 8)
    assert not kernels.sums_are_cheaper(torch.arange(8), cos_and_sin)
    assert kernels.sums_are_cheaper(torch.arange(9), cos_and_sin)


@pytest.mark.internal
def test_a_probe_decides_once(monkeypatch):
    """The form that takes less time is used from then on; more than one token is always the plain form's."""
    calls = []
    monkeypatch.setattr(kernels, "_probe", lambda *shape: calls.append(shape) or True)
    monkeypatch.setattr(kernels, "one_token_attention", lambda query, *rest: query * 0 + 7)
    kernels.use("auto")
    query, key = random(1, 4, 1, 8), random(1, 2, 5, 8)
    assert (kernels.attention(query, key, key) == 7).all() and (kernels.attention(query, key, key) == 7).all()
    assert calls == [(torch.float32, 4, 2, 8)] and "float32 fast" in kernels.choices()
    assert (kernels.attention(random(1, 4, 5, 8), key, key) != 7).any()
    kernels.use("plain")
    assert (kernels.attention(query, key, key) != 7).any() and kernels.choices() == "plain forms"


@pytest.mark.internal
def test_the_probe_runs():
    assert kernels._probe(torch.float32, 4, 2, 8, tokens=16, rounds=1) in (True, False)
