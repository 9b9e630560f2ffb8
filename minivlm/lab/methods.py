"""The registry as a table, and one method in full: where it acts, what it asks for, its laws, paper and options."""

import inspect
import io
import itertools
import re
import sys
import textwrap
import tokenize
from dataclasses import fields

from pruning import EVERY, METHODS
from pruning.base import UserError
from pruning.laws import LAWS, PER, PRECONDITIONS


def facts(name):
    """One method as data. Raises UserError, with the known ones, for a name that is none of them."""
    if name not in EVERY:
        raise UserError(f"method {name!r} is not known: use one of {', '.join(METHODS)}, or a reading (run.py methods --readings)")
    method = EVERY[name]
    default = method()
    module = sys.modules[method.__module__]
    return dict(name=name, file=method.__module__.replace(".", "/") + ".py", what=" ".join(method.__doc__.split()),
                source=_source(module.__doc__ or method.__doc__), site=default.site, per=default.per,
                asks=sorted(default.preconditions), laws=sorted(default.laws),
                options=[dict(name=f.name, default=getattr(default, f.name), about=_about(method, f.name)) for f in fields(method)])


def _source(doc):
    """The first sentences of a file's docstring, up to the first arXiv number and its bracket."""
    first = " ".join(doc.split("\n\n")[0].split())
    found = re.match(r".*?arXiv:\d{4}\.\d{5}\)?", first)
    return (found.group() if found else first).rstrip(".") + "."


def _about(method, option):
    """The comment beside the field in the class that declares it, "" where it has none."""
    owner = next(kind for kind in method.__mro__ if option in inspect.get_annotations(kind))
    try:
        source = textwrap.dedent(inspect.getsource(owner))
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):     # a class that no file holds as it is
        return ""
    return next((_comment(tokens, i) for i in range(len(tokens)) if _declares(tokens, i, option)), "")


def _declares(tokens, i, option):
    """Whether the statement that begins at token i is the field's: its name and a colon, first on a line of the class's body."""
    before = tokens[i - 1].type if i else None
    begins = before in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT)
    return begins and tokens[i].string == option and tokens[i + 1].string == ":"


def _comment(tokens, i):
    """The first comment of the statement that begins at token i."""
    statement = itertools.takewhile(lambda token: token.type != tokenize.NEWLINE, tokens[i:])
    return next((token.string.lstrip("# ") for token in statement if token.type == tokenize.COMMENT), "")


def table(rows):
    """Lines, three per method: site, what it asks for, its laws; its source; its options."""
    cells = [("method", "site", "asks for", "laws")]
    cells += [(row["name"], row["site"], *(" ".join(row[key]) or "-" for key in ("asks", "laws"))) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    head, *lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in cells]
    yield head
    for row, line in zip(rows, lines):
        yield from (line, f"    {row['what'] if row['file'].endswith('readings.py') else row['source']}", "    " + (" ".join(f"{o['name']}={o['default']}" for o in row["options"]) or "no options"))


def described(row):
    """Lines on one method, its options with their defaults."""
    yield f"{row['name']} ({row['file']}): {row['what']}"
    yield row["source"]
    yield f"acts at the {row['site']} site"
    if any(option["name"] == "keep" for option in row["options"]):
        yield f"keep counts {PER[row['per']]}"
    yield from (f"asks for {PRECONDITIONS[word]}" for word in row["asks"])
    yield from (f"law {word}: {LAWS[word].sentence}" for word in row["laws"])
    wide = max((len(f"{o['name']}={o['default']}") for o in row["options"]), default=0)
    for option in row["options"]:
        told = f"{option['name']}={option['default']}"
        yield f"  {told:{wide}}  {option['about']}".rstrip()
