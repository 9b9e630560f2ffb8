"""The READMEs tell the truth: the table and the cards are the registry, links lead somewhere, blocks and commands run."""

import re
import runpy
import shlex
import sys

import pytest

import pruning
import run
from build import tokens
from paths import ROOT
from minivlm.lab.check.hf import TESTED
from pruning import EVERY, METHODS, READINGS
from pruning.laws import LAWS, OF_ALL, broken

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


def anchors(text):
    """The headings of a page as GitHub names them: "Write your own" is #write-your-own."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "pruning/README.md"])
def test_links_lead_somewhere(page):
    """To a file, or to a heading of a page."""
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", text)
    assert len(links) > 10
    for link in links:
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_commands_are_known():
    """Each `python run.py ...` line of the README is understood by the command line's own parser."""
    lines = [line.split("#")[0] for line in re.findall(r"^    python run\.py (.+)$", TEXT, re.M)]
    assert lines
    for line in filter(str.strip, lines):
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
        assert run.parsed(words)


def test_the_first_command_prints_what_is_shown(capsys, monkeypatch, tmp_path):
    """Method, tokens in the layers and answer of each row that the README shows."""
    monkeypatch.chdir(tmp_path)
    assert run.main([]) == 0
    row = re.compile(r"^ *(\w+) .* (\d+x\d+.*; \w+)$", re.M)
    shown = row.findall(TEXT[:TEXT.index("## Where a method acts")])
    assert len(shown) == 5 and set(shown) <= set(row.findall(capsys.readouterr().out))


# --- pruning/README.md: the cards ----------------------------------------------------------------------------------------

FOLDER = ROOT / "pruning"
METHODS_TEXT = (FOLDER / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", METHODS_TEXT, re.M | re.S)
COMMANDS = re.findall(r"^    (python run\.py compare .+)$", METHODS_TEXT, re.M)


def cards():
    """{names of a card's methods: its text}. A heading has them in code type: "### ASAP with SG-BiMask: `asap`, .."."""
    _, *sections = re.split(r"^(?=### )", METHODS_TEXT[:METHODS_TEXT.index("\n## Write your own")], flags=re.M)
    return {tuple(re.findall(r"`(\w+)`", section.splitlines()[0])): section for section in sections}


CARDS = [(names, card) for names, card in cards().items()]
every_card = pytest.mark.parametrize("names, card", CARDS, ids=[names[0] for names, _ in CARDS])


def table_rows(card):
    """{first cell in code type: last cell} of all tables of a card."""
    return dict(re.findall(r"^\| `(\w+)` \|.* \| (.*) \|$", card, re.M))


def test_every_method_has_a_card():
    assert sorted(name for names, _ in CARDS for name in names) == sorted(METHODS)


def test_every_reading_is_named():
    """In the card of the method that it changes."""
    cards_of = {METHODS[name]: card for names, card in CARDS for name in names}
    for name, reading in READINGS.items():
        card = next(cards_of[kind] for kind in reading.__mro__ if kind in cards_of)
        assert f"`{name}`" in card, f"{name} is in no table of its card"


def test_every_reading_that_is_named_exists():
    words = set(re.findall(r"`(\w+)`", METHODS_TEXT))
    readings = {word for word in words for name in METHODS if word.startswith(name + "_")}
    assert readings and readings <= set(EVERY)


@every_card
def test_card_links_to_its_file(names, card):
    for name in names:
        file = METHODS[name].__module__.rpartition(".")[2] + ".py"
        assert f"[{file}]({file})" in card


@every_card
def test_card_has_every_option_with_its_default(names, card):
    """The last cell of an option's row is its default; methods that share a card share a row: there the first's counts."""
    shown = table_rows(card)
    defaults = {}
    for name in reversed(names):
        method = METHODS[name]()
        defaults |= {option: getattr(method, option) for option in method.__dataclass_fields__}
    for option, default in defaults.items():
        assert eval(shown[option].strip("`")) == default, f"{option} of {names}"
    assert not set(shown) - set(defaults) - set(names), "an option that is gone"


@every_card
def test_card_has_the_laws(names, card):
    """One line per method: "Laws of `fastv`: select, ordered, ..", or none."""
    laws = dict(re.findall(r"^Laws of `(\w+)`: ([\w, ]+)\.$", card, re.M))
    assert sorted(laws) == sorted(names)
    for name, words in laws.items():
        assert set(words.split(", ")) - {"none"} == METHODS[name]().laws
        assert set(words.split(", ")) <= {"none", *LAWS} - set(OF_ALL)


@every_card
def test_card_has_a_command_that_draws_its_methods(names, card):
    command, = re.findall(r"^    python run\.py compare .* --method (\S+) .*--out \w+\.png$", card, re.M)
    assert set(command.split(",")) & set(names)


def shown_by(block):
    """What the comments beside a block's prints say that they print."""
    return re.findall(r"^print\(.*\) +# (\w+\(.*?\))(?::|$)", block, re.M)


@pytest.fixture
def own_method(monkeypatch, tmp_path):
    """The method of "Write your own", in pruning/ and in the registry."""
    block, = [block for block in BLOCKS if "class Unusual" in block]
    (tmp_path / "unusual.py").write_text(block)
    monkeypatch.setattr(pruning, "__path__", [*pruning.__path__, str(tmp_path)])
    from pruning.unusual import Unusual
    monkeypatch.setitem(METHODS, "unusual", Unusual)
    monkeypatch.setitem(EVERY, "unusual", Unusual)
    yield Unusual
    del sys.modules["pruning.unusual"]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block_prints_what_it_says(block, own_method, capsys, tmp_path):
    (tmp_path / "block.py").write_text(block)
    runpy.run_path(str(tmp_path / "block.py"))
    assert capsys.readouterr().out.splitlines() == shown_by(block)


@pytest.mark.parametrize("command", COMMANDS, ids=[command.split()[-1] for command in COMMANDS])
def test_command_of_a_card_draws(command, capsys, monkeypatch, tmp_path):
    """A picture, and a row of numbers for each method."""
    check_drawing(command, capsys, monkeypatch, tmp_path)


def check_drawing(command, capsys, monkeypatch, tmp_path):
    """The command writes its picture, and every method runs."""
    monkeypatch.chdir(tmp_path)
    words = [str(ROOT / word) if (ROOT / word).is_file() else word for word in shlex.split(command)[2:]]
    assert run.main(words) == 0
    output = capsys.readouterr().out
    for name in words[words.index("--method") + 1].split(","):
        assert re.search(rf"^{name} +\d", output, re.M), output
    assert (tmp_path / words[words.index("--out") + 1]).stat().st_size > 1000


def test_own_method_keeps_its_laws_and_is_drawn(own_method, capsys, monkeypatch, tmp_path):
    """Each law that it declares, on four tokens; then the command."""
    example = tokens("tvvvt", [[.1, .2, .5, .1, .1]], hidden=[[0., 0.], [1., 0.], [1., .1], [0., 1.], [0., 0.]])
    assert own_method(keep=1).laws <= set(LAWS) and not list(broken(own_method(keep=1), example))
    command, = re.findall(r"^(python run\.py compare .* --method unusual.*)$", METHODS_TEXT, re.M)
    check_drawing(command, capsys, monkeypatch, tmp_path)
