"""All methods that claims compare, on the same questions, in one resumable run."""

from dataclasses import replace

from minivlm.lab.claims.claim import Answers
from minivlm.lab.cli.options import averaged, build, check, own_settings
from minivlm.lab.score.accuracy import answered
from minivlm.lab.score.answers import Contest
from minivlm.lab.score.contestants import Contestant
from pruning.base import UserError


def contestants(model, pixels, claims):
    """[Contestant] of all claims, each once, no pruning first. pixels: of one picture of the task."""
    entrants = [entrant for claim in claims for entrant in claim.test.entrants()]
    by_label = {entrant.label: entrant for entrant in entrants if entrant.method != "none"}
    return [Contestant("none"), *(contestant(model, pixels, entrant) for entrant in by_label.values())]


def contestant(model, pixels, entrant):
    """The entrant with its method, or with the reason why it does not run on the model."""
    own = Contestant(entrant.label)
    n = model.visual_tokens(pixels)
    layers = model.config.text.num_hidden_layers
    settings = own_settings(model.folder)
    try:
        if entrant.stages:
            pruner = build(entrant.method, schedule=halving(entrant.average * n, n, layers), own=settings)
        else:
            pruner = build(entrant.method, entrant.keep, own=settings)
            average = entrant.average and entrant.average * n
            pruner = averaged(pruner, average, n, layers, model.parts([pixels]))
        return replace(own, pruner=check(pruner, model))
    except UserError as error:
        return replace(own, why_not=str(error))


def halving(average, n, layers):
    """Three cuts, before layer 2, half and three quarters of the depth, each to half of the one before, with that
    average of n visual tokens in a layer. UserError if there is none.

    halving(48, 144, 8) -> "2:27,4:14,6:7": 2 x 144, 2 x 27, 2 x 14 and 2 x 7 tokens are 48 a layer.
    """
    cuts = (2, layers // 2, 3 * layers // 4)
    lengths = [end - start for start, end in zip(cuts, (*cuts[1:], layers))]
    weight = sum(length / 2 ** i for i, length in enumerate(lengths))
    first = (average * layers - cuts[0] * n) / weight
    if first < 4:
        raise UserError(f"an average of {average:.1f} visual tokens is out of reach in three stages")
    return ",".join(f"{cut}:{round(first / 2 ** i)}" for i, cut in enumerate(cuts))


def rows(model, items, claims, template, log, rank=0, size=1):
    """The rows of every method that the claims compare, and the Contestants. log(recipe) opens an earlier run's rows.

    `size` processes divide the questions.
    """
    pixels = model.processor.pixels(items[0].picture)
    entered = contestants(model, pixels, claims)
    contest = Contest(model, items, entered, template)
    return contest.run(log(contest.recipe()), rank, size), entered


def answers(model, items, entered, rows):
    """The Answers that the rows hold."""
    own, why_not = answered(items, entered, rows)
    return Answers(model, items, own, why_not)
