"""SigLIP's vision transformer in place of CLIP's: no class token, no norm before the first layer, a bias in the
convolution. llava-interleave-qwen reads the output of its last layer, all patches, before the norm at its end.

Methods that read the class token's attention have a reading without one: the attention that a patch receives.
"""

from torch import nn

from minivlm.clip import Layer
from minivlm.llava import Llava
from minivlm.parts.smaller import resized_positions


class Embeddings(nn.Module):
    """Patches by a strided convolution, learned positions."""

    def __init__(self, c):
        super().__init__()
        side = c.patch_size
        self.patch_embedding = nn.Conv2d(c.num_channels, c.hidden_size, side, side)
        self.position_embedding = nn.Embedding(c.grid_side ** 2, c.hidden_size)

    def forward(self, pixels):
        """(tiles, 3, size, size) -> (tiles, P, C). Pixels beyond the last whole patch are not read: 6 of 384."""
        patches = self.patch_embedding(pixels)                                     # (tiles, C, rows, columns)
        hidden = patches.flatten(2).transpose(1, 2)                                # (tiles, P, C)
        position = self.position_embedding.weight                                  # (P, C)
        return hidden + resized_positions(position, hidden.shape[1])


class SiglipVision(nn.Module):
    """Pixels to hidden states."""

    def __init__(self, c):
        super().__init__()
        self.config = c
        self.embeddings = Embeddings(c)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)    # in the checkpoints, not used here

    def forward(self, pixels, depth):
        """(tiles, 3, size, size) -> hidden_states[0 .. depth], (tiles, P, C) each."""
        pixels = pixels.to(self.embeddings.position_embedding.weight)
        states = [self.embeddings(pixels)]
        for layer in self.layers[:depth]:
            states.append(layer(states[-1]))
        return states


class SiglipLlava(Llava):
    """LLaVA with that tower."""

    tower = SiglipVision
    lacks = {"cls": "and SigLIP's tower has none"}
