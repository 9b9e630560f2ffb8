"""The tables "paper against code" of the method cards (pruning/README.md), read as data.

They are the tables whose first column has no head, and which have a column "here": | | paper | released code | here |.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pruning
from minivlm.lab.cli.options import read_from
from pruning import METHODS, READINGS
from pruning.base import UserError

PAGE = Path(pruning.__file__).parent / "README.md"


@dataclass(frozen=True)
class Erratum:
    """One row: a question on which paper, released code and this repository may differ."""

    methods: tuple                     # those of the card
    topic: str                         # the question, from the first column
    says: dict                         # {"paper": .., "released code": .., "here": .., "other readings": ..}
    readings: tuple                    # the other readings of these methods that it names


def errata(page=None):
    """[Erratum] of all cards, in their order. `page` is the text of pruning/README.md."""
    page = PAGE.read_text(encoding="utf-8") if page is None else page
    rows = []
    for methods, card in cards(page).items():
        for heads, cells in rows_of(card):
            says = {head: cell for head, cell in zip(heads, cells[1:]) if cell}
            rows.append(Erratum(methods, cells[0], says, readings_in(" ".join(cells), methods)))
    return rows


def cards(page):
    """{names of a card's methods: its text}. Its heading has them in code type: "### ASAP ..: `asap`, .."."""
    _, *sections = re.split(r"^(?=#+ )", page, flags=re.M)     # a section begins with its heading
    of_names = {}
    for section in sections:
        heading = section.splitlines()[0]
        names = tuple(re.findall(r"`(\w+)`", heading))
        if names and set(names) <= set(METHODS):
            of_names[names] = section
    return of_names


def rows_of(card):
    """(heads without the first, cells) of each row of the card's tables that have a column "here"."""
    for table in re.findall(r"^(?:\|.*\n)+", card, re.M):
        heads, _, *rows = [cells_of(line) for line in table.splitlines()]
        if heads[0] == "" and "here" in heads:
            for cells in rows:
                yield heads[1:], cells


def cells_of(line):
    """cells_of("| a | b |") -> ["a", "b"]"""
    return [cell.strip() for cell in line.strip("|").split("|")]


def readings_in(text, methods):
    """The readings of these methods that are named in code type, in their order."""
    named = dict.fromkeys(re.findall(r"`(\w+)`", text))
    return tuple(name for name in named if name in READINGS and read_from(name) in methods)


def chosen(rows, name):
    """The rows of the card with this method, or the row with this reading. UserError if there is none."""
    of_method = [row for row in rows if name in row.methods]
    of_reading = [row for row in rows if name in row.readings]
    if not of_method and not of_reading:
        known = dict.fromkeys(method for row in rows for method in row.methods)
        raise UserError(f"no card of {name!r} says where paper and code differ: use one of {', '.join(known)}, "
                        "or a reading (run.py methods --readings)")
    return of_method or of_reading
