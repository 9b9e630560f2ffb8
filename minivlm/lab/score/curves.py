"""An evaluation as a picture: accuracy against the image tokens that enter a layer, one line per method."""

from math import floor

from PIL import ImageDraw

from minivlm.lab.compare.sheet import BLACK
from minivlm.lab.score.contestants import CONTROLS
from minivlm.lab.speed.plot import COLORS, LEFT, RIGHT, WIDTH, axes, dot, fifths, legend, note, titled

GREYS = ((120, 120, 120), (175, 175, 175))
PALE = (232, 232, 232)
ASIDE = 4                                          # pixels between the dots of two methods with the same tokens


def curves(result):
    """x: image tokens entering a layer on average; y: % of right answers. The pale bar is the interval of no pruning."""
    unpruned, *others = result["contestants"]
    rows = [row for row in others if "all" in row]
    names = sorted(dict.fromkeys(row["method"] for row in rows), key=_is_control)
    title = f"{result['recipe']['task']}, {result['questions']} questions: right answers, with 95 % intervals"
    page = titled(title, len(names) + 1)
    lowest = min(row["all"]["interval"][0] for row in [unpruned, *rows])
    place = axes(page, fifths(unpruned["tokens"]), range(10 * floor(10 * lowest), 101, 10), "%")
    low, high = unpruned["all"]["interval"]
    _across(page, place, high, low, PALE)
    step = min(ASIDE, 40 / max(1, len(names)))
    for i, name in enumerate(names):
        color, is_hollow = _style(name, names)
        aside = step * (i - (len(names) - 1) / 2)
        _curve(page, place, [row for row in rows if row["method"] == name], color, is_hollow, aside)
        legend(page, i + 1, name, color, is_hollow)
    accuracy = unpruned["all"]["accuracy"]
    _across(page, place, accuracy, accuracy, BLACK)
    legend(page, 0, "no pruning", BLACK)
    note(page, "grey: controls, which need no idea; dots at one place are moved apart")
    return page


def _is_control(name):
    return _kind(name) in CONTROLS


def _kind(name):
    """"random" of "random embed" and "random@3"."""
    return name.split()[0].partition("@")[0]


def _style(name, names):
    """Colour, and whether dots are hollow.

    Controls are grey, and hollow if they do not act before layer 2. Colours that come again are hollow.
    """
    if _is_control(name):
        return GREYS[CONTROLS.index(_kind(name))], name not in CONTROLS
    turn, i = divmod(names.index(name), len(COLORS))
    return COLORS[i], turn > 0


def _across(page, place, high, low, color):
    """A bar from axis to edge, two pixels high at least."""
    _, top = place(0, 100 * high)
    _, bottom = place(0, 100 * low)
    ImageDraw.Draw(page).rectangle([LEFT + 1, top, WIDTH - RIGHT, bottom + 1], color)


def _curve(page, place, rows, color, is_hollow, aside):
    """One method's budgets, `aside` pixels from their place, so that intervals do not hide one another."""
    def at(row, share):
        x, y = place(row["tokens"], 100 * share)
        return x + aside, y

    pen = ImageDraw.Draw(page)
    rows = sorted(rows, key=lambda row: row["tokens"])
    points = [at(row, row["all"]["accuracy"]) for row in rows]
    pen.line(points, color, 2)
    for row, point in zip(rows, points):
        pen.line([at(row, end) for end in row["all"]["interval"]], color, 1)
        dot(page, point, color, is_hollow)
