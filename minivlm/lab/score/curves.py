"""An evaluation as a picture: accuracy against the image tokens that enter a layer, a line per method."""

from math import floor

from minivlm.lab.draw.chart import COLORS, Chart, fifths
from minivlm.lab.draw.sheet import BLACK
from minivlm.lab.score.contestants import CONTROLS

GREYS = ((120, 120, 120), (175, 175, 175))
PALE = (232, 232, 232)
ASIDE = 4                              # pixels between the dots of two methods at the same place
WIDEST = 40                            # pixels between the first and the last of them


def curves(result):
    """x: image tokens entering a layer on average; y: % of right answers. The bars are intervals, the pale one that of
    no pruning."""
    ran = [row for row in result["contestants"] if "all" in row]
    unpruned, *rows = ran
    methods = dict.fromkeys(row["method"] for row in rows)
    names = sorted(methods, key=is_control)
    count = len(names)
    # the axes, and no pruning behind all else
    task = result["recipe"]["task"]
    shown = "mean score of an answer" if "metric" in result else "right answers"
    title = f"{task}, {result['questions']} questions: {shown}, with 95 % intervals"
    tokens = fifths(unpruned["tokens"])
    chart = Chart(title, tokens, percents(ran), "%", count + 1)
    low, high = interval(unpruned)
    chart.band(low, high, PALE)
    # a line per method
    step = min(ASIDE, WIDEST / max(1, count))
    middle = (count - 1) / 2
    for i, name in enumerate(names):
        color, hollow = style(name, names)
        own = [row for row in rows if row["method"] == name]
        aside = step * (i - middle)
        draw_curve(chart, own, color, hollow, aside)
        chart.legend(i + 1, name, color, hollow)
    # the accuracy of no pruning in front
    exactly = accuracy(unpruned)
    chart.band(exactly, exactly, BLACK)
    chart.legend(0, "no pruning", BLACK)
    chart.note("grey: controls, which need no idea; dots at one place are moved apart")
    return chart.page


def accuracy(row):
    """In percent."""
    return 100 * row["all"]["accuracy"]


def interval(row):
    """Its two ends, in percent."""
    return [100 * end for end in row["all"]["interval"]]


def percents(rows):
    """The marks of the axis: tens, from below the lowest interval to 100."""
    lowest = 100
    for row in rows:
        low, _ = interval(row)
        lowest = min(low, lowest)
    first = 10 * floor(lowest / 10)
    return range(first, 101, 10)


def is_control(name):
    """Whether it is random or uniform tokens, wherever they act."""
    return kind(name) in CONTROLS


def kind(name):
    """kind("random embed") -> "random", and so of "random@3"."""
    word = name.split()[0]
    return word.partition("@")[0]


def style(name, names):
    """Colour, and whether dots are hollow: controls are grey, and hollow unless they act before layer 2; colours that
    come again are hollow."""
    if is_control(name):
        i = CONTROLS.index(kind(name))
        return GREYS[i], name not in CONTROLS
    place = names.index(name)
    turn, i = divmod(place, len(COLORS))
    return COLORS[i], turn > 0


def draw_curve(chart, rows, color, hollow, aside):
    """One method's budgets, `aside` pixels from their place, so that intervals do not hide one another."""
    def at(row, percent):
        x, y = chart.place(row["tokens"], percent)
        return x + aside, y

    rows = sorted(rows, key=lambda row: row["tokens"])
    dots = [at(row, accuracy(row)) for row in rows]
    chart.line(dots, color)
    for row, dot in zip(rows, dots):
        low, high = interval(row)
        bar = [at(row, low), at(row, high)]
        chart.line(bar, color, 1)
        chart.dot(dot, color, hollow)
