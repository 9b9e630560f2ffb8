"""run.py check: a reader's function or class against a method; bad input is one line."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from command import done
from minivlm.lab.named.file import from_file
from minivlm.lab.own.cases import DRAWN, RECORDED, cases
from minivlm.lab.own.against import kept_otherwise, merged_otherwise
from minivlm.lab.named.inputs import INPUTS, called
from pruning import METHODS
from pruning.base import Pruner, Reduction

OWN = '''
from dataclasses import dataclass

import torch

from pruning import DivPrune, PruMerge

def select(attention, visual, keep):
    return attention.mean(dim=0)[visual].topk(keep).indices

def first_rows(attention, visual, keep):
    return attention.mean(dim=0)[:len(visual)].topk(keep).indices.tolist()

def fails(keep):
    return tokens_of(keep)

def tokens_of(number):
    return number.tokens

def of_small_images(attention, visual, keep):
    return range(keep) if len(visual) > 36 else select(attention, visual, keep)

def mask(keep):
    return torch.ones(keep, dtype=torch.bool)

def words(keep):
    return "the first"

def wants(colour):
    return colour

def of_cls(cls_attention, keep):
    return cls_attention.mean(dim=0).topk(keep).indices

@dataclass(frozen=True)
class Same(PruMerge):
    pass

@dataclass(frozen=True)
class Averages(PruMerge):
    def normalised(self, merge):
        return merge / merge.sum(dim=1, keepdim=True)

def complex_numbers(keep):
    return torch.zeros(keep, dtype=torch.complex64)

def exits(attention, visual):
    raise SystemExit(3)

@dataclass(frozen=True)
class Misspelt(DivPrune):
    laws = frozenset({"selects"})

class NoMethod:
    pass
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """An empty folder with mine.py."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN)
    return tmp_path


# --- the cases --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", RECORDED)
def test_ours_keeps_what_is_recorded(name):
    """So a difference is the reader's. The numbers of cases are those of the recordings that a single call has."""
    recorded = [case for case in cases(name) if not case.name.startswith("drawn")]
    assert len(recorded) == dict(fastv=15, adaptprune=5, divprune=11, vispruner=8, hired=6)[name]
    for case in recorded:
        assert case.pruner.reduce(case.tokens).keep.sort().values.equal(case.kept), case.name


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"atp"}))
def test_drawn_cases(name):
    """Every method has some, with the same tokens each time, and of several sizes."""
    first, again = [[case for case in cases(name) if case.name.startswith("drawn")] for _ in range(2)]
    assert len(first) == DRAWN
    assert len({case.tokens.n for case in first}) > 4
    for case, same in zip(first, again):
        assert case.tokens.hidden.equal(same.tokens.hidden) and case.kept.equal(same.kept)


def test_inputs():
    """Each argument gets what its name says; the last row's attention is that of the layer before the cut."""
    case = cases("adaptprune")[-1]
    T = len(case.tokens.hidden)
    n = case.tokens.n
    shapes = dict(visual=(n,), grid=(n, 3), hidden=(T, 8), feature=(n, 8), attention=(2, T), next_attention=(2, T),
                  cls_attention=(2, n), key=(2, T, 4), raw_key=(T, 8), normed=(T, 8))
    assert shapes.keys() | {"tokens", "keep"} == INPUTS.keys()
    for name, shape in shapes.items():
        assert INPUTS[name].read(case.tokens).shape == shape, name
    assert INPUTS["attention"].read(case.tokens)[0].equal(case.tokens.before.attention("last")[0, 0])
    assert INPUTS["next_attention"].read(case.tokens)[0].equal(case.tokens.here.attention("last")[0, 0])


# --- the difference in words ------------------------------------------------------------------------------------------

def test_differences_by_hand():
    """A case of some n tokens of which 0, 1, .. are kept: too few, twice the same, outside, and others."""
    case = cases("last")[0]
    n = case.tokens.n
    k = len(case.kept)
    last = case.kept.tolist()                              # the end of the image
    first, second = (case.tokens.grid[i, 1:].tolist() for i in (0, n - 1))
    assert kept_otherwise(torch.tensor(last), case) == ""
    assert kept_otherwise(torch.tensor([last[0]] * k), case) == f"keeps {k} tokens, but only 1 different ones"
    assert kept_otherwise(torch.tensor([n]), case) == f"keeps {n}, and the visual tokens are 0 to {n - 1}"
    assert kept_otherwise(torch.tensor([0, *last[:-1]]), case) == (
        f"keeps 0 (row {first[0]}, column {first[1]}); drops {n - 1} (row {second[0]}, column {second[1]})")
    assert kept_otherwise(torch.tensor(last[1:]), case).startswith(f"keeps {k - 1} tokens, not {k}; drops {last[0]} ")


def test_merges_by_hand():
    """Rows in the order of what they keep: the second row of the one is the first of the other."""
    ours = Reduction(torch.tensor([0, 2]), torch.tensor([[1., 0., 0.], [0., .5, .5]]))
    same = Reduction(torch.tensor([2, 0]), torch.tensor([[0., .5, .5], [1., 0., 0.]]))
    other = Reduction(torch.tensor([0, 2]), torch.tensor([[1., 0., 0.], [0., .25, .75]]))
    assert merged_otherwise(same, ours) == ""
    assert merged_otherwise(other, ours) == "row 1 takes 0.2500 of token 1, not 0.5000"
    assert merged_otherwise(Reduction(torch.tensor([0, 2])), ours).startswith("one of the two merges")
    assert merged_otherwise(Reduction(torch.tensor([0])), Reduction(torch.tensor([0]))) == ""


# --- the command ------------------------------------------------------------------------------------------------------

def test_a_function_that_agrees(own, capsys):
    status, out, _ = done(capsys, "check", "mine.py:select", "--against", "fastv")
    assert status == 0
    *rows, total = out.splitlines()
    assert len(rows) == 15 + DRAWN and all(row.endswith(": agrees") for row in rows)
    assert total == f"mine.py:select agrees with fastv in {15 + DRAWN} of {15 + DRAWN} cases"


def test_a_function_that_differs(own, capsys):
    """It reads the first n rows: right only if no text is before the image. Status 1, and the first difference."""
    status, out, _ = done(capsys, "check", "mine.py:first_rows", "--against", "fastv")
    assert status == 1
    assert out.splitlines()[-1].startswith("first difference, in sq24_keep0.5: keeps ")
    status, out, _ = done(capsys, "check", "mine.py:first_rows", "--against", "fastv", "--json")
    rows = json.loads(out)
    assert status == 1
    assert [row["agrees"] for row in rows] == [not row["difference"] for row in rows]
    assert not rows[0]["agrees"]


def test_a_function_that_differs_in_some_cases(own, capsys):
    """The recordings have more tokens than it is right for; the drawn prompts have at most 36."""
    status, out, _ = done(capsys, "check", "mine.py:of_small_images", "--against", "fastv")
    assert status == 1
    assert f"agrees with fastv in {DRAWN} of {15 + DRAWN} cases" in out


def test_a_class(own, capsys):
    """Its merges are compared; PruMerge has no recordings of single calls."""
    status, out, _ = done(capsys, "check", "mine.py:Same", "--against", "prumerge")
    assert status == 0 and "all cases are drawn" in out
    status, out, _ = done(capsys, "check", "mine.py:Averages", "--against", "prumerge")
    assert status == 1 and " of token " in out


@pytest.mark.parametrize("words, message", [
    ("mine.py:fails --against fastv", "mine.py:18: AttributeError: 'int' object has no attribute 'tokens'"),
    ("mine.py:mask --against fastv", "torch.bool, not indices"),
    ("mine.py:complex_numbers --against fastv", "returns torch.complex64, not indices"),
    ("mine.py:select --against fastv --junit x.xml", "--junit is for a check without --against"),
    ("mine.py:select --against fastv --out x.png", "--out is for a check without --against"),
    ("mine.py:Misspelt --quick", "declares 'selects', which is no law"),
    ("mine.py:words --against fastv", "returns a str, not indices"),
    ("mine.py:wants --against fastv", "wants has an argument 'colour': the arguments are tokens, keep, visual"),
    ("mine.py:of_cls --against fastv", "the argument cls_attention cannot be read here"),
    ("mine.py:NoMethod --against fastv", "the class is no Pruner"),
    ("mine.py:nothing --against fastv", "it has select, first_rows, fails"),
    ("mine.py:torch --against fastv", "no function or class 'torch'"),
    ("mine.py --against fastv", "write FILE.py:NAME"),
    ("gone.py:select --against fastv", "gone.py: there is no such file"),
    ("wrong.py:select --against fastv", "wrong.py:2: SyntaxError"),
    ("ends.py:select --against fastv", "ends.py:2: SystemExit"),
    ("mine.py:select --against fastw", "--against fastw: it is not known"),
    ("mine.py:select --against atp", "needs a module"),
])
def test_bad_input(own, capsys, words, message):
    Path("wrong.py").write_text("x = 1\ndef select(:\n")
    Path("ends.py").write_text("import sys\nsys.exit(3)\n")
    status, out, err = done(capsys, "check", *words.split())
    assert status == 2 and out == ""
    assert message in err and len(err.splitlines()) == 1


def test_a_method_that_exits(own, capsys):
    """Breaks a promise, and does not end the check; the XML can be read whatever the file is called."""
    Path("a\x01.py").write_text(OWN)
    status, out, _ = done(capsys, "check", "a\x01.py:exits", "--quick", "--junit", "promises.xml")
    assert status == 1 and ": SystemExit: 3" in out
    assert ElementTree.parse("promises.xml").getroot().get("name") == r"a\x01.py:exits"


def test_a_missing_recording_is_named(own, capsys, monkeypatch):
    monkeypatch.setattr("minivlm.lab.own.cases.GOLDENS", own)
    status, _, err = done(capsys, "check", "mine.py:select", "--against", "fastv")
    assert status == 2 and "fastv_select.safetensors: there is no such recording" in err


def test_a_file_may_import_its_neighbours(own):
    """The folder of the file is searched, and only while it is read."""
    Path("part.py").write_text("NUMBER = 7\n")
    Path("whole.py").write_text("from part import NUMBER\ndef seven(keep):\n    return [NUMBER]\n")
    case = cases("last")[0]
    assert called(from_file("whole.py:seven"), case.tokens, 1).keep.tolist() == [7]
    assert issubclass(from_file("mine.py:Same"), Pruner)
