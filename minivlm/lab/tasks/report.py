"""The numbers of contestants on a benchmark, each with its interval and its difference to another, and their table.

A contestant is a method, or a file of answers. A mean has Wilson's interval and a difference that of Bonett and Price,
both with the variance of whole pictures; any other number has the bootstrap's, over pictures.
"""

from functools import cached_property

import numpy as np
from tqdm import tqdm

from minivlm.lab.tasks.intervals import DRAWS, middle, paired_by_picture, resampled, share_by_picture, totals


class Counted:
    """The answers of a contestant, added up by a metric. draws: of each question, the answers that it was given."""

    def __init__(self, metric, draws):
        self.metric = metric
        self.draws = draws
        self.units = metric.units()
        by_unit = [self.of_unit(unit) for unit in tqdm(self.units, desc="score", leave=False)]
        self.counts = np.array(by_unit, dtype=float)                               # (units, F)
        self.clusters = [metric.questions[unit[0]].cluster for unit in self.units]
        self.value = float(metric.value(self.counts.sum(axis=0)))

    def of_unit(self, unit):
        """The counts of a unit (F,), mean over its draws."""
        questions = [self.metric.questions[i] for i in unit]
        drawn = zip(*(self.draws[i] for i in unit))
        return np.mean([self.metric.counts(questions, answers) for answers in drawn], axis=0)

    @cached_property
    def resampled(self):
        """The number for each draw of pictures (DRAWS,)."""
        columns = [totals(column, self.clusters) for column in self.counts.T]
        return resampled(np.stack(columns, axis=1), self.metric.value)             # of (pictures, F)

    def interval(self):
        """Of the number."""
        if self.metric.is_mean:
            return share_by_picture(self.counts[:, 0].tolist(), self.clusters)
        return middle(self.resampled)

    def difference(self, other):
        """Of the numbers, of the same questions."""
        if self.metric.is_mean:
            return paired_by_picture((self.counts[:, 0] - other.counts[:, 0]).tolist(), self.clusters)
        return middle(self.resampled - other.resampled)

    def unparsed(self):
        """The share of answers that were not understood."""
        pairs = [(question, answer) for question, own in zip(self.metric.questions, self.draws) for answer in own]
        return 1 - sum(self.metric.is_parsed(*pair) for pair in pairs) / len(pairs)

    def parts(self):
        """{name: number}: those of the metric, and of a mean that of each family of several."""
        parts = self.metric.parts(self.counts.sum(axis=0))
        families = [self.metric.questions[unit[0]].family for unit in self.units]
        names = list(dict.fromkeys(families))
        if self.metric.is_mean and len(names) > 1:
            for name in names:
                own = [counts for counts, family in zip(self.counts, families) if family == name]
                parts[name] = self.metric.value(np.sum(own, axis=0))
        return {name: float(value) for name, value in parts.items()}


def facts(metric, draws, rivals):
    """[{"contestant", "value", "interval", "parts", "unparsed", "against": {other: ..}}], as plain data.

    draws: {contestant: the answers to each question}; rivals: {contestant: [others to compare it with]}. Numbers are
    scaled as they are printed.
    """
    counted = {label: Counted(metric, own) for label, own in draws.items()}
    return [_fact(label, counted, rivals.get(label, ())) for label in counted]


def _fact(label, counted, others):
    own = counted[label]
    scale = own.metric.scale
    against = {}
    for other in others:
        difference = own.value - counted[other].value
        against[other] = dict(difference=scale * difference, interval=scaled(own.difference(counted[other]), scale))
    return dict(
        contestant=label,
        value=scale * own.value,
        interval=scaled(own.interval(), scale),
        parts={name: scale * value for name, value in own.parts().items()},
        unparsed=own.unparsed(),
        against=against,
    )


def scaled(interval, scale):
    """[low, high] times the scale."""
    return [scale * end for end in interval]


def title(benchmark):
    """What was asked, in words: "pope, official rules: 3000 questions about 500 pictures"."""
    questions = benchmark.questions
    pictures = len({question.image for question in questions if question.image})
    hints = ""
    if benchmark.name == "textvqa":
        has_hints = any(question.hint for question in questions)
        hints = ", with OCR hints" if has_hints else ", without OCR hints"
    return f"{benchmark.name}{hints}, {benchmark.rules} rules: {len(questions)} questions about {pictures} pictures"


def lines(metric, rows, first, tokens=None):
    """The table as text. first: whom the others are compared with; tokens: {contestant: image tokens per layer}."""
    width = max(len(row["contestant"]) for row in rows)
    parts = list(rows[0]["parts"])[:metric.shown]
    heads = [f"{metric.name:22}", *parts]
    if len(rows) > 1:
        heads.insert(1, f"{f'against {first}':24}")
    if metric.parses:
        heads.append("unparsed")
    yield f"{'':{width}}  {'tokens  ' if tokens else ''}{'  '.join(heads)}".rstrip()
    for row in rows:
        low, high = row["interval"]
        cells = [f"{number(row['value'])} ({number(low)}-{number(high)})".ljust(22)]
        if len(rows) > 1:
            cells.append(_against(row["against"].get(first)).ljust(24))
        cells += [number(row["parts"][name]).rjust(len(name)) for name in parts]
        if metric.parses:
            cells.append(f"{row['unparsed']:.1%}".rjust(len("unparsed")))
        entering = f"{tokens[row['contestant']]:6.1f}  " if tokens else ""
        yield f"{row['contestant']:{width}}  {entering}{'  '.join(cells)}".rstrip()
    yield ""
    yield from legend(metric)


def verdicts(metric, rows):
    """A sentence for each contestant that the other one than no pruning beats: the interval lies below zero."""
    for row in rows:
        for name, compared in row["against"].items():
            if name != "none" and compared["interval"][1] < 0:
                yield (f"{row['contestant']} is worse than random tokens at the same place and budget ({name}): the "
                       f"difference of {metric.name} is {_against(compared)}")


def number(value):
    """number(85.93) -> "85.9"."""
    return f"{value:.1f}"


def _against(compared):
    if compared is None:
        return ""
    low, high = compared["interval"]
    return f"{compared['difference']:+.1f} ({low:+.1f} to {high:+.1f})"


def legend(metric):
    """What the intervals are."""
    if metric.is_mean:
        yield "95 % intervals: Wilson's; of paired differences, Bonett and Price's; with the variance of whole pictures"
    else:
        yield f"95 % intervals: bootstrap over pictures, {DRAWS} draws, the same for all; differences are paired"
    yield from metric.notes
