"""What the options of a method may hold: each field's annotation says it, and one check reads them all.

    keep: Amount = 0.5                         a share (float) or a number (int)
    layer: Layer = 2                           a whole number from 1
    query: Literal["last", "all"] = "last"     one of these words
    layers: tuple[Layer, ...] = (8, 16)        a list
    sigma: Positive | None = None              or nothing

`first_fault` holds a method to its annotations, whether it was built from Python or from the command line; `parse` reads
the words of the command line. No annotation admits NaN or infinity, and true is no number.
"""

import json
import math
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

MOST_LAYERS = 10_000                               # of any model: a longer schedule would fill the memory
MOST = 2 ** 63                                     # what a tensor of whole numbers cannot hold
SHOWN = 60                                         # letters of a value that a message repeats


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for `Annotated[int, Range(low=1)]`; `why` explains the lower one."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    why: str = ""

    def __str__(self):
        bounds = {"from": self.low, "above": self.above, "to": self.high}
        return "".join(f" {word} {bound}" for word, bound in bounds.items() if math.isfinite(bound))

    def fault(self, value):
        """What is wrong with a number, "" if it lies inside."""
        if value < self.low:
            return f"must be at least {self.low}" + (f" ({self.why})" if self.why else "")
        if value <= self.above:
            return f"must be above {self.above}"
        return f"must be at most {self.high}" if value > self.high else ""


Amount = float | int                               # a share of the tokens, or their number: tokens_to_keep reads it
Layer = Annotated[int, Range(1, MOST_LAYERS, why="before layer 0 no attention has been computed")]
AnyLayer = Annotated[int, Range(high=MOST_LAYERS)]     # of a list whose order the method checks
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(low=0)]
Share = Annotated[float, Range(0, 1)]
ToOne = Annotated[float, Range(above=0, high=1)]
Count = Annotated[int, Range(low=0)]
FromOne = Annotated[int, Range(low=1)]
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", tuple: "a list",
         NoneType: "none"}


@cache
def annotations(kind):
    """{field: annotation} of a dataclass; {} of another class."""
    if not is_dataclass(kind):
        return {}
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def first_fault(method):
    """The first option that its annotation does not admit, as a sentence; "" if there is none.

    Where that makes them right, lists become tuples, and numbers of numpy or torch plain ones.
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
    """What is wrong with a value: fault(Share, 2) -> "must be at most 1", fault(int, "x") -> "is a whole number"; else ""."""
    for member in _members(annotation):
        if _is_kind(member, value):
            return _beyond(member, value)
    return f"is {described(annotation)}"


def parse(annotation, text):
    """parse(tuple[int, ...], "2,6") -> (2, 6): what a text means; the text itself where it means nothing."""
    members = [_bare(member) for member in _members(annotation)]
    if NoneType in members and text.lower() == "none":
        return None
    if any(member is str or get_origin(member) is Literal for member in members):
        return text
    takes_list = any(member is tuple or get_origin(member) is tuple for member in members)
    for words in (text, text.lower(), f"[{text}]" if takes_list else text):
        try:
            value = plain(json.loads(words))
        except (ValueError, RecursionError):       # the second: nested without an end
            continue
        return (value,) if takes_list and isinstance(value, (int, float)) else value
    return text


def described(annotation):
    """described(Literal["last", "all"]) -> "one of last, all": what is allowed, for a message."""
    words = list(dict.fromkeys(_described(member) for member in _members(annotation)))
    return " or ".join(word for word in words if word != WORDS[int] or WORDS[float] not in words)


def plain(value, depth=10):
    """The value with lists as tuples, so many deep, and numbers of numpy or torch as Python's."""
    if isinstance(value, (list, tuple)) and depth:
        return tuple(plain(item, depth - 1) for item in value)
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def shown(value):
    """The value in a message: one line, cut where it is long."""
    try:
        text = repr(value)
    except Exception:                              # a whole number of 5000 digits, a list nested without an end
        return f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= SHOWN else text[:SHOWN] + ".."


def _members(annotation):
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _bare(annotation):
    """The annotation without its ranges."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _items(kind, value):
    """(annotation, item) of each item of a list; None where it has another number of them."""
    inner = get_args(kind) or (object, ...)
    if inner[-1] is ...:
        return [(inner[0], item) for item in value]
    return list(zip(inner, value)) if len(inner) == len(value) else None


def _is_kind(member, value):
    """Whether the value is of that kind, ranges aside."""
    kind = _bare(member)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is tuple or get_origin(kind) is tuple:
        items = _items(kind, value) if isinstance(value, tuple) else None
        return items is not None and all(any(_is_kind(each, item) for each in _members(inner)) for inner, item in items)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, kind) if isinstance(kind, type) else True


def _beyond(member, value):
    """What bound a value of the right kind breaks, "" if none."""
    kind, *limits = get_args(member) if get_origin(member) is Annotated else (member,)
    if isinstance(value, tuple):
        return next(filter(None, (fault(inner, item) for inner, item in _items(kind, value))), "")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    if abs(value) >= MOST:
        return "is too large a number"
    return next(filter(None, (limit.fault(value) for limit in limits)), "")


def _described(member):
    kind, *limits = get_args(member) if get_origin(member) is Annotated else (member,)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_args(kind) and get_origin(kind) is tuple:
        inner, *others = get_args(kind)
        if others == [...]:
            return f"a list, each item {described(inner)}"
        return f"a list of {' and '.join(map(described, get_args(kind)))}"
    return WORDS.get(kind, f"a {getattr(kind, '__name__', kind)}") + "".join(map(str, limits))
