"""LLaVA-NeXT: LLaVA on pictures of any resolution, each cut into Tiles (llava_next_image.py); the network is LLaVA's.

The patches of an image's Tiles lie on two grids, the base tile's and that of the other tiles (pruning/tile_grid.py).
Each row of the second ends with a newline token, `image_newline`. A method of the image or vision site is given all
tiles, padding too; no newline is put between the tokens that it keeps.
"""

import torch
from torch import nn

from minivlm.families.llava_next_image import Tiles
from minivlm.llava import Llava
from minivlm.parts.merging import tower_output
from minivlm.parts.sequence import Part, counted_from
from pruning.apply import acting, reordered
from pruning.base import UserError
from pruning.tile_grid import TileGrid


class LlavaNext(Llava):
    """LLaVA that takes Tiles for an image, and plain pixels too."""

    def __init__(self, config):
        super().__init__(config)
        self.image_newline = nn.Parameter(torch.zeros(config.text.hidden_size))

    def visual_tokens(self, image):
        """How many visual tokens an image becomes, unpruned."""
        if not isinstance(image, Tiles):
            return super().visual_tokens(image)
        patches, _ = self.tile_grid(image).unpruned()
        return len(patches)

    def tile_grid(self, image):
        """How the patches of an image's Tiles lie."""
        digits = None if self.config.original else 7       # of transformers' rounding
        return TileGrid(self.config.grid_side, image.grid, image.size, digits)

    def image_part(self, image, pruner, trace):
        """The Part of one image. The base tile and the grid of tiles count as two tiles."""
        if not isinstance(image, Tiles):
            return super().image_part(image, pruner, trace)
        method = acting(pruner, "image") or acting(pruner, "vision")
        if method:
            return self.pruned_part(image, method, trace)
        return self.whole_part(image, trace)

    def pruned_part(self, image, method, trace):
        """What a method keeps of an image's Tiles before the projector, in its output order, without newlines."""
        tile_grid = self.tile_grid(image)
        first_tile = trace.tiles
        first = trace.N
        if method.site == "vision" and method.positions == "keep":
            raise UserError(f"{type(method).__name__} may keep patches of the padding, which have no position in the "
                            "unpruned prompt of tiles: use positions=renumber")
        tokens, r = tower_output(self, image.pixels.to(self.device), method)
        whole = tile_grid.on_whole_grid(tokens.grid)                               # (N, 3)
        # put the tokens left in the order in which the prompt has them
        order = method.output_order(tokens.grid[r.keep], tile_grid)                # (k',)
        tokens = self.cut(tokens, reordered(r, order), method.site, trace)
        trace.image(counted_from(first_tile, whole), (0, 0))
        hidden = self.multi_modal_projector(tokens.hidden[tokens.visual])          # (k', D)
        grid = tile_grid.on_whole_grid(tokens.grid)                                # (k', 3)
        return Part(hidden, counted_from(first_tile, grid), tokens.source + first)

    def whole_part(self, image, trace):
        """What shows something of the picture, with a newline after each row of the grid of tiles."""
        tile_grid = self.tile_grid(image)
        features, _, _ = self.features(image.pixels.to(self.device))
        patch, grid = tile_grid.unpruned()                                         # (n,), (n, 3)
        is_patch = patch >= 0
        shown = features[patch[is_patch]]
        hidden = self.image_newline.repeat(len(patch), 1)                          # (n, D)
        hidden[is_patch] = self.multi_modal_projector(shown)
        return self.noted(hidden, grid, tile_grid.padding, trace)

    def noted(self, hidden, grid, padding, trace):
        """The Part of an unpruned image, hidden (n, D) at the places (n, 3), which the trace notes with its padding."""
        first = trace.N
        grid = counted_from(trace.tiles, grid)
        trace.image(grid, padding)
        source = torch.arange(first, trace.N, device=self.device)
        return Part(hidden, grid.to(self.device), source)
