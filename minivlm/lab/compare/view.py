"""Where the patches of one image lie on a panel: the photograph scaled, crop and padding undone; light, tint, outlines.

Of an image of tiles the panel has the photograph twice: under the base tile's patches and, beside it, under the map's; of
InternVL's under all tiles and, beside it, under the thumbnail's visual tokens.
"""

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

SIDE = 480                                         # pixels: the longer side of the photograph, about
GAP = 12                                           # between the base tile and the map
DARK = 0.3                                         # share of its light that a dark patch keeps
TINT = 0.7                                         # share of the colour in a coloured patch
PADDING = (150, 150, 150)


class View:
    """One image of a prompt on a panel. `photo` is the panel before anything is marked on it.

    What the model did not look at is pale and hatched; padding, which it did look at, is grey. All patches of a grid have the
    same whole number of pixels. Of a very long picture no more is shown than one square on either side of what the model saw.
    """

    def __init__(self, picture, box, trace, image=0):
        """box: of one grid, or of an image of tiles the boxes of the base tile and of all tiles, or (InternVL) of each tile, as
        the processor gives them."""
        self.name = f"image {image + 1}, " if len(trace.images) > 1 else ""
        self.tokens = trace.images[image]                                          # a range of original indices
        self.cells = trace.grid[self.tokens.start:self.tokens.stop]               # (N, 3)
        padding = trace.padding[image] if trace.padding else None
        boxes, self.counted = [box] if padding is None else list(box), "{} on the base tile, {} on the map"
        if padding is None and isinstance(box[0], tuple):
            self.cells, boxes, self.counted = *joined(self.cells, box), "{} on the tiles, {} on the thumbnail"
            padding = (0, 0)
        assert padding is not None or len(self.cells[:, 0].unique()) == 1, "the box tells where one tile lies"
        self.grids = [Grid(picture, box, self.cells, self.cells[0, 0] + i, padding if i else None) for i, box in enumerate(boxes)]
        self.grids = [grid for grid in self.grids if grid.rows or grid is self.grids[0]]           # a long picture may have no map
        self.photo = Image.new("RGB", (sum(g.photo.width + GAP for g in self.grids) - GAP, max(g.photo.height for g in self.grids)),
                               "white")
        self.seen, left = Image.new("L", self.photo.size), 0                       # white: what the model looked at
        for grid in self.grids:
            self.photo.paste(grid.photo, (left, 0))
            grid.square = grid.square[0] + left, grid.square[1], grid.square[2] + left, grid.square[3]
            self.seen.paste(255, grid.square)
            left += grid.photo.width + GAP

    def has(self, index):
        """(m,) original indices -> which of them are of this image."""
        return (index >= self.tokens.start) & (index < self.tokens.stop)

    def own(self, index):
        """The original indices that are of this image, counted from its first token."""
        return index[self.has(index)] - self.tokens.start

    def off_grid(self, own):
        """How many of these tokens are on no patch: a class token, a line break."""
        return int((self.cells[own, 1] < 0).sum())

    def per_grid(self, own):
        """How many of these tokens are on the patches of each grid."""
        return [len(grid.of(self.cells[own])) for grid in self.grids]

    def lit(self, own):
        """The panel, dark but for the patches of these tokens and for what the model did not look at."""
        dark = self.photo.point(lambda light: round(DARK * light))
        return Image.composite(dark, self.photo, ImageChops.subtract(self.seen, self._mask(own)))

    def tinted(self, panel, own, color):
        """`panel` with the patches of these tokens (m,) in colours (m, 3), through which the photograph shows in grey."""
        grey = self.photo.convert("L").convert("RGB")
        return Image.composite(Image.blend(grey, self._spread(own, color), TINT), panel, self._mask(own))

    def outlined(self, panel, own, color, inside=0, outside=1):
        """`panel` with a line around these tokens' patches, so many pixels inside and outside it; neighbours share it."""
        mask = self._mask(own, smallest=4)                                         # else the line would hide the patches
        mask = ImageOps.expand(mask, outside + 1)
        inner = mask.filter(ImageFilter.MinFilter(2 * inside + 1)) if inside else mask     # of size 1 it crashes Pillow 12
        ring = ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(2 * outside + 1)), inner)
        return Image.composite(Image.new("RGB", panel.size, color), panel, ImageOps.crop(ring, outside + 1))

    def boxed(self, panel, own, color, width=2):
        """`panel` with a line inside the edge of each of these tokens' patches."""
        panel = panel.copy()
        for grid in self.grids:
            wide, high = grid.patch
            for _, row, column in self.cells[own][grid.of(self.cells[own])].tolist() if min(grid.patch) >= 4 else ():
                left, top = grid.square[0] + wide * column, grid.square[1] + high * row
                ImageDraw.Draw(panel).rectangle((left, top, left + wide - 1, top + high - 1), outline=color, width=width)
        return panel

    def _mask(self, own, smallest=0):
        return self._spread(own, torch.full((len(own),), 255), smallest)

    def _spread(self, own, value, smallest=0):
        """Picture of the panel: on the patches of these tokens (m,) their value (m,) or colour (m, 3), else black.

        Grids whose patches have fewer pixels a side than `smallest` are left black.
        """
        page = Image.new("RGB" if value.ndim == 2 else "L", self.photo.size)
        for grid in self.grids:
            if min(grid.patch) >= smallest:
                page.paste(grid.spread(self.cells[own], value), grid.square)
        return page


class Grid:
    """One grid of patches: its photograph, its `square` there, and the width and height of a `patch`, all in pixels."""

    def __init__(self, picture, box, cells, tile, padding=None):
        """box: in the picture's pixels; padding: rows above and columns left in the box, and as many on the other sides, that
        the grid is without."""
        self.tile = int(tile)
        on = cells[self.of(cells), 1:]                                             # (m, 2)
        self.rows, self.columns = (on.amax(dim=0) + 1).tolist() if len(on) else (0, 0)
        if padding is not None and self.rows:
            box = _inner(box, *padding, self.rows, self.columns)
        self._lay_out(picture, max(1, self.rows), max(1, self.columns), *box)

    def of(self, cells):
        """(k,) indices of the cells (m, 3) that are on a patch of this grid."""
        return ((cells[:, 0] == self.tile) & (cells[:, 1] >= 0)).nonzero().squeeze(1)

    def spread(self, cells, value):
        """Picture of the square: on the patches of these cells (m, 3) their value (m,) or colour (m, 3), else black."""
        on = self.of(cells)
        grid = torch.zeros(max(1, self.rows), max(1, self.columns), *value.shape[1:], dtype=torch.uint8)
        grid[cells[on, 1], cells[on, 2]] = value[on].to(torch.uint8)
        size = self.square[2] - self.square[0], self.square[3] - self.square[1]
        return Image.fromarray(grid.numpy()).resize(size, Image.Resampling.NEAREST)

    def _lay_out(self, picture, rows, columns, left, top, right, bottom):
        """Set photo, square and patch, from the box in picture's pixels."""
        wide, high = right - left, bottom - top
        shown = (max(min(0, left), left - wide), max(min(0, top), top - high),
                 min(max(picture.width, right), right + wide), min(max(picture.height, bottom), bottom + high))
        scale = SIDE / max(shown[2] - shown[0], shown[3] - shown[1])
        self.patch = [max(1, int(scale * side / n + 1e-6)) for side, n in ((wide, columns), (high, rows))]
        side = columns * self.patch[0], rows * self.patch[1]
        x, y = (lambda x: round((x - left) * side[0] / wide)), (lambda y: round((y - top) * side[1] / high))
        corner = x(shown[0]), y(shown[1])
        panel = Image.new("RGB", (x(shown[2]) - corner[0], y(shown[3]) - corner[1]), PADDING)
        part = (max(0, shown[0]), max(0, shown[1]), min(picture.width, shown[2]), min(picture.height, shown[3]))
        size = max(1, x(part[2]) - x(part[0])), max(1, y(part[3]) - y(part[1]))
        smooth = Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.LANCZOS      # few pixels are shown as they are
        panel.paste(picture.resize(size, smooth, box=part), (x(part[0]) - corner[0], y(part[1]) - corner[1]))
        self.square = (-corner[0], -corner[1], side[0] - corner[0], side[1] - corner[1])
        self.photo = _hatched(panel)
        self.photo.paste(panel.crop(self.square), self.square)


def joined(cells, boxes):
    """Cells (n, 3) of tiles that cover a picture row by row, and of its thumbnail after them, if there is one -> the same
    as cells of two grids, 0 and 1, and the boxes of these grids."""
    whole = 0, 0, max(box[2] for box in boxes), max(box[3] for box in boxes)
    columns, small = len({box[0] for box in boxes[:len(boxes) - (boxes[-1] == whole)]}), boxes[-1] == whole
    (row, column), tile = cells[:, 1:].T, cells[:, 0] - cells[0, 0]
    high, wide = int(row.max()) + 1, int(column.max()) + 1
    on_map = torch.stack([0 * tile, row + tile // columns * high, column + tile % columns * wide], dim=1)
    last = small & (tile == len(boxes) - 1)
    return torch.where(last[:, None], torch.stack([0 * tile + 1, row, column], dim=1), on_map), [whole] * (1 + small)


def _inner(box, above, left, rows, columns):
    """The part of a box that rows x columns patches fill, with so many more above and below, left and right."""
    wide, high = (box[2] - box[0]) / (columns + 2 * left), (box[3] - box[1]) / (rows + 2 * above)
    return box[0] + left * wide, box[1] + above * high, box[2] - left * wide, box[3] - above * high


def _hatched(panel):
    """Paler, under thin diagonal lines."""
    share = Image.new("L", panel.size, 100)
    draw = ImageDraw.Draw(share)
    for x in range(-panel.height, panel.width, 8):
        draw.line((x, panel.height, x + panel.height, 0), 30)
    return Image.composite(panel, Image.new("RGB", panel.size, "white"), share)
