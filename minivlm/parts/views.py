"""What a method may look at: one layer of the decoder, or one block of the vision tower, on the tokens that enter it.

Everything is computed from the layer's own weights and input when a method asks for it; the layers know nothing of it.
"""

from dataclasses import replace

import torch

from minivlm import kernels
from minivlm.attention import causal_mask, rotate
from pruning.base import NOT_YET, LayerView, NoView, UserError
from pruning.views import mean_of


class DecoderView(LayerView):
    """One decoder layer on the tokens that enter it: what it computes, for the rows that a method asks for."""

    def __init__(self, layer, tokens, rope, mask, cache=None, between=None, out=None, norm=None):
        self.layer = layer
        self.tokens = replace(tokens, before=NOT_YET, here=NOT_YET)        # or it would hold all views before it
        self.rope = rope
        self.given_mask = mask         # (T, T) or None: causal
        self.cache = cache             # of this layer: once it has run, it holds the keys
        self.between = between         # once it has run: the streams of Layer.streams, (1, T, D) each
        self.out = out
        self.norm = norm               # the decoder's last one

    def query(self, rows="all", rope=True):
        rows = self.tokens.rows(rows)
        attn = self.layer.self_attn
        x = self.layer.input_layernorm(self.tokens.hidden[rows])                   # (R, D)
        query = attn.heads(attn.q_proj(x))                                         # (H, R, Dh)
        if not rope:
            return query
        cos, sin = self.rope
        return rotate(query, (cos[rows], sin[rows]))

    def key(self, rope=True):
        has_run = self.cache is not None and self.cache.key is not None
        if rope and has_run:
            return self.cache.key[0]
        key = self.layer.self_attn.heads(self.projected_key())                     # (Hk, T, Dh)
        return rotate(key, self.rope) if rope else key

    def projected_key(self, norm=True):
        x = self.tokens.hidden
        if norm:
            x = self.layer.input_layernorm(x)
        return self.layer.self_attn.k_proj(x)

    def final_normed(self):
        if self.norm is None:
            return super().final_normed()
        return self.norm(self.tokens.hidden)

    def modules(self):
        if self.out is None:
            return super().modules()
        entered = self.tokens.hidden                                               # (T, D)
        between = self.between[0]                                                  # (T, D)
        out = self.out[0]                                                          # (T, D)
        attention = self.layer.input_layernorm(entered), between - entered
        mlp = self.layer.post_attention_layernorm(between), out - between
        return attention, mlp

    def mask(self, rows=None):
        T = len(self.tokens.hidden)
        if rows is None:
            rows = torch.arange(T, device=self.tokens.hidden.device)
        rows = self.tokens.rows(rows)
        if self.given_mask is None:
            return causal_mask(rows, T)
        return self.given_mask[rows]

    def rotated(self, x):
        return rotate(x, self.rope)

    def summed_logits(self, rows="all"):
        rows = self.tokens.rows(rows)
        if not kernels.sums_are_cheaper(rows, self.rope):
            return super().summed_logits(rows)
        x = self.layer.input_layernorm(self.tokens.hidden)                         # (T, D)
        return kernels.summed_logits(self.layer.self_attn, x, rows, self.rope)

    def __repr__(self):
        return f"DecoderView(layer {self.tokens.layer}, {len(self.tokens.hidden)} tokens)"


class StepView(DecoderView):
    """The same while decoding: the newest token is the only row, the keys are the whole cache."""

    def __init__(self, layer, hidden, rope, mask, cache):
        self.layer = layer
        self.cache = cache
        self.norm = None
        self.newest = hidden[-1:]                                                  # (1, D)
        self.rope = tuple(part[-1:] for part in rope)
        self.given_mask = hidden.new_zeros(1, cache.length) if mask is None else mask[-1:]

    def query(self, rows="last"):
        attn = self.layer.self_attn
        x = self.layer.input_layernorm(self.newest)                                # (1, D)
        query = attn.heads(attn.q_proj(x))                                         # (H, 1, Dh)
        return rotate(query, self.rope)

    def key(self):
        return self.cache.key[0, :, :self.cache.length]

    def mask(self, rows=None):
        return self.given_mask

    def summed_logits(self, rows="last"):
        return LayerView.summed_logits(self, rows)

    def __repr__(self):
        return f"StepView({self.cache.length} tokens held)"


def tower_view(tower, l, states, tokens):
    """Block l of the vision tower, which reads states[l], as a method of the vision site may look at it."""
    blocks = len(tower.layers)
    if not 0 <= l < blocks:
        return NoView(f"the vision tower has {blocks} blocks, and this would be number {l}: use another method")
    if l >= len(states):
        return NoView(f"the vision tower ran up to the input of block {len(states) - 1}, and this would be block {l}")
    return TowerView(tower, l, states, tokens)


class TowerView(LayerView):
    """One block of the tower. Its rows are those of all tiles, tile after tile, each with its class token first."""

    def __init__(self, tower, l, states, tokens):
        self.tower = tower
        self.l = l
        self.states = states           # what enters block 0, 1, .., (tiles, 1+P, C) each
        self.tokens = tokens

    def normed(self, rows):
        """(R, C) what the block's attention reads at these rows, counted over all tiles"""
        hidden = self.states[self.l].flatten(0, 1)                                 # (T, C)
        return self.tower.layers[self.l].layer_norm1(hidden[rows])

    def query(self, rows="all"):
        attn = self.tower.layers[self.l].self_attn
        query = attn.q_proj(self.normed(self.tokens.rows(rows)))                   # (R, C)
        return attn.heads(query)

    def key(self):
        attn = self.tower.layers[self.l].self_attn
        key = attn.k_proj(self.normed(self.tokens.rows("all")))                    # (T, C)
        return attn.heads(key)

    def cls_rows(self):
        if not self.tower.config.has_class_token:
            raise UserError("the method needs a class token, and this vision tower has none: use its reading without "
                            "one (python run.py methods --readings)")
        tiles, rows_per_tile, _ = self.states[self.l].shape
        return torch.arange(tiles, device=self.tokens.visual.device) * rows_per_tile

    def cls_attention(self):
        # each tile's class token is the only query of its tile; softmax over that tile
        query = self.query(self.cls_rows())                                        # (H, tiles, Dh)
        _, tiles, head_width = query.shape
        key = self.key().unflatten(1, (tiles, -1))                                 # (H, tiles, 1+P, Dh)
        logits = key @ query[:, :, :, None]                                        # (H, tiles, 1+P, 1)
        logits = logits / head_width ** 0.5
        attention = logits.float().softmax(dim=2).flatten(1)                       # (H, T)
        return attention[:, self.tokens.visual]

    def received(self):
        tiles = len(self.states[self.l])
        query = self.query().unflatten(1, (tiles, -1))                             # (H, tiles, 1+P, Dh)
        key = self.key().unflatten(1, (tiles, -1))                                 # (H, tiles, 1+P, Dh)
        first = int(self.tower.config.has_class_token)     # the row of the first patch
        by_head = (received_on_tiles(q, k, first) for q, k in zip(query, key))
        received = mean_of(by_head).flatten()                                      # (T,)
        return received[self.tokens.visual]

    def block(self, l):
        return tower_view(self.tower, l, self.states, self.tokens)

    def __repr__(self):
        return f"TowerView(block {self.l}, {len(self.states[self.l])} tiles)"


def received_on_tiles(query, key, first=1):
    """One head's queries and keys (tiles, 1+P, Dh) -> the attention that each row receives from its tile's patches, on
    average. (tiles, 1+P). first: the row of the first patch, 0 without a class token."""
    logits = query[:, first:] @ key.mT / key.shape[-1] ** 0.5                          # (tiles, P, 1+P)
    return logits.float().softmax(dim=-1).mean(dim=1)
