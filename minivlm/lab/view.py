"""Where the patches of one image lie on a panel: the photograph scaled, crop and padding undone; light, tint, outlines."""

import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

SIDE = 480                                         # pixels: the longer side of a panel, about
DARK = 0.3                                         # share of its light that a dark patch keeps
TINT = 0.7                                         # share of the colour in a coloured patch
PADDING = (150, 150, 150)


class View:
    """One image of a prompt on a panel. `photo` is the panel before anything is marked on it.

    What the model did not look at is pale and hatched; padding, which it did look at, is grey. All patches have the same
    whole number of pixels. Of a very long picture no more is shown than one square on either side of what the model saw.
    """

    def __init__(self, picture, box, trace, image=0):
        self.name = f"image {image + 1}, " if len(trace.images) > 1 else ""
        self.tokens = trace.images[image]                                          # a range of original indices
        cells = trace.cells[self.tokens.start:self.tokens.stop]                    # (N, 3)
        assert len(cells[:, 0].unique()) == 1, "the box tells where one tile lies"
        self.cells = cells[:, 1:]                                                  # (N, 2)
        self.rows, self.columns = (self.cells.max(dim=0).values + 1).clamp(min=1).tolist()
        self._lay_out(picture, *box)

    def has(self, index):
        """(m,) original indices -> which of them are of this image."""
        return (index >= self.tokens.start) & (index < self.tokens.stop)

    def own(self, index):
        """The original indices that are of this image, counted from its first token."""
        return index[self.has(index)] - self.tokens.start

    def off_grid(self, own):
        """How many of these tokens are on no patch: a class token, a line break."""
        return int((self.cells[own, 0] < 0).sum())

    def lit(self, own):
        """The panel, dark but for the patches of these tokens and for what the model did not look at."""
        seen = self.photo.crop(self.square)
        return self._filled(Image.composite(seen, seen.point(lambda light: round(DARK * light)), self._mask(own)))

    def tinted(self, panel, own, color):
        """`panel` with the patches of these tokens (m,) in colours (m, 3), through which the photograph shows in grey."""
        grey = self.photo.crop(self.square).convert("L").convert("RGB")
        tint = Image.blend(grey, self._spread(own, color), TINT)
        return self._filled(Image.composite(tint, panel.crop(self.square), self._mask(own)))

    def outlined(self, panel, own, color, inside=0, outside=1):
        """`panel` with a line around these tokens' patches, so many pixels inside and outside it; neighbours share it."""
        if min(self.patch) < 4:                                                    # the line would hide the patches
            return panel
        mask = Image.new("L", panel.size)
        mask.paste(self._mask(own), self.square)
        mask = ImageOps.expand(mask, outside + 1)
        inner = mask.filter(ImageFilter.MinFilter(2 * inside + 1)) if inside else mask     # of size 1 it crashes Pillow 12
        ring = ImageChops.subtract(mask.filter(ImageFilter.MaxFilter(2 * outside + 1)), inner)
        return Image.composite(Image.new("RGB", panel.size, color), panel, ImageOps.crop(ring, outside + 1))

    def boxed(self, panel, own, color, width=2):
        """`panel` with a line inside the edge of each of these tokens' patches."""
        panel, (wide, high) = panel.copy(), self.patch
        for row, column in self.cells[own].tolist() if min(self.patch) >= 4 else ():
            left, top = self.square[0] + wide * column, self.square[1] + high * row
            ImageDraw.Draw(panel).rectangle((left, top, left + wide - 1, top + high - 1), outline=color, width=width)
        return panel

    def _lay_out(self, picture, left, top, right, bottom):
        """Set photo, square (its rectangle in the panel) and patch (width, height), from the box in picture's pixels."""
        wide, high = right - left, bottom - top
        shown = (max(min(0, left), left - wide), max(min(0, top), top - high),
                 min(max(picture.width, right), right + wide), min(max(picture.height, bottom), bottom + high))
        scale = SIDE / max(shown[2] - shown[0], shown[3] - shown[1])
        self.patch = [max(1, int(scale * side / n + 1e-6)) for side, n in ((wide, self.columns), (high, self.rows))]
        side = self.columns * self.patch[0], self.rows * self.patch[1]
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

    def _filled(self, seen):
        panel = self.photo.copy()
        panel.paste(seen, self.square)
        return panel

    def _mask(self, own):
        return self._spread(own, torch.full((len(own),), 255))

    def _spread(self, own, value):
        """Picture of the square: on the patches of these tokens (m,) their value (m,) or colour (m, 3), else black."""
        row, column = self.cells[own].T
        on = row >= 0                                                              # a class token or line break has no patch
        grid = torch.zeros(self.rows, self.columns, *value.shape[1:], dtype=torch.uint8)
        grid[row[on], column[on]] = value[on].to(torch.uint8)
        size = self.square[2] - self.square[0], self.square[3] - self.square[1]
        return Image.fromarray(grid.numpy()).resize(size, Image.Resampling.NEAREST)


def _hatched(panel):
    """Paler, under thin diagonal lines."""
    share = Image.new("L", panel.size, 100)
    draw = ImageDraw.Draw(share)
    for x in range(-panel.height, panel.width, 8):
        draw.line((x, panel.height, x + panel.height, 0), 30)
    return Image.composite(panel, Image.new("RGB", panel.size, "white"), share)
