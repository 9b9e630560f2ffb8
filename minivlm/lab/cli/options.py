"""From words on a command line to a method: its options are the fields of its dataclass, read by their annotations."""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from minivlm.io.data import SMALL, read_json
from minivlm.lab.cli import modules
from minivlm.lab.named.kind import built, kind_of
from minivlm.llama import plan
from pruning import EVERY, METHODS, READINGS
from pruning.atp import ATP
from pruning.base import UserError
from pruning.compose import Both, Schedule
from pruning.fields import annotations, fault, parse, plain, shown
from pruning.laws import PRECONDITIONS


def build(name, keep=None, settings=(), schedule=None, own=MappingProxyType({})):
    """The pruner called `name` with keep ("0.25", "128") and settings ("layer=3", ..); None without a name.

    "a+b" is two methods of different sites, with keep "256+64" and settings "a.layer=3". "FILE.json" is a method that
    `fit` has saved, and "FILE.py:NAME" one of the user's own (named/kind.py). `schedule` "4:136,14:68" lets a method
    act before several layers. `own` are the model's settings in place of a method's defaults (own_settings).
    "divprune@positions=keep" is a variant: a method with a setting of its own, so that tables can hold both. For an
    unknown method, an unknown option or a value of the wrong kind a UserError lists what is known.
    """
    if name is None:
        if keep is not None or settings or schedule:
            raise UserError("--keep, --set and --schedule are for a method: name one with --method "
                            f"({', '.join(METHODS)})")
        return None
    if "+" in name:
        return _both(name, keep, settings, schedule, own)
    name, of_variant = variant(name)
    settings = [*of_variant, *settings]
    if name.endswith(".json"):
        pruner = _fitted(name, keep, settings)
    else:
        defaults = own.get(name, own.get(read_from(name), ()))
        pruner = _single(name, keep, settings, defaults)
    return pruner if schedule is None else Schedule(pruner, *_stages(schedule))


def variant(name):
    """variant("divprune@positions=keep") -> ("divprune", ["positions=keep"]): the method, and the variant's settings.
    """
    if name.endswith(".json"):
        return name, []
    method, *settings = name.split("@")
    if not all("=" in setting for setting in settings):
        raise UserError(f"--method {name}: write a variant as METHOD@OPTION=VALUE")
    return method, settings


def root(name):
    """root("fastv@layer=3") -> "fastv", root("vispruner+fastv@layer=3") -> "vispruner+fastv": without settings."""
    methods = [variant(part)[0] for part in name.split("+")]
    return "+".join(methods)


def _both(name, keep, settings, schedule, own):
    """The two methods of "a+b"; a schedule is the last one's."""
    names = name.split("+")
    keeps = [None] * len(names) if keep is None else keep.split("+")
    if len(keeps) != len(names):
        raise UserError(f"--keep {keep}: give one number for each of {name}, like 256+64")
    each = share(settings, names)
    schedules = [None] * (len(names) - 1) + [schedule]
    methods = [build(part, k, each[root(part)], stages, own) for part, k, stages in zip(names, keeps, schedules)]
    return Both(tuple(methods))


def read_from(name):
    """The method that a reading changes, "" for what is no reading: read_from("asap_dedup") -> "asap", not "fastv"."""
    if name not in READINGS:
        return ""
    names = {kind: method for method, kind in METHODS.items()}
    return next(names[kind] for kind in READINGS[name].__mro__ if kind in names)


def own_settings(folder):
    """{method: ["option=value", ..]} of the folder's methods.json: what its model needs in place of the defaults."""
    path = Path(folder) / "methods.json"
    if not path.exists():
        return {}
    settings = read_json(path, "settings of methods", SMALL)
    if fault(dict, settings) or any(fault(tuple[str, ...], plain(words)) for words in settings.values()):
        raise UserError(f'{path}: write {{"METHOD": ["OPTION=VALUE", ..]}}; got {shown(settings)}')
    for name, words in settings.items():
        try:
            build(name, settings=words)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return settings



def averaged(pruner, average, n, layers, parts=MappingProxyType({})):
    """The pruner for a prompt of n visual tokens: its schedule has this average, or its `keep` is the prompt's number.

    parts: what a method may count in place of the n tokens together, {"tile": (how many, tokens of each), "image": ..}.
    It gets its part of the budget. UserError if the tokens cannot meet it.
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
    """Visual tokens that enter each decoder layer, n at first; None if the prompt decides.

    UserError if n cannot meet the budget.
    """
    for site in ("image", "vision", "embed"):
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
            raise UserError(f"{type(method).__name__} counts the tokens of each {method.per}: give --keep for both, "
                            "not --average")


def check(pruner, model):
    """The pruner, with the trained module that it needs.

    UserError, before anything runs, if the model does not have what the method needs.
    """
    if pruner is None:
        return None
    if isinstance(pruner, Both):
        return replace(pruner, methods=tuple(check(method, model) for method in pruner.methods))
    if isinstance(pruner, ATP):
        pruner = modules.with_module(pruner, model)
    layers = len(model.language_model.layers)
    name = type(pruner).__name__
    plan(pruner.at("decoder"), layers)
    if "calibration" in pruner.preconditions and pruner.fitted != layers:
        raise UserError(f"{name} needs {PRECONDITIONS['calibration']}: this one is for {pruner.fitted} layers and the "
                        f"model has {layers}; make another with `python run.py fit`")
    for lacking in sorted(model.lacks.keys() & pruner.preconditions):
        reading = substitute(type(pruner), lacking)
        remedy = f"{reading}, its reading without one, or " if reading else ""
        raise UserError(f"{name} needs {PRECONDITIONS[lacking]}, {model.lacks[lacking]}: use {remedy}a method of the "
                        "embed or decoder site (python run.py methods)")
    return pruner


def substitute(method, need):
    """The name of the first reading of a method that does not have this precondition; "" if there is none."""
    for name, reading in READINGS.items():
        if issubclass(reading, method) and need not in reading().preconditions:
            return name
    return ""


def share(settings, names):
    """{method: ["option=value", ..]} from "method.option=value", for the methods of these names, variants or not.

    UserError for a setting of no method named.
    """
    own = {root(name): [] for name in names}
    for setting in settings:
        owners = [method for method in own if setting.startswith(f"{method}.")]
        if not owners:
            raise UserError(f"--set {setting!r}: write METHOD.OPTION=VALUE, with a METHOD of {', '.join(own)}")
        method = max(owners, key=len)
        own[method].append(setting.removeprefix(f"{method}."))
    return own


def _single(name, keep, settings, defaults):
    """The method of that name with these options, and `defaults` in place of those that are not given."""
    kind = kind_of(name)
    known = annotations(kind)
    texts = {} if keep is None else dict(keep=keep)
    for option, text in map(_pair, settings):
        if option in texts:
            raise UserError(f"{name}: {option} is given twice, as {texts[option]} and as {text}: give it once")
        texts[option] = text
    texts = dict(map(_pair, defaults)) | texts
    for option in texts:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}: its options are {', '.join(known)}")
    folder = texts.pop("module", "none")               # the only option that is no value: where the value lies
    options = {option: parse(known[option], text) for option, text in texts.items()}
    if folder.lower() == "none":
        return built(kind, name, **options)
    return modules.read(folder, kind, **options)


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
        layers = [int(layer) for layer, _ in stages]
        keeps = [float(k) if "." in k else int(k) for _, k in stages]
        return tuple(layers), tuple(keeps)
    except ValueError:
        raise UserError(f"--schedule {schedule}: write LAYER:KEEP,LAYER:KEEP,.. like 4:136,14:68,24:34") from None


def _pair(setting):
    """"layer=3" -> ("layer", "3")"""
    name, equals, text = setting.partition("=")
    if not equals:
        raise UserError(f"--set {setting!r}: write OPTION=VALUE")
    return name, text
