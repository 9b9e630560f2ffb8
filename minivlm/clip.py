"""The CLIP vision transformer, as far as LLaVA uses it: hidden states before the last layer, no pooling.

ViT-L/14 at 336 pixels has 24 layers, 576 patches and a class token. LLaVA reads hidden_states[-2], the input of the
last layer. Letters: P patches of a tile, C width, H heads, Dh head width, T tokens (1+P).
"""

import torch
from torch import nn

from minivlm.attention import attention
from minivlm.parts.activations import ACTIVATIONS
from minivlm.parts.smaller import resized_positions


class Embeddings(nn.Module):
    """Patches by a strided convolution, the class token before them, learned positions."""

    def __init__(self, c):
        super().__init__()
        width = c.hidden_size
        side = c.patch_size
        patches = c.grid_side ** 2
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(c.num_channels, width, side, side, bias=False)
        self.position_embedding = nn.Embedding(patches + 1, width)

    def forward(self, pixels):
        """(tiles, 3, size, size) -> (tiles, 1+P, C)"""
        patches = self.patch_embedding(pixels)                                     # (tiles, C, rows, columns)
        patches = patches.flatten(2).transpose(1, 2)                               # (tiles, P, C)
        cls = self.class_embedding.expand(len(pixels), 1, -1)                      # (tiles, 1, C)
        hidden = torch.cat([cls, patches], dim=1)                                  # (tiles, 1+P, C)
        position = self.position_embedding.weight                                  # (1+P, C)
        return hidden + resized_positions(position, hidden.shape[1])               # as they are, unless it was resized


class Attention(nn.Module):
    """Multi-head attention of all tokens to all."""

    def __init__(self, c):
        super().__init__()
        width = c.hidden_size
        self.num_heads = c.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def heads(self, x):
        """(.., T, C) -> (.., H, T, Dh)"""
        heads = x.unflatten(-1, (self.num_heads, -1))                              # (.., T, H, Dh)
        return heads.transpose(-2, -3)

    def forward(self, x, mask=None):
        """(tiles, T, C) -> (tiles, T, C). mask: added to the logits, (tiles, 1, 1, T); for parts/merging.py."""
        query = self.heads(self.q_proj(x))
        key = self.heads(self.k_proj(x))
        value = self.heads(self.v_proj(x))
        out = attention(query, key, value, mask, causal=False)                     # (tiles, H, T, Dh)
        out = out.transpose(1, 2).flatten(2)                                       # (tiles, T, C)
        return self.out_proj(out)


class MLP(nn.Module):
    """fc2(act(fc1(x)))"""

    def __init__(self, c):
        super().__init__()
        self.fc1 = nn.Linear(c.hidden_size, c.intermediate_size)
        self.fc2 = nn.Linear(c.intermediate_size, c.hidden_size)
        self.act = ACTIVATIONS[c.hidden_act]

    def forward(self, x):
        x = self.act(self.fc1(x))
        return self.fc2(x)


class Layer(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)"""

    def __init__(self, c):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.layer_norm1 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.layer_norm2 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    def forward(self, x):
        """(tiles, T, C) -> (tiles, T, C)"""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class ClipVision(nn.Module):
    """Pixels to hidden states."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embeddings = Embeddings(c)
        self.pre_layrnorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)     # spelt so in the checkpoints
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)   # in the checkpoints, not used here

    def forward(self, pixels, depth):
        """(tiles, 3, size, size) -> hidden_states[0 .. depth], (tiles, 1+P, C) each. Layers from `depth` on never run.

        hidden_states[0] is what enters layer 0; hidden_states[l + 1] is the output of layer l.
        """
        pixels = pixels.to(self.pre_layrnorm.weight)       # its device and dtype
        states = [self.pre_layrnorm(self.embeddings(pixels))]
        for layer in self.layers[:depth]:
            states.append(layer(states[-1]))
        return states
