"""Rotary embedding and attention: torch's fused kernel, and the explicit matrix where a method asks to see it.

Letters: B batch, H query heads, Hk key heads, Dh head width, T queries, S keys (S > T when a cache holds S - T of them).
"""

from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def rope(position, head_dim, theta, dtype):
    """cos and sin of position * theta^(-2i/Dh), (T, Dh) each: angles in float32, then cast, as the reference does.

    position (T,), or (T, 2) of two dimensions: the first half of the pairs turns by the first, the others by the second.
    """
    if position.ndim == 2:
        first, pairs = head_dim // 4, head_dim // 2
        position = torch.cat([position[:, :1].expand(-1, first), position[:, 1:].expand(-1, pairs - first)], dim=1)
    else:
        position = position[:, None]                                               # (T, 1)
    angle = position.float() * frequency(head_dim, theta, position.device)         # (T, Dh/2)
    angle = torch.cat([angle, angle], dim=-1)                                      # (T, Dh)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def frequency(head_dim, theta, device=None):
    """(Dh/2,) radians that each pair of coordinates turns a position: theta^(-2i/Dh), in float32."""
    index = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    return 1.0 / theta ** (index / head_dim)


def rotate(x, cos, sin):
    """Rotary embedding of x (.., T, Dh). Coordinate i turns with i + Dh/2 ("halves"), not with its neighbour."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def additive(may, dtype):
    """The mask to add to logits: 0 where True, minus infinity elsewhere."""
    return torch.zeros(may.shape, dtype=dtype, device=may.device).masked_fill_(~may, float("-inf"))


@dataclass
class Look:
    """What to observe in one attention layer, and, after the layer has run, what was seen."""

    rows: Tensor | None = None                     # (R,) query rows wanted, of the T that the layer computes
    mask: Callable | None = None                   # (logits (B, H, T, S), causal (T, S)) -> mask, in place of causal
    logits: Tensor | None = None                   # (B, H, R, S) out: scaled, before mask and softmax
    attn: Tensor | None = None                     # (B, H, R, S) out: softmax weights, float32


def attention(query, key, value, dead=None, causal=True, look=None):
    """softmax(query key^T / sqrt(Dh)) value. (B, H, T, Dh), (B, Hk, S, Dh) twice -> (B, H, T, Dh)

    The queries are the last T of the S tokens. `dead` hides keys, (S,) from all or (T, S) from each. `look` says which rows to make explicit: one row
    costs one row; with all rows, or a method's own mask, the explicit weights give the output too.
    """
    T, S = query.shape[-2], key.shape[-2]
    if look is not None and (look.mask is not None or len(look.rows) == T > 1):
        return _explicit(query, key, value, dead, causal, look)
    if look is not None:
        _see(look, query[..., look.rows, :], key, _may(T, S, dead, causal, query.device, look.rows))
    return _fused(query, key, value, dead, causal)


def _fused(query, key, value, dead, causal):
    T, S, groups = query.shape[-2], key.shape[-2], query.shape[-3] // key.shape[-3]
    if T == 1 and groups > 1:          # one token: the query heads that share a key head are queries of one attention
        query = query.unflatten(1, (-1, groups)).squeeze(3)                        # (B, Hk, G, Dh)
        mask = None if dead is None else _may(T, S, dead, causal, query.device)
        return F.scaled_dot_product_attention(query, key, value, mask).flatten(1, 2).unsqueeze(2)
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    if dead is None and (not causal or T == 1 or T == S):          # no mask to build: the flash kernels stay eligible
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal and T > 1)
    return F.scaled_dot_product_attention(query, key, value, _may(T, S, dead, causal, query.device))


def _may(T, S, dead, causal, device, rows=None):
    """(T or R, S) bool mask of what may be looked at, or None where everything may; a row left with nothing sees itself."""
    if not causal:
        return None
    rows = torch.arange(T, device=device) if rows is None else rows.to(device)
    column = torch.arange(S, device=device)
    own = (rows + S - T)[:, None]                                                  # (R, 1) each row's own column
    may = column <= own                                                            # (R, S)
    if dead is None:
        return may
    may &= ~(dead if dead.ndim == 1 else dead[-T:][rows]).to(device)
    return may | (column == own) & ~may.any(dim=-1, keepdim=True)


def _see(look, query, key, may, mask=None):
    """Fill `look` for these query rows; return the weights."""
    logits = query @ key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).mT * query.shape[-1] ** -0.5
    masked = logits.float() if mask is None else logits.float() + mask
    if may is not None:
        masked = masked.masked_fill(~may, float("-inf"))
    look.logits, look.attn = logits, masked.softmax(dim=-1)        # float32 until the ranking is done: fewer ties
    return look.attn


def _explicit(query, key, value, dead, causal, look):
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    T, S = query.shape[-2], key.shape[-2]
    may = _may(T, S, dead, causal, query.device)
    if look.mask is None:
        attn = _see(look, query, key, may)
    else:
        logits = query @ key.mT * query.shape[-1] ** -0.5                          # (B, H, T, S)
        attn = (logits.float() + look.mask(logits, additive(may, torch.float32))).softmax(dim=-1)
        look.logits, look.attn = logits, attn
    if look.rows is not None and len(look.rows) < T:
        look.logits, look.attn = look.logits[..., look.rows, :], look.attn[..., look.rows, :]
    return attn.to(value.dtype) @ value
