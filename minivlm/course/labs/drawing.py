"""Numbers with their intervals as a picture: as a list with names, or as lines on a chart."""

from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

from PIL import Image, ImageDraw, ImageOps

from minivlm.lab.draw.chart import COLORS, Chart
from minivlm.lab.draw.sheet import BLACK, GREY, LARGE, MARGIN, SMALL, font, stack, words

WIDTH = 860                            # pixels of a list
NAMES = 330                            # of these for the names
VALUES = 120                           # and for the values
ROW = 26
RADIUS = 5


# --- a list -----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Bar:
    """A number with a name."""

    name: str
    value: float
    interval: tuple
    group: object = None               # those of a group have one colour


def in_percent(name, row, group=None):
    """The Bar of {"share" or "difference", "interval"}."""
    value = row["share"] if "share" in row else row["difference"]
    low, high = row["interval"]
    return Bar(
        name,
        100 * value,
        (100 * low, 100 * high),
        group,
    )


def intervals(title, bars, note, unit="%"):
    """The page of these Bars, on an axis that has zero, below a title and above a note."""
    groups = list(dict.fromkeys(bar.group for bar in bars))
    axis = ends_of(bars)
    height = ROW * len(bars)
    picture = Image.new("RGB", (WIDTH, height), "white")
    pen = ImageDraw.Draw(picture)
    zero = pixel(0, axis)
    pen.line([zero, 0, zero, height], GREY)
    for i, bar in enumerate(bars):
        middle = ROW * i + ROW // 2
        number = groups.index(bar.group)
        color = COLORS[number % len(COLORS)]
        draw_bar(pen, bar, axis, middle, color, unit)
    heading = words(title, WIDTH, LARGE)
    below = words(note, WIDTH, color=GREY)
    page = stack([heading, picture, below], MARGIN)
    return ImageOps.expand(page, MARGIN, "white")


def ends_of(bars):
    """The least and the largest value that is drawn, zero among them."""
    ends = [0]
    for bar in bars:
        ends += bar.interval
    return min(ends), max(ends)


def draw_bar(pen, bar, axis, y, color, unit):
    """The name, the interval as a line, the value as a dot and in figures."""
    low, high = bar.interval
    left = pixel(low, axis)
    right = pixel(high, axis)
    x = pixel(bar.value, axis)
    pen.text((0, y), bar.name, BLACK, font(SMALL), anchor="lm")
    pen.line([left, y, right, y], color, 3)
    box = [
        x - RADIUS,
        y - RADIUS,
        x + RADIUS,
        y + RADIUS,
    ]
    pen.ellipse(box, color)
    pen.text((WIDTH, y), f"{bar.value:.1f} {unit}", BLACK, font(SMALL), anchor="rm")


def pixel(value, axis):
    """The place of a value between the names and the values."""
    low, high = axis
    length = (high - low) or 1
    share = (value - low) / length
    width = WIDTH - NAMES - VALUES
    return NAMES + share * width


# --- lines ------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Dot:
    """A number of a line."""

    x: float
    y: float
    interval: tuple = ()               # not drawn if it has no end: nothing is known
    hollow: bool = False

    @property
    def ends(self):
        """Of the interval, if both are numbers."""
        return self.interval if all(map(isfinite, self.interval)) else ()


def lines(title, series, across, unit, below, note=""):
    """A chart of {name: [Dot]}. across: the marks below; unit, below: what is up, and across."""
    chart = Chart(title, across, marks(highest(series) or 1), unit, len(series), below)
    for i, (name, dots) in enumerate(series.items()):
        color = COLORS[i % len(COLORS)]
        places = [chart.place(dot.x, dot.y) for dot in dots]
        chart.line(places, color)
        for dot, place in zip(dots, places):
            bar = [chart.place(dot.x, end) for end in dot.ends]
            chart.line(bar, color, 1)
            chart.dot(place, color, dot.hollow)
        is_hollow = all(dot.hollow for dot in dots)
        chart.legend(i, name, color, is_hollow)
    chart.note(note)
    return chart.page


def marks(most):
    """Round numbers from 0 to at least `most`: marks(9) -> [0, 2, 4, 6, 8, 10]"""
    scale = 10 ** floor(log10(most / 5))
    step = next(scale * n for n in (1, 2, 5, 10) if scale * n >= most / 5)
    return [step * i for i in range(ceil(most / step) + 1)]


def highest(series):
    """The largest number of {name: [Dot]}, ends of intervals among them."""
    tops = []
    for dots in series.values():
        for dot in dots:
            tops += [dot.y, *dot.ends]
    return max(tops)
