"""A method of one's own, FILE.py:NAME, wherever a method is named: a class, or a function of which one is made."""

import json
from pathlib import Path

import pytest
import torch

from build import tokens
from command import done
from minivlm.lab.cli.options import build
from minivlm.lab.named.kind import kind_of
from paths import MODEL, ROOT
from pruning import FastV, LayerView, Ranked, Tokens
from pruning.compose import Both, Schedule

SCENE = str(ROOT / "minivlm" / "toy" / "samples" / "00003.png")
ASK = [SCENE, "what shape is the red object ?"]
OWN = '''
from dataclasses import dataclass

from pruning import FastV
from pruning.fields import option
from other import power

@dataclass(frozen=True)
class Mine(FastV):
    """FastV with attention to a power."""

    power: float = option(power, "of the attention")

    def score(self, tokens):
        return super().score(tokens) ** self.power

@dataclass(frozen=True)
class Fails(FastV):
    def score(self, tokens):
        return tokens.before.mean_attention("lats")

def score(attention, visual):
    return attention.mean(dim=0)[visual]

def chosen(attention, visual, keep):
    return score(attention, visual).topk(keep).indices

def of_class_token(cls_attention):
    return cls_attention.mean(dim=0)

def of_all_tokens(hidden):
    return hidden.norm(dim=1)

def number(tokens):
    return 1.0

def crashes(tokens):
    return tokens.attention

def exits(tokens):
    raise SystemExit(0)

def squares(attention, visual):
    return attention.mean(dim=0)[visual] * 1j

def quotient(attention, visual):
    return attention.mean(dim=0)[visual] * float("nan")

def positional(attention, visual, /):
    return attention.mean(dim=0)[visual]

def lazy(keep):
    yield keep

class Odd(FastV):
    def score(self):
        return 1

class Undecorated(FastV):
    def __init__(self):
        pass

class NoMethod:
    pass
'''
FAILS = OWN.splitlines().index('        return tokens.before.mean_attention("lats")') + 1
EXITS = OWN.splitlines().index("    raise SystemExit(0)") + 1
CRASHES = OWN.splitlines().index("    return tokens.attention") + 1


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A folder with mine.py, which imports a file beside it."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN)
    Path("other.py").write_text("power = 2.0\n")
    return tmp_path


# --- the class --------------------------------------------------------------------------------------------------------

def example():
    """Two tokens of text around four visual ones, of which the last row looks at the second and the fourth most."""
    return tokens("tvvvvt", [[.1, .1, .3, .1, .2, .2]])


def test_a_class():
    kind = kind_of("mine.py:Mine")
    assert issubclass(kind, FastV) and kind().power == 2.0
    assert kind(keep=2).reduce(example()).keep.tolist() == [1, 3]


def test_a_function_of_scores():
    """It ranks before layer 2 and has the options of such a method; it keeps what FastV keeps."""
    kind = kind_of("mine.py:score")
    assert issubclass(kind, Ranked) and kind().layer == 2
    assert kind(keep=2).reduce(example()).keep.tolist() == [1, 3]


def test_a_function_of_indices():
    """It is told how many to keep, and may return them in any order."""
    assert kind_of("mine.py:chosen")(keep=2).reduce(example()).keep.tolist() == [1, 3]


def test_a_function_of_the_class_token_acts_after_the_tower():
    kind = kind_of("mine.py:of_class_token")
    view = LayerView.of(cls_attention=[.1, .4, .2, .3])
    entering = Tokens.start(torch.zeros(5, 2), [1, 2, 3, 4], (2, 2), before=view)
    assert kind.site == "vision" and kind(keep=2).reduce(entering).keep.tolist() == [1, 3]


def test_a_file_is_executed_once_until_it_changes():
    assert kind_of("mine.py:Mine") is kind_of("mine.py:Mine")
    path = Path("mine.py")
    path.write_text(OWN.replace("option(power", "option(3.0"))
    assert kind_of("mine.py:Mine")().power == 3.0


@pytest.mark.parametrize("text, message", [
    ("raise BaseException('stop')", "own.py:1: BaseException: stop"),
    ("x = '\0'", "own.py: SyntaxError"),
])
def test_a_file_that_cannot_be_executed(capsys, text, message):
    """Whatever it raises, and with no line where Python names none."""
    Path("own.py").write_text(text)
    status, out, err = done(capsys, "methods", "own.py:Mine")
    assert status == 2 and len(err.splitlines()) == 1
    assert message in err


def test_nothing_kept_is_no_mask():
    """An empty list holds indices, too."""
    Path("own.py").write_text("def nothing(keep):\n    return []\n")
    assert kind_of("own.py:nothing")(keep=2).reduce(example()).keep.tolist() == []


def test_composed_scheduled_and_varied():
    """With another method, before several layers, with settings: as any method of the registry."""
    both = build("vispruner+mine.py:Mine", "64+16", ["mine.py:Mine.power=3"])
    assert isinstance(both, Both) and both.methods[1] == kind_of("mine.py:Mine")(keep=16, power=3.0)
    scheduled = build("mine.py:score", schedule="2:68,4:34")
    assert scheduled == Schedule(kind_of("mine.py:score")(), (2, 4), (68, 34))
    assert build("mine.py:Mine@layer=3@power=1.5", "8") == kind_of("mine.py:Mine")(layer=3, keep=8, power=1.5)


# --- the commands -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("words", [
    ["ask", *ASK, "--method", "mine.py:Mine", "--keep", "16"],
    ["ask", *ASK, "--method", "vispruner+mine.py:score", "--keep", "64+16"],
    ["compare", *ASK, "--method", "mine.py:of_class_token,mine.py:chosen,mine.py:Mine@layer=3", "--keep", "16"],
    ["compare", *ASK, "--method", "mine.py:Mine,fastv", "--keep", "16", "--set", "mine.py:Mine.power=1,2"],
    ["cost", "--method", "mine.py:Mine", "--keep", "64", "--shape", "small"],
    ["bench", "--method", "mine.py:score", "--keep", "8", "--repeat", "1", "--steps", "1", "--model", MODEL],
    ["attention", "--method", "mine.py:Mine", "--keep", "0.1", "--count", "1", "--positions", "usual"],
    ["sensitivity", "--method", "mine.py:score", "--keep", "0.1", "--count", "1", "--layers", "2", "--processes", "1"],
    ["methods", "mine.py:Mine"],
    ["methods", "mine.py:score"],
])
def test_where_a_method_is_named(capsys, words):
    status, out, _ = done(capsys, *words)
    assert status == 0
    assert "mine.py:" in out or words[0] == "ask"          # which prints an answer, and no names


def test_eval_pairs_it_with_others(capsys):
    """As FastV to the power one it answers as FastV; a row in the JSON has its name."""
    words = ["eval", "--method", "fastv,mine.py:Mine", "--keep", "0.1", "--count", "2", "--draws", "1", "--processes", "1"]
    status, _, _ = done(capsys, *words, "--set", "mine.py:Mine.power=1", "--out", "scores.json")
    assert status == 0
    written = json.loads(Path("scores.json").read_text())
    assert "mine.py:Mine 0.1" in json.dumps(written)


def test_answers_of_another_text_of_the_file_are_not_taken(capsys):
    """Both have the same options: only the file says that it is another method."""
    words = ["eval", "--method", "mine.py:score", "--keep", "0.1", "--count", "2", "--draws", "1", "--processes", "1"]
    done(capsys, *words, "--out", "scores.json")
    Path("mine.py").write_text(OWN.replace("attention.mean(dim=0)[visual]", "-attention.mean(dim=0)[visual]"))
    status, _, err = done(capsys, *words, "--out", "scores.json")
    assert status == 2 and "scores.jsonl" in err


@pytest.mark.parametrize("name, message", [
    ("mine.py:Fails", f"mine.py:{FAILS}: rows are \"last\""),
    ("mine.py:crashes", f"mine.py:{CRASHES}: AttributeError: 'Tokens' object has no attribute 'attention'"),
    ("mine.py:of_all_tokens", "of_all_tokens returns (156,), and must return (n,) = (144,)"),
    ("mine.py:number", "number returns a float, and must return a tensor of scores"),
    ("mine.py:exits", f"mine.py:{EXITS}: SystemExit: 0"),
    ("mine.py:squares", "mine.py: RuntimeError"),
    ("mine.py:positional", "mine.py: TypeError"),
    ("mine.py:Odd", "mine.py: TypeError"),
    ("mine.py:quotient", "quotient returns NaN"),
    ("mine.py:lazy", "lazy returns a generator"),
    ("mine.py:Undecorated --keep 8", "mine.py:Undecorated cannot be built with keep"),
    ("mine.py:NoMethod", "the class is no Pruner"),
    ("mine.py:none", "it has Mine, Fails, score"),
    ("gone.py:Mine", "gone.py: there is no such file"),
    ("mine.py", "write FILE.py:NAME"),
    ("mine", "a method of your own, FILE.py:NAME"),
])
def test_bad_input(capsys, name, message):
    """One line, with the line of the file if it is the file's fault."""
    status, out, err = done(capsys, "ask", *ASK, "--method", *name.split())
    assert status == 2 and len(err.splitlines()) == 1
    assert message in err
