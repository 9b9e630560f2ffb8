"""The promises that can be named, and how one is looked at: laws of a method (pruning/laws.py), and of the model.

Everything here is run twice: on our own modules, and inside `in_place` (../variant.py) on those with a mistake.
"""

from dataclasses import replace
from typing import Callable, NamedTuple

import torch

from minivlm.course.bugs.planted import titled
from minivlm.course.bugs.promises import runs
from minivlm.course.bugs.promises.altered import (
    MeanHeadView, NeedleView, OffsetView, mirror_image, mirrored, with_views,
)
from minivlm.course.bugs.promises.cases import built, cases, described
from pruning.base import UserError
from pruning.laws import LAWS


class Promise(NamedTuple):
    """One promise. Of `choice` and `run` one is given: (pruner, tokens) or (pruner) -> (whether it is kept, words)."""

    sentence: str
    choice: Callable | None = None
    run: Callable | None = None


class Outcome(NamedTuple):
    """What one case showed: plain data, so that it can leave `in_place`."""

    case: str
    kept: bool | None                  # None: the promise does not concern the method, or the run ended early
    words: str


def law(name):
    """A law as a promise."""
    def choice(pruner, tokens):
        if name == "needle":
            tokens = with_views(tokens, NeedleView)
        return LAWS[name].holds(pruner, tokens), described(pruner.reduce(tokens))
    return Promise(LAWS[name].sentence, choice)


def same(kind, condition):
    """A promise that the same is kept with other views."""
    def choice(pruner, tokens):
        first = pruner.reduce(tokens)
        second = pruner.reduce(with_views(tokens, kind))
        return first.keep.equal(second.keep), f"{described(first)}, and {condition} {described(second)}"
    return choice


def mirror(pruner, tokens):
    """Of the mirrored picture the tokens are kept that show what those of the picture show."""
    first = pruner.reduce(tokens)
    second = pruner.reduce(mirrored(tokens))
    back = mirror_image(tokens.grid)[second.keep]
    kept = first.keep.sort().values.equal(back.sort().values)
    return kept, f"{described(first)}, and of the mirrored picture {described(second)}"


def destination(pruner, tokens):
    """Each of the k best has a part in what is left."""
    if not getattr(pruner, "consolidate", False):
        raise UserError("it merges none of the tokens that it has chosen")
    best = replace(pruner, consolidate=False).reduce(tokens).keep                  # (k,)
    r = pruner.reduce(tokens)
    part = r.merge[:, best].sum(dim=0)                                             # (k,)
    lost = best[part == 0].tolist()
    return not lost, f"{described(r)}; of the best, {best.tolist()}, these have no part in it: {lost}"


PROMISES = {name: law(name) for name in LAWS if LAWS[name].holds}
PROMISES |= {
    "causal": Promise(LAWS["causal"].sentence, run=runs.causal),
    "heads": Promise("if each head had the mean over heads for its attention, the same would be kept",
                     same(MeanHeadView, "with the mean in each head")),
    "offset": Promise("a constant added to all logits, which no softmax sees, changes no choice",
                      same(OffsetView, "with 3 added to all logits")),
    "mirror": Promise("of a mirrored picture the mirrored tokens are kept", mirror),
    "destination": Promise("a token that is merged away goes into one that is kept", destination),
    "layer": Promise("layer K is the first that runs on the kept tokens", run=runs.layer),
    "masked": Promise("dropping a token gives what masking its key gives", run=runs.masked),
    "cached": Promise("words read one after the other from the cache give what the whole text gives", run=runs.cached),
    "positions": Promise("what remains keeps its position ids, and the next word goes on after the unpruned prompt",
                         run=runs.positions),
    "definition": Promise("attention is softmax(Q K^T / sqrt(Dh) + mask) V, and the mask hides later tokens",
                          run=runs.definition),
    "rotation": Promise("a rotated query times a rotated key depends on their distance only", run=runs.rotation),
}


@torch.no_grad()
def outcomes(title, name):
    """[Outcome] of a promise, case by case, for the method of a planted mistake, in the modules imported now."""
    bug = titled(title)
    pruner = built(bug)
    promise = PROMISES[name]
    if promise.run is not None:
        return [outcome("a small random model", promise.run, pruner)]
    return [outcome(words, promise.choice, pruner, tokens) for words, tokens in cases(bug, pruner)]


def outcome(case, look, *given):
    """What one look shows."""
    try:
        kept, words = look(*given)
    except UserError as error:
        return Outcome(case, None, str(error))
    return Outcome(case, kept, words)
