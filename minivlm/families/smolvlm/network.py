"""SmolVLM and SmolVLM2: SigLIP's tower with the norm at its end, pixel shuffle by 4, one linear map, a LLaMA decoder.

    picture -> 4 tiles along its longer side, and all of it as the last (image.py) -> SigLIP: 32 x 32 patches
            -> pixel shuffle: 8 x 8 visual tokens of a tile -> projector -> text and tiles in turn -> decoder

The text between the tiles says where each lies. It is not visual: no method is given it, and none drops it.
"""

import torch
from torch import nn

from minivlm.families.internvl import InternVL
from minivlm.families.siglip import SiglipVision
from minivlm.families.smolvlm.image import SplitPicture
from minivlm.parts.sequence import Part


class NormedSiglip(SiglipVision):
    """SigLIP whose last hidden states are those after the norm at its end."""

    def forward(self, pixels, depth):
        """(tiles, 3, size, size) -> hidden_states[0 .. depth], (tiles, P, C) each."""
        states = super().forward(pixels, depth)
        if depth == len(self.layers):
            states[-1] = self.post_layernorm(states[-1])
        return states


class Projector(nn.Module):
    """One linear map: from the width of a square of patches to that of the decoder."""

    def __init__(self, c):
        super().__init__()
        width = c.vision.hidden_size * c.join ** 2
        self.linear_1 = nn.Linear(width, c.text.hidden_size, bias=False)

    def forward(self, x):
        """(.., 16C) -> (.., D)"""
        return self.linear_1(x)


class SmolVLM(InternVL):
    """The whole model. An image is a SplitPicture, or plain pixels: tiles without text."""

    tower = NormedSiglip
    projector = Projector
    lacks = {"cls": "and SigLIP's tower has none"}

    def image_part(self, image, pruner, trace):
        """The Part of one image: the visual tokens that are left of each tile, and all of the text around them."""
        if not isinstance(image, SplitPicture):
            return super().image_part(image, pruner, trace)
        first_tile = trace.tiles
        tokens = super().image_part(image.pixels, pruner, trace)
        per_tile = self.config.grid_side ** 2
        hidden = []
        is_visual = []
        position = []                                      # used if a method keeps those of the unpruned prompt
        words_before = 0
        for tile, ids in enumerate(image.words):           # after the last words comes no tile
            of_tile = tokens.grid[:, 0] == first_tile + tile
            ids = torch.tensor(ids, device=self.device)
            hidden += [self.language_model.embed_tokens(ids), tokens.hidden[of_tile]]
            is_visual += [torch.zeros(len(ids)), torch.ones(int(of_tile.sum()))]
            if tokens.position is not None:
                start = tile * per_tile + words_before
                position.append(torch.arange(start, start + len(ids), device=self.device))
                position.append(tokens.position[of_tile] + words_before + len(ids))
            words_before += len(ids)
        part = Part(torch.cat(hidden), tokens.grid, tokens.source, visual=torch.cat(is_visual).bool())
        if tokens.position is None:
            return part
        return part._replace(position=torch.cat(position), length=tokens.length + words_before)
