"""Other ways to the same numbers, faster on some machines. Not needed to understand the model: skip it at first.

A fast form has the signature of its plain form and a test that both agree. It is used only if a probe of a few
milliseconds, once per process, shows that it wins on this machine; `use("plain")` or `use("fast")` decides for all
without a probe.
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
    won = []
    for (dtype, *_), is_fast in _probed.items():
        name = str(dtype).removeprefix("torch.")
        form = "fast" if is_fast else "plain"
        won.append(f"{name} {form}")
    return f"attention of one token: {', '.join(won) or 'not probed yet'}"


def attention(query, key, value, mask=None, causal=True):
    """attention.attention, by the form that is faster on this machine for one query token."""
    is_one_token = query.shape[-2] == 1
    is_on_cpu = query.device.type == "cpu"
    can_be_fast = is_one_token and is_on_cpu and not query.requires_grad
    if can_be_fast and _fast_wins(query, key):
        return one_token_attention(query, key, value, mask)
    return plain.attention(query, key, value, mask, causal)


def one_token_attention(query, key, value, mask=None):
    """The same for one query token (B, H, 1, Dh), by two products with the keys and the values on the left.

    The query heads that share a key head are queries of one product. In half precision oneDNN copies keys and values
    that are part of a longer buffer; in chunks the copy is small and its memory is used again.
    """
    _, Hk, S, Dh = key.shape
    chunk = KEYS_PER_CHUNK if key.dtype.itemsize == 2 else S
    query = query.unflatten(1, (Hk, -1)).squeeze(3)                                # (B, Hk, G, Dh)
    query = query * Dh ** -0.5
    logits = [keys @ query.mT for keys in key.split(chunk, dim=2)]                 # (B, Hk, chunk, G) each
    logits = torch.cat(logits, dim=2)                                              # (B, Hk, S, G)
    logits = logits.mT.float()                                                     # (B, Hk, G, S)
    if mask is not None:
        logits = logits + mask
    weights = logits.softmax(dim=-1).to(value.dtype)                               # (B, Hk, G, S)
    chunks = zip(weights.split(chunk, dim=3), value.split(chunk, dim=2))
    out = sum((w @ values).float() for w, values in chunks)                        # (B, Hk, G, Dh)
    out = out.to(value.dtype)
    return out.flatten(1, 2).unsqueeze(2)                                          # (B, H, 1, Dh)


def _fast_wins(query, key):
    if _state["mode"] != "auto":
        return _state["mode"] == "fast"
    _, heads, _, width = query.shape
    key_heads = key.shape[1]
    shape = (query.dtype, heads, key_heads, width)
    if shape not in _probed:
        _probed[shape] = _probe(*shape)
    return _probed[shape]


def _probe(dtype, heads, key_heads, width, tokens=640, rounds=5):
    """Whether the fast form takes less time than the plain one, on a cache of a usual length with room to spare."""
    query = torch.randn(1, heads, 1, width).to(dtype)
    buffer = torch.randn(1, key_heads, tokens + 256, width).to(dtype)
    key = buffer[:, :, :tokens]
    fast = []
    usual = []
    for _ in range(rounds):                        # in turn, so that both meet the same load of the machine
        fast.append(_seconds(one_token_attention, query, key))
        usual.append(_seconds(plain.attention, query, key))
    return min(fast) < min(usual)


def _seconds(form, query, key):
    start = perf_counter()
    form(query, key, key)
    return perf_counter() - start


def sums_are_cheaper(rows, rope):
    """Whether `summed_logits` costs less than queries and keys one by one: about what projecting Dh rows costs."""
    cos, _ = rope
    return _state["mode"] != "plain" and len(rows) > cos.shape[-1]


def summed_logits(attn, x, rows, rope):
    """LayerView.summed_logits (T,) of a layer with this attention, without a query or a key of any token.

    The rotary embedding turns coordinates i and i + Dh/2 of every head by the same angle, so a sum of rotated queries
    consists of two sums of inputs, weighted by cos and by sin, for each i. Then the weights are applied once, not per
    token.

    x: (T, D), what q_proj and k_proj read. rows: (R,) of the queries. rope: cos and sin, (T, Dh) each.
    """
    x = x.float()
    half = attn.head_dim // 2
    cos, sin = (part[:, :half].float() for part in rope)                           # (T, Dh/2) twice
    # the sum of the rotated queries
    w1, w2, b1, b2 = _halves(attn.q_proj, attn.head_dim)
    xc = cos[rows].T @ x[rows]                                                     # (Dh/2, D)
    xs = sin[rows].T @ x[rows]                                                     # (Dh/2, D)
    c = cos[rows].sum(dim=0)                                                       # (Dh/2,)
    s = sin[rows].sum(dim=0)                                                       # (Dh/2,)
    q1 = _per_coordinate(w1, xc) - _per_coordinate(w2, xs) + b1 * c - b2 * s       # (H, Dh/2)
    q2 = _per_coordinate(w2, xc) + _per_coordinate(w1, xs) + b2 * c + b1 * s       # (H, Dh/2)
    heads = len(q1)
    # the heads that share a key head
    w1, w2, b1, b2 = _halves(attn.k_proj, attn.head_dim)
    q1 = q1.unflatten(0, (len(w1), -1)).sum(dim=1)                                 # (Hk, Dh/2)
    q2 = q2.unflatten(0, (len(w1), -1)).sum(dim=1)                                 # (Hk, Dh/2)
    # its product with each rotated key: what multiplies cos, and what multiplies sin
    along = _over_heads(q1, w1) + _over_heads(q2, w2)                              # (Dh/2, D)
    across = _over_heads(q2, w1) - _over_heads(q1, w2)                             # (Dh/2, D)
    along = x @ along.T + (q1 * b1 + q2 * b2).sum(dim=0)                           # (T, Dh/2)
    across = x @ across.T + (q2 * b1 - q1 * b2).sum(dim=0)                         # (T, Dh/2)
    logits = (along * cos + across * sin).sum(dim=1)                               # (T,)
    return logits / (heads * attn.head_dim ** 0.5)


def _halves(linear, head_dim):
    """Weights (H, Dh/2, D) and biases (H, Dh/2) of the first and of the second half of each head's coordinates."""
    weight = linear.weight.float().unflatten(0, (-1, head_dim))                    # (H, Dh, D)
    w1, w2 = weight.chunk(2, dim=1)
    if linear.bias is None:
        zero = weight.new_zeros(1, 1)
        return w1, w2, zero, zero
    b1, b2 = linear.bias.float().unflatten(0, (-1, head_dim)).chunk(2, dim=1)
    return w1, w2, b1, b2


def _per_coordinate(weight, x):
    """Each row of each head's weight (H, Dh/2, D) times the input of its coordinate, (Dh/2, D). (H, Dh/2)"""
    return torch.einsum("hid,id->hi", weight, x)


def _over_heads(query, weight):
    """Each coordinate's weights of all heads (Hk, Dh/2, D), times the query's coordinate (Hk, Dh/2). (Dh/2, D)"""
    return torch.einsum("hi,hid->id", query, weight)
