"""A benchmark as a picture: the prefill's time against the image tokens kept, and the line that counted FLOPs predict."""

from PIL import Image, ImageDraw, ImageFont

from minivlm.lab.sheet import BLACK, GREY, LARGE, SMALL, words
from minivlm.lab.verdict import predicted

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 640, 90, 260, 70, 70
COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (120, 94, 60))


def plot(told):
    """x: image tokens entering a layer on average; y: milliseconds of prefill and method. A dot is measured, a line predicted."""
    first, rows = told["rows"][0], [row for row in told["rows"] if "flops" in row]
    points = [(row["method"].split()[0], row["average"], _times(row, first)) for row in rows]
    page = Image.new("RGB", (WIDTH, HEIGHT), "white")
    place = _axes(page, max(x for _, x, *_ in points), max(max(times) for *_, times in points))
    page.paste(words(f"{told['shape']}, {told['dtype']}, {told['device']}: prefill with the method's own time", WIDTH - LEFT, LARGE), (LEFT, 20))
    for i, name in enumerate(dict.fromkeys(name for name, *_ in points if name != "unpruned")):
        _method(page, place, name, [p for p in points if p[0] in (name, "unpruned")], COLORS[i % len(COLORS)], TOP + 30 * i)
    _dot(page, place(points[0][1], points[0][2][0]), BLACK)
    page.paste(words("black: unpruned; dot: measured; line: what the counted FLOPs predict", RIGHT - 30, SMALL, GREY), (WIDTH - RIGHT + 20, HEIGHT - BOTTOM - 60))
    return page


def _times(row, first):
    """Milliseconds measured, and predicted from the unpruned ones."""
    measured = row["median"]["prefill"] + row["median"]["method"]
    return measured * 1e3, first["median"]["prefill"] * 1e3 / predicted(row, first)


def _axes(page, widest, highest):
    """Axes with five marks each; the function that places a point."""
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=SMALL)
    right, bottom, high = WIDTH - RIGHT, HEIGHT - BOTTOM, 1.1 * highest
    place = lambda x, y: (LEFT + (right - LEFT) * x / widest, bottom - (bottom - TOP) * y / high)
    pen.line([(LEFT, TOP), (LEFT, bottom), (right, bottom)], GREY)
    for i in range(6):
        x, y = widest * i / 5, high * i / 5
        pen.text((place(x, 0)[0], bottom + 8), f"{x:.0f}", BLACK, font, anchor="ma")
        pen.text((LEFT - 8, place(0, y)[1]), f"{y:,.0f}" if high > 20 else f"{y:.2g}", BLACK, font, anchor="rm")
    pen.text(((LEFT + right) / 2, HEIGHT - 30), "image tokens entering a layer, on average", BLACK, font, anchor="ma")
    pen.text((LEFT, TOP - 10), "ms", BLACK, font, anchor="rs")
    return place


def _method(page, place, name, points, color, top):
    pen, points = ImageDraw.Draw(page), sorted(points, key=lambda p: p[1])
    pen.line([place(x, expected) for _, x, (_, expected) in points], color, 2)
    for _, x, (measured, _) in points:
        _dot(page, place(x, measured), color)
    _dot(page, (WIDTH - RIGHT + 30, top + 10), color)
    page.paste(words(name, RIGHT - 60), (WIDTH - RIGHT + 45, top))


def _dot(page, center, color):
    ImageDraw.Draw(page).ellipse([center[0] - 5, center[1] - 5, center[0] + 5, center[1] + 5], color)
