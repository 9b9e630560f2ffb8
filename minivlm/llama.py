"""The LLaMA decoder: RMSNorm, rotary attention, gated MLP. The prompt runs with a pruner, new tokens without.

Module names are Hugging Face's, so that checkpoints map to it by a prefix. Mistral and Qwen2 decoders are the same
network with other numbers (sliding window, biases).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from minivlm.attention import rope, rotate
from minivlm.kernels import attention
from minivlm.parts.masks import prompt_mask, step_mask
from minivlm.parts.views import DecoderView, StepView
from minivlm.trace import Trace
from pruning.apply import checked, order, plan, with_last
from pruning.base import NOT_YET


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in float32, cast back, then times the weight (in that order, as the reference does)."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        width = x.shape[-1:]
        normed = F.rms_norm(x.float(), width, eps=self.eps)
        return self.weight * normed.to(x.dtype)


class Attention(nn.Module):
    """Self-attention of one layer over the tokens given and, with a cache, those before them."""

    def __init__(self, c):
        super().__init__()
        self.head_dim = c.head_dim
        query_width = c.num_attention_heads * c.head_dim
        key_width = c.num_key_value_heads * c.head_dim
        width = c.hidden_size
        self.q_proj = nn.Linear(width, query_width, bias=c.qkv_bias)
        self.k_proj = nn.Linear(width, key_width, bias=c.qkv_bias)
        self.v_proj = nn.Linear(width, key_width, bias=c.qkv_bias)
        self.o_proj = nn.Linear(query_width, width, bias=c.o_bias)

    def heads(self, x):
        """(.., T, H*Dh) -> (.., H, T, Dh)"""
        heads = x.unflatten(-1, (-1, self.head_dim))                               # (.., T, H, Dh)
        return heads.transpose(-2, -3)

    def forward(self, x, rope, cache=None, mask=None, last=False):
        """(B, T, D) -> (B, T, D). rope: cos and sin of the T positions. mask: (.., T, S), None: causal; see attention.

        last: only the last token's row is computed, (B, 1, D).
        """
        query_x = x
        query_rope = rope
        if last:
            query_x = x[:, -1:]                                                    # (B, 1, D)
            query_rope = [part[..., -1:, :] for part in rope]
            if mask is not None:
                mask = mask[..., -1:, :]                                           # (.., 1, S)
        query = self.heads(self.q_proj(query_x))                                   # (B, H, T or 1, Dh)
        query = rotate(query, query_rope)
        key = self.heads(self.k_proj(x))                                           # (B, Hk, T, Dh)
        key = rotate(key, rope)
        value = self.heads(self.v_proj(x))                                         # (B, Hk, T, Dh)
        if cache is not None:
            key, value = cache.append(key, value)                                  # (B, Hk, S, Dh) twice
        # softmax(query key^T / sqrt(Dh) + mask) value
        out = attention(query, key, value, mask)                                   # (B, H, T or 1, Dh)
        out = out.transpose(1, 2).flatten(2)                                       # (B, T or 1, H*Dh)
        return self.o_proj(out)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, c):
        super().__init__()
        width = c.hidden_size
        inner = c.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=c.mlp_bias)
        self.up_proj = nn.Linear(width, inner, bias=c.mlp_bias)
        self.down_proj = nn.Linear(inner, width, bias=c.mlp_bias)

    def forward(self, x):
        gate = F.silu(self.gate_proj(x))
        return self.down_proj(gate * self.up_proj(x))


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
        normed = self.input_layernorm(x)
        attended = self.self_attn(normed, rope, cache, mask, last)
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
        layers = [Layer(c) for _ in range(c.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def prefill(self, tokens, cache, pruner=None, trace=None, last=True):
        """Run the prompt, reducing it on the way. Tokens (T, D) -> normed hidden states of the tokens left, (T', D).

        With `last` only the last token's row is returned, (1, D), and the last layer computes no other.
        """
        depth = len(self.layers)
        trace = trace or Trace()
        pruner = pruner and pruner.at("decoder")
        acting = pruner if tokens.n else None
        cuts, masks = plan(acting, depth)
        if pruner:
            cache.tokens = tokens if pruner.rerank_each_step else None
            tokens = pruner.with_positions(tokens)
        tokens = replace(tokens, prompt=tokens)
        rope, mask = self.shared(tokens)                   # the same in all layers between two cuts
        for l, layer in enumerate(self.layers):
            tokens = replace(tokens, layer=l)
            if l in cuts and tokens.n:
                # the method drops, merges or masks visual tokens
                view = DecoderView(layer, tokens, rope, mask)
                tokens = replace(tokens, here=view)
                tokens = self.cut(tokens, pruner, trace, cache)
                rope, mask = self.shared(tokens)
            layer_mask = mask
            if l in masks and tokens.n:
                # the method says who may look at whom in this layer
                view = DecoderView(layer, tokens, rope, mask)
                layer_mask = pruner.mask(replace(tokens, here=view))
            trace.enter(tokens)
            held = cache.layers[l]
            held.start(tokens)
            view = DecoderView(layer, tokens, rope, layer_mask, held)
            only_last = last and l == depth - 1
            batch = tokens.hidden[None]                                            # (1, T, D)
            hidden, = layer(batch, rope, held, layer_mask, only_last)              # (T, D)
            before = view if l + 1 in cuts else NOT_YET
            tokens = replace(tokens, hidden=hidden, before=before)
        return self.norm(tokens.hidden)

    def rope(self, position, dtype):
        """cos and sin for these positions, shared by all layers."""
        c = self.config
        position = position.to(self.norm.weight.device)
        return rope(position, c.head_dim, c.rope_theta, dtype)

    def shared(self, tokens):
        """What all layers share until the next cut: cos and sin of the positions, and the mask; None: causal."""
        rope = self.rope(tokens.position, tokens.hidden.dtype)
        return rope, prompt_mask(tokens, self.config.sliding_window)

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
        cuts = ()
        if cache.tokens is not None:
            pruner = pruner.at("decoder")
            cuts = pruner.reduce_at(len(self.layers))
        ropes = {}                     # by first position: a method may renumber, so layers may differ
        for l, layer in enumerate(self.layers):
            held = cache.layers[l]
            first = held.next_position
            position = torch.arange(first, first + m, device=hidden.device)        # (m,)
            if first not in ropes:
                ropes[first] = self.rope(position, hidden.dtype)
            mask = step_mask(held, position, self.config.sliding_window)
            rope = ropes[first]
            entered = hidden
            hidden, = layer(entered[None], rope, held, mask)                       # (m, D)
            held.next_position += m
            next_layer = l + 1
            if next_layer in cuts:
                # the method chooses again the keys that the layers from the next one on may read
                view = StepView(layer, entered, rope, mask, held)
                tokens = replace(cache.tokens, layer=next_layer, before=view)
                r = checked(pruner, tokens)
                masked = tokens.reduced(r).masked
                cache.mask_from(next_layer, masked)
        return self.norm(hidden)
