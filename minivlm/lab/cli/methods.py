"""The registry as a table, and one method in full: where it acts, what it needs, its laws, paper and options.

A reading of a paper (pruning/readings.py) is shown with the method that it reads, and with that method's paper.
"""

import inspect
import io
import itertools
import re
import sys
import textwrap
import tokenize
from dataclasses import fields

from pruning import EVERY, METHODS, READINGS
from pruning.base import UserError
from pruning.laws import LAWS, PER, PRECONDITIONS


def facts(name):
    """One method, or reading, as data. Raises UserError, with the known ones, for a name that is none of them."""
    if name not in EVERY:
        raise UserError(f"method {name!r} is not known: use one of {', '.join(METHODS)}, "
                        "or a reading (run.py methods --readings)")
    method = EVERY[name]
    default = method()
    reads = _reads(method) if name in READINGS else None
    paper = METHODS[reads] if reads else method
    options = []
    for field in fields(method):
        about = _about(method, field.name)
        options.append(dict(name=field.name, default=getattr(default, field.name), about=about))
    return dict(
        name=name,
        reads=reads,
        file=method.__module__.replace(".", "/") + ".py",
        what=" ".join(method.__doc__.split()),
        source=_source(sys.modules[paper.__module__].__doc__ or paper.__doc__),
        site=default.site,
        per=default.per,
        asks=sorted(default.preconditions),
        laws=sorted(default.laws),
        options=options,
    )


def _reads(reading):
    """The name of the method that a reading changes: the nearest class above it that the registry names."""
    names = {method: name for name, method in METHODS.items()}
    return next(names[kind] for kind in reading.__mro__ if kind in names)


def _source(doc):
    """The first sentences of a file's docstring, up to the first arXiv number and its bracket."""
    first = " ".join(doc.split("\n\n")[0].split())
    cited = re.match(r".*?arXiv:\d{4}\.\d{5}\)?", first)
    return (cited.group() if cited else first).rstrip(".") + "."


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
    """Whether the statement that begins at token i is the field's: its name and a colon, first on a line of the class."""
    before = tokens[i - 1].type if i else None
    begins = before in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT)
    return begins and tokens[i].string == option and tokens[i + 1].string == ":"


def _comment(tokens, i):
    """The first comment of the statement that begins at token i."""
    statement = itertools.takewhile(lambda token: token.type != tokenize.NEWLINE, tokens[i:])
    return next((token.string.lstrip("# ") for token in statement if token.type == tokenize.COMMENT), "")


def table(rows):
    """Lines, three per method: site, what it needs, its laws; its source, or what it reads; its options."""
    cells = [("method", "site", "needs", "laws")]
    for row in rows:
        needs = " ".join(row["asks"]) or "-"
        laws = " ".join(row["laws"]) or "-"
        cells.append((row["name"], row["site"], needs, laws))
    widths = [max(map(len, column)) for column in zip(*cells)]
    head, *lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in cells]
    yield head
    for row, line in zip(rows, lines):
        settings = " ".join(_setting(option) for option in row["options"])
        yield line
        yield f"    {_reading(row) or row['source']}"
        yield f"    {settings or 'no options'}"


def _reading(row):
    """Of a reading what it reads and how; "" of a method."""
    return f"A reading of {row['reads']}. {row['what']}" if row["reads"] else ""


def _setting(option):
    """An option with its default, as --set takes it."""
    return f"{option['name']}={option['default']}"


def described(row):
    """Lines on one method, its options with their defaults."""
    yield f"{row['name']} ({row['file']}): {_reading(row) or row['what']}"
    yield row["source"]
    yield f"acts at the {row['site']} site"
    if any(option["name"] == "keep" for option in row["options"]):
        yield f"keep counts {PER[row['per']]}"
    yield from (f"needs {PRECONDITIONS[word]}" for word in row["asks"])
    yield from (f"law {word}: {LAWS[word].sentence}" for word in row["laws"])
    wide = max((len(_setting(option)) for option in row["options"]), default=0)
    for option in row["options"]:
        yield f"  {_setting(option):{wide}}  {option['about']}".rstrip()
