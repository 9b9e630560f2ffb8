"""The CLIP vision transformer, as far as LLaVA uses it: hidden states before the last layer, no pooling.

The 24 layers of ViT-L/14 see 576 patches and one CLS row. LLaVA reads hidden_states[-2], the input of the last layer.
"""

import torch
import torch.nn.functional as F
from torch import nn

from minivlm.attention import Look, attention
from minivlm.linear import Linear
from pruning.base import UserError

ACTIVATIONS = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


class Embeddings(nn.Module):
    """Patches by a strided convolution, the CLS row before them, learned positions."""

    def __init__(self, c):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(c.hidden_size))
        self.patch_embedding = nn.Conv2d(c.num_channels, c.hidden_size, c.patch_size, c.patch_size, bias=False)
        self.position_embedding = nn.Embedding((c.image_size // c.patch_size) ** 2 + 1, c.hidden_size)

    def forward(self, pixels):
        """(tiles, 3, size, size) -> (tiles, 1+P, C)"""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)          # (tiles, P, C)
        cls = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding.weight


class Attention(nn.Module):
    """Multi-head attention without a mask."""

    def __init__(self, c):
        super().__init__()
        self.heads = c.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(c.hidden_size, c.hidden_size) for _ in range(4))

    def forward(self, x, look=None):
        """(tiles, T, C) -> (tiles, T, C)"""
        query, key, value = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(attention(query, key, value, causal=False, look=look).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """fc2(act(fc1(x)))"""

    def __init__(self, c):
        super().__init__()
        self.fc1, self.fc2 = Linear(c.hidden_size, c.intermediate_size), Linear(c.intermediate_size, c.hidden_size)
        self.act = ACTIVATIONS[c.hidden_act]

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Layer(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)"""

    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), MLP(c)
        self.layer_norm1 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.layer_norm2 = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)

    def forward(self, x, look=None):
        """(tiles, T, C) -> (tiles, T, C)"""
        x = x + self.self_attn(self.layer_norm1(x), look)
        return x + self.mlp(self.layer_norm2(x))


class ClipVision(nn.Module):
    """Pixels to hidden states. hidden_states[0] is what enters layer 0; hidden_states[b + 1] is the output of layer b."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embeddings = Embeddings(c)
        self.pre_layrnorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)   # in every file, read by nobody here

    def forward(self, pixels, wanted, needs=frozenset()):
        """(tiles, 3, size, size) -> hidden states of the indices `wanted`, a list of (tiles, 1+P, C), and what was seen.

        Layers above the highest wanted index b never run. `needs` of a method, observed on the way to it: "attn" (CLS
        rows of layer b-1), "first_attn" (of layer 0), "query" and "key" (of layer b), "past_key" (of layer b-1).
        """
        b, seen, states = max(wanted), {}, [self.pre_layrnorm(self.embeddings(pixels.to(self.pre_layrnorm.weight)))]
        for l in range(b):
            name = "attn" if l == b - 1 else "first_attn" if l == 0 else ""
            looks = name in needs or l == 0 == b - 1 and "first_attn" in needs
            look = Look(torch.tensor([0], device=pixels.device)) if looks else None                # the CLS row
            states.append(self.layers[l](states[-1], look))
            if look is not None:
                seen.update({name: look.attn} | ({"first_attn": look.attn} if l == 0 else {}))     # (tiles, H, 1, 1+P)
        return [states[i] for i in wanted], seen | self._project(states, b, needs)

    def _project(self, states, b, needs):
        """Full-width queries and keys, (tiles, 1+P, C), of layer b, and keys of layer b - 1."""
        seen = {}
        for name, layer, projection in (("query", b, "q_proj"), ("key", b, "k_proj"), ("past_key", b - 1, "k_proj")):
            if name in needs:
                if not 0 <= layer < len(self.layers):
                    raise UserError(f"the method reads block {layer} of the vision tower, where this model has "
                                    f"{len(self.layers)} and takes its features after block {b - 1}: use another method")
                block = self.layers[layer]
                seen[name] = getattr(block.self_attn, projection)(block.layer_norm1(states[layer]))
        return seen
