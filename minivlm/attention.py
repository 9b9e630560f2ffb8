"""Rotary embedding and attention: torch's fused kernel, and the explicit matrix where a method asks to see it.

Letters: B batch, H query heads, Hk key heads, Dh head width, T queries, S keys (S > T when a cache holds S - T of them).
"""

import math
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


STRETCH = 2 ** 23      # explicit weights there at a time: 32 MB in float32
PART = 256             # keys that one token looks at at a time in half precision: 2 MB of 32 heads
ACROSS = {"each": lambda x: x, "mean": lambda x: x.mean(dim=1, keepdim=True, dtype=torch.float32),
          "max": lambda x: x.amax(dim=1, keepdim=True)}


@dataclass
class Look:
    """What to observe in one attention layer, and, after the layer has run, what was seen."""

    rows: Tensor | None = None                     # (R,) query rows wanted, of the T that the layer computes
    mask: Callable | None = None                   # (query, key, causal (T, S)) -> mask, in place of causal
    wants: frozenset = frozenset({"logits", "attn"})           # what of the below is wanted
    across_heads: str = "each"                     # of "each" head, or their "mean" or "max": then H' is 1
    turned_query: Tensor | None = None             # (B, H, T, Dh) out: of all rows, after the rotary embedding
    turned_key: Tensor | None = None               # (B, Hk, S, Dh) out
    logits: Tensor | None = None                   # (B, H', R, S) out: scaled, before mask and softmax
    attn: Tensor | None = None                     # (B, H', R, S) out: softmax weights, float32

    def room(self, query, S):
        """For what is wanted of the weights of these query rows (B, H, R, Dh) on S keys: {name: (B, H', R, S)}"""
        (B, H, R, _), wants = query.shape, self.wants & {"logits", "attn"} if self.rows is not None else ()
        return {name: query.new_empty(B, H if self.across_heads == "each" else 1, R, S, dtype=torch.float32) for name in wants}


def attention(query, key, value, dead=None, causal=True, look=None):
    """softmax(query key^T / sqrt(Dh)) value. (B, H, T, Dh), (B, Hk, S, Dh) twice -> (B, H, T, Dh)

    The queries are the last T of the S tokens. `dead` hides keys, (S,) from all or (T, S) from each. `look` says which rows to make explicit: one row
    costs one row; with all rows, or a method's own mask, the explicit weights give the output too.
    """
    if look is None:
        return _fused(query, key, value, dead, causal)
    look.turned_query, look.turned_key, T = query, key, query.shape[-2]
    if look.mask is None and (look.rows is None or not len(look.rows) == T > 1):
        if look.rows is not None:
            see(look, query[..., look.rows, :], key, causal_mask(T, key.shape[-2], dead, causal, look.rows, query.device))
        return _fused(query, key, value, dead, causal)
    mask = causal_mask(T, key.shape[-2], dead, causal, device=query.device)        # (T, S)
    out = see(look, query, key, mask if look.mask is None else look.mask(query, key, mask), value)
    if look.rows is not None and len(look.rows) < T:
        look.logits, look.attn = (x if x is None else x[..., look.rows, :] for x in (look.logits, look.attn))
    return out


def _fused(query, key, value, dead, causal):
    T, S = query.shape[-2], key.shape[-2]
    if T == 1:
        return _one_row(query, key, value, None if dead is None else _may(T, S, dead, causal, query.device))
    key, value = (per_head(x, query.shape[1]) for x in (key, value))
    if dead is None and (not causal or T == S):            # no mask to build: the flash kernels stay eligible
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return F.scaled_dot_product_attention(query, key, value, _may(T, S, dead, causal, query.device))


def _one_row(query, key, value, may):
    """One token: the query heads that share a key head are queries of one attention. (B, H, 1, Dh) -> the same

    On a CPU the fused kernel takes three to five times as long for it as two products, in which the keys stand on the left. TRAP:
    in half precision these copy the keys and values of a cache with room to spare; a part at a time the copy is small, and its
    memory used again.
    """
    query = query.unflatten(1, (key.shape[1], -1)).squeeze(3)                      # (B, Hk, G, Dh)
    if query.device.type != "cpu":
        out = F.scaled_dot_product_attention(query, key, value, may)
    else:
        query, part = query * query.shape[-1] ** -0.5, PART if key.dtype.itemsize == 2 else key.shape[2]
        logits = torch.cat([keys @ query.mT for keys in key.split(part, dim=2)], dim=2).mT.float()     # (B, Hk, G, S)
        attn = (logits if may is None else logits + additive(may, logits.dtype)).softmax(dim=-1).to(value.dtype)
        out = sum((a @ values).float() for a, values in zip(attn.split(part, dim=3), value.split(part, dim=2)))
        out = out.to(value.dtype)                                                  # (B, Hk, G, Dh)
    return out.flatten(1, 2).unsqueeze(2)


def per_head(x, heads):
    """The key or value head of each query head: (.., Hk, S, Dh) -> (.., H, S, Dh)"""
    return x if x.shape[-3] == heads else x.repeat_interleave(heads // x.shape[-3], dim=-3)


def _may(T, S, dead, causal, device, rows=None):
    """(T or R, S) bool mask of what may be looked at; a row left with nothing sees itself."""
    rows = torch.arange(T, device=device) if rows is None else rows.to(device)
    column = torch.arange(S, device=device)
    own = (rows + S - T)[:, None]                                                  # (R, 1) each row's own column
    may = (column <= own) | (not causal)                                           # (R, S)
    if dead is None or not causal:
        return may
    may &= ~(dead if dead.ndim == 1 else dead[-T:][rows]).to(device)
    return may | (column == own) & ~may.any(dim=-1, keepdim=True)


def causal_mask(T, S, dead=None, causal=True, rows=None, device=None):
    """(T or R, S) float32: what to add to the logits of all or of these rows; see `attention`."""
    return additive(_may(T, S, dead, causal, device, rows), torch.float32)


def see(look, query, key, mask, value=None):
    """Fill `look` for these query rows; with `value` give their output (B, H, R, Dh).

    One stretch of rows after the other: the weights of all rows and heads are never there, unless the method wants them.
    """
    (B, H, R, Dh), S = query.shape, key.shape[-2]
    # TRAP: of heads that lie apart, (B, T, H, Dh) in memory, products take seven times as long in bfloat16
    key, value = (x if x is None else per_head(x, H).contiguous() for x in (key, value))
    seen, out = look.room(query, S), value if value is None else value.new_empty(B, H, R, value.shape[-1])
    stretch = max(1, min(R, STRETCH // (B * H * S)))
    graph = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (query, key, value, mask))
    room = None if graph else [query.new_empty(B * H * stretch * S, dtype=dtype) for dtype in (query.dtype, torch.float32)]
    for start in range(0, R, stretch):
        rows = slice(start, start + stretch)
        logits, attn = _weights(query[..., rows, :] * Dh ** -0.5, key, mask[..., rows, :], room)
        for name, x in seen.items():
            x[..., rows, :] = ACROSS[look.across_heads](logits if name == "logits" else attn)
        if value is not None:
            out[..., rows, :] = attn.to(value.dtype) @ value
    vars(look).update(seen)
    return out


def _weights(query, key, mask, room):
    """Logits and attention of a stretch of scaled query rows (B, H, r, Dh) on all keys: (B, H, r, S) twice, the second in float32
    until the ranking is done: fewer ties.

    TRAP: memory that is new for each stretch, which the system first fills with zeros, takes longer than the work; so they lie in
    `room`, but for gradients, which need them all.
    """
    if room is None:
        logits = query @ key.mT
        return logits, (logits.float() + mask).softmax(dim=-1)
    shape = *query.shape[:3], key.shape[2]
    logits, attn = (x[:math.prod(shape)].view(shape) for x in room)
    torch.bmm(query.flatten(0, 1), key.flatten(0, 1).mT, out=logits.flatten(0, 1))
    attn.copy_(logits).add_(mask)
    return logits, torch.softmax(attn, dim=-1, out=attn)
