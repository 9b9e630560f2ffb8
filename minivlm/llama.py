"""The LLaMA decoder: RMSNorm, rotary attention, gated MLP. The prompt runs with a pruner, new tokens without.

Modules have Hugging Face's names, which are those of the tensors in a checkpoint. Mistral and Qwen2 decoders are the
same network with other numbers (sliding window, biases). Letters as in attention.py and pruning/base.py.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from minivlm.attention import rope, rotate
from minivlm.kernels import attention                  # that of attention.py, or a faster form of it
from minivlm.parts.sliding_window import prompt_mask, step_mask
from minivlm.parts.views import DecoderView, StepView
from minivlm.trace import Trace
from pruning.apply import acting, checked, plan, with_last


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
        """(B, T, D) -> (B, T, D); with `last` only the last token's row, (B, 1, D). mask: (.., T, S); None: causal."""
        query_x = x
        query_rope = rope
        if last:
            query_x = x[:, -1:]                                                    # (B, 1, D)
            cos, sin = rope
            query_rope = cos[..., -1:, :], sin[..., -1:, :]                        # (.., 1, Dh) twice
            if mask is not None:
                mask = mask[..., -1:, :]                                           # (.., 1, S)
        query = self.heads(self.q_proj(query_x))                                   # (B, H, T or 1, Dh)
        query = rotate(query, query_rope)
        key = self.heads(self.k_proj(x))                                           # (B, Hk, T, Dh)
        key = rotate(key, rope)
        value = self.heads(self.v_proj(x))                                         # (B, Hk, T, Dh)
        if cache is not None:
            key, value = cache.append(key, value)                                  # (B, Hk, S, Dh) twice
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
        up = self.up_proj(x)
        return self.down_proj(gate * up)


class Layer(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)"""

    def __init__(self, c):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x, rope, cache=None, mask=None, last=False):
        """(B, T, D) -> (B, T, D), as Attention does; rope: cos and sin of the T positions."""
        _, out = self.streams(x, rope, cache, mask, last)
        return out

    def streams(self, x, rope, cache=None, mask=None, last=False):
        """The residual stream after attention and after the MLP. (B, T, D) twice"""
        residual = x
        if last:
            residual = x[:, -1:]
        normed = self.input_layernorm(x)
        between = residual + self.self_attn(normed, rope, cache, mask, last)
        normed = self.post_attention_layernorm(between)
        return between, between + self.mlp(normed)


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
        trace = trace or Trace()       # where pictures and tables learn what happened
        pruner = acting(pruner, "decoder")
        if not tokens.n:
            pruner = None              # no image to prune
        cuts, masks, watched = plan(pruner, depth)
        if pruner:
            tokens = pruner.with_positions(tokens)
        if pruner and pruner.rerank_each_step:
            cache.tokens = tokens
        tokens = replace(tokens, prompt=tokens)
        rope, mask = self.shared(tokens)                   # the same in all layers between two cuts
        for l, layer in enumerate(self.layers):
            tokens = replace(tokens, layer=l)
            if l in cuts and tokens.n:
                # the method drops, merges or masks visual tokens
                here = DecoderView(layer, tokens, rope, mask, norm=self.norm)
                tokens = replace(tokens, here=here)
                tokens = self.cut(tokens, pruner, trace, cache)
                rope, mask = self.shared(tokens)
            layer_mask = mask
            if l in masks and tokens.n:
                # the method says which tokens attend to which in this layer
                here = DecoderView(layer, tokens, rope, mask)
                entering = replace(tokens, here=here)
                layer_mask = pruner.mask(entering)
            # run the layer
            trace.enter(tokens)
            layer_cache = cache.layers[l]
            layer_cache.start(tokens)
            batch = tokens.hidden[None]                                            # (1, T, D)
            only_last = last and l == depth - 1
            between, out = layer.streams(batch, rope, layer_cache, layer_mask, only_last)        # (1, T or 1, D) twice
            view = DecoderView(layer, tokens, rope, layer_mask, layer_cache, between, out)
            tokens = replace(tokens, hidden=out[0])
            if l + 1 in cuts:
                tokens = replace(tokens, before=view)
            if l in watched:
                views = (*tokens.watched, view)
                tokens = replace(tokens, watched=views)
            del view, between          # what no method reads: the next layer needs the memory
        return self.norm(tokens.hidden)

    def rope(self, position, dtype):
        """cos and sin for these positions (T,) or (T, 2)."""
        c = self.config
        position = position.to(self.norm.weight.device)
        return rope(position, c.head_dim, c.rope_theta, dtype, c.rope_scaling)

    def shared(self, tokens):
        """What all layers share until the next cut: cos and sin of the positions, and the mask (None: causal)."""
        rope = self.rope(tokens.position, tokens.hidden.dtype)
        return rope, prompt_mask(tokens, self.config.sliding_window)

    def cut(self, tokens, pruner, trace, cache):
        """Call the method before layer tokens.layer, and apply its Reduction."""
        r = checked(pruner, tokens)
        r = with_last(r, tokens)       # if the prompt ends with an image, keep its last token: it predicts the answer
        trace.reduce("decoder", tokens.layer, tokens, r)
        if pruner.prune_past_kv:
            cache.prune_past(tokens, r.keep)
        return tokens.reduced(r, pruner.positions)

    def step(self, hidden, cache, pruner=None):
        """Run m more tokens (m, D) after those in the cache -> normed hidden states (m, D). Nothing is dropped."""
        m = len(hidden)
        reranked_at = ()
        if cache.tokens is not None:   # set in prefill, by a method that ranks again at each token
            reranked_at = pruner.at("decoder").reduce_at(len(self.layers))
        ropes = {}                     # {first position: cos and sin}: it differs between layers if a cut renumbered
        for l, layer in enumerate(self.layers):
            layer_cache = cache.layers[l]
            first = layer_cache.next_position
            position = torch.arange(first, first + m, device=hidden.device)        # (m,)
            if first not in ropes:
                ropes[first] = self.rope(position, hidden.dtype)
            mask = step_mask(layer_cache, position, self.config.sliding_window)
            entered = hidden                                                       # (m, D)
            hidden = layer(entered[None], ropes[first], layer_cache, mask)[0]      # (m, D)
            layer_cache.next_position += m
            if l + 1 in reranked_at:
                view = StepView(layer, entered, ropes[first], mask, layer_cache)
                cache.rerank(pruner.at("decoder"), l + 1, view)
        return self.norm(hidden)
