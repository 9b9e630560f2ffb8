"""From words on a command line to a method: its options are the fields of its dataclass, read by their defaults' types."""

import json
from dataclasses import MISSING, fields

from pruning import METHODS
from pruning.base import UserError


def build(name, keep=None, settings=()):
    """The pruner called `name` with keep ("0.25", "128") and settings ("layer=3", ..); None for "none" or no name.

    Raises UserError that lists what is known for an unknown method, an unknown option or a value of the wrong kind.
    """
    if name in (None, "none"):
        if keep is not None or settings:
            raise UserError(f"--keep and --set are options of a method: name one with --method ({', '.join(METHODS)})")
        return None
    if name not in METHODS:
        raise UserError(f"method {name!r} is not known: use one of {', '.join(METHODS)}")
    known = {f.name: f for f in fields(METHODS[name])}
    pairs = ([("keep", keep)] if keep is not None else []) + [_pair(setting) for setting in settings]
    for option, _ in pairs:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}: its options are {', '.join(known)}")
    return METHODS[name](**{option: value(known[option], text) for option, text in pairs})


def build_all(names, keep, average, settings, n, layers):
    """{name: pruner} of "all" or "a,b,..", each with this keep or average; with "all" a UserError in place of one that cannot.

    With "all", methods without a budget of their own keep their schedule when `keep` is given. Settings are
    "method.option=value".
    """
    chosen = list(METHODS) if names == "all" else names.split(",")
    own = {name: [s.removeprefix(name + ".") for s in settings if s.startswith(name + ".")] for name in chosen}
    lost = [s for s in settings if not any(s.startswith(name + ".") for name in chosen)]
    if lost:
        raise UserError(f"--set {lost[0]!r}: write METHOD.OPTION=VALUE with one of {', '.join(chosen)}")
    pruners = {}
    for name in chosen:
        try:
            budgeted = names != "all" or "keep" in {f.name for f in fields(METHODS[name])}
            pruner = build(name, keep if budgeted else None, own[name])
            pruners[name] = pruner.with_average(average, n, layers) if average is not None and pruner else pruner
        except UserError as error:
            if names != "all":
                raise
            pruners[name] = error
    return pruners


def value(field, text):
    """What `text` means for a dataclass field: a number, true or false, a list (commas), none, or the word itself."""
    try:
        told = json.loads(text.lower() if text.lower() in ("true", "false") else f"[{text}]" if "," in text else text)
    except ValueError:
        told = None if text.lower() == "none" else text
    told = tuple(told) if isinstance(told, list) else told
    default = None if field.default is MISSING else field.default
    if isinstance(default, tuple) and not isinstance(told, (tuple, str)):
        told = (told,)
    if default is not None and told is not None and _kind(told) != _kind(default):
        raise UserError(f"option {field.name} is a {_kind(default)} like {default!r}, not {text!r}")
    return told


def _pair(setting):
    name, equals, text = setting.partition("=")
    if not equals:
        raise UserError(f"--set {setting!r}: write OPTION=VALUE")
    return name, text


def _kind(x):
    kinds = {bool: "switch (true or false)", int: "number", float: "number", tuple: "list", str: "word"}
    return next(word for kind, word in kinds.items() if isinstance(x, kind))
