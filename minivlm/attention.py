"""Rotary embedding, the causal mask, and attention.

Letters: B batch, H query heads, Hk key heads, Dh head width, T queries, S keys (S > T when a cache holds S - T of them).
"""

import torch
import torch.nn.functional as F

from pruning.base import for_each_head


def attention_by_definition(query, key, value, mask):
    """softmax(query key^T / sqrt(Dh) + mask) value. (B, H, T, Dh), (B, Hk, S, Dh) twice -> (B, H, T, Dh)

    This is what `attention` computes, with the matrix of weights written out. The tests hold the two equal.
    """
    key = for_each_head(key, query.shape[1])                                       # (B, H, S, Dh)
    value = for_each_head(value, query.shape[1])                                   # (B, H, S, Dh)
    logits = query @ key.mT / query.shape[-1] ** 0.5                               # (B, H, T, S)
    weights = (logits + mask).softmax(dim=-1)                                      # (B, H, T, S)
    return weights @ value


def attention(query, key, value, mask=None, causal=True):
    """The same by torch's fused kernel, which never holds all weights.

    mask: (.., T, S), added to the logits. None: each query sees the keys up to its own, the queries being the last T of the
    S tokens; with causal=False all keys.
    """
    key = for_each_head(key, query.shape[1])                                       # (B, H, S, Dh)
    value = for_each_head(value, query.shape[1])                                   # (B, H, S, Dh)
    T, S = query.shape[-2], key.shape[-2]
    if mask is not None:
        return F.scaled_dot_product_attention(query, key, value, mask.to(query.dtype))
    if not causal or T == 1:
        return F.scaled_dot_product_attention(query, key, value)
    if T == S:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    mask = causal_mask(torch.arange(S - T, S, device=query.device), S)
    return F.scaled_dot_product_attention(query, key, value, mask.to(query.dtype))


def causal_mask(rows, S, hidden=None):
    """(R, S) what to add to the logits of these rows (R,) of S tokens: 0 for keys up to their own, minus infinity for later ones.

    hidden: keys that no row, (S,), or that each row, (R, S), may not see. A row that is left with nothing sees itself.
    """
    column = torch.arange(S, device=rows.device)                                   # (S,)
    allowed = column <= rows[:, None]                                              # (R, S)
    if hidden is not None:
        allowed &= ~hidden
        sees_nothing = ~allowed.any(dim=-1, keepdim=True)                          # (R, 1)
        allowed |= sees_nothing & (column == rows[:, None])
    return additive(allowed)


def additive(allowed, dtype=torch.float32):
    """The mask to add to logits: 0 where True, minus infinity elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, float("-inf"))


def rope(position, head_dim, theta, dtype):
    """cos and sin of position * theta^(-2i/Dh), (T, Dh) each: angles in float32, then cast, as the reference does.

    position (T,), or (T, 2) of two dimensions: the first half of the pairs turns by the first, the others by the second.
    """
    index = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position.device)
    frequency = 1.0 / theta ** (index / head_dim)                                  # (Dh/2,) radians per position
    if position.ndim == 1:
        position = position[:, None]                                               # (T, 1)
    else:
        pairs = head_dim // 2
        first = position[:, :1].expand(-1, pairs // 2)
        second = position[:, 1:].expand(-1, pairs - pairs // 2)
        position = torch.cat([first, second], dim=1)                               # (T, Dh/2)
    angle = position.float() * frequency                                           # (T, Dh/2)
    angle = torch.cat([angle, angle], dim=-1)                                      # (T, Dh)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x, rope):
    """Rotary embedding of x (.., T, Dh) by (cos, sin). Coordinate i turns with i + Dh/2 ("halves"), not with its neighbour."""
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
