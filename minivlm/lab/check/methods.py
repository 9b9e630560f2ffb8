"""List the methods, or describe one with its options.

Each has its site, what it needs, the laws that it keeps, and its paper. A reading of a paper (pruning/readings/) is
shown with the method that it reads, and with that method's paper.

examples:
  python run.py methods
  python run.py methods fastv
"""

import re
import sys

from minivlm.lab.cli.arguments import add_json
from minivlm.lab.cli.options import read_from, substitute
from minivlm.lab.cli.output import printed
from minivlm.lab.named.file import MODULE
from minivlm.lab.named.kind import kind_of
from pruning import METHODS, READINGS
from pruning.fields import option_texts
from pruning.laws import LAWS, PER, PRECONDITIONS


def add_arguments(parser):
    """Which methods."""
    parser.add_argument("name", nargs="?", metavar="METHOD",
                        help="describe this method, reading, or one of your own, FILE.py:NAME, with its options")
    parser.add_argument("--readings", action="store_true",
                        help="list other readings of the papers, each a method with a name of its own")
    add_json(parser)


def main(args):
    """Print one method, or the table of all."""
    if args.name:
        rows = [facts(args.name)]
        printed(rows, described(rows[0]), args.json)
    else:
        rows = [facts(name) for name in (READINGS if args.readings else METHODS)]
        printed(rows, table(rows), args.json)


def facts(name):
    """One method, or reading, as data. Raises UserError, with the known ones, for a name that is none of them."""
    method = kind_of(name)
    default = method()
    reads = read_from(name) or None
    paper = METHODS[reads] if reads else method
    file = file_of(method)
    what = " ".join((method.__doc__ or "no docstring").split())
    source = _source(sys.modules[paper.__module__].__doc__ or paper.__doc__ or "no source")
    needs = sorted(default.preconditions)
    laws = sorted(default.laws)
    options = [dict(name=option, default=getattr(default, option), about=about)
               for option, about in option_texts(method).items()]
    without = {need: substitute(method, need) for need in needs}
    return dict(name=name, reads=reads, file=file, what=what, source=source, site=default.site, per=default.per,
                asks=needs, without=without, laws=laws, options=options)


def file_of(method):
    """Where its class is: a path in this repository, or the user's own file."""
    if method.__module__.startswith(MODULE):
        return method.__module__.removeprefix(MODULE)
    return method.__module__.replace(".", "/") + ".py"


def _source(doc):
    """The first sentences of a file's docstring, up to the first arXiv number and its bracket."""
    first = " ".join(doc.split("\n\n")[0].split())
    cited = re.match(r".*?arXiv:\d{4}\.\d{5}\)?", first)
    return (cited.group() if cited else first).rstrip(".") + "."


def table(rows):
    """Lines, three per method: site, what it needs, its laws; its source, or what it reads; its options."""
    cells = [("method", "site", "needs", "laws")]
    for row in rows:
        needs = " ".join(row["asks"]) or "-"
        laws = " ".join(row["laws"]) or "-"
        cells.append((row["name"], row["site"], needs, laws))
    head, *lines = _aligned(cells)
    yield head
    for row, line in zip(rows, lines):
        settings = " ".join(map(_setting, row["options"]))
        yield line
        yield f"    {_reading(row) or row['source']}{_without(row)}"
        yield f"    {settings or 'no options'}"


def _aligned(rows):
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths)]
        yield "  ".join(padded).rstrip()


def _reading(row):
    """Of a reading what it reads and how; "" of a method."""
    return f"A reading of {row['reads']}. {row['what']}" if row["reads"] else ""


def _without(row):
    """Which reading stands in where a need is not met; "" if none does."""
    named = [f" Without {need}: {reading}." for need, reading in row["without"].items() if reading]
    return "".join(named)


def _setting(option):
    """An option with its default, as --set takes it."""
    return f"{option['name']}={option['default']}"


def described(row):
    """Lines on one method, its options with their defaults."""
    yield f"{row['name']} ({row['file']}): {_reading(row) or row['what']}"
    yield row["source"]
    yield f"acts at the {row['site']} site"
    options = row["options"]
    if any(option["name"] == "keep" for option in options):
        yield f"keep counts {PER[row['per']]}"
    for word in row["asks"]:
        reading = row["without"][word]
        remedy = f"; {reading} stands in without one" if reading else ""
        yield f"needs {PRECONDITIONS[word]}{remedy}"
    for word in row["laws"]:
        yield f"law {word}: {LAWS[word].sentence}"
    for line in _aligned([(_setting(option), option["about"]) for option in options]):
        yield f"  {line}"
