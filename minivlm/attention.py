"""Rotary embedding, the causal mask, and attention.

Letters: B batch, H query heads, Hk key heads, Dh head width, T queries, S keys (S > T if a cache holds S - T of them).
"""

import torch
import torch.nn.functional as F

from pruning.views import for_each_head


def attention_by_definition(query, key, value, mask):
    """softmax(query key^T / sqrt(Dh) + mask) value. (B, H, T, Dh), (B, Hk, S, Dh) twice -> (B, H, T, Dh)

    This is what `attention` computes, with the matrix of weights written out. The tests hold the two equal.
    """
    _, H, _, Dh = query.shape
    key = for_each_head(key, H)                                                    # (B, H, S, Dh)
    value = for_each_head(value, H)                                                # (B, H, S, Dh)
    logits = query @ key.mT                                                        # (B, H, T, S)
    logits = logits / Dh ** 0.5
    weights = (logits + mask).softmax(dim=-1)                                      # (B, H, T, S)
    return weights @ value


def attention(query, key, value, mask=None, causal=True):
    """The same with torch's fused kernel, which never stores all weights.

    mask: (.., T, S), added to the logits. None: each query sees the keys up to its own, and the queries are the last T
    of the S tokens; with causal=False it sees all keys.
    """
    _, H, T, _ = query.shape
    key = for_each_head(key, H)                                                    # (B, H, S, Dh)
    value = for_each_head(value, H)                                                # (B, H, S, Dh)
    S = key.shape[2]
    sees_all = T == 1 or not causal                        # a single query is that of the last token
    if mask is None and sees_all:
        return F.scaled_dot_product_attention(query, key, value)
    if mask is None and T == S:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    if mask is None:
        first = S - T
        rows = torch.arange(first, S, device=query.device)
        mask = causal_mask(rows, S)                                                # (T, S)
    mask = mask.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, mask)


def causal_mask(rows, S, hidden_keys=None):
    """(R, S) mask to add to the logits of these rows (R,) of S tokens: minus infinity for later keys, 0 for the others.

    hidden_keys: bool, (S,) or (R, S), further keys that may not be seen. A row with all keys hidden sees its own.
    """
    row = rows[:, None]                                                            # (R, 1)
    column = torch.arange(S, device=rows.device)                                   # (S,)
    allowed = column <= row                                                        # (R, S)
    if hidden_keys is not None:
        allowed &= ~hidden_keys
        sees_nothing = ~allowed.any(dim=-1, keepdim=True)                          # (R, 1)
        is_itself = column == row                                                  # (R, S)
        allowed |= sees_nothing & is_itself
    return additive(allowed)


def additive(allowed, dtype=torch.float32):
    """The mask to add to logits: 0 where True, minus infinity elsewhere."""
    mask = torch.zeros_like(allowed, dtype=dtype)
    return mask.masked_fill_(~allowed, float("-inf"))


def rope(position, head_dim, theta, dtype, scaling=None):
    """cos and sin of position * theta^(-2i/Dh), (T, Dh) each: angles in float32, then cast, as the reference does.

    position: (T,), or (T, 2): half of the pairs turn by row, the others by column. scaling: see parts/rope_scaling.py.
    """
    pairs = head_dim // 2
    index = 2 * torch.arange(pairs, device=position.device)                        # (Dh/2,)  2i
    exponent = index / head_dim
    frequency = 1.0 / theta ** exponent                                            # (Dh/2,)  radians per position
    if scaling:
        frequency = scaling.scaled(frequency)
    if position.ndim == 1:
        position = position[:, None]                                               # (T, 1)
    else:
        row, column = position.split(1, dim=1)                                     # (T, 1) twice
        half = pairs // 2
        row = row.expand(-1, half)                                                 # (T, Dh/4)
        column = column.expand(-1, pairs - half)                                   # (T, Dh/4)
        position = torch.cat([row, column], dim=1)                                 # (T, Dh/2)
    angle = position.float() * frequency                                           # (T, Dh/2)
    angle = torch.cat([angle, angle], dim=-1)                                      # (T, Dh)
    cos = angle.cos().to(dtype)
    sin = angle.sin().to(dtype)
    return cos, sin


def rotate(x, rope):
    """Rotary embedding of x (.., T, Dh) by (cos, sin). Coordinate i turns with i + Dh/2, not with its neighbour."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    quarter_turn = torch.cat([-second, first], dim=-1)
    return x * cos + quarter_turn * sin
