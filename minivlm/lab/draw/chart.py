"""A chart: axes with marks, dots and lines at their places, and a legend on the right."""

from PIL import Image, ImageDraw

from minivlm.lab.draw.sheet import BLACK, GREY, LARGE, SMALL, font, words

WIDTH = 960                            # pixels
HEIGHT = 640                           # more, if the legend needs it
LEFT = 90                              # around the axes
RIGHT = 260
TOP = 70
BOTTOM = 70
ENTRY = 30                             # a line of the legend
TOKENS = "image tokens entering a layer, on average"
RADIUS = 5                             # of a dot
COLORS = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (120, 94, 60),
)


class Chart:
    """A white page with a title and axes, high enough for so many lines of legend."""

    def __init__(self, title, across, up, unit, entries=0, below=TOKENS):
        """across, up: the marks of both axes, from the first to the last; unit, below: what these are."""
        needed = TOP + ENTRY * entries + BOTTOM + 90
        height = max(HEIGHT, needed)
        self.page = Image.new("RGB", (WIDTH, height), "white")
        self.pen = ImageDraw.Draw(self.page)
        self.across = across
        self.up = up
        self.right = WIDTH - RIGHT
        self.bottom = self.page.height - BOTTOM
        heading = words(title, WIDTH - LEFT, LARGE)
        self.page.paste(heading, (LEFT, 20))
        self._draw_axes(unit, below)

    def place(self, x, y):
        """The pixels (x, y) of a point."""
        width = self.right - LEFT
        height = self.bottom - TOP
        right = width * share(x, self.across)
        up = height * share(y, self.up)
        return LEFT + right, self.bottom - up

    def line(self, points, color, width=2):
        """A line through points in pixels."""
        self.pen.line(points, color, width)

    def dot(self, center, color, hollow=False):
        """A dot around a point in pixels."""
        x, y = center
        box = [
            x - RADIUS,
            y - RADIUS,
            x + RADIUS,
            y + RADIUS,
        ]
        fill = "white" if hollow else color
        self.pen.ellipse(box, fill, color, 2)

    def band(self, low, high, color):
        """A band across the chart between two values of y, two pixels high at least."""
        left = LEFT + 1
        _, top = self.place(0, high)
        _, bottom = self.place(0, low)
        box = [left, top, self.right, bottom + 1]
        self.pen.rectangle(box, color)

    def legend(self, entry, name, color, hollow=False):
        """Line number `entry` of the legend."""
        top = TOP + ENTRY * entry
        center = (self.right + 30, top + 10)
        self.dot(center, color, hollow)
        text = words(name, RIGHT - 60)
        self.page.paste(text, (self.right + 45, top))

    def note(self, text):
        """What the signs mean, in grey, below the legend."""
        note = words(text, RIGHT - 30, SMALL, GREY)
        place = (self.right + 20, self.bottom - 60)
        self.page.paste(note, place)

    def _draw_axes(self, unit, axis):
        start = (LEFT, TOP)
        corner = (LEFT, self.bottom)
        end = (self.right, self.bottom)
        self.line([start, corner, end], GREY, 1)
        # marks below
        below = self.bottom + 8
        for x in self.across:
            left, _ = self.place(x, self.up[0])
            self._write(f"{x:.0f}", left, below, "ma")
        # marks on the left
        most = self.up[-1]
        for y in self.up:
            _, top = self.place(self.across[0], y)
            text = f"{y:,.0f}" if most > 20 else f"{y:.2g}"
            self._write(text, LEFT - 8, top, "rm")
        # what the axes are
        middle = (LEFT + self.right) / 2
        below = self.page.height - 30
        self._write(axis, middle, below, "ma")
        self._write(unit, LEFT, TOP - 10, "rs")

    def _write(self, text, x, y, anchor):
        """Anchor: which point of the text is at (x, y), as Pillow names it."""
        self.pen.text((x, y), text, BLACK, font(SMALL), anchor=anchor)


def share(value, marks):
    """How far along the marks, from 0 at the first to 1 at the last."""
    first = marks[0]
    last = marks[-1]
    return (value - first) / (last - first)


def fifths(most):
    """Six marks from 0 to `most`."""
    return [most * i / 5 for i in range(6)]
