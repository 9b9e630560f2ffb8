"""The LLaMA decoder: RMSNorm, rotary attention (multi-head or grouped), gated MLP; prefill with a pruner, steps without.

Module names are Hugging Face's, so that checkpoints map to it by a prefix. Mistral and Qwen2 decoders are the same
network with other numbers (sliding window, biases).
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from minivlm.attention import Look, attention, causal_mask, frequency, rope, rotate, see
from minivlm.linear import Linear
from pruning.base import UserError


LOOKS = ("attn", "logits", "turned_query", "turned_key")           # of what a method may need: what a layer shows as it runs


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in float32, cast back, then times the weight (in that order, as the reference does)."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class Attention(nn.Module):
    """Self-attention of one layer over the tokens given and, with a cache, those before them."""

    def __init__(self, c):
        super().__init__()
        self.head_dim = c.head_dim
        heads, kv_heads = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj = Linear(c.hidden_size, heads, bias=c.qkv_bias)
        self.k_proj = Linear(c.hidden_size, kv_heads, bias=c.qkv_bias)
        self.v_proj = Linear(c.hidden_size, kv_heads, bias=c.qkv_bias)
        self.o_proj = Linear(heads, c.hidden_size, bias=c.o_bias)

    def split(self, x):
        """(B, T, H*Dh) -> (B, H, T, Dh)"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x, turn, cache=None, dead=None, look=None, last=False):
        """(B, T, D) -> (B, T, D), or (B, 1, D) with `last`: then only the last token asks. `turn`: cos and sin."""
        cos, sin = turn
        asking = x[:, -1:] if last else x
        query = rotate(self.split(self.q_proj(asking)), *(x[..., -asking.shape[1]:, :] for x in turn))
        key, value = rotate(self.split(self.k_proj(x)), cos, sin), self.split(self.v_proj(x))
        if cache is not None:
            key, value = cache.append(key, value)
        out = attention(query, key, value, dead, look=look)                        # (B, H, T, Dh)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, c):
        super().__init__()
        self.gate_proj = Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.up_proj = Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)"""

    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x, turn, cache=None, dead=None, look=None, last=False):
        """(B, T, D) -> (B, T, D); with `last` only the last token's row, (B, 1, D)."""
        seen = self.self_attn(self.input_layernorm(x), turn, cache, dead, look, last)
        x = (x[:, -1:] if last else x) + seen
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token embedding, the layers, the final norm."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def turn(self, position, dtype):
        """cos and sin for these positions, shared by all layers."""
        return rope(position.to(self.norm.weight.device), self.config.head_dim, self.config.rope_theta, dtype)

    def dead(self, dead, asking, held):
        """`dead` (S,); with a sliding window (T, S): a row sees as many positions back, itself included. Positions (T,), (S,)."""
        if self.config.sliding_window is None:
            return dead
        far = held <= asking[:, None] - self.config.sliding_window                 # (T, S)
        return far if dead is None else far | dead.to(far.device)

    def prefill(self, tokens, cache, pruner=None, trace=None, last=True):
        """Run the prompt, reducing it on the way. Tokens (T, D) -> normed hidden states of the tokens left, (T', D).

        With `last` only the last token's row is returned, (1, D), and the last layer computes no other.
        """
        L, pruner = len(self.layers), pruner and pruner.at("decoder")
        cuts, masks = plan(pruner, L) if tokens.n else ((), ())
        cache.tokens = tokens if pruner and pruner.rerank else None
        tokens = pruner.placed(tokens) if pruner else tokens
        tokens = replace(tokens, prompt=tokens.hidden, prompt_visual=tokens.visual,
                         frequency=frequency(self.config.head_dim, self.config.rope_theta, tokens.hidden.device))
        turn, dead = self._seen_from(tokens)
        for l, layer in enumerate(self.layers):
            if l in cuts and tokens.n:
                tokens = self._cut(tokens, l, turn, dead, pruner, trace, cache)
                turn, dead = self._seen_from(tokens)
            look = _look(tokens, pruner, l, l + 1 in cuts, l in masks)
            cache.layers[l].next, cache.layers[l].dead = tokens.next, tokens.dead
            cache.layers[l].position = None if self.config.sliding_window is None else tokens.position
            if trace is not None:
                trace.enter(tokens)
            hidden = layer(tokens.hidden[None], turn, cache.layers[l], dead, look, last and l == L - 1)[0]
            tokens = replace(tokens, hidden=hidden, layer=l + 1, **_seen(look))
        return self.norm(tokens.hidden)

    def _seen_from(self, tokens):
        """What all layers share: cos and sin of the positions, and which keys are hidden."""
        turn, window = self.turn(tokens.position, tokens.hidden.dtype), self.config.sliding_window
        inside = window is None or tokens.next <= window                           # then no mask: the flash kernels stay eligible
        return turn, tokens.dead if inside else self.dead(tokens.dead, tokens.position, tokens.position)

    def _cut(self, tokens, l, turn, dead, pruner, trace, cache):
        """Call the method before layer l and apply what it says."""
        tokens = replace(tokens, **self._project(tokens, l, turn, dead, pruner))
        r = with_last(pruner.reduce(tokens), tokens)
        if trace is not None:
            trace.reduce("decoder", l, tokens, r)
        for held in cache.layers[:l] if pruner.prune_past_kv else ():
            held.select(tokens.order(r.keep)[0])
        return tokens.reduced(r, pruner.positions)

    def _project(self, tokens, l, turn, dead, pruner):
        """Layer l's own query, key and attention on the tokens that enter it, as far as the method needs them."""
        needs, attn = pruner.needs, self.layers[l].self_attn
        if not needs & {"query", "key", "raw_key", "own_attn"}:
            return {}
        x, seen = self.layers[l].input_layernorm(tokens.hidden), {}
        if "query" in needs:
            seen["query"] = attn.q_proj(x)
        if "key" in needs:
            seen["key"] = attn.k_proj(x)
        if "raw_key" in needs:
            seen["raw_key"] = attn.k_proj(tokens.hidden)
        if "own_attn" in needs:
            look = Look(tokens.query_rows(pruner.rows), wants={"attn"}, across_heads=pruner.across_heads)
            query = rotate(attn.split(attn.q_proj(x[look.rows])[None]), *(part[look.rows] for part in turn))
            key = rotate(attn.split(attn.k_proj(x)[None]), *turn)
            see(look, query, key, causal_mask(len(x), len(x), dead, rows=look.rows, device=x.device))
            seen.update(rows=look.rows, own_attn=look.attn[0])
        return seen

    def step(self, hidden, cache, pruner=None):
        """Run m more tokens (m, D) after what the cache holds -> normed hidden states (m, D). Nothing is reduced."""
        m, hidden, turns, pruner = len(hidden), hidden[None], {}, pruner and pruner.at("decoder")
        cuts = pruner.reduce_at(len(self.layers)) if cache.tokens is not None else ()
        for l, (layer, held) in enumerate(zip(self.layers, cache.layers)):
            if held.next not in turns:                         # per layer, since methods may renumber
                position = torch.arange(held.next, held.next + m, device=hidden.device)
                turns[held.next] = self.turn(position, hidden.dtype)
            look = Look(torch.tensor([m - 1], device=hidden.device)) if l + 1 in cuts else None
            dead = None if held.dead is None else torch.cat([held.hidden_keys(), held.dead.new_zeros(m)])
            turn, held.next = turns[held.next], held.next + m
            if held.position is not None:
                position = torch.arange(held.next - m, held.next, device=held.position.device)
                held.position = torch.cat([held.position, position])
                dead = self.dead(dead, position, held.position)
            hidden = layer(hidden, turn, held, dead, look)
            if look is not None:
                self._rerank(l + 1, look, cache, pruner)
        return self.norm(hidden[0])

    @staticmethod
    def _rerank(l, look, cache, pruner):
        """Choose the keys that layers l.. may read again, from the newest token's attention over the whole cache."""
        tokens = replace(cache.tokens, layer=l, rows=look.rows, attn=look.attn[0])
        dead = tokens.reduced(pruner.reduce(tokens)).dead
        for held in cache.layers[l:]:
            held.dead = dead


def with_last(r, tokens):
    """The reduction; of a prompt that ends with an image it always keeps the last token, as the last, beside what it keeps anyway.

    That token predicts the next one: without it the logits would be those of a token before it. Methods that act before the
    decoder need no such care: what they leave is the image that the decoder reads, and its last token predicts.
    """
    last = tokens.n - 1
    if tokens.visual[last] < len(tokens.hidden) - 1:
        return r
    own = r.keep == last
    if not own.any():
        keep = torch.cat([r.keep, r.keep.new_tensor([last])])
        merge = None if r.merge is None else torch.cat([r.merge, F.one_hot(keep[-1:], tokens.n).to(r.merge)])
        return replace(r, keep=keep, merge=merge, rule=None, rules=())
    # what stands in its place goes to the end
    order = torch.cat([(~own).nonzero().squeeze(1), own.nonzero().squeeze(1)])
    keep, merge, rule = (x if x is None else x[order] for x in (r.keep, r.merge, r.rule))
    return replace(r, keep=keep, merge=merge, rule=rule)


def plan(pruner, layers):
    """The layers before which, and in which, the method acts; UserError where the model has no such layer."""
    if not pruner:
        return (), ()
    cuts, masks = pruner.reduce_at(layers), pruner.mask_at(layers)
    for l in cuts:
        if not 0 < l < layers:
            raise UserError(f"{type(pruner).__name__} reduces before layer {l}, and this model has {layers} layers: choose a layer above 0 "
                            f"and below {layers}")
    return cuts, masks


def _look(tokens, pruner, l, before_cut, masked):
    """What to observe in layer l."""
    wants = pruner.needs & set(LOOKS) if before_cut else frozenset()
    if not masked and not wants:
        return None
    here = replace(tokens, layer=l)
    mask = (lambda query, key, causal: pruner.mask(here, query[0], key[0], causal)) if masked else None
    return Look(tokens.query_rows(pruner.rows) if wants & {"attn", "logits"} else None, mask, wants, pruner.across_heads)


def _seen(look):
    """What the method wanted to see of the layer, as fields of Tokens."""
    wants = look.wants if look else ()
    return dict(rows=look and look.rows, **{name: getattr(look, name)[0] if name in wants else None for name in LOOKS})
