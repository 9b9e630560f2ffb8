"""Which values a method's options may have. The annotation of each field says it; `first_fault` checks them.

    keep: Amount = option(0.5, "share, or number, of tokens kept")     a share (float) or a number (int)
    layer: Layer = option(2, "K: the first layer on the kept tokens")  a whole number from 1
    query: Literal["last", "all"] = "last"                             one of these words
    layers: tuple[Layer, ...] = (8, 16)                                a list
    sigma: Positive | None = None                                      or nothing

Methods are checked whether they come from Python or from the command line, whose words `parse` reads. NaN and infinity
are never allowed, and a bool is not a number.
"""

import json
import math
import re
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

MOST_LAYERS = 10_000                               # a schedule with more layers would fill the memory
MOST = 2 ** 63                                     # from here on a number does not fit into an int64 tensor
BARE_POINT = re.compile(r"(?<![\w.])\.(?=\d)")   # that of ".8", which JSON writes "0.8"
SHOWN = 60                                         # a message repeats this many letters of a value


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated[int, Range(low=1)]`; `why` explains the lower bound in messages."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    why: str = ""

    def __str__(self):
        bounds = {"from": self.low, "above": self.above, "to": self.high}
        words = [f" {word} {bound}" for word, bound in bounds.items() if math.isfinite(bound)]
        return "".join(words)

    def fault(self, value):
        """What is wrong with a number; "" if it lies within the bounds."""
        if value < self.low:
            reason = f" ({self.why})" if self.why else ""
            return f"must be at least {self.low}{reason}"
        if value <= self.above:
            return f"must be above {self.above}"
        if value > self.high:
            return f"must be at most {self.high}"
        return ""


Amount = float | int                               # a share of the tokens, or their number: tokens_to_keep reads it
Layer = Annotated[int, Range(1, MOST_LAYERS, why="before layer 0 no attention has been computed")]
AnyLayer = Annotated[int, Range(high=MOST_LAYERS)]     # in a list, of which the method itself checks the first
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(0, 1)]
ToOne = Annotated[float, Range(above=0, high=1)]
Count = Annotated[int, Range(low=0)]
FromOne = Annotated[int, Range(low=1)]
Positions = Literal["keep", "renumber"]             # position ids of the tokens that remain: Pruner.positions
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", tuple: "a list",
         NoneType: "none"}


def option(default, about, **of_field):
    """A field with its default, and what it means in the paper's words: `about` of option_texts."""
    return field(default=default, metadata=dict(about=about), **of_field)


def early_positions(default="renumber"):
    """The option `positions` of a method that acts before the decoder; last in its constructor, and by name only."""
    about = "position ids: renumber, as the decoder never saw the others; or keep those of the unpruned prompt"
    return option(default, about, kw_only=True)


def option_texts(kind):
    """{field: what it means} of a dataclass, "" if a field does not say."""
    return {field.name: field.metadata.get("about", "") for field in fields(kind)}


@cache
def annotations(kind):
    """{field: annotation} of a dataclass; {} if the class is none."""
    if not is_dataclass(kind):
        return {}
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def first_fault(method):
    """What is wrong with the first option whose value its annotation does not allow; "" if all are allowed.

    A list, or a number of numpy or torch, is replaced by the tuple or Python number that it stands for.
    """
    for name, annotation in annotations(type(method)).items():
        value = getattr(method, name)
        if not fault(annotation, value):
            continue
        wrong = fault(annotation, plain(value))
        if wrong:
            return f"{name} {wrong}; got {shown(value)}"
        object.__setattr__(method, name, plain(value))
    return ""


def fault(annotation, value):
    """What is wrong with a value, as words to put after the option's name; "" if nothing is.

    fault(Share, 2) -> "must be at most 1"; fault(int, "x") -> "is a whole number", for "layer is a whole number".
    """
    for member in _members(annotation):
        if _is_kind(member, value):
            return _beyond(member, value)
    return f"is {described(annotation)}"


def parse(annotation, text):
    """parse(tuple[int, ...], "2,6") -> (2, 6): the value that a text stands for; the text itself if it is none."""
    members = [_bare(member) for member in _members(annotation)]
    if NoneType in members and text.lower() == "none":
        return None
    is_word = [member is str or get_origin(member) is Literal for member in members]
    if any(is_word):
        return text
    is_list = takes_list(annotation)
    text = BARE_POINT.sub("0.", text)
    spellings = [text, text.lower()]
    if is_list:
        spellings.append(f"[{text}]")
    for words in spellings:
        try:
            value = plain(json.loads(words))
        except (ValueError, RecursionError):       # RecursionError: nested too deep
            continue
        if is_list and isinstance(value, (int, float)):
            return (value,)
        return value
    return text


def takes_list(annotation):
    """Whether a list is among the values that an annotation allows."""
    return any(_is_list(_bare(member)) for member in _members(annotation))


def described(annotation):
    """described(Literal["last", "all"]) -> "one of last, all": what is allowed, for a message."""
    words = [_described(member) for member in _members(annotation)]
    words = list(dict.fromkeys(words))                     # no word twice
    if WORDS[float] in words and WORDS[int] in words:
        words.remove(WORDS[int])                           # "a number" includes it
    return " or ".join(words)


def plain(value, depth=10):
    """The value with lists as tuples, down to this depth, and numbers of numpy or torch as Python numbers."""
    if isinstance(value, (list, tuple)) and depth:
        items = [plain(item, depth - 1) for item in value]
        return tuple(items)
    is_number = getattr(value, "ndim", None) == 0 and hasattr(value, "item")
    if is_number:
        return value.item()
    return value


def shown(value, length=SHOWN):
    """The value as a message shows it: one line, cut if it is long."""
    try:
        text = repr(value)
    except Exception:                              # such as an int of 5000 digits, or a list that contains itself
        return f"a {type(value).__name__} that is too large to show"
    if len(text) <= length:
        return text
    return text[:length] + ".."


def _members(annotation):
    """The alternatives of an annotation: a value must fit one."""
    if get_origin(annotation) in (Union, UnionType):
        return get_args(annotation)
    return (annotation,)


def _bare(annotation):
    """The annotation without its ranges."""
    kind, _ = _with_limits(annotation)
    return kind


def _with_limits(annotation):
    """The annotation without its ranges, and the ranges."""
    if get_origin(annotation) is not Annotated:
        return annotation, []
    kind, *limits = get_args(annotation)
    return kind, limits


def _is_list(kind):
    return kind is tuple or get_origin(kind) is tuple


def _items(kind, value):
    """(annotation, item) for each item of a list; None if their numbers differ."""
    inner = get_args(kind) or (object, ...)
    if inner[-1] is ...:
        return [(inner[0], item) for item in value]
    if len(inner) != len(value):
        return None
    return list(zip(inner, value))


def _is_kind(member, value):
    """Whether the value is of that kind, whatever the ranges."""
    kind = _bare(member)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if _is_list(kind):
        return isinstance(value, tuple) and _holds_kinds(kind, value)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if isinstance(kind, type):
        return isinstance(value, kind)
    return True


def _holds_kinds(kind, value):
    """Whether the items of a list are of the kinds that the annotation says."""
    items = _items(kind, value)
    if items is None:
        return False
    for inner, item in items:
        fits = [_is_kind(member, item) for member in _members(inner)]
        if not any(fits):
            return False
    return True


def _beyond(member, value):
    """Which bound a value of the right kind breaks; "" if none."""
    kind, limits = _with_limits(member)
    if isinstance(value, tuple):
        faults = [fault(inner, item) for inner, item in _items(kind, value)]
        return _first(faults)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    if abs(value) >= MOST:
        return "is too large a number"
    faults = [limit.fault(value) for limit in limits]
    return _first(faults)


def _first(faults):
    """The first text that is not empty; "" if all are."""
    return next(filter(None, faults), "")


def _described(member):
    kind, limits = _with_limits(member)
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(inner)
    if inner and _is_list(kind):
        if inner[1:] == (...,):
            return f"a list, each item {described(inner[0])}"
        items = " and ".join(map(described, inner))
        return f"a list of {items}"
    name = getattr(kind, "__name__", kind)
    word = WORDS.get(kind, f"a {name}")
    bounds = "".join(map(str, limits))
    return word + bounds
