"""A benchmark as a picture: the prefill's time against the image tokens kept, and what the counted FLOPs predict."""

from dataclasses import dataclass

from minivlm.lab.draw.chart import COLORS, Chart, fifths
from minivlm.lab.draw.sheet import BLACK
from minivlm.lab.speed.verdict import predicted


@dataclass(frozen=True)
class Point:
    """A method at one budget, times in milliseconds."""

    name: str
    tokens: float                      # entering a layer, on average
    measured: float
    expected: float


def plot(result):
    """x: image tokens entering a layer on average; y: milliseconds of prefill and method. A dot is measured, a line
    predicted."""
    rows = result["rows"]
    points = [point(row, rows[0]) for row in rows if "flops" in row]
    unpruned, *others = points
    # the axes
    what = (result["shape"], result["dtype"], result["device"])
    title = f"{', '.join(what)}: prefill with the method's own time"
    tokens = [p.tokens for p in points]
    times = [max(p.measured, p.expected) for p in points]
    chart = Chart(title, fifths(max(tokens)), fifths(1.1 * max(times)), "ms")
    # the methods, each from the unpruned model's point on
    names = dict.fromkeys(p.name for p in others)
    for i, name in enumerate(names):
        color = COLORS[i % len(COLORS)]
        own = [p for p in others if p.name == name]
        draw_method(chart, [unpruned, *own], color)
        chart.legend(i, name, color)
    place = chart.place(unpruned.tokens, unpruned.measured)
    chart.dot(place, BLACK)
    chart.note("black: unpruned; dot: measured; line: what the counted FLOPs predict")
    return chart.page


def point(row, first):
    """What was measured, and what is predicted from the unpruned time."""
    name, *_ = row["method"].split()
    seconds = row["median"]
    unpruned = first["median"]["prefill"]
    return Point(
        name=name,
        tokens=row["average"],
        measured=(seconds["prefill"] + seconds["method"]) * 1e3,
        expected=unpruned * 1e3 / predicted(row, first),
    )


def draw_method(chart, points, color):
    """The line that is predicted, and the dots that were measured."""
    points = sorted(points, key=lambda p: p.tokens)
    expected = [chart.place(p.tokens, p.expected) for p in points]
    measured = [chart.place(p.tokens, p.measured) for p in points]
    chart.line(expected, color)
    for place in measured:
        chart.dot(place, color)
