"""Other ways to the same numbers, faster on some machines. Nothing here is needed to understand the model: skip it at first.

A fast form has the signature of its plain form and a test that both agree. It is used only if a probe of a few milliseconds,
once per process, shows that it wins on this machine; `use("plain")` or `use("fast")` decides for all without a probe.
"""

from time import perf_counter

import torch

from minivlm import attention as plain

MODES = ("auto", "plain", "fast")
KEYS_PER_CHUNK = 256                   # in half precision: what is copied at once stays in the processor's cache
_state = {"mode": "auto"}
_probed = {}                           # (dtype, heads, key heads) -> whether the fast form won


def use(mode):
    """Let "plain" or "fast" forms be used everywhere, or ("auto") those that win a probe."""
    assert mode in MODES, mode
    _state["mode"] = mode
    _probed.clear()


def mode():
    """What `use` has set: "auto", "plain" or "fast"."""
    return _state["mode"]


def choices():
    """What is in use, in words, for `bench`."""
    if _state["mode"] != "auto":
        return f"{_state['mode']} forms"
    won = [f"{str(dtype).removeprefix('torch.')} {'fast' if fast else 'plain'}" for (dtype, *_), fast in _probed.items()]
    return f"attention of one token: {', '.join(won) or 'not probed yet'}"


def attention(query, key, value, mask=None, causal=True):
    """attention.attention, by the form that is faster on this machine for one query token."""
    one_token_on_cpu = query.shape[-2] == 1 and query.device.type == "cpu" and not query.requires_grad
    if one_token_on_cpu and _fast_wins(query, key):
        return one_token_attention(query, key, value, mask)
    return plain.attention(query, key, value, mask, causal)


def one_token_attention(query, key, value, mask=None):
    """The same for one query token (B, H, 1, Dh), by two products with the keys and the values on the left.

    The query heads that share a key head are queries of one product. In half precision oneDNN copies keys and values that are
    part of a longer buffer; in chunks the copy is small and its memory is used again.
    """
    groups = query.unflatten(1, (key.shape[1], -1)).squeeze(3)                     # (B, Hk, G, Dh)
    chunk = KEYS_PER_CHUNK if key.dtype.itemsize == 2 else key.shape[2]
    scaled = groups * query.shape[-1] ** -0.5
    logits = torch.cat([keys @ scaled.mT for keys in key.split(chunk, dim=2)], dim=2).mT.float()   # (B, Hk, G, S)
    if mask is not None:
        logits = logits + mask
    weights = logits.softmax(dim=-1).to(value.dtype)                               # (B, Hk, G, S)
    parts = zip(weights.split(chunk, dim=3), value.split(chunk, dim=2))
    out = sum((w @ values).float() for w, values in parts).to(value.dtype)         # (B, Hk, G, Dh)
    return out.flatten(1, 2).unsqueeze(2)


def _fast_wins(query, key):
    if _state["mode"] != "auto":
        return _state["mode"] == "fast"
    shape = query.dtype, query.shape[1], key.shape[1], query.shape[3]
    if shape not in _probed:
        _probed[shape] = _probe(*shape)
    return _probed[shape]


def _probe(dtype, heads, key_heads, width, tokens=640, rounds=5):
    """Whether the fast form takes less time than the plain one, on a cache of a usual length with room to spare."""
    query = torch.randn(1, heads, 1, width).to(dtype)
    buffer = torch.randn(1, key_heads, tokens + 256, width).to(dtype)
    key = buffer[:, :, :tokens]
    seconds = {one_token_attention: [], plain.attention: []}
    for _ in range(rounds):
        for form, taken in seconds.items():
            start = perf_counter()
            form(query, key, key)
            taken.append(perf_counter() - start)
    return min(seconds[one_token_attention]) < min(seconds[plain.attention])
