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

    attention: torch.Tensor | None = None          # (questions, cases, layers, m)
    result: dict | None = None

    def of(self, answers):
        """The figures of `run.py attention` for the questions of the answers."""
        if self.result is None:
            contest = Contest(answers.prompt.model, answers.items, [], answers.template)
            study = Study(contest, cases(IDS))
            measured = study.run()
            self.attention = measured.attention
            self.result = facts(measured, study.cases, [], answers.items)
        return self.result


def late(answers):
    """How attention correlates with the index of the image token, in the layer that ranks."""
    layer = ranking(answers)
    usual = layer["correlation"]["usual"]
    return [correlated(answers, f"attention and index in layer {RANKING}", usual["value"], usual["interval"])]


def turned(answers):
    """The same with the image's position ids reversed, minus that with the usual ids."""
    return [changed_by(answers, label) for label in ranking(answers)["correlation"] if label.startswith("reversed")]


def without(answers):
    """The same without rotation, minus that with it."""
    return [changed_by(answers, label) for label in ranking(answers)["correlation"] if label.startswith("unrotated")]


def same_maps(answers):
    """The mean correlation between the maps of two families, with the interval of a bootstrap over questions."""
    ranking(answers)
    attention = answers.places.attention[:, 0, RANKING]                            # (Q, m)
    of_family = [[i for i, item in enumerate(answers.items) if item.family == family] for family in answers.families]
    if len(of_family) < 2:
        raise UserError("there is one family of questions only")
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(RESAMPLES):
        drawn = [torch.tensor(own)[torch.randint(len(own), (len(own),), generator=generator)] for own in of_family]
        values.append(mean_correlation([attention[own].mean(dim=0) for own in drawn]))
    values = torch.tensor(values).sort().values
    low, high = values[int(.025 * RESAMPLES)], values[int(.975 * RESAMPLES)]
    exact = mean_correlation([attention[own].mean(dim=0) for own in of_family])
    return [correlated(answers, f"maps of two families in layer {RANKING}", exact, (float(low), float(high)))]


def changed_by(answers, label):
    """What position ids change, over the questions."""
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
    """A Measured correlation."""
    return Measured(what, value, tuple(interval), len(answers.items), "correlation")


def alike(answers):
    """How much more alike the kept tokens of FastV are than random ones: cosine to the most similar other token."""
    return [statistic(answers, "cosine", "cosine")]


def near(answers):
    """How much nearer to each other FastV keeps tokens than chance, in patches."""
    return [statistic(answers, "distance", "patches")]


def statistic(answers, name, unit, method="fastv 0.1", control="random 0.1"):
    """The mean difference over the questions, with its normal interval."""
    rows = zip(answers.rows[method], answers.rows[control])
    differences = [own["statistics"][name] - other["statistics"][name] for own, other in rows]
    return normal(f"{name} of {method} - {control}", differences, unit)


def normal(what, values, unit):
    """Measured: the mean of a number per question, with its normal interval."""
    n = len(values)
    center = mean(values)
    variance = sum((value - center) ** 2 for value in values) / max(1, n - 1)
    half = Z * sqrt(variance / n)
    return Measured(what, center, (center - half, center + half), n, unit)


def coarse(answers, label="random@layer=1 0.1"):
    """How much more a family of fine questions loses than that of the scene, by early pruning, in points."""
    losses = {family: losses_of(answers, label, family) for family in answers.families}
    if "scene" not in losses:
        raise UserError("the questions have no family that asks about the scene only")
    return [apart(f"loss of {family} - scene", losses[family], losses["scene"]) for family in losses
            if family != "scene"]


def losses_of(answers, label, family):
    """Right unpruned minus right under the method, of each question of a family, in points."""
    pairs = zip(answers.right("none", family), answers.right(label, family))
    return [100 * (unpruned - pruned) for unpruned, pruned in pairs]


def apart(what, values, others):
    """Measured: the difference of two means over different questions."""
    one, other = normal("", values, ""), normal("", others, "")
    half = sqrt(sum(((each.interval[1] - each.interval[0]) / 2) ** 2 for each in (one, other)))
    difference = one.difference - other.difference
    return Measured(what, difference, (difference - half, difference + half), len(values))


def later(answers, label="atp"):
    """How many fewer tokens are in the last layer than in the one after the first cut, in tokens."""
    rows = answers.rows[label]
    return [normal("tokens after the first cut - in the last layer", [row["visual"][1] - row["visual"][-1]
                                                                     for row in rows], "tokens")]


def crowded(answers, label="atp"):
    """How many more tokens in a layer crowded pictures keep than empty ones, of the outer thirds."""
    order = sorted(range(len(answers.items)), key=lambda i: len(answers.items[i].things))
    third = len(order) // 3
    if third < 2:
        raise UserError("too few questions to compare crowded pictures with others: give --count")
    tokens = [mean(row["visual"]) for row in answers.rows[label]]
    few, many = ([tokens[i] for i in part] for part in (order[:third], order[-third:]))
    measured = apart("tokens in a layer, pictures with most things - with fewest", many, few)
    return [Measured(measured.what, measured.difference, measured.interval, third, "tokens")]
