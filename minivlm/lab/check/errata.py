"""Say where paper and released code differ, what this repository does, and show each reading's difference.

The rows are those of the method cards (pruning/README.md). If a row names another reading, a few lines of Python follow
it, and what they print for the reading and for the method. They are run each time.

examples:
  python run.py errata
  python run.py errata asap
  python run.py errata fastv_all
"""

import textwrap

from minivlm.lab.check.cards import chosen, errata
from minivlm.lab.check.reproductions import printed as printed_by, program
from minivlm.lab.cli.arguments import add_json
from minivlm.lab.cli.output import printed

WIDTH = 120


def add_arguments(parser):
    """Which card, or which reading."""
    parser.add_argument("name", nargs="?", metavar="METHOD",
                        help="only the card of this method, or the row of this reading (default: all)")
    add_json(parser)


def main(args):
    """Print the rows."""
    rows = errata()
    if args.name:
        rows = chosen(rows, args.name)
    data = [facts(row) for row in rows]
    text = "\n\n".join("\n".join(lines(row)) for row in data)
    printed(data, [text], args.json)


def facts(row):
    """One row as data, with the programs that show its readings, and what these print now."""
    shown = [dict(reading=name, program=program(name), prints=printed_by(name)) for name in row.readings]
    return dict(methods=row.methods, topic=row.topic, says=row.says, shown=shown)


def lines(row):
    """The same as text."""
    yield f"{', '.join(row['methods'])}: {row['topic']}"
    for head, cell in row["says"].items():
        yield textwrap.fill(cell, WIDTH, initial_indent=f"  {head:15}", subsequent_indent=" " * 17)
    for reproduction in row["shown"]:
        yield f"  {reproduction['reading']}, shown by"
        yield from (f"    {line}" for line in reproduction["program"])
        yield "  prints"
        yield from (f"    {line}" for line in reproduction["prints"])
