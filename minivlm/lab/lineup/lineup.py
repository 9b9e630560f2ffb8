"""Several methods at several budgets, from words on a command line."""

from itertools import product
from types import MappingProxyType

from minivlm.lab.cli.options import averaged, build, share, variant
from pruning import EVERY, METHODS
from pruning.base import UserError
from pruning.fields import annotations


def build_all(names, keep, average, settings, n, layers, parts=MappingProxyType({}), own=MappingProxyType({})):
    """{name: pruner} of "all" or "a,b,..", each with this keep or average.

    With "all", the UserError that forbids a method takes its place. Among several, methods without a keep have their
    own schedule. Settings are "method.option=value".
    """
    several = chosen(names)
    each = share(settings, several)

    def built_one(name):
        own_keep = keep if len(several) == 1 or takes_keep(name) else None
        return averaged(build(name, own_keep, each[name], own=own), average, n, layers, parts)
    return {name: built(names, lambda: built_one(name)) for name in several}


def lineup(names, keep, average, settings, shape, schedule=None):
    """{"fastv 192": pruner, ..}: each method of "a,b" or "all" at each budget of "192,128", or of averages.

    A number is the whole prompt's (Pruner.divided). Among several, a method without a keep has its own schedule and one
    entry. `schedule` "4:136,14:68,24:34" is for each of the methods. Raises UserError if a method cannot be built. With
    "all" the error takes the method's place.
    """
    if not names:
        if keep or average or settings or schedule:
            raise UserError("--keep, --average, --schedule and --set are for a method: name one with --method")
        return {}
    if keep and average:
        raise UserError("give --keep or --average, not both: each says how many tokens are left")
    several = chosen(names)
    own = share(settings, several) if len(several) > 1 else {names: settings}
    keeps = listed("--keep", keep) if keep else [None]
    averages = {None: None}
    if average:
        averages = {f"average {text}": _number(text) for text in listed("--average", average)}

    def built_one(name, budget, mean):
        pruner = build(name, budget, own[name], schedule)
        return averaged(pruner, mean, shape.n, shape.layers, shape.parts)

    pruners = {}
    for name in several:
        own_keeps = keeps if len(several) == 1 or takes_keep(name) else [None]
        for budget, (words, mean) in product(own_keeps, averages.items()):
            label = " ".join(filter(None, (name, schedule, words, budget)))
            pruners[label] = built(names, lambda: built_one(name, budget, mean))
    return pruners


def _number(text):
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--average {text}: give a number of tokens, or several with commas") from None


def chosen(names):
    """The methods of "a,b,..", or all of the registry. UserError for one that is named twice."""
    return list(METHODS) if names == "all" else listed("--method", names)


def listed(option, text):
    """listed("--keep", "0.5,0.25") -> ["0.5", "0.25"].

    UserError for a word that is given twice, as both would have the same name.
    """
    words = text.split(",")
    twice = [word for word in dict.fromkeys(words) if words.count(word) > 1]
    if twice:
        raise UserError(f"{option} {text}: {twice[0]} is there twice: give it once")
    return words


def built(names, build):
    """What `build` gives; with the names "all" the UserError that forbids it, in its place."""
    try:
        return build()
    except UserError as error:
        if names != "all":
            raise
        return error


def takes_keep(name):
    """Whether --keep is for the method of that name: not for one that has its own schedule, or was fitted.

    A+B takes 256+64, and a name that is not known is refused by `build`.
    """
    if name.endswith(".json"):
        return False
    name, _ = variant(name)
    return name not in EVERY or "keep" in annotations(EVERY[name])
