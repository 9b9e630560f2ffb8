"""Which methods a command line names, and the settings of each.

"asap,asap@layer=3" are a method and a variant of it, which has a setting of its own. --set METHOD.OPTION=VALUE is for
the method and all its variants. Several values, "asap.threshold=.8,.9", make a variant of each: asap@threshold=.8 and
asap@threshold=.9. A list needs brackets where its commas could be read either way.
"""

import re
from dataclasses import dataclass
from itertools import product
from math import prod

from minivlm.lab.cli.options import root, share, variant
from pruning import EVERY, METHODS
from pruning.base import UserError
from pruning.fields import annotations, takes_list

MOST = 100                             # variants of one method in a sweep
COMMA = re.compile(r",(?![^\[]*\])")   # a comma that is in no brackets


@dataclass(frozen=True)
class Variant:
    """A method by its name in tables, "asap@threshold=.8", with the settings that all variants of it have."""

    name: str
    settings: tuple = ()

    @property
    def has_keep(self):
        """Whether it has a keep of its own, so that --keep is not for it."""
        _, settings = variant(self.name)
        return any(setting.startswith("keep=") for setting in (*settings, *self.settings))

    @property
    def takes_keep(self):
        """Whether --keep is for it: not if it has its own keep or schedule, or was fitted.

        A+B takes 256+64, and a name that is not known is refused by `build`.
        """
        if self.name.endswith(".json") or self.has_keep:
            return False
        method = root(self.name)
        return method not in EVERY or "keep" in annotations(EVERY[method])


def variants(names, settings=(), others=()):
    """[Variant] of "all" or "a,b@option=value,..": a sweep has a variant for each value, several sweeps
    for each combination.

    others: methods that may be set although they are not named. UserError for a name that is given twice.
    """
    of_method = settings_of(names, settings, others)
    every = []
    for name in chosen(names):
        every += swept(name, of_method[root(name)])
    refuse_twice("--method and --set", [variant.name for variant in every])
    return every


def chosen(names):
    """The names of "a,b,..", or of all methods in the registry."""
    return list(METHODS) if names == "all" else words("--method", names)


def settings_of(names, settings, others=()):
    """{method: its settings}, of "all" or "a,b" and of the others. With one method only, "option=value" is enough."""
    methods = list(dict.fromkeys(root(name) for name in chosen(names)))
    if len(methods) == 1:
        settings = [with_method(setting, methods[0]) for setting in settings]
    return share(settings, [*others, *methods])


def with_method(setting, method):
    """A setting of the only method with its name: "layer=3" -> "fastv.layer=3", "a.layer=3" -> "a+b.a.layer=3"."""
    option, _, _ = setting.partition("=")
    name, dot, _ = option.partition(".")
    parts = method.split("+") if "+" in method else []
    if dot and name not in parts:                          # of a control, or with its name already
        return setting
    return f"{method}.{setting}"


def swept(name, settings):
    """The variants of one method: each combination of the values that its settings have."""
    values = [values_of(name, setting) for setting in settings]
    count = prod(len(each) for each in values)
    if count > MOST:
        raise UserError(f"--set sweeps {count} variants of {name}: at most {MOST} are compared, so give fewer values")
    alike = tuple(each[0] for each in values if len(each) == 1)
    several = [each for each in values if len(each) > 1]
    return [Variant(named(name, chosen), alike) for chosen in product(*several)]


def values_of(name, setting):
    """values_of("asap", "threshold=.8,.9") -> ["threshold=.8", "threshold=.9"]"""
    option, _, text = setting.partition("=")
    values = COMMA.split(text)
    annotation = annotation_of(name, option)
    if len(values) == 1 or annotation is None:             # `build` refuses an option that is not known
        return [setting]
    if takes_list(annotation) and not all(value.startswith("[") for value in values):
        return [setting]
    if "@" in text or "+" in text:
        raise UserError(f"--set {option}={text}: a value with @ or + cannot be in the name of a variant: give no other value with it")
    return [f"{option}={value}" for value in words(f"--set {option}", text)]


def annotation_of(name, option):
    """What values an option of a method may have, in A+B "a.option"; None if there is no such option."""
    if "+" in name:
        name, _, option = option.partition(".")
    method = EVERY.get(root(name))
    return annotations(method).get(option) if method else None


def named(name, settings):
    """named("asap", ["threshold=.8"]) -> "asap@threshold=.8"; in A+B the part that is meant has it."""
    for setting in settings:
        if "+" in name:
            part, _, setting = setting.partition(".")
            parts = [f"{each}@{setting}" if root(each) == part else each for each in name.split("+")]
            name = "+".join(parts)
        else:
            name = f"{name}@{setting}"
    return name


def words(option, text):
    """words("--keep", "0.5,0.25") -> ["0.5", "0.25"], and "[1,2],[3]" -> ["[1,2]", "[3]"].

    UserError for an empty word, and for a word that is given twice, as both would have the same name.
    """
    several = COMMA.split(text)
    if "" in several:
        raise UserError(f"{option} {text!r}: there is an empty value: give values with single commas between them")
    refuse_twice(f"{option} {text}", several)
    return several


def refuse_twice(where, names):
    """UserError for a name that is there twice."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: {name} is there twice: give it once")
