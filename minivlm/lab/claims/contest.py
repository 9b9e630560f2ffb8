"""All methods that claims compare, on the same questions, in one resumable run."""

from minivlm.lab.claims.claim import Answers
from minivlm.lab.lineup.lineup import entrant_of
from minivlm.lab.lineup.variants import Variant
from minivlm.lab.score.accuracy import answered
from minivlm.lab.score.answers import Contest
from minivlm.lab.score.contestants import Contestant, Entry
from pruning.base import UserError


def entry(model, items):
    """The model and the picture of the first question."""
    return Entry(model, [model.processor.pixels(items[0].picture)], {})


def contestants(prompt, claims):
    """[Contestant] of all claims, each once; the first is no pruning."""
    sides = [side for claim in claims for side in claim.test.sides(prompt)]
    by_label = {side.label: side for side in sides if side.method != "none"}
    return [Contestant("none"), *(contestant(prompt, side) for side in by_label.values())]


def contestant(prompt, side):
    """The side with its method, or with the reason why it does not run on the model."""
    try:
        entrant = entrant_of(Variant(side.method), side.budget, prompt.own)
        entrant.on(prompt)
    except UserError as error:
        return Contestant(side.method, str(side.budget) or None, why_not=str(error))
    return prompt.contestant(entrant)


def rows(prompt, items, claims, template, log, rank=0, size=1):
    """The answers of every method that the claims compare, a row each, and the Contestants.

    log(recipe) opens the rows of an earlier run. `size` processes divide the questions.
    """
    entered = contestants(prompt, claims)
    contest = Contest(prompt.model, items, entered, template)
    return contest.run(log(contest.recipe()), rank, size), entered


def answers(prompt, items, entered, rows, **others):
    """The Answers that the rows hold. others: further fields of Answers."""
    by_label, why_not = answered(items, entered, rows)
    return Answers(prompt, items, by_label, why_not, **others)
