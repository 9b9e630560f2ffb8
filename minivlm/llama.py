"""The LLaMA decoder: RMSNorm, rotary attention (multi-head or grouped), gated MLP; prefill with a pruner, steps without.

Module names are Hugging Face's, so that checkpoints map to it by a prefix. Mistral and Qwen2 decoders are the same
network with other numbers (sliding window, biases).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from minivlm.attention import causal_mask, rope, rotate
from minivlm.kernels import attention
from minivlm.trace import Trace
from minivlm.views import DecoderView, StepView
from pruning.apply import checked, order, with_last
from pruning.base import NOT_YET, UserError


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in float32, cast back, then times the weight (in that order, as the reference does)."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class Attention(nn.Module):
    """Self-attention of one layer over the tokens given and, with a cache, those before them."""

    def __init__(self, c):
        super().__init__()
        self.head_dim = c.head_dim
        query_width = c.num_attention_heads * c.head_dim
        key_width = c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, query_width, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden_size, key_width, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden_size, key_width, bias=c.qkv_bias)
        self.o_proj = nn.Linear(query_width, c.hidden_size, bias=c.o_bias)

    def heads(self, x):
        """(.., T, H*Dh) -> (.., H, T, Dh)"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(-2, -3)

    def forward(self, x, rope, cache=None, mask=None, last=False):
        """(B, T, D) -> (B, T, D). rope: cos and sin of the T positions. mask: (.., T, S), None: causal; see attention.

        last: only the last token's row is computed, (B, 1, D).
        """
        query_x = x
        query_rope = rope
        if last:
            query_x = x[:, -1:]                                                    # (B, 1, D)
            query_rope = [part[..., -1:, :] for part in rope]
            mask = None if mask is None else mask[..., -1:, :]
        query = rotate(self.heads(self.q_proj(query_x)), query_rope)               # (B, H, T or 1, Dh)
        key = rotate(self.heads(self.k_proj(x)), rope)                             # (B, Hk, T, Dh)
        value = self.heads(self.v_proj(x))                                         # (B, Hk, T, Dh)
        if cache is not None:
            key, value = cache.append(key, value)                                  # (B, Hk, S, Dh) twice
        out = attention(query, key, value, mask)                                   # (B, H, T or 1, Dh)  softmax(q k^T / sqrt(Dh) + mask) v
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)"""

    def __init__(self, c):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x, rope, cache=None, mask=None, last=False):
        """(B, T, D) -> (B, T, D); with `last` only the last token's row, (B, 1, D)."""
        attended = self.self_attn(self.input_layernorm(x), rope, cache, mask, last)
        if last:
            x = x[:, -1:]
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token embedding, the layers, the final norm."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def prefill(self, tokens, cache, pruner=None, trace=None, last=True):
        """Run the prompt, reducing it on the way. Tokens (T, D) -> normed hidden states of the tokens left, (T', D).

        With `last` only the last token's row is returned, (1, D), and the last layer computes no other.
        """
        depth = len(self.layers)
        trace = trace or Trace()
        pruner = pruner and pruner.at("decoder")
        cuts, masks = plan(pruner, depth) if tokens.n else ((), ())
        if pruner:
            cache.tokens = tokens if pruner.rerank_each_step else None
            tokens = pruner.with_positions(tokens)
        tokens = replace(tokens, prompt=tokens)
        rope, mask = self.shared(tokens)                   # the same in all layers between two cuts
        for l, layer in enumerate(self.layers):
            tokens = replace(tokens, layer=l)
            if l in cuts and tokens.n:
                # the method drops, merges or masks visual tokens
                tokens = replace(tokens, here=DecoderView(layer, tokens, rope, mask))
                tokens = self.cut(tokens, pruner, trace, cache)
                rope, mask = self.shared(tokens)
            layer_mask = mask
            if l in masks and tokens.n:
                # the method says who may look at whom in this layer
                here = DecoderView(layer, tokens, rope, mask)
                layer_mask = pruner.mask(replace(tokens, here=here))
            trace.enter(tokens)
            cache.layers[l].start(tokens)
            view = DecoderView(layer, tokens, rope, layer_mask, cache.layers[l])
            hidden = layer(tokens.hidden[None], rope, cache.layers[l], layer_mask, last and l == depth - 1)[0]
            tokens = replace(tokens, hidden=hidden, before=view if l + 1 in cuts else NOT_YET)
        return self.norm(tokens.hidden)

    def rope(self, position, dtype):
        """cos and sin for these positions, shared by all layers."""
        return rope(position.to(self.norm.weight.device), self.config.head_dim, self.config.rope_theta, dtype)

    def shared(self, tokens):
        """What all layers share until the next cut: cos and sin of the positions, and the mask; None: causal."""
        rope = self.rope(tokens.position, tokens.hidden.dtype)
        window = self.config.sliding_window
        if window is None or tokens.next_position <= window:       # then no query is too far from any key
            hidden = tokens.masked
        else:
            hidden = self.hidden_keys(tokens.masked, tokens.position, tokens.position)
        if hidden is None:
            return rope, None
        rows = torch.arange(len(tokens.hidden), device=tokens.hidden.device)
        return rope, causal_mask(rows, len(rows), hidden.to(rows.device))

    def hidden_keys(self, masked, query_position, key_position):
        """`masked` (S,), or with a sliding window (T, S): a row sees that many positions back, itself included; None: all."""
        if self.config.sliding_window is None:
            return masked
        too_far = key_position <= query_position[:, None] - self.config.sliding_window             # (T, S)
        return too_far if masked is None else too_far | masked.to(too_far.device)

    def cut(self, tokens, pruner, trace, cache):
        """Call the method before layer tokens.layer, and apply what it says."""
        r = with_last(checked(pruner, tokens), tokens)
        trace.reduce("decoder", tokens.layer, tokens, r)
        if pruner.prune_past_kv:
            rows, _ = order(tokens, r.keep)
            for held in cache.layers[:tokens.layer]:
                held.select(rows)
        return tokens.reduced(r, pruner.positions)

    def step(self, hidden, cache, pruner=None):
        """Run m more tokens (m, D) after what the cache holds -> normed hidden states (m, D). Nothing is dropped."""
        m = len(hidden)
        pruner = pruner and pruner.at("decoder")
        cuts = pruner.reduce_at(len(self.layers)) if cache.tokens is not None else ()
        ropes = {}                                         # by first position: methods may renumber, so layers may differ
        for l, (layer, held) in enumerate(zip(self.layers, cache.layers)):
            position = torch.arange(held.next_position, held.next_position + m, device=hidden.device)
            if held.next_position not in ropes:
                ropes[held.next_position] = self.rope(position, hidden.dtype)
            rope = ropes[held.next_position]
            mask = self.step_mask(held, position)
            entered = hidden
            hidden = layer(hidden[None], rope, held, mask)[0]
            held.next_position += m
            if l + 1 in cuts:
                self.rerank(StepView(layer, entered, rope, mask, held), l + 1, cache, pruner)
        return self.norm(hidden)

    def step_mask(self, held, position):
        """(m, S) mask for new tokens at these positions; None: they see all that is held."""
        m = len(position)
        masked = held.hidden_keys(m)                                               # (S,) or None
        if self.config.sliding_window is not None:
            held.position = torch.cat([held.position, position])
            masked = self.hidden_keys(masked, position, held.position)             # (m, S)
        if masked is None:
            return None
        S = masked.shape[-1]
        return causal_mask(torch.arange(S - m, S, device=position.device), S, masked)

    @staticmethod
    def rerank(view, l, cache, pruner):
        """Choose the keys that layers l.. may read again, from the newest token's attention over the whole cache."""
        tokens = replace(cache.tokens, layer=l, before=view)
        masked = tokens.reduced(checked(pruner, tokens)).masked
        for held in cache.layers[l:]:
            held.masked = masked


def plan(pruner, layers):
    """The layers before which, and in which, the method acts; UserError if the model has no such layer."""
    if not pruner:
        return (), ()
    cuts = pruner.reduce_at(layers)
    masks = pruner.mask_at(layers)
    for l in cuts:
        if not 0 < l < layers:
            raise UserError(f"{type(pruner).__name__} reduces before layer {l}, and this model has {layers} layers: "
                            f"choose a layer above 0 and below {layers}")
    return cuts, masks
