"""A benchmark as a picture: the prefill's time against the image tokens kept, and the line that counted FLOPs predict.

And what it shares with other pictures of the kind: axes, a legend, dots.
"""

from PIL import Image, ImageDraw, ImageFont

from minivlm.lab.compare.sheet import BLACK, GREY, LARGE, SMALL, words
from minivlm.lab.speed.verdict import predicted

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 640, 90, 260, 70, 70
COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (120, 94, 60))


def plot(told):
    """x: image tokens entering a layer on average; y: milliseconds of prefill and method. A dot is measured, a line predicted."""
    first, rows = told["rows"][0], [row for row in told["rows"] if "flops" in row]
    points = [(row["method"].split()[0], row["average"], _times(row, first)) for row in rows]
    page = titled(f"{told['shape']}, {told['dtype']}, {told['device']}: prefill with the method's own time")
    place = axes(page, fifths(max(x for _, x, *_ in points)), fifths(1.1 * max(max(times) for *_, times in points)), "ms")
    for i, name in enumerate(dict.fromkeys(name for name, *_ in points if name != "unpruned")):
        _method(page, place, name, [p for p in points if p[0] in (name, "unpruned")], COLORS[i % len(COLORS)], i)
    dot(page, place(points[0][1], points[0][2][0]), BLACK)
    note(page, "black: unpruned; dot: measured; line: what the counted FLOPs predict")
    return page


def _times(row, first):
    """Milliseconds measured, and predicted from the unpruned ones."""
    measured = row["median"]["prefill"] + row["median"]["method"]
    return measured * 1e3, first["median"]["prefill"] * 1e3 / predicted(row, first)


def _method(page, place, name, points, color, entry):
    points = sorted(points, key=lambda p: p[1])
    ImageDraw.Draw(page).line([place(x, expected) for _, x, (_, expected) in points], color, 2)
    for _, x, (measured, _) in points:
        dot(page, place(x, measured), color)
    legend(page, entry, name, color)


def titled(title, entries=0):
    """A white page with a title, high enough for so many lines of legend."""
    page = Image.new("RGB", (WIDTH, max(HEIGHT, TOP + 30 * entries + BOTTOM + 90)), "white")
    page.paste(words(title, WIDTH - LEFT, LARGE), (LEFT, 20))
    return page


def fifths(most):
    """Six marks from 0 to `most`."""
    return [most * i / 5 for i in range(6)]


def axes(page, across, up, unit):
    """Axes from the first to the last of their marks; the function that places a point."""
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=SMALL)
    right, bottom = WIDTH - RIGHT, page.height - BOTTOM
    share = lambda value, marks: (value - marks[0]) / (marks[-1] - marks[0])
    place = lambda x, y: (LEFT + (right - LEFT) * share(x, across), bottom - (bottom - TOP) * share(y, up))
    pen.line([(LEFT, TOP), (LEFT, bottom), (right, bottom)], GREY)
    for x in across:
        pen.text((place(x, up[0])[0], bottom + 8), f"{x:.0f}", BLACK, font, anchor="ma")
    for y in up:
        pen.text((LEFT - 8, place(across[0], y)[1]), f"{y:,.0f}" if up[-1] > 20 else f"{y:.2g}", BLACK, font, anchor="rm")
    pen.text(((LEFT + right) / 2, page.height - 30), "image tokens entering a layer, on average", BLACK, font, anchor="ma")
    pen.text((LEFT, TOP - 10), unit, BLACK, font, anchor="rs")
    return place


def legend(page, entry, name, color, hollow=False):
    """Line number `entry` of the legend."""
    top = TOP + 30 * entry
    dot(page, (WIDTH - RIGHT + 30, top + 10), color, hollow)
    page.paste(words(name, RIGHT - 60), (WIDTH - RIGHT + 45, top))


def note(page, text):
    """What the signs mean, in grey, below the legend."""
    page.paste(words(text, RIGHT - 30, SMALL, GREY), (WIDTH - RIGHT + 20, page.height - BOTTOM - 60))


def dot(page, center, color, hollow=False):
    """A dot of radius 5."""
    x, y = center
    ImageDraw.Draw(page).ellipse([x - 5, y - 5, x + 5, y + 5], "white" if hollow else color, color, 2)
