"""pruning/README.md: each card is the registry's, its blocks print what they say, and its command draws."""

import re
import shlex
import sys

import pytest

import pruning
import run
from build import tokens
from minivlm.lab.check.cards import cards
from pages import CARDS as PAGE, ROOT, blocks_of, check_block
from pruning import EVERY, METHODS
from pruning.laws import LAWS, OF_ALL, broken

BLOCKS = blocks_of(PAGE)
COMMANDS = re.findall(r"^    (python run\.py compare .+)$", PAGE, re.M)


CARDS = list(cards(PAGE).items())
every_card = pytest.mark.parametrize("names, card", CARDS, ids=[names[0] for names, _ in CARDS])


def table_rows(card):
    """{first cell in code type: last cell} of all tables of a card."""
    return dict(re.findall(r"^\| `(\w+)` \|.* \| (.*) \|$", card, re.M))


def test_every_method_has_a_card():
    assert sorted(name for names, _ in CARDS for name in names) == sorted(METHODS)


def test_every_reading_that_is_named_exists():
    words = set(re.findall(r"`(\w+)`", PAGE))
    readings = {word for word in words for name in METHODS if word.startswith(name + "_")}
    assert readings and readings <= set(EVERY)


@every_card
def test_card_links_to_its_file(names, card):
    for name in names:
        file = METHODS[name].__module__.rpartition(".")[2] + ".py"
        assert f"[{file}]({file})" in card


@every_card
def test_card_has_every_option_with_its_default(names, card):
    """The last cell of an option's row is its default. Methods on one card share a row, which has the first's."""
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
    check_block(block, capsys, tmp_path)


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
    command, = re.findall(r"^(python run\.py compare .* --method unusual.*)$", PAGE, re.M)
    check_drawing(command, capsys, monkeypatch, tmp_path)
