"""A benchmark as a picture: the prefill's time against the image tokens kept, and the line that counted FLOPs predict.

And what it shares with other pictures of the kind: axes, a legend, dots.
"""

from PIL import Image, ImageDraw, ImageFont

from minivlm.lab.compare.sheet import BLACK, GREY, LARGE, SMALL, words
from minivlm.lab.speed.verdict import predicted

WIDTH = 960                                        # pixels of the page, and of what is around the axes
HEIGHT = 640
LEFT = 90
RIGHT = 260
TOP = 70
BOTTOM = 70
COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (120, 94, 60))


def plot(table):
    """x: image tokens entering a layer on average; y: ms of prefill and method. A dot is measured, a line predicted."""
    rows = [row for row in table["rows"] if "flops" in row]
    unpruned = rows[0]
    times = [_times(row, unpruned) for row in rows]
    title = f"{table['shape']}, {table['dtype']}, {table['device']}: prefill with the method's own time"
    page = titled(title)
    most = max(max(pair) for pair in times)
    place = axes(page, fifths(max(row["average"] for row in rows)), fifths(1.1 * most), "ms")
    points = {}                                        # {method: (tokens, measured, predicted) of each budget}
    for row, (measured, expected) in zip(rows, times):
        name = row["method"].split()[0]
        points.setdefault(name, []).append((row["average"], measured, expected))
    start = points.pop("unpruned")
    for i, (name, own) in enumerate(points.items()):
        _method(page, place, name, sorted(start + own), COLORS[i % len(COLORS)], i)
    tokens, measured, _ = start[0]
    dot(page, place(tokens, measured), BLACK)
    note(page, "black: unpruned; dot: measured; line: what the counted FLOPs predict")
    return page


def _times(row, unpruned):
    """Milliseconds measured, and predicted from the unpruned ones."""
    measured = row["median"]["prefill"] + row["median"]["method"]
    return measured * 1e3, unpruned["median"]["prefill"] * 1e3 / predicted(row, unpruned)


def _method(page, place, name, points, color, entry):
    """The line and the dots of one method, and its line of the legend."""
    line = [place(tokens, expected) for tokens, _, expected in points]
    ImageDraw.Draw(page).line(line, color, 2)
    for tokens, measured, _ in points:
        dot(page, place(tokens, measured), color)
    legend(page, entry, name, color)


def titled(title, entries=0):
    """A white page with a title, high enough for so many lines of legend."""
    height = max(HEIGHT, TOP + 30 * entries + BOTTOM + 90)
    page = Image.new("RGB", (WIDTH, height), "white")
    page.paste(words(title, WIDTH - LEFT, LARGE), (LEFT, 20))
    return page


def fifths(most):
    """Six marks from 0 to `most`."""
    return [most * i / 5 for i in range(6)]


def axes(page, across, up, unit):
    """Axes from the first to the last of their marks; the function that places a point."""
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=SMALL)
    right = WIDTH - RIGHT
    bottom = page.height - BOTTOM

    def place(x, y):
        return LEFT + (right - LEFT) * _share(x, across), bottom - (bottom - TOP) * _share(y, up)

    pen.line([(LEFT, TOP), (LEFT, bottom), (right, bottom)], GREY)
    for x in across:
        left, _ = place(x, up[0])
        pen.text((left, bottom + 8), f"{x:.0f}", BLACK, font, anchor="ma")
    for y in up:
        _, top = place(across[0], y)
        number = f"{y:,.0f}" if up[-1] > 20 else f"{y:.2g}"
        pen.text((LEFT - 8, top), number, BLACK, font, anchor="rm")
    middle = (LEFT + right) / 2
    pen.text((middle, page.height - 30), "image tokens entering a layer, on average", BLACK, font, anchor="ma")
    pen.text((LEFT, TOP - 10), unit, BLACK, font, anchor="rs")
    return place


def _share(value, marks):
    """Where a value is between the first and the last mark, 0 to 1."""
    return (value - marks[0]) / (marks[-1] - marks[0])


def legend(page, entry, name, color, is_hollow=False):
    """Line number `entry` of the legend."""
    top = TOP + 30 * entry
    left = WIDTH - RIGHT
    dot(page, (left + 30, top + 10), color, is_hollow)
    page.paste(words(name, RIGHT - 60), (left + 45, top))


def note(page, text):
    """What the signs mean, in grey, below the legend."""
    page.paste(words(text, RIGHT - 30, SMALL, GREY), (WIDTH - RIGHT + 20, page.height - BOTTOM - 60))


def dot(page, center, color, is_hollow=False):
    """A dot of radius 5."""
    x, y = center
    box = [x - 5, y - 5, x + 5, y + 5]
    ImageDraw.Draw(page).ellipse(box, "white" if is_hollow else color, color, 2)
