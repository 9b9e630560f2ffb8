"""From words on a command line to a method: its options are the fields of its dataclass, read by their annotations."""

from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType

from minivlm.io.data import SMALL, read_json
from minivlm.lab.train import modules
from minivlm.llama import plan
from pruning import EVERY, METHODS, READINGS
from pruning.atp import ATP
from pruning.base import UserError
from pruning.compose import Both, Schedule
from pruning.fields import annotations, parse, shown
from pruning.laws import PRECONDITIONS


def build(name, keep=None, settings=(), schedule=None, own=MappingProxyType({})):
    """The pruner called `name` with keep ("0.25", "128") and settings ("layer=3", ..); None without a name.

    "a+b" is two methods of different sites, with keep "256+64" and settings "a.layer=3"; "FILE.json" a method that
    `fit` has saved; `schedule` "4:136,14:68" lets a method act before several layers; `own` are the model's settings in place
    of a method's defaults (own_settings). Raises UserError that lists what is known for an unknown method, an unknown option or
    a value of the wrong kind.
    """
    if name is None:
        if keep is not None or settings or schedule:
            raise UserError(f"--keep, --set and --schedule are for a method: name one with --method ({', '.join(METHODS)})")
        return None
    if "+" in name:
        names, keeps = name.split("+"), keep.split("+") if keep is not None else [None] * (name.count("+") + 1)
        if len(keeps) != len(names):
            raise UserError(f"--keep {keep}: give one number for each of {name}, like 256+64")
        given = share(settings, names)
        return Both(tuple(build(part, k, given[part], schedule if part == names[-1] else None, own) for part, k in zip(names, keeps)))
    settings = [*own.get(name, own.get(read_from(name), ())), *settings]
    pruner = _fitted(name, keep, settings) if name.endswith(".json") else _single(name, f"--method {name}", keep, settings)
    return pruner if schedule is None else Schedule(pruner, *_stages(schedule))


def read_from(name):
    """The method whose paper a reading reads, "" for what is no reading: read_from("fastv_all") -> "fastv"."""
    if name not in READINGS:
        return ""
    parents = READINGS[name].__mro__
    return next((method for method, kind in METHODS.items() if kind in parents), "")


def own_settings(folder):
    """{method: ["option=value", ..]} of the folder's methods.json: what its model asks for in place of the defaults."""
    path = Path(folder) / "methods.json"
    if not path.exists():
        return {}
    settings = read_json(path, "settings of methods", SMALL)
    for name, words in settings.items() if isinstance(settings, dict) else [("", settings)]:
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UserError(f'{path}: write {{"METHOD": ["OPTION=VALUE", ..]}}; got {shown(settings)}')
        try:
            build(name, settings=words)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return settings


def build_all(names, keep, average, settings, n, layers, parts=MappingProxyType({}), own=MappingProxyType({})):
    """{name: pruner} of "all" or "a,b,..", each with this keep or average; with "all" a UserError in place of one that cannot.

    Among several, methods without a keep have their own schedule. Settings are "method.option=value".
    """
    several = chosen(names)
    given = share(settings, several)
    pruners = {}
    for name in several:
        own_keep = keep if len(several) == 1 or takes_keep(name) else None
        pruners[name] = built(names, lambda: averaged(build(name, own_keep, given[name], own=own), average, n, layers, parts))
    return pruners


def chosen(names):
    """The methods of "a,b,..", or all of the registry. UserError for one that is named twice."""
    return list(METHODS) if names == "all" else listed("--method", names)


def listed(option, text):
    """listed("--keep", "0.5,0.25") -> ["0.5", "0.25"]. UserError for one that is given twice, as both would have one name."""
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
    """Whether --keep is for the method of that name: not for one that has its own schedule, or was fitted. A+B takes 256+64."""
    return not name.endswith(".json") and (name not in EVERY or "keep" in {f.name for f in fields(EVERY[name])})


def averaged(pruner, average, n, layers, parts=MappingProxyType({})):
    """The pruner for a prompt of n visual tokens: its schedule has this average, or its `keep`, if a number, is the prompt's.

    parts: what a method may count in place of the n tokens together, {"tile": (how many, tokens of each), "image": ..}: it is
    given its part of the budget. UserError if the tokens cannot meet it.
    """
    if average is not None and pruner is None:
        raise UserError("--average is for a method: name one with --method")
    if pruner is None:
        return None
    if average is None:
        pruner = pruner.divided(parts)
    else:
        _check_parts(pruner, parts)
        count, each = parts.get(pruner.per, (1, n))
        pruner = pruner.with_average(average / count, each, layers)
    entering(pruner, n, layers, parts)
    return pruner


def entering(pruner, n, layers, parts=MappingProxyType({})):
    """Visual tokens that enter each decoder layer, n at first; None where the prompt decides. UserError if n cannot meet the budget."""
    for site in ("vision", "embed"):
        method = pruner and pruner.at(site)
        if method and n is not None:
            n = method.tokens_left(n, parts)
    if n is None:
        return None
    decoder = pruner and pruner.at("decoder")
    return decoder.schedule(n, layers) if decoder else [n] * layers


def _check_parts(pruner, parts):
    """UserError for methods one after the other, where the first counts parts of what the next one counts."""
    for method in pruner.methods if isinstance(pruner, Both) else ():
        if parts.get(method.per, (1, 0))[0] > 1:
            raise UserError(f"{type(method).__name__} counts the tokens of each {method.per}: give --keep for both, not --average")


def check(pruner, model):
    """The pruner, with the trained module that it needs; UserError, before anything runs, that says what the model has not."""
    if isinstance(pruner, Both):
        return replace(pruner, methods=tuple(check(method, model) for method in pruner.methods))
    pruner = modules.found(pruner, model) if isinstance(pruner, ATP) else pruner
    layers, name, asks = len(model.language_model.layers), type(pruner).__name__, pruner.preconditions if pruner else ()
    plan(pruner and pruner.at("decoder"), layers)
    if "calibration" in asks and pruner.fitted != layers:
        raise UserError(f"{name} needs {PRECONDITIONS['calibration']}: this one is for {pruner.fitted} layers and the model has "
                        f"{layers}; make another with `python run.py fit`")
    for lacking in sorted(model.lacks.keys() & asks):
        raise UserError(f"{name} needs {PRECONDITIONS[lacking]}, {model.lacks[lacking]}: use a method of the embed or decoder site "
                        "(python run.py methods)")
    return pruner


def share(settings, names):
    """{name: its settings} from "name.option=value"; UserError for a setting of no method named."""
    lost = [s for s in settings if s.partition(".")[0] not in names]
    if lost:
        raise UserError(f"--set {lost[0]!r}: write METHOD.OPTION=VALUE, with a METHOD of {', '.join(names)}")
    return {name: [s.partition(".")[2] for s in settings if s.partition(".")[0] == name] for name in names}


def _single(name, place, keep, settings):
    if name not in EVERY:
        raise UserError(f"{place}: {name!r} is not known: use one of {', '.join(METHODS)}, or a reading (run.py methods --readings)")
    known = annotations(EVERY[name])
    pairs = ([("keep", keep)] if keep is not None else []) + [_pair(setting) for setting in settings]
    for option, _ in pairs:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}: its options are {', '.join(known)}")
    options = dict(pairs)
    folder = options.pop("module", "none")             # the one option that is no value: where the value lies
    options = {option: parse(known[option], text) for option, text in options.items()}
    if folder.lower() == "none":
        return EVERY[name](**options)
    return modules.read(folder, EVERY[name], **options)


def _fitted(path, keep, settings):
    """The method that a file written by `run.py fit` holds."""
    if keep is not None or settings:
        raise UserError(f"{path} holds a fitted method with all its options: --keep and --set do not go with it")
    stored = read_json(path, "method that `run.py fit` wrote", SMALL)
    try:
        return EVERY[stored["method"]](**stored["options"])
    except (UserError, KeyError, TypeError) as error:      # of values, of names, of kinds
        raise UserError(f"{path} holds no method that `run.py fit` wrote ({error})") from None


def _stages(schedule):
    """"4:136,14:68" -> (4, 14), (136, 68)"""
    try:
        stages = [stage.split(":") for stage in schedule.split(",")]
        return tuple(int(layer) for layer, _ in stages), tuple(float(k) if "." in k else int(k) for _, k in stages)
    except ValueError:
        raise UserError(f"--schedule {schedule}: write LAYER:KEEP,LAYER:KEEP,.. like 4:136,14:68,24:34") from None


def _pair(setting):
    name, equals, text = setting.partition("=")
    if not equals:
        raise UserError(f"--set {setting!r}: write OPTION=VALUE")
    return name, text
