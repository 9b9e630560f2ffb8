"""Accuracy by the layer before which tokens are dropped, as figures, tables and a picture; and the information horizon.

In arXiv:2512.07580 the information of a token is how much the output changes without it, and the horizon is the layer
beyond which that vanishes. Here right answers show it. Of the layers before which tokens were dropped, at a budget:

    horizon    the first one from which on no method differs from random tokens: all intervals hold zero
    needed     the first one from which on random tokens lose nothing against no pruning: no interval is below zero

Both say what this number of questions can tell: with more questions they can only move to later layers.
"""

from math import floor

from minivlm.lab.attention.tables import numbers
from minivlm.lab.cli.output import refusals
from minivlm.lab.draw.chart import COLORS, Chart
from minivlm.lab.draw.sheet import stack
from minivlm.lab.score.accuracy import answered, part, percent

RANDOM = "random"
PALE = (232, 232, 232)
APART = 12                             # pixels between the horizons of two budgets before one layer
LABEL = 16                             # letters of the first column
ASIDE = 3                              # pixels between the dots of two budgets
LEGEND = (
    "difference to no pruning on the same questions, in points; * its 95 % interval excludes zero;",
    "minus random: difference to random tokens before the same layer at the same budget, all families",
)


def facts(items, contestants, rows):
    """{"questions", "unpruned", "cells": [{"method", "keep", "layer", "families"}], "budgets", "why_not"}

    families: {"all" or a family of questions: {"accuracy", "interval", "against": {"none", "random"}, ..}}.
    """
    answers, why_not = answered(items, contestants, rows)
    questions = {"all": range(len(items))}
    for family in sorted({item.family for item in items}):
        questions[family] = [i for i, item in enumerate(items) if item.family == family]
    cells = []
    for contestant in contestants:
        if contestant.label not in answers or contestant.label == "none":
            continue
        method, layer = placed(contestant.method)
        families = {name: compared(answers, contestant, layer, own) for name, own in questions.items()}
        cells.append(dict(method=method, keep=contestant.budget, layer=layer, families=families))
    unpruned = part(answers, "none", [], questions["all"])
    return dict(questions=len(items), unpruned=unpruned, cells=cells, budgets=budgets(cells), why_not=why_not)


def placed(name):
    """placed("fastv@layer=3") -> ("fastv", 3): the method, with other settings if it has any, and the layer."""
    method, _, layer = name.rpartition("@layer=")
    return method, int(layer)


def compared(answers, contestant, layer, questions):
    """The numbers on these questions, against no pruning and against random tokens before the same layer."""
    rival = f"{RANDOM}@layer={layer} {contestant.budget}"
    numbers = part(answers, contestant.label, ["none", rival], questions)
    against = numbers["against"]
    return dict(numbers, against=dict(none=against["none"], random=against[rival]))


def budgets(cells):
    """[{"keep", "better", "worse", "horizon", "loses", "needed"}], one for each budget.

    better, worse: {method: the layers before which the interval of its difference to random tokens excludes zero}.
    loses: the layers before which random tokens answer less than no pruning. horizon, needed: a layer, or None if it
    lies beyond those that were tried.
    """
    rows = []
    for keep in dict.fromkeys(cell["keep"] for cell in cells):
        own = [cell for cell in cells if cell["keep"] == keep]
        layers = sorted({cell["layer"] for cell in own})
        methods = dict.fromkeys(cell["method"] for cell in own)
        better = {}
        worse = {}
        loses = []
        for method in methods:
            of_method = [cell for cell in own if cell["method"] == method]
            if method == RANDOM:
                loses = [cell["layer"] for cell in of_method if sign(cell, "none") < 0]
                continue
            better[method] = [cell["layer"] for cell in of_method if sign(cell, "random") > 0]
            worse[method] = [cell["layer"] for cell in of_method if sign(cell, "random") < 0]
        differs = sum([*better.values(), *worse.values()], [])
        rows.append(dict(
            keep=keep,
            better=better,
            worse=worse,
            horizon=first_beyond(layers, differs),
            loses=loses,
            needed=first_beyond(layers, loses),
        ))
    return rows


def sign(cell, other, family="all"):
    """1 or -1 if the interval of the difference lies above or below zero, else 0."""
    low, high = cell["families"][family]["against"][other]["interval"]
    if low > 0:
        return 1
    return -1 if high < 0 else 0


def first_beyond(layers, marked):
    """first_beyond([1, 2, 3, 4], [1, 3]) -> 4: the first layer after all that are marked; None if there is none."""
    last = max(marked, default=0)
    return next((layer for layer in layers if layer > last), None)


# --- text -------------------------------------------------------------------------------------------------------------

def lines(result):
    """A table for each method and budget, and the sentences."""
    unpruned = result["unpruned"]
    yield f"{result['model']} on {result['questions']} questions: {percent(unpruned, 1)} % right without pruning"
    for (method, keep), cells in series_of(result["cells"]).items():
        yield ""
        yield f"{method} {keep}".ljust(LABEL) + "".join(f"{cell['layer']:>8}" for cell in cells)
        for family in cells[0]["families"]:
            yield family.ljust(LABEL) + "".join(points(cell, "none", family) for cell in cells)
        if method != RANDOM:
            yield "minus random".ljust(LABEL) + "".join(points(cell, "random", "all") for cell in cells)
    yield ""
    yield from LEGEND
    yield ""
    for budget in result["budgets"]:
        yield from sentences(budget, result["questions"])
    yield from refusals(result["why_not"])


def points(cell, other, family):
    """A difference in points, with a star if its interval excludes zero: -12.5*"""
    difference = 100 * cell["families"][family]["against"][other]["difference"]
    mark = "*" if sign(cell, other, family) else " "
    return f"{difference:+7.1f}{mark}"


def sentences(budget, questions):
    """What the intervals say of a budget."""
    keep = budget["keep"]
    for method in budget["better"]:
        better = numbers(budget["better"][method])
        worse = numbers(budget["worse"][method])
        yield f"keep {keep}: {method} is better than random tokens before {better}, worse before {worse}"
    if budget["better"]:
        horizon = "not among the layers tried"
        if budget["horizon"] is not None:
            difference = f"{questions} questions show no difference to random tokens"
            horizon = f"layer {budget['horizon']}, from which on {difference}"
        yield f"keep {keep}: information horizon: {horizon}"
    no_loss = "before the last layer tried, too"
    if budget["needed"] is not None:
        no_loss = f"from layer {budget['needed']} on {questions} questions show no loss"
    yield f"keep {keep}: random tokens lose before {numbers(budget['loses'])}; {no_loss}"


# --- picture ----------------------------------------------------------------------------------------------------------

def page(result):
    """Two charts of accuracy by layer: of all questions, for each method and budget, with the horizons; and of each
    family, for the first method at the last budget."""
    charts = [overall(result), by_family(result)]
    return stack([chart.page for chart in charts])


def overall(result):
    """Dots of each method and budget, hollow ones of random tokens, and on the axis a dot at each horizon."""
    cells = result["cells"]
    series = series_of(cells)
    color_of = colors(series)
    title = f"{result['questions']} questions: right answers if tokens are dropped before a layer, with 95 % intervals"
    chart = axes(title, cells, ["all"], len(series) + 2)
    low, high = ends(result["unpruned"])
    chart.band(low, high, PALE)
    chart.legend(0, "no pruning, interval", PALE)
    for i, ((method, keep), own) in enumerate(series.items()):
        color = color_of[method, keep]
        aside = ASIDE * (i - len(series) / 2)
        is_random = method == RANDOM
        curve(chart, own, "all", color, is_random, aside)
        chart.legend(i + 1, f"{method} {keep}", color, is_random)
    draw_horizons(chart, result["budgets"], color_of)
    chart.note("dots on the axis: information horizons, in the colour of random tokens at that budget")
    return chart


def series_of(cells):
    """{(method, keep): its cells, one per layer}"""
    series = {}
    for cell in cells:
        series.setdefault((cell["method"], cell["keep"]), []).append(cell)
    return series


def colors(series):
    """{(method, keep): colour}; random tokens have that of the first method at their budget."""
    own = [name for name in series if name[0] != RANDOM]
    color_of = {}
    for i, (method, keep) in enumerate(own or series):
        color = COLORS[i % len(COLORS)]
        color_of[method, keep] = color
        color_of.setdefault((RANDOM, keep), color)
    return color_of


def draw_horizons(chart, budgets, color_of):
    """A dot on the axis for the horizon of each budget; those of one layer above one another."""
    drawn = []
    for budget in budgets:
        layer = budget["horizon"]
        if budget["better"] and layer is not None:
            x, _ = chart.place(layer, 100)
            height = APART * drawn.count(layer)
            chart.dot((x, chart.bottom - height), color_of[RANDOM, budget["keep"]])
            drawn.append(layer)


def by_family(result):
    """A line per family of questions, of the first method (random tokens if there is none) at the last budget."""
    budget = result["budgets"][-1]
    keep = budget["keep"]
    method = next(iter(budget["better"]), RANDOM)
    cells = [cell for cell in result["cells"] if cell["keep"] == keep and cell["method"] == method]
    families = [family for family in cells[0]["families"] if family != "all"]
    chart = axes(f"{method} {keep}, by family of questions", cells, families, len(families))
    for i, family in enumerate(families):
        color = COLORS[i % len(COLORS)]
        hollow = i >= len(COLORS)                          # the same colours again
        aside = ASIDE * (i - len(families) / 2)
        curve(chart, cells, family, color, hollow, aside)
        chart.legend(i, family, color, hollow)
    return chart


def axes(title, cells, families, entries):
    """A chart of these cells: layers from left to right, % right from below the lowest interval to 100."""
    layers = sorted({cell["layer"] for cell in cells})
    lowest = min(ends(cell["families"][family])[0] for cell in cells for family in families)
    first = 10 * floor(lowest / 10)
    across = [layers[0] - 1, *layers]
    return Chart(title, across, range(first, 101, 10), "% right", entries, "layer before which tokens are dropped")


def ends(numbers):
    """The interval of an accuracy, in %."""
    return [100 * end for end in numbers["interval"]]


def curve(chart, cells, family, color, hollow, aside):
    """A line with dots and intervals, `aside` pixels from their places."""
    def at(cell, percent):
        x, y = chart.place(cell["layer"], percent)
        return x + aside, y

    dots = []
    for cell in cells:
        numbers = cell["families"][family]
        low, high = ends(numbers)
        chart.line([at(cell, low), at(cell, high)], color, 1)
        dots.append(at(cell, 100 * numbers["accuracy"]))
    chart.line(dots, color)
    for dot in dots:
        chart.dot(dot, color, hollow)
