"""An evaluation as a picture: accuracy against the image tokens that enter a layer, a line a method, no pruning across it."""

from math import floor

from PIL import ImageDraw

from minivlm.lab.compare.sheet import BLACK
from minivlm.lab.score.contestants import CONTROLS
from minivlm.lab.speed.plot import COLORS, LEFT, RIGHT, WIDTH, axes, dot, fifths, legend, note, titled

GREYS, PALE, ASIDE = ((120, 120, 120), (175, 175, 175)), (232, 232, 232), 4


def curves(told):
    """x: image tokens entering a layer on average; y: % of right answers. The bars are intervals, the pale one that of no pruning."""
    first, rows = told["contestants"][0], [row for row in told["contestants"][1:] if "all" in row]
    names = sorted(dict.fromkeys(row["method"] for row in rows), key=_control)
    page = titled(f"{told['recipe']['task']}, {told['questions']} questions: right answers, with 95 % intervals", len(names) + 1)
    lowest = 10 * floor(10 * min(row["all"]["interval"][0] for row in [first, *rows]))
    place = axes(page, fifths(first["tokens"]), range(lowest, 101, 10), "%")
    _across(page, place, *first["all"]["interval"][::-1], PALE)
    for i, name in enumerate(names):
        color, hollow = _style(name, names)
        _curve(page, place, [row for row in rows if row["method"] == name], color, hollow, min(ASIDE, 40 / len(names)) * (i - (len(names) - 1) / 2))
        legend(page, i + 1, name, color, hollow)
    _across(page, place, first["all"]["accuracy"], first["all"]["accuracy"], BLACK)
    legend(page, 0, "no pruning", BLACK)
    note(page, "grey: controls, which need no idea; dots at one place are moved apart")
    return page


def _control(name):
    return _kind(name) in CONTROLS


def _kind(name):
    """"random" of "random embed" and "random@3"."""
    return name.split()[0].partition("@")[0]


def _style(name, names):
    """Colour, and whether dots are hollow: controls are grey, and hollow where they do not act before layer 2; colours that come again are hollow."""
    if _control(name):
        return GREYS[CONTROLS.index(_kind(name))], name not in CONTROLS
    turn, i = divmod(names.index(name), len(COLORS))
    return COLORS[i], turn > 0


def _across(page, place, high, low, color):
    """A bar from axis to edge, two pixels high at least."""
    (_, top), (_, bottom) = place(0, 100 * high), place(0, 100 * low)
    ImageDraw.Draw(page).rectangle([LEFT + 1, top, WIDTH - RIGHT, bottom + 1], color)


def _curve(page, place, rows, color, hollow, aside):
    """One method's budgets, `aside` pixels from their place, so that intervals do not hide one another."""
    pen, at = ImageDraw.Draw(page), lambda row, share: (place(row["tokens"], 100 * share)[0] + aside, place(0, 100 * share)[1])
    rows = sorted(rows, key=lambda row: row["tokens"])
    pen.line([at(row, row["all"]["accuracy"]) for row in rows], color, 2)
    for row in rows:
        pen.line([at(row, end) for end in row["all"]["interval"]], color, 1)
        dot(page, at(row, row["all"]["accuracy"]), color, hollow)
