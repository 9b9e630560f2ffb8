"""The README tells the truth: its table is the registry, its links and files exist, its commands are known."""

import re
from pathlib import Path

import pytest

import run
from minivlm.lab.arguments import parser
from minivlm.lab.hf import TESTED
from pruning import METHODS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
ROWS = re.findall(r"^\| `([^`]+)` \| \[([^\]]+)\]\(([^)]+)\) \| (\w+) \|", TEXT, re.M)


def test_table_is_the_registry():
    assert sorted(name for name, *_ in ROWS) == sorted(METHODS)


@pytest.mark.parametrize("name, file, link, site", ROWS)
def test_row_names_the_file_and_the_site(name, file, link, site):
    assert file == link == METHODS[name].__module__.replace(".", "/") + ".py" and site == METHODS[name].site


def test_range_of_transformers_is_the_one_tested():
    lowest, highest = (version.rpartition(".")[0] for version in TESTED)
    assert f"transformers ({lowest} to {highest};" in TEXT


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT)
    assert len(links) > 10 and not [link for link in links if not (ROOT / link).exists()]


def test_commands_are_known():
    """Each `python run.py ...` line of the README is understood by the command line's own parser."""
    lines = [line.split("#")[0] for line in re.findall(r"^    python run\.py (.+)$", TEXT, re.M)]
    assert lines
    for line in filter(str.strip, lines):
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
        assert parser(run.COMMANDS).parse_args(words).function


def test_the_first_command_prints_what_is_shown(capsys, monkeypatch, tmp_path):
    """Method, tokens in the layers and answer of each row that the README shows."""
    monkeypatch.chdir(tmp_path)
    assert run.main([]) == 0
    row = re.compile(r"^ *(\w+) .* (\d+x\d+.*; \w+)$", re.M)
    shown = row.findall(TEXT[:TEXT.index("## Where a method acts")])
    assert len(shown) == 5 and set(shown) <= set(row.findall(capsys.readouterr().out))
