"""Judging answers: is it what it should be, and if not, in words, what is it; and the laws of pruning/laws.py."""

import torch
from torch import Tensor

from minivlm.course.exercises.grading.wire import Unknown
from minivlm.course.exercises.problem import Wrong
from pruning.altered import shifted
from pruning.apply import problem_of
from pruning.base import Pruner, Reduction
from pruning.laws import LAWS

SHOWN = 12                             # numbers of a tensor that a sentence shows


def same(got, expected, what, atol=1e-4):
    """Wrong if an answer, called `what` in the sentence, is not what is expected, to `atol`."""
    if isinstance(expected, (tuple, list)):
        same_items(got, expected, what, atol)
    elif isinstance(expected, Tensor):
        tensor(got, what, expected.shape)
        if not near(got, expected, atol).all():
            raise Wrong(f"{what}: {difference(got, expected, atol)}")
    elif isinstance(expected, float):
        same_number(got, expected, what, atol)
    elif type(expected) is int:
        is_number = type(got) in (int, float)
        equal(is_number and got == expected, got, expected, what)
    else:
        is_alike = type(got) is type(expected)
        equal(is_alike and got == expected, got, expected, what)


def equal(holds, got, expected, what):
    """Wrong, with both values, if something does not hold."""
    expect(holds, f"{what}: {shown(got)}, not {shown(expected)}")


def same_items(got, expected, what, atol):
    """The same of each item."""
    is_list = isinstance(got, (tuple, list))
    equal(is_list and len(got) == len(expected), got, expected, what)
    has_tensors = any(isinstance(item, Tensor) for item in expected)
    if not has_tensors:
        equal(list(got) == list(expected), got, expected, what)
        return
    for i, (item, right) in enumerate(zip(got, expected)):
        same(item, right, f"{what}, at {i},", atol)


def same_number(got, expected, what, atol):
    """The same of a number, which may be a tensor's only one."""
    is_number = isinstance(got, (int, float))
    if isinstance(got, Tensor):
        is_number = got.numel() == 1
    equal(is_number, got, expected, what)
    got = float(got)
    most = atol * max(1.0, abs(expected))
    expect(abs(got - expected) <= most, f"{what}: {got:.7g}, not {expected:.7g}")


def expect(holds, instead):
    """Wrong, in these words, if something does not hold."""
    if not holds:
        raise Wrong(instead)


def tensor(got, what, shape=None):
    """The answer, if it is a tensor, of this shape. Wrong if not."""
    expect(isinstance(got, Tensor), f"{what} is {shown(got)}, and should be a tensor")
    expect(not got.is_complex(), f"{what} has complex numbers")
    if shape is not None:
        expect(got.shape == shape, f"{what} has the shape {tuple(got.shape)}, not {tuple(shape)}")
    return got


def near(got, expected, atol):
    """Where two tensors of one shape agree: to atol, and a hundredth of it relatively. Infinities are equal."""
    got = got.double()
    expected = expected.double()
    return torch.isclose(got, expected, rtol=atol / 100, atol=atol)


def difference(got, expected, atol):
    """"[1, 2], not [1, 3]", or of many numbers the first place in which they differ."""
    if got.numel() <= SHOWN:
        return f"{shown(got)}, not {shown(expected)}"
    is_far = ~near(got, expected, atol)
    place = tuple(is_far.nonzero()[0].tolist())
    return f"{shown(got[place])} at {list(place)}, not {shown(expected[place])}"


def shown(value):
    """A value in a sentence."""
    if isinstance(value, Unknown):
        return f"a {value.kind}"
    if isinstance(value, Tensor):
        if value.numel() > SHOWN:
            return f"a tensor {tuple(value.shape)}"
        return str(rounded(value.tolist()))
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(shown, value)) + "]"
    text = repr(value)
    return text if len(text) <= 80 else f"a {type(value).__name__}"


def rounded(numbers):
    """Nested lists of numbers with four digits."""
    if isinstance(numbers, list):
        return [rounded(x) for x in numbers]
    return float(f"{numbers:.4g}") if isinstance(numbers, float) else numbers


# --- methods ----------------------------------------------------------------------------------------------------------

class Through(Pruner):
    """A pruner whose `reduce` is a student's; site, budget and laws are ours. Wrong if a result is malformed."""

    def __init__(self, ours, made):
        self.ours = ours
        self.made = made
        self.site = ours.site
        self.per = ours.per
        self.laws = ours.laws

    def budget(self, n):
        return self.ours.budget(n)

    def reduce(self, tokens):
        r = self.made.reduce(tokens)
        expect(isinstance(r, Reduction), f"reduce gives {shown(r)}, and should give a Reduction")
        problem = problem_of(r, tokens.n, self)
        expect(problem is None, f"of the Reduction, {problem}")
        return r


def keeps_law(name, pruner, tokens):
    """Wrong if the pruner breaks the law on these tokens."""
    if not LAWS[name].holds(pruner, tokens):
        raise Wrong(f"it gives {pruner.reduce(tokens)!r}{besides(name, pruner, tokens)}")


def besides(name, pruner, tokens):
    """What else shows that a law is broken."""
    if name == "shift":
        return f", and {pruner.reduce(shifted(tokens, 3))!r} with three more rows of text"
    if name == "needle":
        received = tokens.before.mean_attention("last")[0, tokens.visual]          # (n,)
        return f", and {int(received.argmax())} gets the most"
    return ""
