"""InternVL 2, 2.5 and 3: InternViT of 300M or 6B, pixel shuffle, projector; the rest is LLaVA's.

    picture -> tiles of 448 pixels, and all of it once more as a thumbnail -> InternViT: 32 x 32 patches a tile
            -> pixel shuffle: 16 x 16 visual tokens of four patches each -> projector -> [embed] -> decoder [decoder]

At the vision site a method is given the visual tokens after pixel shuffle, since that needs the whole grid. The class
token looks at patches, of which a visual token has four, so that methods which read its attention do not run here.
Their readings without a class token do: the attention that a visual token receives is the sum over its patches.
"""

from dataclasses import replace
from math import isqrt

import torch
from torch import nn

from minivlm.attention import attention
from minivlm.clip import MLP
from minivlm.llama import RMSNorm
from minivlm.llava import Llava
from minivlm.parts.activations import ACTIVATIONS
from minivlm.parts.sequence import places_on_tiles, tower_tokens
from minivlm.parts.smaller import resized_positions
from pruning.base import LayerView, Tokens, UserError

RATES_PATCHES = "and InternVL's rates patches, of which pixel shuffle joins four to a visual token"
NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": RMSNorm}                # of InternViT-300M and of InternViT-6B


class Embeddings(nn.Module):
    """Patches by a strided convolution, the class token before them, learned positions."""

    def __init__(self, c):
        super().__init__()
        width = c.hidden_size
        side = c.patch_size
        patches = c.grid_side ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, patches + 1, width))
        projection = nn.Conv2d(3, width, side, side)
        self.patch_embeddings = nn.ModuleDict({"projection": projection})

    def forward(self, pixels):
        """(tiles, 3, size, size) -> (tiles, 1+P, C)"""
        patches = self.patch_embeddings["projection"](pixels)                      # (tiles, C, rows, columns)
        patches = patches.flatten(2).transpose(1, 2)                               # (tiles, P, C)
        cls = self.cls_token.expand(len(pixels), -1, -1)                           # (tiles, 1, C)
        hidden = torch.cat([cls, patches], dim=1)                                  # (tiles, 1+P, C)
        return hidden + resized_positions(self.position_embeddings[0], hidden.shape[1])


class NormedLinear(nn.Linear):
    """A linear map and an RMSNorm of its output, all heads together: of InternViT-6B's queries and keys."""

    def __init__(self, width, eps, has_bias):
        super().__init__(width, width, bias=has_bias)
        self.norm = RMSNorm(width, eps)

    def forward(self, x):
        """(.., C) -> (.., C)"""
        return self.norm(super().forward(x))


class Attention(nn.Module):
    """Multi-head attention without a mask."""

    def __init__(self, c):
        super().__init__()
        width = c.hidden_size
        has_bias = c.attention_bias
        self.num_heads = c.num_attention_heads
        if c.use_qk_norm:
            self.q_proj = NormedLinear(width, c.layer_norm_eps, has_bias)
            self.k_proj = NormedLinear(width, c.layer_norm_eps, has_bias)
        else:
            self.q_proj = nn.Linear(width, width, bias=has_bias)
            self.k_proj = nn.Linear(width, width, bias=has_bias)
        self.v_proj = nn.Linear(width, width, bias=has_bias)
        self.projection_layer = nn.Linear(width, width)

    def heads(self, x):
        """(.., T, C) -> (.., H, T, Dh)"""
        heads = x.unflatten(-1, (self.num_heads, -1))                              # (.., T, H, Dh)
        return heads.transpose(-2, -3)

    def forward(self, x):
        """(tiles, T, C) -> (tiles, T, C)"""
        query = self.heads(self.q_proj(x))
        key = self.heads(self.k_proj(x))
        value = self.heads(self.v_proj(x))
        out = attention(query, key, value, causal=False)                           # (tiles, H, T, Dh)
        out = out.transpose(1, 2).flatten(2)                                       # (tiles, T, C)
        return self.projection_layer(out)


class Layer(nn.Module):
    """x + lambda_1 * attention(norm x), then x + lambda_2 * mlp(norm x): each channel of a branch has its own scale."""

    def __init__(self, c):
        super().__init__()
        self.attention = Attention(c)
        self.mlp = MLP(c)
        norm = NORMS[c.norm_type]
        self.layernorm_before = norm(c.hidden_size, c.layer_norm_eps)
        self.layernorm_after = norm(c.hidden_size, c.layer_norm_eps)
        self.lambda_1 = nn.Parameter(torch.ones(c.hidden_size))
        self.lambda_2 = nn.Parameter(torch.ones(c.hidden_size))

    # CLIP's names, by which views read a layer
    self_attn = property(lambda self: self.attention)
    layer_norm1 = property(lambda self: self.layernorm_before)

    def forward(self, x):
        """(tiles, T, C) -> (tiles, T, C)"""
        attended = self.attention(self.layernorm_before(x))
        x = x + self.lambda_1 * attended
        return x + self.lambda_2 * self.mlp(self.layernorm_after(x))


class InternViT(nn.Module):
    """Pixels to hidden states; no norm before the first layer and none after the last."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embeddings = Embeddings(c)
        layers = [Layer(c) for _ in range(c.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)

    def forward(self, pixels, depth):
        """(tiles, 3, size, size) -> hidden_states[0 .. depth], (tiles, 1+P, C) each."""
        pixels = pixels.to(self.embeddings.cls_token)
        states = [self.embeddings(pixels)]
        for layer in self.layers[:depth]:
            states.append(layer(states[-1]))
        return states


class Projector(nn.Module):
    """linear_2(act(linear_1(norm x))): from the width of four patches to that of the decoder."""

    def __init__(self, c):
        super().__init__()
        width = c.vision.hidden_size * c.join ** 2
        text_width = c.text.hidden_size
        self.layer_norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, text_width)
        self.linear_2 = nn.Linear(text_width, text_width)
        self.act = ACTIVATIONS[c.projector_hidden_act]

    def forward(self, x):
        """(.., 4C) -> (.., D)"""
        x = self.linear_1(self.layer_norm(x))
        return self.linear_2(self.act(x))


class JoinedView(LayerView):
    """A block of InternViT as visual tokens see it, each of which is a square of join x join patches.

    A token receives the attention that its patches receive together. Its key is its patches' keys, one after the
    other, as pixel shuffle joins their features.
    """

    def __init__(self, view, tiles, join):
        self.view = view               # of the patches
        self.tiles = tiles
        self.join = join

    def joined(self, x):
        """Numbers of patches (tiles * P, C) -> of visual tokens (n, join^2 * C)"""
        on_tiles = x.unflatten(0, (self.tiles, -1))                                # (tiles, P, C)
        return pixel_shuffle(on_tiles, self.join).flatten(0, 1)

    def received(self):
        received = self.view.received()                                            # (tiles * P,)
        return self.joined(received[:, None]).sum(dim=1)

    def key(self):
        key = self.view.key()[:, self.view.tokens.visual]                          # (H, tiles * P, Dh)
        return torch.stack([self.joined(head) for head in key])

    def cls_attention(self):
        raise UserError(f"the method needs a class token, {RATES_PATCHES}: use its reading without one "
                        "(python run.py methods --readings)")

    def block(self, l):
        return JoinedView(self.view.block(l), self.tiles, self.join)

    def __repr__(self):
        return f"JoinedView({self.view!r})"


class InternVL(Llava):
    """The whole model. `weights.load` makes one from a checkpoint folder and adds tokenizer, processor and eos."""

    tower = InternViT
    projector = Projector
    lacks = {"cls": RATES_PATCHES}

    def encode(self, pixels, pruner=None, side=None):
        """The Tokens of one image after pixel shuffle, (n, 4C), with a view of the last block."""
        depth = self.config.vision.num_hidden_layers
        states = self.vision_tower(pixels, depth)
        tiles, rows, _ = states[-1].shape
        first = int(self.config.vision.has_class_token)    # the row of the first patch
        joined = pixel_shuffle(states[-1][:, first:], self.config.join)            # (tiles, n / tiles, 4C)
        joined = joined.flatten(0, 1)                                              # (n, 4C)
        tokens = Tokens.start(joined, torch.arange(len(joined)), self.visual_grid(tiles, side=side), layer=depth)
        patch_grid = places_on_tiles(tiles, isqrt(rows - first))                   # (tiles * P, 3)
        patches = tower_tokens(self.vision_tower, states, states[-1], patch_grid)
        before = JoinedView(patches.before, tiles, self.config.join)
        return replace(tokens, before=before, here=patches.here)

    def visual_grid(self, tiles, pruner=None, side=None):
        """(n, 3) places of all visual tokens of so many tiles, row and column on the shuffled grid."""
        return places_on_tiles(tiles, side or self.config.grid_side)


def pixel_shuffle(x, join=2):
    """(tiles, P, C) -> (tiles, P / 4, 4C): squares of 2 x 2 patches to one row each, the grid of squares row by row.

    Within a row of the result: the upper left patch, the upper right, the lower left, the lower right.
    """
    side = round(x.shape[1] ** 0.5)
    squares = side // join
    x = x.unflatten(1, (squares, join, squares, join))                             # (tiles, row, 2, column, 2, C)
    x = x.transpose(2, 3)                                                          # (tiles, row, column, 2, 2, C)
    return x.flatten(3).flatten(1, 2)
