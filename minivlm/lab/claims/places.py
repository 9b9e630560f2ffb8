"""Claims about where attention lies and which tokens are kept, as differences with intervals."""

from dataclasses import dataclass
from math import sqrt

import torch

from minivlm.lab.attention.figures import alike as mean_correlation
from minivlm.lab.attention.figures import facts
from minivlm.lab.attention.measured import Study
from minivlm.lab.attention.watch import cases
from minivlm.lab.claims.claim import Measured
from minivlm.lab.score.accuracy import Z
from minivlm.lab.score.answers import Contest, mean
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
    """The mean correlation between the maps of two families, with the interval of a bootstrap over questions."""
    ranking(answers)                       # measures the attention
    attention = answers.places.attention[:, 0, RANKING]                            # (Q, m)
    families = []
    for family in answers.families:
        own = [i for i, item in enumerate(answers.items) if item.family == family]
        families.append(torch.tensor(own))
    if len(families) < 2:
        raise UserError("there is one family of questions only")
    # draw as many questions of each family, with replacement
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(RESAMPLES):
        drawn = [own[torch.randint(len(own), (len(own),), generator=generator)] for own in families]
        values.append(mean_correlation([attention[own].mean(dim=0) for own in drawn]))
    values = torch.tensor(values).sort().values
    low = values[int(.025 * RESAMPLES)]
    high = values[int(.975 * RESAMPLES)]
    exact = mean_correlation([attention[own].mean(dim=0) for own in families])
    return [correlated(answers, f"maps of two families in layer {RANKING}", exact, (float(low), float(high)))]


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
    """The Measured mean, over the questions, of what the kept tokens of the two differ by in this statistic."""
    pairs = zip(answers.rows[method], answers.rows[control])
    differences = [own["statistics"][name] - other["statistics"][name] for own, other in pairs]
    return normal(f"{name} of {method} - {control}", differences, unit)


def normal(what, values, unit):
    """The Measured mean of a number per question, with its normal interval."""
    n = len(values)
    center = mean(values)
    variance = sum((value - center) ** 2 for value in values) / max(1, n - 1)
    half = Z * sqrt(variance / n)
    return Measured(what, center, (center - half, center + half), n, unit)


def coarse(answers, label="random@layer=1 0.1"):
    """How much more each other family loses by early pruning than the questions about the whole scene, in points."""
    losses = {family: losses_of(answers, label, family) for family in answers.families}
    if "scene" not in losses:
        raise UserError("the questions have no family that asks about the scene only")
    of_scene = losses.pop("scene")
    return [apart(f"loss of {family} - scene", own, of_scene) for family, own in losses.items()]


def losses_of(answers, label, family):
    """What each question of a family loses under the method: right unpruned minus right, in points."""
    pairs = zip(answers.right("none", family), answers.right(label, family))
    return [100 * (unpruned - pruned) for unpruned, pruned in pairs]


def apart(what, values, others):
    """The Measured difference, in points, of the means of two numbers over different questions."""
    mean_of = normal("", values, "")
    mean_of_others = normal("", others, "")
    difference = mean_of.difference - mean_of_others.difference
    # the variances add up
    half = sqrt(half_width(mean_of) ** 2 + half_width(mean_of_others) ** 2)
    return Measured(what, difference, (difference - half, difference + half), len(values))


def half_width(measured):
    """Half of its interval."""
    low, high = measured.interval
    return (high - low) / 2


def later(answers, label="atp"):
    """How many fewer tokens are in the last layer than in layer 1, before which the shipped model has its first cut."""
    fewer = [row["visual"][1] - row["visual"][-1] for row in answers.rows[label]]
    return [normal("tokens after the first cut - in the last layer", fewer, "tokens")]


def crowded(answers, label="atp"):
    """How many more tokens enter a layer for the third of the pictures with most things than for that with fewest."""
    by_things = sorted(range(len(answers.items)), key=lambda i: len(answers.items[i].things))
    third = len(by_things) // 3
    if third < 2:
        raise UserError("too few questions to compare crowded pictures with others: give --count")
    tokens = [mean(row["visual"]) for row in answers.rows[label]]
    few = [tokens[i] for i in by_things[:third]]
    many = [tokens[i] for i in by_things[-third:]]
    measured = apart("tokens in a layer, pictures with most things - with fewest", many, few)
    return [Measured(measured.what, measured.difference, measured.interval, third, "tokens")]
