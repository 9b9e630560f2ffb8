"""Functions called by name, and exceptions in words: here, and in the student's process, which has a copy of this.
"""

import traceback

import torch


def results(module, of, options, calls, gradient=False):
    """What each of the calls (name, args) gives: of the module or, in turn, of one object of its class `of`.

    The name of what cannot be called gives its value. With `gradient` a call gives what `with_gradients` does.
    """
    owner = getattr(module, of)(**options) if of else module
    given = []
    for name, args in calls:
        value = getattr(owner, name)
        if gradient:
            value = with_gradients(owner, value, args)
        elif callable(value):
            value = value(*args)
        given.append(value)
    return given


def with_gradients(owner, function, args):
    """(the value, gradients of its sum of squares by each tensor of numbers and each weight), None where none arrives.
    """
    args = [trainable(x) for x in args]
    leaves = [x for x in args if torch.is_tensor(x) and x.requires_grad]
    if getattr(owner, "module", None) is not None:
        leaves += owner.module.requires_grad_().parameters()
    with torch.enable_grad():
        value = function(*args)
        total = value.square().sum()
    if not total.requires_grad:
        return value, [None] * len(leaves)
    return value.detach(), list(torch.autograd.grad(total, leaves, allow_unused=True))


def trainable(x):
    """A copy that asks for a gradient, of a tensor of numbers; anything else as it is."""
    if torch.is_tensor(x) and x.is_floating_point():
        return x.detach().clone().requires_grad_()
    return x


def described(error, file):
    """An exception as data: its kind, its first line, and the line of the file in which it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    numbers = [frame.lineno for frame in frames if frame.filename == file]
    message = str(error)
    if isinstance(error, SyntaxError):
        numbers.append(error.lineno)
        message = error.msg
    first_line = message.strip().partition("\n")[0]
    return dict(kind=type(error).__name__, message=first_line[:300], line=numbers[-1] if numbers else None)
