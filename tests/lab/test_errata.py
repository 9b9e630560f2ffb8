"""run.py errata: the cards' tables as data, and programs that show how each reading differs from its method."""

import json
from collections import Counter

import pytest

from command import done
from minivlm.lab.check.cards import errata
from minivlm.lab.check.reproductions import REPRODUCTIONS, printed, program
from minivlm.lab.cli.options import read_from
from pages import CARDS
from pruning import METHODS, READINGS

ROWS = errata()
PAGE = """### FastV: `fastv`

| option | meaning | here |
|---|---|---|
| `keep` | 1 - R | |

| | paper | released code | here |
|---|---|---|---|
| rows | all | the last | the last; `fastv_all`: all |
| share | | rounded | `asap_dedup` is not of this card |

### Controls: `none`
"""


def test_rows_by_hand():
    """Two rows of the table with an empty head; an empty cell says nothing; a reading of another card is none of it."""
    first, second = errata(PAGE)
    assert (first.methods, first.topic, first.readings) == (("fastv",), "rows", ("fastv_all",))
    assert first.says == {"paper": "all", "released code": "the last", "here": "the last; `fastv_all`: all"}
    assert second.says == {"released code": "rounded", "here": "`asap_dedup` is not of this card"}
    assert second.readings == ()


def test_a_reading_reads_the_nearest_method():
    """ASAP is a FastV, too: its readings are ASAP's, and take ASAP's settings of a folder, not FastV's."""
    assert read_from("asap_dedup") == "asap"
    assert read_from("fastv_bimask_last") == "fastv_bimask"
    assert read_from("fastv_all") == "fastv"
    assert read_from("fastv") == ""


def test_each_reading_is_in_one_row():
    """Of its own card: where errata shows its reproduction."""
    assert Counter(name for row in ROWS for name in row.readings) == Counter(list(READINGS))


def test_all_tables_are_read():
    """Each table of the cards whose first head is empty has rows here, and each method of a paper is in one."""
    tables = CARDS.count("\n| | ")
    by_card = {row.methods for row in ROWS}
    assert len(by_card) == tables >= 18
    of_papers = {name for name, method in METHODS.items() if method.__module__ != "pruning.controls"}
    assert {name for methods in by_card for name in methods} == of_papers


@pytest.mark.parametrize("name", READINGS)
def test_a_reproduction_shows_a_difference(name):
    """It prints the same expression for the reading and for its method, and the two are not equal."""
    method = read_from(name)
    text = "\n".join(printed(name))
    of_reading, separator, of_method = text.partition(f"\n{method} ")
    assert separator and of_reading.startswith(f"{name} ")
    assert of_reading.removeprefix(f"{name} ") != of_method


def test_each_reading_has_a_short_program():
    """At most four lines besides its imports and the loop of two, none longer than a line of ours."""
    assert set(REPRODUCTIONS) == set(READINGS)
    for name in READINGS:
        lines = [line for line in program(name) if "import " not in line]
        assert len(lines) <= 6, name
        assert max(map(len, lines)) <= 120


def test_a_row_as_text(capsys):
    """What paper, code and this repository do; the program, and what it prints."""
    status, out, _ = done(capsys, "errata", "fastv_all")
    assert status == 0
    lines = out.splitlines()
    assert lines[0] == "fastv: whose attention"
    assert lines[1:3] == ["  paper          of all tokens, on average", "  released code  of the last prompt token"]
    assert "    from pruning import EVERY, LayerView, Tokens" in lines
    assert lines[-2:] == ["    fastv_all Reduction(selects 1: [0])", "    fastv Reduction(selects 1: [2])"]


def test_a_card_as_data(capsys):
    """Each row of the card; a program's lines print what is stored next to them."""
    status, out, _ = done(capsys, "errata", "dart", "--json")
    rows = json.loads(out)
    assert status == 0 and len(rows) == len([row for row in ROWS if row.methods == ("dart",)]) > 3
    shown, = (shown for row in rows for shown in row["shown"])
    assert shown["prints"] == printed("dart_released")


def test_unknown_name(capsys):
    """One line, with the methods that there are; a control has no paper to differ from."""
    for name in ("fastw", "random"):
        status, out, err = done(capsys, "errata", name)
        assert status == 2 and out == ""
        assert name in err and "adaptprune" in err and len(err.splitlines()) == 1
