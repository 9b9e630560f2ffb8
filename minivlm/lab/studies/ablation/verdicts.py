"""The figures of a study from its answers, and what they say of the paper's claims.

A claim is a comparison of two rows that differ in one thing. It holds if the 95 % interval of the paired difference
lies on the side of the paper's difference, does not hold if it lies on the other, and cannot be told if it has zero in
it. The interval is over questions. Two trainings of one row differ too, so a row that was trained with two seeds is
compared twice, and if the two disagree it cannot be told. Nor can it if the better row has clearly more tokens.

Adaptivity is measured by the tokens in a layer of each question: their standard deviation, how many more fine-grained
questions get than coarse ones, and how many more the most crowded third of the pictures gets than the emptiest.
Intervals are of a bootstrap over questions, the same draws for the rows of a comparison.
"""

from itertools import product

import torch

from minivlm.lab.score.accuracy import against
from minivlm.lab.score.answers import mean
from minivlm.lab.tasks.intervals import wilson
from minivlm.lab.studies.ablation.rows import AGAIN, COMPARISONS, ROWS

DRAWS = 1000                                       # of the bootstrap
UNEVEN = 0.05                                      # share of its tokens that a better row may have more
UNKNOWN = "cannot be told"
ROW_OF = {row.name: row for row in ROWS}
FINE = ("count", "relpos")                         # the families that are like Figure 2's fine-grained tasks
COARSE = ("scene",)
SPREAD = ("deviation", "fine", "crowded")
CLAIMS = {                                         # what the paper says of adaptivity
    "fine": "Figure 2, a fine-grained question keeps more tokens than a coarse one",
    "crowded": "Figure 4, a crowded picture keeps more tokens than an empty one",
}


def facts(results, items):
    """{"rows": [figures of a row, ..], "comparisons": [..], "claims": [..]} as plain data. results: of study.read."""
    spreads = {name: spread(answers, items) for name, answers in results.items()}
    rows = [dict(_described(ROW_OF[name]), **_figures(answers, items), spread=_summary(spreads[name]))
            for name, answers in results.items()]
    compared = []
    for comparison in COMPARISONS:
        if comparison.row in results and comparison.control in results:
            compared.append(_compared(comparison, results, spreads))
    return dict(questions=len(items), rows=rows, comparisons=compared, claims=_claims(spreads))


def _described(row):
    return dict(row=row.name, what=row.what, tables=row.tables, paper=row.mean, percent=row.percent)


def _compared(comparison, results, spreads):
    """The difference of two rows in accuracy and in adaptivity, the paper's, and the verdict."""
    row = results[comparison.row]
    control = results[comparison.control]
    printed, unit = _printed(comparison)
    controls = [name for name in _trainings(comparison.control, results) if name != comparison.row]
    trainings = product(_trainings(comparison.row, results), controls)
    first, *others = [against(_right(results[one]), _right(results[other])) for one, other in trainings]
    intervals = [first["interval"], *(other["interval"] for other in others)]
    share = mean(_tokens(row)) / mean(_tokens(control))
    more_spread = {name: spreads[comparison.row][name] - spreads[comparison.control][name] for name in SPREAD}
    return dict(
        vars(comparison),
        **first,
        others=others,
        share=share,
        paper=printed,
        unit=unit,
        verdict=conclusion(intervals, printed, share if comparison.same_tokens else 1),
        spread=_summary(more_spread),
    )


def _claims(spreads):
    """What each training of the row "adaptive" says of CLAIMS; nothing without it."""
    if "adaptive" not in spreads:
        return []
    measured = [_summary(spreads[name]) for name in _trainings("adaptive", spreads)]
    claims = []
    for name, claim in CLAIMS.items():
        trainings = [summary[name] for summary in measured]
        intervals = [training["interval"] for training in trainings]
        claims.append(dict(claim=claim, trainings=trainings, verdict=conclusion(intervals, 1, 1)))
    return claims


def _trainings(name, results):
    """The name of a row, and that of the row that is trained with another seed, if it is answered."""
    again = AGAIN.get(name)
    return [name, again] if again in results else [name]


def _printed(comparison):
    """The paper's difference, and its unit: points of accuracy, or per cent of the unpruned model; None without."""
    row = ROW_OF[comparison.row]
    control = ROW_OF[comparison.control]
    if not comparison.table:
        return None, None
    if row.paper and control.paper:
        return row.mean - control.mean, "points"
    return row.percent - control.percent, "% of the unpruned"


def conclusion(intervals, printed, share):
    """The verdict in which all intervals agree. share: the tokens of the row as a share of its control's."""
    verdicts = {verdict(interval, printed) for interval in intervals}
    if len(verdicts) > 1:
        return UNKNOWN
    return UNKNOWN if is_uneven(share, intervals[0]) else verdicts.pop()


def is_uneven(share, interval):
    """Whether the better of two rows has so many more tokens that these may be why. share: as in `conclusion`."""
    low, _ = interval
    of_better = share if low > 0 else 1 / share
    return of_better > 1 + UNEVEN


def verdict(interval, printed):
    """What the interval of a difference says of the paper's, or of its sign if the paper has none."""
    low, high = interval
    if low <= 0 <= high:
        return UNKNOWN
    is_more = low > 0
    if printed is None:
        return "more" if is_more else "less"
    return "holds" if is_more == (printed > 0) else "does not hold"


def _right(answers):
    return [row["right"] for row in answers]


def _tokens(answers):
    """Visual tokens in a layer, of each question."""
    return [mean(row["visual"]) for row in answers]


def _figures(answers, items):
    """Accuracy and tokens in a layer: of all, and by family."""
    accuracy = mean(_right(answers))
    by_layer = zip(*(row["visual"] for row in answers))
    by_family = {family: [] for family in sorted({item.family for item in items})}
    for row, item in zip(answers, items):
        by_family[item.family].append(row)
    families = {family: mean(_right(rows)) for family, rows in by_family.items()}
    kept = {family: mean(_tokens(rows)) for family, rows in by_family.items()}
    return dict(
        accuracy=accuracy,
        interval=wilson(accuracy, len(answers)),
        tokens=mean(_tokens(answers)),
        visual=[mean(layer) for layer in by_layer],
        families=families,
        kept=kept,
    )


# --- adaptivity -------------------------------------------------------------------------------------------------------

def spread(answers, items):
    """{name in SPREAD: (1 + DRAWS,) its value on all questions, then on each draw of the bootstrap}"""
    index = resampled([item.family for item in items])                             # (1+DRAWS, n)
    tokens = torch.tensor(_tokens(answers), dtype=torch.float64)[index]            # (1+DRAWS, n)
    of_grain = group_means(tokens, grains(items)[index], 3)                        # (1+DRAWS, 3)
    of_third = group_means(tokens, thirds(items)[index], 3)                        # (1+DRAWS, 3)
    return {
        "deviation": tokens.std(dim=1, correction=0),
        "fine": of_grain[:, 2] - of_grain[:, 0],
        "crowded": of_third[:, 2] - of_third[:, 0],
    }


def resampled(families):
    """(1 + DRAWS, n) indices: all questions; then, for each draw, of each family as many as it has, with repetition."""
    names = sorted(set(families))
    family = torch.tensor([names.index(name) for name in families])                # (n,)
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(len(family)).repeat(1 + DRAWS, 1)                         # (1+DRAWS, n)
    for number in family.unique():
        members = (family == number).nonzero().squeeze(1)                             # (m,)
        draws = torch.randint(len(members), (DRAWS, len(members)), generator=generator)
        index[1:, members] = members[draws]
    return index


def grains(items):
    """(n,) 0 of a coarse question, 2 of a fine-grained one, 1 of others."""
    grains = [1 + (item.family in FINE) - (item.family in COARSE) for item in items]
    return torch.tensor(grains)


def thirds(items):
    """(n,) 0, 1 or 2: whether an item's picture shows little, more, or most."""
    things = torch.tensor([len(item.things) for item in items])
    rank = things.argsort(stable=True).argsort()
    return rank * 3 // len(items)


def group_means(values, group, count):
    """The mean of each group's values, row by row; 0 of an empty group. (R, n), (R, n) -> (R, count)"""
    zeros = values.new_zeros(len(values), count)
    sums = zeros.scatter_add(1, group, values)
    sizes = zeros.scatter_add(1, group, torch.ones_like(values))
    return sums / sizes.clamp_min(1)


def _summary(spreads):
    """{name: {"value", "interval"}}: the value on all questions, and where 95 % of the draws lie."""
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    summary = {}
    for name, values in spreads.items():
        low, high = values[1:].quantile(ends).tolist()
        summary[name] = dict(value=values[0].item(), interval=(low, high))
    return summary


# --- as text ----------------------------------------------------------------------------------------------------------

def lines(figures):
    """The tables as text, and a sentence for each comparison. figures: what `facts` gives."""
    rows = figures["rows"]
    families = "  ".join(f"{family:>6}" for family in rows[0]["families"])
    for table in "12345":
        yield f"{f'Table {table}':20}  tokens  {families}     all               paper   tokens entering the layers"
        yield from (_line(row, table) for row in rows if table in row["tables"])
        yield ""
    yield "Not in the paper"
    yield from (_line(row) for row in rows if not row["tables"])
    yield ""
    yield "Differences in accuracy, in points, with the 95 % interval over the same questions"
    yield from map(sentence, figures["comparisons"])
    yield ""
    yield "Adaptivity: tokens in a layer, and the 95 % interval of a bootstrap over questions"
    yield from map(claim_sentence, figures["claims"])
    for row in rows:
        yield f"{row['row']:20}  {_spread(row['spread'])}"
    yield ""
    yield "Differences in adaptivity"
    for compared in figures["comparisons"]:
        if not compared["table"] and compared["spread"]["deviation"]["value"]:
            yield f"{compared['row']} against {compared['control']}: {_spread(compared['spread'], verdict)}"


def _line(row, table=""):
    """A line of a table: tokens in a layer, accuracies in per cent, the paper's, tokens entering each layer."""
    families = "  ".join(f"{100 * x:6.1f}" for x in row["families"].values())
    accuracy = 100 * row["accuracy"]
    low, high = row["interval"]
    interval = f"({100 * low:.1f}-{100 * high:.1f})"
    paper = ""
    if row["paper"]:
        paper = f"{row['paper'] + 1e-9:.2f}"           # 62.625 is 62.63
    if table == "1" and row["percent"]:
        paper = f"{row['percent']:.1f} %"
    layers = " ".join(f"{n:.0f}" for n in row["visual"])
    return f"{row['row']:20}  {row['tokens']:6.1f}  {families}  {accuracy:6.1f} {interval:13}  {paper:>7}  {layers}"


def sentence(compared):
    """adaptive against fixed-1-2 (Table 2; changed: thresholds, not numbers; 100 % of the tokens): +0.3 (-1.3 to +1.9),
    in the paper +2.15 points: cannot be told"""
    table = f"Table {compared['table']}" if compared["table"] else "not in the paper"
    measured = _points(compared)
    if compared["others"]:
        other_seeds = "; ".join(map(_points, compared["others"]))
        measured = f"{measured}, with other seeds {other_seeds}"
    paper = ""
    if compared["paper"] is not None:
        paper = f", in the paper {compared['paper'] + 1e-9:+.2f} {compared['unit']}"
    return (f"{compared['row']} against {compared['control']} ({table}; changed: {compared['changes']}; "
            f"{compared['share']:.0%} of the tokens): {measured}{paper}: {compared['verdict']}")


def claim_sentence(measured):
    """Figure 4, a crowded picture keeps ..: +1.4 (+1.2 to +1.6); another seed -0.1 (-0.4 to +0.2): cannot be told"""
    trainings = []
    for training in measured["trainings"]:
        low, high = training["interval"]
        trainings.append(f"{training['value']:+.1f} ({low:+.1f} to {high:+.1f})")
    return f"{measured['claim']}: {'; another seed '.join(trainings)}: {measured['verdict']}"


def _points(compared):
    """+0.3 (-1.3 to +1.9)"""
    low, high = compared["interval"]
    return f"{100 * compared['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _spread(spread, said=None):
    """deviation 1.2 (1.1 to 1.3); fine ..; crowded ..; with a verdict of each if it is a difference."""
    parts = []
    for name, figure in spread.items():
        low, high = figure["interval"]
        sign = "+" if said else ""
        words = f": {said(figure['interval'], None)}" if said else ""
        parts.append(f"{name} {figure['value']:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f}){words}")
    return ";  ".join(parts)
