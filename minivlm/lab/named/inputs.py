"""What a function of your own is given, by the names of its arguments, and what it returns.

Its arguments are any of INPUTS. With `keep` among them it returns the visual tokens that it keeps, as indices
0 .. n-1; without, a score for each visual token:

    def select(attention, visual, keep):
        score = attention.mean(dim=0)[visual]          # of the last row, mean over heads
        return score.topk(keep).indices

    def score(attention, visual):
        return attention.mean(dim=0)[visual]
"""

import inspect
from dataclasses import dataclass
from typing import Callable

import torch

from pruning.base import Reduction, UserError


@dataclass(frozen=True)
class Input:
    """An argument: what it is, and how it is read."""

    about: str
    read: Callable | None              # tokens -> tensor; None: it is not read from the tokens


INPUTS = {
    "tokens": Input("the Tokens themselves (pruning/base.py)", lambda tokens: tokens),
    "keep": Input("k, the number of visual tokens to keep: an int", None),
    "visual": Input("(n,) rows of the sequence that are visual tokens", lambda tokens: tokens.visual),
    "grid": Input("(n, 3) tile, row and column of each; row -1: on no grid", lambda tokens: tokens.grid),
    "hidden": Input("(T, D) states of the sequence", lambda tokens: tokens.hidden),
    "feature": Input("(n, D) states of the visual tokens", lambda tokens: tokens.hidden[tokens.visual]),
    "attention": Input("(H, T) attention of the last row, in the layer before the cut",
                       lambda tokens: tokens.before.attention("last")[:, 0]),
    "next_attention": Input("(H, T) the same in the layer after the cut",
                            lambda tokens: tokens.here.attention("last")[:, 0]),
    "cls_attention": Input("(H, n) of a tower: attention from the class token",
                           lambda tokens: tokens.before.cls_attention()),
    "key": Input("(Hk, T, Dh) keys after RoPE, of the layer before the cut", lambda tokens: tokens.before.key()),
    "raw_key": Input("(T, Hk Dh) keys of the layer after the cut, without norm and RoPE",
                     lambda tokens: tokens.here.projected_key(norm=False)),
    "normed": Input("(T, D) states after the decoder's final norm", lambda tokens: tokens.here.final_normed()),
}


def arguments(function):
    """The names of the function's arguments. UserError for one that is no input."""
    names = list(inspect.signature(function).parameters)
    unknown = [name for name in names if name not in INPUTS]
    if unknown:
        raise UserError(f"{function.__name__} has an argument {unknown[0]!r}: the arguments are {', '.join(INPUTS)}")
    return names


def read(name, tokens):
    """The input of that name. UserError if the tokens do not have it."""
    try:
        return INPUTS[name].read(tokens)
    except UserError as error:
        raise UserError(f"the argument {name} cannot be read here ({error}): use what the method itself reads, "
                        "see pruning/README.md") from None


def result(function, tokens, keep=None):
    """What the function returns, given its inputs."""
    given = {}
    for name in arguments(function):
        given[name] = keep if name == "keep" else read(name, tokens)
    return function(**given)


def called(function, tokens, keep):
    """The Reduction to the tokens whose indices the function returns. UserError if these are no indices."""
    returned = result(function, tokens, keep)
    try:
        indices = torch.as_tensor(returned).flatten()
    except (TypeError, ValueError, RuntimeError):
        kind = type(returned).__name__
        raise UserError(f"{function.__name__} returns a {kind}, not indices of visual tokens") from None
    if not len(indices):               # an empty list has no numbers that say of which kind they are
        indices = indices.long()
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise UserError(f"{function.__name__} returns {indices.dtype}, not indices: of a mask take mask.nonzero()")
    return Reduction(indices.long().sort().values)


def scores(function, tokens):
    """The scores (n,) that the function returns. UserError if these are none."""
    score = result(function, tokens)
    if not isinstance(score, torch.Tensor):
        kind = type(score).__name__
        raise UserError(f"{function.__name__} returns a {kind}, and must return a tensor of scores (n,)")
    if score.shape != (tokens.n,):
        raise UserError(f"{function.__name__} returns {tuple(score.shape)}, and must return (n,) = ({tokens.n},): "
                        "a score for each visual token")
    if score.isnan().any():
        raise UserError(f"{function.__name__} returns NaN among its scores: a quotient 0 / 0, a root of a negative "
                        "number, or a model that overflows in float16")
    return score
