"""Which methods a command line names, and the settings of each.

    --method asap,asap@layer=3      a method, and a variant of it, which has a setting of its own
    --set asap.threshold=.8         for the method and all its variants
    --set asap.threshold=.8,.9      several values make a variant of each: asap@threshold=.8 and asap@threshold=.9
    --set atp.layers=[2,4],[3,5]    a list needs brackets if its commas could be those between values, or methods
"""

import re
from dataclasses import dataclass
from itertools import product
from math import prod

from minivlm.lab.cli.options import root, share, variant
from minivlm.lab.named.kind import is_known, kind_of
from pruning import METHODS
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
        """Whether one of its settings is a keep, so that --keep is not for it."""
        _, settings = variant(self.name)
        return any(setting.startswith("keep=") for setting in (*settings, *self.settings))

    @property
    def takes_keep(self):
        """Whether --keep is for it: not if it has its own keep or schedule, or was fitted.

        A+B takes a keep, 256+64. So does a name that is not known, which `build` refuses later.
        """
        if self.name.endswith(".json") or self.has_keep:
            return False
        method = root(self.name)
        if "+" in method or not is_known(method):
            return True
        return "keep" in annotations(kind_of(method))


def variants(names, settings=(), others=()):
    """[Variant] of "all" or "a,b@option=value,..". Of options with several values: one for each combination of values.

    others: methods that may have settings although they are not named. UserError for a name that is given twice.
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
    """{method: its settings}, of the methods named and of the others. With one method, "option=value" is enough."""
    methods = list(dict.fromkeys(root(name) for name in chosen(names)))
    if len(methods) == 1:
        settings = [with_method(setting, methods[0]) for setting in settings]
    return share(settings, [*others, *methods])


def with_method(setting, method):
    """A setting, with the name of the only method: "layer=3" -> "fastv.layer=3", in A+B "a.layer=3" -> "a+b.a.layer=3".
    """
    option, _, _ = setting.partition("=")
    name, dot, _ = option.rpartition(".")
    parts = method.split("+") if "+" in method else []
    if dot and name not in parts:                          # the setting has its method's name, this one's or another's
        return setting
    return f"{method}.{setting}"


def swept(name, settings):
    """[Variant] of one method: one for each combination of the values of its settings."""
    values = [values_of(name, setting) for setting in settings]
    count = prod(len(each) for each in values)
    if count > MOST:
        raise UserError(f"--set sweeps {count} variants of {name}: at most {MOST} are compared, so give fewer values")
    # a setting with one value is the same in all variants; one with several values is in the variant's name
    shared = tuple(each[0] for each in values if len(each) == 1)
    swept_over = [each for each in values if len(each) > 1]
    return [Variant(named(name, own), shared) for own in product(*swept_over)]


def values_of(name, setting):
    """values_of("asap", "threshold=.8,.9") -> ["threshold=.8", "threshold=.9"]"""
    option, _, text = setting.partition("=")
    values = COMMA.split(text)
    annotation = annotation_of(name, option)
    if len(values) == 1 or annotation is None:             # `build` refuses an option that is not known
        return [setting]
    if takes_list(annotation) and not all(value.startswith("[") for value in values):      # one list, without brackets
        return [setting]
    if "@" in text or "+" in text:
        raise UserError(f"--set {option}={text}: a value with @ or + cannot be in the name of a variant, so give no "
                        "other value with it")
    return [f"{option}={value}" for value in words(f"--set {option}", text)]


def annotation_of(name, option):
    """The annotation of a method's option, in A+B of "a.option"; None if there is no such option."""
    if "+" in name:
        part, _, option = option.rpartition(".")
        name = part if part in root(name).split("+") else ""
    method = root(name)
    return annotations(kind_of(method)).get(option) if is_known(method) else None


def named(name, settings):
    """named("asap", ["threshold=.8"]) -> "asap@threshold=.8"; of "a+b", ["a.layer=3"] -> "a@layer=3+b"."""
    for setting in settings:
        if "+" in name:
            option, _, value = setting.partition("=")
            method, _, option = option.rpartition(".")
            setting = f"{option}={value}"
            parts = [f"{part}@{setting}" if root(part) == method else part for part in name.split("+")]
            name = "+".join(parts)
        else:
            name = f"{name}@{setting}"
    return name


def words(option, text):
    """words("--keep", "0.5,0.25") -> ["0.5", "0.25"], and "[1,2],[3]" -> ["[1,2]", "[3]"].

    UserError for an empty word, and for a word that is given twice, as both would have the same name.
    """
    values = COMMA.split(text)
    if "" in values:
        raise UserError(f"{option} {text!r}: there is an empty value: give values with single commas between them")
    refuse_twice(f"{option} {text}", values)
    return values


def refuse_twice(where, names):
    """UserError for a name that is there twice."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: {name} is there twice: give it once")
