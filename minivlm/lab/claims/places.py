"""Claims about where attention lies and which tokens are kept, as differences with intervals."""

from dataclasses import dataclass
from math import inf, sqrt

import torch

from minivlm.lab.attention.figures import alike as mean_correlation
from minivlm.lab.attention.figures import facts, interval
from minivlm.lab.attention.measured import Study
from minivlm.lab.attention.watch import cases
from minivlm.lab.claims.claim import Measured
from minivlm.lab.score.answers import Contest, mean
from minivlm.lab.tasks.intervals import Z
from pruning.base import UserError

RANKING = 1                            # the layer whose attention ranks tokens before layer 2
RESAMPLES = 400
IDS = ("reversed", "equal", "unrotated")


@dataclass
class Places:
    """The attention of the last prompt token by place, measured once for all claims."""

    attention: torch.Tensor | None = None          # (Q, cases, layers, m)
    result: dict | None = None

    def of(self, answers):
        """The figures of `run.py attention`, for the questions of the answers."""
        if self.result is None:
            contest = Contest(answers.prompt.model, answers.items, [], answers.template)
            study = Study(contest, cases(IDS))
            measured = study.run()
            self.attention = measured.attention
            self.result = facts(measured, study.cases, [], answers.items)
        return self.result


def late(answers):
    """The correlation of attention with the index of the image token, in the layer that ranks."""
    layer = ranking(answers)
    usual = layer["correlation"]["usual"]
    return [correlated(answers, f"attention and index in layer {RANKING}", usual["value"], usual["interval"])]


def turned(answers):
    """That correlation with the image's position ids reversed, minus that with the usual ids."""
    return [changed_by(answers, label) for label in ranking(answers)["correlation"] if label.startswith("reversed")]


def without(answers):
    """That correlation without rotation, minus that with it."""
    return [changed_by(answers, label) for label in ranking(answers)["correlation"] if label.startswith("unrotated")]


def same_maps(answers):
    """The mean correlation between the maps of two families, and the normal interval with a bootstrap's deviation.

    Maps of questions that were drawn again are noisier, so their correlations are lower: only how they vary is used.
    """
    ranking(answers)                       # measures the attention
    attention = answers.places.attention[:, 0, RANKING]                            # (Q, m)
    families = []
    for family in answers.families:
        own = [i for i, item in enumerate(answers.items) if item.family == family]
        families.append(attention[own])                                            # (q, m)
    if len(families) < 2:
        raise UserError("there is one family of questions only")
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(RESAMPLES):
        drawn = [redrawn(family, generator) for family in families]
        values.append(correlation_of_maps(drawn))
    half = Z * float(torch.tensor(values).std())
    exact = correlation_of_maps(families)
    return [correlated(answers, f"maps of two families in layer {RANKING}", exact, (exact - half, exact + half))]


def redrawn(rows, generator):
    """As many of the rows, drawn with replacement. (q, m) -> (q, m)"""
    q = len(rows)
    chosen = torch.randint(q, (q,), generator=generator)
    return rows[chosen]


def correlation_of_maps(families):
    """The mean correlation between two of the families' mean maps; [(q, m)] are the questions' maps."""
    maps = [family.mean(dim=0) for family in families]
    return mean_correlation(maps)


def changed_by(answers, label):
    """The Measured change of the correlation by other position ids."""
    numbers = ranking(answers)["correlation"][label]
    what = f"attention and index in layer {RANKING}, ids {label} - usual"
    return correlated(answers, what, numbers["difference"], numbers["difference_interval"])


def ranking(answers):
    """The figures of the layer that ranks. UserError if the model has none."""
    layers = answers.places.of(answers)["layers"]
    if len(layers) <= RANKING:
        raise UserError(f"the model has no layer {RANKING}")
    return layers[RANKING]


def correlated(answers, what, value, interval):
    """The Measured of a correlation, or of a difference of two."""
    return Measured(what, value, tuple(interval), len(answers.items), "correlation")


def alike(answers):
    """How much more alike the kept tokens of FastV are than random ones: cosine to the most similar other token."""
    return [statistic(answers, "cosine", "cosine")]


def near(answers):
    """How much nearer to each other FastV keeps tokens than chance, in patches."""
    return [statistic(answers, "distance", "patches")]


def statistic(answers, name, unit, method="fastv 0.1", control="random 0.1"):
    """The Measured mean, over the questions, of what the kept tokens of the two differ by in this statistic.

    Questions after which too few tokens are left to tell are passed over; UserError if that is all of them.
    """
    differences = {}
    for i, (own, other) in enumerate(zip(answers.rows[method], answers.rows[control])):
        pair = own["statistics"][name], other["statistics"][name]
        if None not in pair:
            differences[i] = pair[0] - pair[1]
    if not differences:
        raise UserError(f"too few tokens are left to tell their {name}")
    return average(f"{name} of {method} - {control}", answers, differences, unit)


def late_kept(answers, method="fastv 0.1", control="random 0.1"):
    """How much later in the image a method keeps tokens than the control does: the difference of their mean places,
    from 0 for the first token to 1 for the last."""
    differences = {}
    for i, unpruned in enumerate(answers.rows["none"]):
        last = unpruned["visual"][0] - 1
        places = [mean_index(answers.rows[label][i]["kept"]) for label in (method, control)]
        if None not in places:
            differences[i] = (places[0] - places[1]) / last
    return [average(f"mean place of {method} - {control}", answers, differences, "of the image")]


def mean_index(kept):
    """Of all tokens that the draws of a row keep, each a number in hexadecimal whose bits are tokens; None of none."""
    tokens = [i for draw in kept for i, bit in enumerate(reversed(f"{int(draw, 16):b}")) if bit == "1"]
    return mean(tokens) if tokens else None


def average(what, answers, values, unit):
    """The Measured mean of {question: number}, with the interval over pictures, which may have several questions.

    UserError if there is one picture only.
    """
    numbers = torch.tensor(list(values.values()), dtype=torch.float64)
    pictures = [answers.items[i].image for i in values]
    if len(set(pictures)) == 1:
        raise UserError(f"{what or 'a family'}: all questions are about one picture, so there is no interval")
    ends = interval(numbers, pictures, -inf, inf)
    return Measured(what, float(numbers.mean()), ends, len(numbers), unit)


def coarse(answers, label="random@layer=1 0.1"):
    """How much more each other family loses by early pruning than the questions about the whole scene, in points."""
    losses = {family: losses_of(answers, label, family) for family in answers.families}
    if "scene" not in losses:
        raise UserError("the questions have no family that asks about the scene only")
    of_scene = losses.pop("scene")
    return [apart(f"loss of {family} - scene", answers, own, of_scene) for family, own in losses.items()]


def losses_of(answers, label, family):
    """{question: what it loses under the method, right unpruned minus right, in points} of a family."""
    rows = zip(answers.items, answers.rows["none"], answers.rows[label])
    return {i: 100 * (unpruned["right"] - pruned["right"]) for i, (item, unpruned, pruned) in enumerate(rows)
            if item.family == family}


def apart(what, answers, values, others, unit="points"):
    """The Measured difference of the means of two {question: number} over different questions."""
    mean_of = average("", answers, values, unit)
    mean_of_others = average("", answers, others, unit)
    difference = mean_of.difference - mean_of_others.difference
    # the variances add up
    half = sqrt(half_width(mean_of) ** 2 + half_width(mean_of_others) ** 2)
    return Measured(what, difference, (difference - half, difference + half), len(values), unit)


def half_width(measured):
    """Half of its interval."""
    low, high = measured.interval
    return (high - low) / 2


def later(answers, label="atp"):
    """How many fewer tokens are in the last layer than after the first cut."""
    fewer = {}
    for i, row in enumerate(answers.rows[label]):
        unpruned, *visual = row["visual"]
        after_first_cut = next((count for count in visual if count < unpruned), unpruned)
        fewer[i] = after_first_cut - visual[-1]
    return [average("tokens after the first cut - in the last layer", answers, fewer, "tokens")]


def crowded(answers, label="atp"):
    """How many more tokens enter a layer for the third of the pictures with most things than for that with fewest."""
    by_things = sorted(range(len(answers.items)), key=lambda i: len(answers.items[i].things))
    third = len(by_things) // 3
    if third < 2:
        raise UserError("too few questions to compare crowded pictures with others: give --count")
    tokens = [mean(row["visual"]) for row in answers.rows[label]]
    few = {i: tokens[i] for i in by_things[:third]}
    many = {i: tokens[i] for i in by_things[-third:]}
    return [apart("tokens in a layer, pictures with most things - with fewest", answers, many, few, "tokens")]
