"""Options by annotation: what a field admits, what its refusal says, and that no method takes anything else."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
import torch

from minivlm.lab.cli.options import build
from pruning import EVERY, METHODS
from pruning.base import Pruner, UserError
from pruning.fields import Amount, Layer, Positive, Share, annotations, described, fault, option, option_texts, parse

ODD = ["", "none", "null", "true", "-1", "0", "1", "0.5", "1e400", "nan", "-Infinity", "9" * 30, "9" * 5000, "{}",
       '{"a": 1}', "[]", "[[]]", "[null]", "[true]", "[0.5]", "[1e400]", "[[2,0.5]]", "1,2", "1,x", "word",
       '"last"', "\ud800", "a\nb", "[" * 10_000, "1" + "0" * 12]
VALUES = [None, True, -1, 0, 1, 0.5, float("nan"), float("inf"), 10**30, 10**5000, "word", "", b"x", {}, {"a": 1},
          [], [[]], (None,), (True,), (0.5,), ((2, 0.5),), (1, 2), ("x",), (float("nan"),), {1}, object(), int,
          np.int64(1), np.float32(0.5), np.array([1, 2]), np.bool_(True), torch.tensor(1), torch.tensor([1.0, 2.0])]


@pytest.mark.parametrize("annotation, value", [
    (int, 3),
    (int, -3),
    (float, 3),
    (float, 0.5),
    (Amount, 3),
    (Amount, 0.5),
    (bool, True),
    (str, "x"),
    (Literal["a", "b"], "b"),
    (int | None, None),
    (tuple, (1, "x")),
    (tuple[int, ...], ()),
    (tuple[int, ...], (1, 2)),
    (tuple[int, float], (1, 0.5)),
    (tuple[tuple[int, Amount], ...], ((2, 0.5), (3, 4))),
    (Share, 0),
    (Share, 1.0),
    (Positive, 1e-9),
    (Layer, 1),
    (object, {}),
])
def test_what_is_admitted(annotation, value):
    assert fault(annotation, value) == ""


@pytest.mark.parametrize("annotation, value, sentence", [
    (int, True, "is a whole number"),
    (int, 2.0, "is a whole number"),
    (float, False, "is a number"),
    (bool, 1, "is true or false"),
    (str, 3, "is a word"),
    (Literal["a", "b"], "c", "is one of a, b"),
    (Literal["a", "b"], ["a"], "is one of a, b"),
    (Amount, None, "is a number"),
    (int | None, "x", "is a whole number or none"),
    (tuple[int, ...], 5, "is a list, each item a whole number"),
    (tuple[int, ...], (1, "x"), "is a list, each item a whole number"),
    (tuple[int, float], (1,), "is a list of a whole number and a number"),
    (float, float("nan"), "must be finite"),
    (Amount, float("inf"), "must be finite"),
    (tuple[float, ...], (1, -float("inf")), "must be finite"),
    (int, 2**63, "is too large a number"),
    (float, -(10**400), "is too large a number"),
    (Share, 1.5, "must be at most 1"),
    (Share, -1, "must be at least 0"),
    (Share | None, 2, "must be at most 1"),
    (Positive, 0, "must be above 0"),
    (Positive, "x", "is a number above 0"),
    (Layer, 0, "must be at least 1 "),
    (tuple[Layer, ...], (1, 0), "must be at least 1 "),
])
def test_what_is_refused(annotation, value, sentence):
    assert fault(annotation, value).startswith(sentence)


@pytest.mark.parametrize("annotation, text, value", [
    (int, "3", 3),
    (Amount, "0.5", 0.5),
    (bool, "True", True),
    (bool, "FALSE", False),
    (int | None, "None", None),
    (int, "3x", "3x"),
    (str, "3", "3"),
    (Literal["none", "all"], "none", "none"),
    (Literal[">", ">="], ">=", ">="),
    (tuple, "2", (2,)),
    (tuple, "2,6", (2, 6)),
    (tuple, "[[2,0.5],[6,0.1]]", ((2, 0.5), (6, 0.1))),
    (tuple, "[2,0.5],[6,0.1]", ((2, 0.5), (6, 0.1))),
    (tuple, "[]", ()),
    (int, "1,2", "1,2"),
])
def test_what_a_text_means(annotation, text, value):
    assert parse(annotation, text) == value


def test_the_sentence_names_method_option_and_value():
    """The whole of it, and a value of any length in one line."""
    with pytest.raises(UserError) as error:
        METHODS["atp"](strategy="x")
    assert str(error.value) == "ATP: strategy is one of both, redundant, spatial; got 'x'"
    message = "FastV: keep is a number; got a tuple that is too large to show|FastV: keep is a number; got"
    with pytest.raises(UserError, match=message) as error:
        METHODS["fastv"](keep="\n" * 5000)
    assert len(str(error.value)) < 120 and "\n" not in str(error.value)


@pytest.mark.parametrize("name, word, sentence", [
    ("fastv", "keep={}", "keep is a number; got {}"),
    ("fastv", "layer=none", "layer is a whole number .*; got 'none'"),
    ("fastv", "keep=[]", r"keep is a number; got \(\)"),
    ("atp", "strategy={}", "strategy is one of both, redundant, spatial; got '{}'"),
    ("asap", "salvage=1", "salvage is true or false; got 1"),
    ("fastv", "keep=NaN", "keep must be finite"),
    ("fastv", "layer=10000000", "layer must be at most"),
    ("fastv", "layer=2.0", "layer is a whole number"),
])
def test_words_of_the_command_line(name, word, sentence):
    with pytest.raises(UserError, match=sentence):
        build(name, settings=[word])


@pytest.mark.parametrize("name, message", [
    ("a\nb", r"a\nb is"),
    ("a\0b", r"a\x00b is"),
    ("\ud800", r"\ud800 is"),
    ("\x1b[31m", r"\x1b[31m is"),
    ("\u2028", r"\u2028 is"),
    ("ü", "ü is"),
    ("x" * 5000, "x ... x"),
    ("x " * 5000, " ... "),
])
def test_a_message_is_one_line_whatever_it_names(name, message):
    text = str(UserError(f"{name} is not there: give another"))
    assert message in text and text.endswith("is not there: give another")
    assert text.isprintable() and len(text) < 500


def test_numbers_of_other_libraries_and_lists():
    """numpy's and torch's numbers become plain ones, and lists tuples, so that a method can be compared, hashed and
    written as JSON."""
    method = METHODS["asap"](layer=np.int64(3), keep=torch.tensor(.5), salvage=np.bool_(True))
    assert method == METHODS["asap"](layer=3, keep=.5) and type(method.layer) is int and type(method.keep) is float
    assert hash(METHODS["pyramiddrop"](layers=[1, 2], ratios=[.5, .2]))


def test_an_option_says_what_it_means():
    """The text is the field's metadata: `python run.py methods NAME` shows it, and a field without one too."""
    @dataclass(frozen=True)
    class Own(Pruner):
        size: Share = option(.5, "of the picture")
        plain: int = 3

    assert Own() == Own(size=.5, plain=3) and Own.size == .5
    assert option_texts(Own) == {"size": "of the picture", "plain": ""}


@pytest.mark.parametrize("name", EVERY)
def test_every_option_says_what_it_means(name):
    assert all(option_texts(EVERY[name]).values())


def test_a_refusal_is_no_error_of_a_parser():
    """So that `except ValueError`, around what reads a number or a file, does not hide it."""
    assert not issubclass(UserError, ValueError)


def test_a_method_of_ones_own_is_checked_too():
    @dataclass(frozen=True)
    class Own(Pruner):
        size: Share = .5

    class Plain(Pruner):
        pass

    assert Own(size=1).size == 1 and Plain()
    with pytest.raises(UserError, match="Own: size must be at most 1; got 2"):
        Own(size=2)


@pytest.mark.parametrize("name", METHODS)
def test_every_option_takes_odd_values_or_refuses_them(name):
    """Each option of each method, from Python and from the command line: a method, or one line that names the option's
    class."""
    for field in annotations(METHODS[name]):
        trials = [lambda value=value: METHODS[name](**{field: value}) for value in VALUES]
        trials += [lambda text=text: build(name, settings=[f"{field}={text}"]) for text in ODD]
        for trial in trials:
            try:
                trial().schedule(576, 32)
            except UserError as error:
                assert "\n" not in str(error) and len(str(error)) < 400, error


@pytest.mark.parametrize("name", METHODS)
def test_every_annotation_can_be_described(name):
    """In plain words, without a class's name."""
    for field, annotation in annotations(METHODS[name]).items():
        assert field == "module" or "<" not in described(annotation) and "typing" not in described(annotation)
