"""LLaVA-NeXT: LLaVA on pictures of any resolution, each cut into Tiles (tiles.py); the network is LLaVA's.

The patches of an image's Tiles make two grids, the base tile's and the map's (pruning/mosaic.py). Each row of the map
ends with a newline token, `image_newline`. A method of the vision site is given all tiles, also what shows nothing of
the picture; no newline is put between the tokens that it keeps.
"""

import torch
from torch import nn

from minivlm.families.tiles import Tiles
from minivlm.llava import Llava
from minivlm.parts.sequence import Part, counted_from
from pruning.apply import reordered
from pruning.mosaic import Mosaic


class LlavaNext(Llava):
    """LLaVA that takes Tiles for an image, and plain pixels too."""

    def __init__(self, config):
        super().__init__(config)
        self.image_newline = nn.Parameter(torch.zeros(config.text.hidden_size))

    def visual_tokens(self, image):
        """How many visual tokens an image becomes, unpruned."""
        if not isinstance(image, Tiles):
            return super().visual_tokens(image)
        patches, _ = self.mosaic(image).lines()
        return len(patches)

    def mosaic(self, image):
        """How the patches of an image's Tiles lie."""
        c = self.config
        side = c.vision.image_size // c.vision.patch_size
        digits = None if c.original else 7                 # of transformers' rounding
        return Mosaic(side, image.grid, image.size, digits)

    def image_part(self, image, pruner, trace):
        """The Part of one image. The base tile and the map of Tiles count as two tiles."""
        if not isinstance(image, Tiles):
            return super().image_part(image, pruner, trace)
        if pruner and pruner.at("vision"):
            return self.pruned_part(image, pruner, trace)
        return self.whole_part(image, trace)

    def pruned_part(self, image, pruner, trace):
        """What a method of the vision site keeps of an image's Tiles, in its output order, without newlines."""
        mosaic = self.mosaic(image)
        first_tile = trace.tiles
        first = trace.N

        def arrange(method, tokens, r):
            order = method.output_order(tokens.grid[r.keep], mosaic)               # (k',)
            return reordered(r, order)

        pixels = image.pixels.to(self.device)
        features, grid, source = self.features(pixels, pruner, trace, arrange)
        hidden = self.multi_modal_projector(features)                              # (k, D)
        whole = mosaic.on_map(self.places(len(image), pruner))                 # (N, 3)
        trace.image(counted_from(first_tile, whole), (0, 0))
        grid = counted_from(first_tile, mosaic.on_map(grid))                       # (k, 3)
        return Part(hidden, grid, source + first)

    def whole_part(self, image, trace):
        """What shows something of the picture, with a newline after each row of the map."""
        mosaic = self.mosaic(image)
        first = trace.N
        features, _, _ = self.features(image.pixels.to(self.device))
        patch, grid = mosaic.lines()                                               # (n,), (n, 3)
        is_patch = patch >= 0
        shown = features[patch[is_patch]]
        hidden = self.image_newline.repeat(len(patch), 1)                          # (n, D)
        hidden[is_patch] = self.multi_modal_projector(shown)
        grid = counted_from(trace.tiles, grid)
        trace.image(grid, mosaic.padding)
        source = torch.arange(first, trace.N, device=self.device)
        return Part(hidden, grid.to(self.device), source)
