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
        self.sums = self.counts.sum(axis=0)                                        # (F,)
        self.scores = self.counts[:, 0].tolist()
        self.first = [metric.questions[unit[0]] for unit in self.units]
        self.clusters = [question.cluster for question in self.first]
        self.value = float(metric.value(self.sums))

    def of_unit(self, unit):
        """The counts of a unit (F,), mean over its draws."""
        questions = [self.metric.questions[i] for i in unit]
        draws = [self.draws[i] for i in unit]
        counts = [self.metric.counts(questions, answers) for answers in zip(*draws)]
        return np.mean(counts, axis=0)

    @cached_property
    def resampled(self):
        """The number for each draw of pictures (DRAWS,)."""
        columns = [totals(column, self.clusters) for column in self.counts.T]
        sums = np.stack(columns, axis=1)                                           # (pictures, F)
        return resampled(sums, self.metric.value)

    def interval(self):
        """Of the number."""
        if self.metric.is_mean:
            return share_by_picture(self.scores, self.clusters)
        return middle(self.resampled)

    def difference(self, other):
        """Of the numbers, of the same questions."""
        if self.metric.is_mean:
            differences = [own - theirs for own, theirs in zip(self.scores, other.scores)]
            return paired_by_picture(differences, self.clusters)
        return middle(self.resampled - other.resampled)

    def unparsed(self):
        """The share of answers that were not understood."""
        parsed = []
        for question, answers in zip(self.metric.questions, self.draws):
            parsed += [self.metric.is_parsed(question, answer) for answer in answers]
        return 1 - sum(parsed) / len(parsed)

    def parts(self):
        """{name: number}: those of the metric, and of a mean that of each family of several."""
        parts = dict(self.metric.parts(self.sums))
        families = [question.family for question in self.first]
        names = list(dict.fromkeys(families))
        if self.metric.is_mean and len(names) > 1:
            for name in names:
                is_own = [family == name for family in families]
                sums = self.counts[is_own].sum(axis=0)
                parts[name] = self.metric.value(sums)
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
    against = {other: compared(own, counted[other]) for other in others}
    parts = own.parts()
    interval = own.interval()
    return dict(
        contestant=label,
        value=scale * own.value,
        interval=scaled(interval, scale),
        parts={name: scale * value for name, value in parts.items()},
        unparsed=own.unparsed(),
        against=against,
    )


def compared(own, other):
    """{"difference", "interval"} of two contestants."""
    scale = own.metric.scale
    difference = own.value - other.value
    interval = own.difference(other)
    return dict(difference=scale * difference, interval=scaled(interval, scale))


def scaled(interval, scale):
    """[low, high] times the scale."""
    return [scale * end for end in interval]


def title(benchmark, is_asked=True):
    """What was asked, in words: "pope, official rules: 3000 questions about 500 pictures".

    is_asked: the prompts are known, as they are ours.
    """
    count = len(benchmark.questions)
    images = {question.image for question in benchmark.questions}
    pictures = len(images - {""})
    hints = hints_of(benchmark) if is_asked else ""
    return f"{benchmark.name}{hints}, {benchmark.rules} rules: {count} questions about {pictures} pictures"


def hints_of(benchmark):
    """Whether TextVQA's prompt had words that were read in the picture; "" for other tasks."""
    if benchmark.name != "textvqa":
        return ""
    has_hints = any(question.hint for question in benchmark.questions)
    return ", with OCR hints" if has_hints else ", without OCR hints"


def lines(metric, rows, first, tokens=None):
    """The table as text. first: whom the others are compared with; tokens: {contestant: image tokens per layer}."""
    labels = [row["contestant"] for row in rows]
    width = max(map(len, labels))
    entering = "tokens  " if tokens else ""
    is_compared = len(rows) > 1
    against = f"against {first}".ljust(26) if is_compared else ""
    names = list(rows[0]["parts"])[:metric.shown]
    last = [*names, "unparsed"] if metric.parses else names
    yield f"{'':{width}}  {entering}{metric.name:22}  {against}{'  '.join(last)}".rstrip()
    for row in rows:
        label = row["contestant"]
        count = f"{tokens[label]:6.1f}  " if tokens else ""
        difference = _against(row["against"].get(first)).ljust(26) if is_compared else ""
        yield f"{label:{width}}  {count}{_value(row):22}  {difference}{_last(metric, row, names)}".rstrip()
    yield ""
    yield from legend(metric)


def _value(row):
    """"85.9 (84.5-87.2)"."""
    low, high = row["interval"]
    return f"{number(row['value'])} ({number(low)}-{number(high)})"


def _last(metric, row, names):
    """The parts, and how many answers were not understood."""
    cells = [number(row["parts"][name]).rjust(len(name)) for name in names]
    if metric.parses:
        cells.append(f"{row['unparsed']:.1%}".rjust(len("unparsed")))
    return "  ".join(cells)


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
        yield "(answers that all count alike give an interval of no width, however few they are)"
    yield from metric.notes
