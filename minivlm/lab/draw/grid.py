"""One grid of patches on a panel: the photograph scaled so that a patch has whole pixels, crop and padding undone."""

from typing import NamedTuple

import torch
from PIL import Image, ImageDraw

SIDE = 480                             # pixels: the longer side of the photograph, about
PADDING = (150, 150, 150)
ENLARGED = 3                           # from this scale on the picture's pixels are shown as squares
PALE = 100                             # share, of 255, that the picture keeps where the model did not look
LINE = 30                              # and on the lines of the hatching
BETWEEN = 8                            # pixels between two of these


class Box(NamedTuple):
    """A rectangle, as Pillow takes it."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self):
        """From left to right."""
        return self.right - self.left

    @property
    def height(self):
        """From top to bottom."""
        return self.bottom - self.top

    @property
    def size(self):
        """(width, height)"""
        return self.width, self.height

    def moved(self, x, y=0):
        """The same, further right by x and further down by y."""
        return self.grown(-x, -y, x, y)

    def grown(self, left, top, right, bottom):
        """With so much more on each side; less, if it is negative."""
        return Box(
            self.left - left,
            self.top - top,
            self.right + right,
            self.bottom + bottom,
        )

    def around(self, other):
        """The smallest box that holds both."""
        left = min(self.left, other.left)
        top = min(self.top, other.top)
        right = max(self.right, other.right)
        bottom = max(self.bottom, other.bottom)
        return Box(left, top, right, bottom)

    def within(self, other):
        """The part of it that is in the other one."""
        left = max(self.left, other.left)
        top = max(self.top, other.top)
        right = min(self.right, other.right)
        bottom = min(self.bottom, other.bottom)
        return Box(left, top, right, bottom)

    def scaled(self, box, pixels):
        """Where it is in pixels if `box` is drawn as `pixels`, whose left upper corner is (0, 0)."""
        def x(place):
            return pixel(place, box.left, pixels.width, box.width)

        def y(place):
            return pixel(place, box.top, pixels.height, box.height)

        return Box(x(self.left), y(self.top), x(self.right), y(self.bottom))


def pixel(place, start, pixels, length):
    """The pixel of a place on an axis, if `length` from `start` on are so many pixels."""
    return round((place - start) * pixels / length)


class Grid:
    """A grid of patches: its photograph, its `square` there, and the width and height of a `patch`, all in pixels."""

    def __init__(self, picture, box, cells, tile, padding=None):
        """box: in the picture's pixels. padding: rows above and columns left in the box, and as many on the other
        sides, that the grid does not have."""
        self.tile = int(tile)
        self.rows = 0
        self.columns = 0
        on_patch = cells[self.of(cells)]                   # (m, 3)
        if len(on_patch):
            _, row, column = on_patch.amax(dim=0).tolist()
            self.rows = row + 1
            self.columns = column + 1
        box = Box(*box)
        if padding is not None and self.rows:
            box = without_padding(box, *padding, self.rows, self.columns)
        self._lay_out(picture, box)

    @property
    def shape(self):
        """(rows, columns), at least one of each."""
        rows = max(1, self.rows)
        columns = max(1, self.columns)
        return rows, columns

    def of(self, cells):
        """(k,) indices of the cells (m, 3) that are on a patch of this grid."""
        tile, row, _ = cells.T
        is_own = (tile == self.tile) & (row >= 0)
        return is_own.nonzero().squeeze(1)

    def patches(self, cells):
        """The box of each patch of these cells (m, 3), its last row and column inside."""
        width, height = self.patch
        x = self.square.left
        y = self.square.top
        first = Box(x, y, x + width - 1, y + height - 1)
        on = self.of(cells)
        boxes = []
        for _, row, column in cells[on].tolist():
            box = first.moved(width * column, height * row)
            boxes.append(box)
        return boxes

    def spread(self, cells, value):
        """Picture of the square: on the patches of these cells (m, 3) their value (m,) or colour (m, 3), else black."""
        on = self.of(cells)
        _, rows, columns = cells[on].T
        value = value[on].to(torch.uint8)
        per_patch = value.shape[1:]
        grid = value.new_zeros(*self.shape, *per_patch)
        grid[rows, columns] = value
        page = Image.fromarray(grid.numpy())
        return page.resize(self.square.size, Image.Resampling.NEAREST)

    def move(self, pixels):
        """Note that the photograph now begins so many pixels further right."""
        self.square = self.square.moved(pixels)

    def _lay_out(self, picture, box):
        """Set photo, square and patch, from the box in picture's pixels."""
        # what the panel shows: the picture, at most the box's width and height on either side
        whole = Box(0, 0, *picture.size)
        wide, high = box.size
        most = box.grown(wide, high, wide, high)
        shown = box.around(whole).within(most)
        # patches of whole pixels
        scale = SIDE / max(shown.size)
        rows, columns = self.shape
        width = whole_pixels(scale * wide / columns)
        height = whole_pixels(scale * high / rows)
        self.patch = (width, height)
        square = Box(0, 0, width * columns, height * rows)
        # the picture on padding
        page = shown.scaled(box, square)
        part = shown.within(whole)
        place = part.scaled(box, square)
        part_width = max(1, place.width)
        part_height = max(1, place.height)
        smooth = Image.Resampling.LANCZOS
        if scale >= ENLARGED:
            smooth = Image.Resampling.NEAREST
        scaled = picture.resize((part_width, part_height), smooth, part)
        panel = Image.new("RGB", page.size, PADDING)
        place = place.moved(-page.left, -page.top)
        panel.paste(scaled, (place.left, place.top))
        # pale outside the square
        self.square = square.moved(-page.left, -page.top)
        self.photo = hatched(panel)
        inside = panel.crop(self.square)
        self.photo.paste(inside, self.square)


def whole_pixels(length):
    """The whole pixels of a patch's side, at least 1."""
    return max(1, int(length + 1e-6))


def without_padding(box, above, left, rows, columns):
    """The part of a box that rows x columns patches fill, with so many more above and below, left and right."""
    all_columns = columns + 2 * left
    all_rows = rows + 2 * above
    width = box.width / all_columns
    height = box.height / all_rows
    x = left * width
    y = above * height
    return box.grown(-x, -y, -x, -y)


def joined(cells, boxes):
    """InternVL's tiles, row by row, and its thumbnail after them, if there is one, as one grid or two.

    Cells (n, 3) and the box of each tile -> cells (n, 3) of grid 0, all tiles, and of grid 1, and the box of each grid.
    """
    boxes = [Box(*box) for box in boxes]
    whole = boxes[0]
    for box in boxes:
        whole = whole.around(box)
    has_thumbnail = boxes[-1] == whole
    tiles = boxes[:-1] if has_thumbnail else boxes
    # each tile's patches next to those of its neighbours
    tile, row, column = cells.T                            # (n,) each
    tile = tile - tile[0]
    tiles_in_row = len({box.left for box in tiles})
    tile_row = tile // tiles_in_row
    tile_column = tile % tiles_in_row
    row_on_map = tile_row * (row.max() + 1) + row
    column_on_map = tile_column * (column.max() + 1) + column
    zero = torch.zeros_like(tile)
    on_map = torch.stack([zero, row_on_map, column_on_map], dim=1)                 # (n, 3)
    if not has_thumbnail:
        return on_map, [whole]
    # the thumbnail's are a grid of their own
    on_thumbnail = torch.stack([zero + 1, row, column], dim=1)                     # (n, 3)
    is_thumbnail = tile == len(tiles)
    cells = torch.where(is_thumbnail[:, None], on_thumbnail, on_map)
    return cells, [whole, whole]


def hatched(panel):
    """Paler, under thin diagonal lines."""
    width, height = panel.size
    share = Image.new("L", panel.size, PALE)
    pen = ImageDraw.Draw(share)
    for x in range(-height, width, BETWEEN):
        line = (x, height, x + height, 0)
        pen.line(line, LINE)
    white = Image.new("RGB", panel.size, "white")
    return Image.composite(panel, white, share)
