"""The registry as a table, and one method in full: where it acts, what it reads and asks for, its laws, paper and options."""

import inspect
import re
import sys
from dataclasses import fields

from pruning import METHODS
from pruning.base import UserError
from pruning.laws import LAWS, PER, PRECONDITIONS


def facts(name):
    """One method as data. Raises UserError, with the known ones, for a name that is none of them."""
    if name not in METHODS:
        raise UserError(f"method {name!r} is not known: use one of {', '.join(METHODS)}")
    method, default = METHODS[name], METHODS[name]()
    module = sys.modules[method.__module__]
    return dict(name=name, file=method.__module__.replace(".", "/") + ".py", what=" ".join(method.__doc__.split()),
                source=_source(module.__doc__), site=default.site, per=default.per, 
                asks=sorted(default.preconditions), laws=sorted(default.laws),
                options=[dict(name=f.name, default=f.default, about=_about(method, f.name)) for f in fields(method)])


def _source(doc):
    """The first sentences of a file's docstring, up to the first arXiv number and its bracket."""
    first = " ".join(doc.split("\n\n")[0].split())
    found = re.match(r".*?arXiv:\d{4}\.\d{5}\)?", first)
    return (found.group() if found else first).rstrip(".") + "."


def _about(method, option):
    """What stands beside the field in the class that declares it."""
    for owner in method.__mro__:
        if option in owner.__dict__.get("__annotations__", ()):
            return re.search(rf"^    {option}: .*?  # (.+)$", inspect.getsource(owner), re.M).group(1)


def table(rows):
    """Lines, three a method: site, what it reads and asks for, its laws; its source; its options."""
    cells = [("method", "site", "reads", "asks for", "laws")]
    cells += [(row["name"], row["site"], *(" ".join(row[key]) or "-" for key in ("reads", "asks", "laws"))) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    head, *lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in cells]
    yield head
    for row, line in zip(rows, lines):
        yield from (line, f"    {row['source']}", "    " + (" ".join(f"{o['name']}={o['default']}" for o in row["options"]) or "no options"))


def described(row):
    """Lines on one method, its options with their defaults."""
    yield f"{row['name']} ({row['file']}): {row['what']}"
    yield row["source"]
    yield f"acts at the {row['site']} site; reads {', '.join(row['reads']) or 'nothing'}"
    if any(option["name"] == "keep" for option in row["options"]):
        yield f"keep counts {PER[row['per']]}"
    yield from (f"asks for {PRECONDITIONS[word]}" for word in row["asks"])
    yield from (f"law {word}: {LAWS[word]}" for word in row["laws"])
    wide = max((len(f"{o['name']}={o['default']}") for o in row["options"]), default=0)
    for option in row["options"]:
        told = f"{option['name']}={option['default']}"
        yield f"  {told:{wide}}  {option['about']}"
