"""Where the patches of one image lie on a panel: the photograph scaled, crop and padding undone; light, tint, outlines.

A panel of an image of tiles has the photograph twice: with the patches of the base tile and with those of the map; of
InternVL, with the patches of all tiles and with those of the thumbnail.
"""

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from minivlm.lab.draw.grid import Grid, joined

GAP = 12                               # pixels between the photographs of a panel
DARK = 0.3                             # share of its light that a dark patch keeps
TINT = 0.7                             # share of the colour in a coloured patch
SMALLEST = 4                           # pixels: a line around a smaller patch would hide it
ON_TILES = "{} on the base tile, {} on the map"
ON_JOINED_TILES = "{} on the tiles, {} on the thumbnail"


class View:
    """One image of a prompt on a panel. `photo` is the panel before anything is marked on it.

    What the model did not look at is pale and hatched; padding, which it did look at, is grey. All patches of a grid
    have the same whole number of pixels. A very long picture is cut to one square on either side of what the model saw.
    """

    def __init__(self, picture, box, trace, image=0):
        """box: of one grid; of an image of tiles the boxes of the base tile and of all tiles, or (InternVL) of each
        tile: as the processor gives them."""
        several = len(trace.images) > 1
        self.name = f"image {image + 1}, " if several else ""
        self.tokens = trace.images[image]                  # a range of original indices
        own = slice(self.tokens.start, self.tokens.stop)
        self.cells = trace.grid[own]                       # (N, 3)
        padding = trace.padding[image] if trace.padding else None
        boxes = [box]
        self.counted = ON_TILES
        if padding is not None:
            boxes = box
        elif isinstance(box[0], tuple):
            self.cells, boxes = joined(self.cells, box)
            self.counted = ON_JOINED_TILES
            padding = (0, 0)
        tile, _, _ = self.cells.T                          # (N,)
        has_one_tile = len(tile.unique()) == 1
        assert padding is not None or has_one_tile, "the box tells where one tile lies"
        # a grid for the first box, and for the second if there are patches: a very long picture may have no map
        whole, *of_map = boxes
        first = Grid(picture, whole, self.cells, tile[0])
        self.grids = [first]
        for box in of_map:
            grid = Grid(picture, box, self.cells, tile[0] + 1, padding)
            if grid.rows:
                self.grids.append(grid)
        self._lay_out()

    def _lay_out(self):
        """Set the grids next to each other: photo, and what the model looked at in white."""
        widths = [grid.photo.width for grid in self.grids]
        heights = [grid.photo.height for grid in self.grids]
        gaps = GAP * (len(self.grids) - 1)
        size = (sum(widths) + gaps, max(heights))
        self.photo = Image.new("RGB", size, "white")
        self.seen = Image.new("L", size, 0)
        left = 0
        for grid, width in zip(self.grids, widths):
            self.photo.paste(grid.photo, (left, 0))
            grid.move(left)
            self.seen.paste(255, grid.square)
            left += width + GAP

    def has(self, index):
        """(m,) original indices -> (m,) bool: which of them are of this image."""
        first = self.tokens.start
        end = self.tokens.stop
        return (index >= first) & (index < end)

    def own(self, index):
        """The original indices that are of this image, counted from its first token."""
        return index[self.has(index)] - self.tokens.start

    def off_grid(self, own):
        """How many of these tokens are on no patch: a class token, a line break."""
        _, row, _ = self.cells[own].T
        return int((row < 0).sum())

    def per_grid(self, own):
        """How many of these tokens are on the patches of each grid."""
        cells = self.cells[own]
        return [len(grid.of(cells)) for grid in self.grids]

    def lit(self, own):
        """The panel, dark except for the patches of these tokens and for what the model did not look at."""
        dark = self.photo.point(lambda light: round(DARK * light))
        is_lit = self._mask(own)
        is_dark = ImageChops.subtract(self.seen, is_lit)
        return Image.composite(dark, self.photo, is_dark)

    def tinted(self, panel, own, color):
        """`panel` with the patches of these tokens (m,) in colours (m, 3), through which the photograph shows in
        grey."""
        grey = self.photo.convert("L").convert("RGB")
        color = self._spread(own, color)
        tint = Image.blend(grey, color, TINT)
        mask = self._mask(own)
        return Image.composite(tint, panel, mask)

    def outlined(self, panel, own, color, inside=0, outside=1):
        """`panel` with a line around the patches of these tokens, so many pixels inside and outside; neighbours share
        it."""
        # room for the part of the line that is outside the panel
        room = outside + 1
        mask = self._mask(own, SMALLEST)
        mask = ImageOps.expand(mask, room)
        # the patches grown, without the patches shrunk
        grow = ImageFilter.MaxFilter(2 * outside + 1)
        inner = mask
        if inside:                                         # NOTE: a filter of size 1 crashes Pillow 12
            shrink = ImageFilter.MinFilter(2 * inside + 1)
            inner = mask.filter(shrink)
        ring = ImageChops.subtract(mask.filter(grow), inner)
        ring = ImageOps.crop(ring, room)
        line = Image.new("RGB", panel.size, color)
        return Image.composite(line, panel, ring)

    def boxed(self, panel, own, color, width=2):
        """`panel` with a line inside the edge of each patch of these tokens."""
        panel = panel.copy()
        pen = ImageDraw.Draw(panel)
        cells = self.cells[own]
        for grid in self.grids:
            patches = grid.patches(cells) if min(grid.patch) >= SMALLEST else []
            for patch in patches:
                pen.rectangle(patch, outline=color, width=width)
        return panel

    def _mask(self, own, smallest=0):
        white = torch.full((len(own),), 255)
        return self._spread(own, white, smallest)

    def _spread(self, own, value, smallest=0):
        """Picture of the panel: on the patches of these tokens (m,) their value (m,) or colour (m, 3), else black.

        Grids whose patches have fewer pixels a side than `smallest` are left black.
        """
        mode = "RGB" if value.ndim == 2 else "L"
        page = Image.new(mode, self.photo.size)
        cells = self.cells[own]
        for grid in self.grids:
            if min(grid.patch) >= smallest:
                patches = grid.spread(cells, value)
                page.paste(patches, grid.square)
        return page
