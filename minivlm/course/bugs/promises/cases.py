"""The small cases on which promises are looked at: for some mistakes one that is typed, for all a few drawn ones."""

from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import nn

from minivlm.lab.own.cases import site_of, view
from pruning import EVERY
from pruning.atp import Thresholds
from pruning.base import LayerView, Tokens, whole_grid

DRAWN = 6                              # cases
PATCHES = 16                           # of the picture that the small model sees
SMALL = 8                              # tokens of a merge whose weights are written out


class Case(NamedTuple):
    """Tokens, and what they are in words."""

    words: str
    tokens: Tokens


def built(bug):
    """The method whose promises are looked at, from the modules as they are imported now."""
    kind = EVERY[bug.method]
    options = dict(bug.options)
    if "module" in {field.name for field in fields(kind)}:
        modules = [Thresholds(PATCHES) for _ in options["layers"]]         # untrained: the same thresholds for all
        options["module"] = nn.ModuleList(modules).requires_grad_(False)
    return kind(**options)


def cases(bug, pruner):
    """The cases of a planted mistake, the typed one first."""
    typed = [TYPED[bug.title]()] if bug.title in TYPED else []
    return typed + [drawn(pruner, seed) for seed in range(DRAWN)]


def described(r):
    """A Reduction in words, with the weights of a small merge."""
    if r.merge is None or r.merge.shape[1] > SMALL:
        return repr(r)
    rows = []
    for place, weights in zip(r.keep.tolist(), r.merge.tolist()):
        terms = [f"{weight:.2g} x {j}" for j, weight in enumerate(weights) if weight]
        rows.append(f"{place} = {' + '.join(terms)}")
    return f"{r!r}, {', '.join(rows)}"


# --- drawn ------------------------------------------------------------------------------------------------------------

def drawn(pruner, seed):
    """A prompt of 4 to 36 visual tokens with all that a method may read, always the same for a seed."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = torch.randint(2, 7, (2,), generator=random).tolist()
    n = rows * columns
    T, visual, layer = site_of(pruner, n)
    before = view(T, n, random)
    here = view(T, n, random)
    hidden = torch.randn(T, 8, generator=random)
    tokens = Tokens.start(hidden, visual, whole_grid(rows, columns), before, here, layer)
    if pruner.site == "decoder":
        tokens = replace(tokens, prompt=tokens)
    return Case(f"{rows} x {columns} drawn visual tokens (seed {seed})", tokens)


# --- typed ------------------------------------------------------------------------------------------------------------

def plane(*degrees):
    """(n, 2) vectors of length 1 with these angles."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def directions():
    """For a forgotten sort."""
    tokens = Tokens.start(plane(0.0, 10.0, 100.0, 200.0), visual=[0, 1, 2, 3])
    return Case("four tokens that point to 0, 10, 100 and 200 degrees, of which two are kept", tokens)


def two_heads():
    """For the heads."""
    heads = [[0.6, 0.4, 0.0, 0.0], [0.0, 0.4, 0.5, 0.1]]
    before = LayerView.of(cls_attention=heads)
    tokens = Tokens.start(torch.eye(4), [0, 1, 2, 3], (2, 2), before, layer=23)
    words = "the class token's two heads pay four patches .6 .4 0 0 and 0 .4 .5 .1, on average .3 .4 .25 .05"
    return Case(words, tokens)


def needle():
    """For a span."""
    last_row = [0.01, 0.006, 0.005, 0.97, 0.004, 0.005]
    view = LayerView.of(attention=last_row)
    tokens = Tokens.start(torch.zeros(6, 1), [1, 2, 3, 4], before=view, here=view, layer=2)
    return Case("six rows, of which 1 to 4 are visual; the last one pays row 3, which is visual token 2, nearly all",
                replace(tokens, prompt=tokens))


def recycled():
    """For a merge."""
    last_row = [0.05, 0.30, 0.25, 0.15, 0.10, 0.05, 0.05, 0.05]
    before = LayerView.of(attention=last_row)
    hidden = torch.arange(8.0)[:, None]                                            # (T, 1)
    tokens = Tokens.start(hidden, [1, 2, 3, 4, 5, 6], before=before, layer=2)
    return Case("six visual tokens, of which two are kept and the next two become one", replace(tokens, prompt=tokens))


def chain():
    """For chains: a is like b, and b like c, but a is not like c."""
    hidden = torch.cat([plane(0.0, 20.0, 40.0, 90.0, 130.0, 170.0), plane(0.0)])   # (T, 2)
    last_row = [0.25, 0.20, 0.18, 0.10, 0.08, 0.07, 0.12]
    key = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0])[None, :, None]         # (1, T, 1)
    before = LayerView.of(attention=last_row, query=torch.ones(1, 7, 1), key=key)
    tokens = Tokens.start(hidden, [0, 1, 2, 3, 4, 5], before=before, layer=2)
    words = ("the best three tokens point to 0, 20 and 40 degrees and have saliencies 1, .8 and .6; those less than 26 "
             "degrees apart are redundant")
    return Case(words, replace(tokens, prompt=tokens))


def four_in_a_row():
    """For a centre."""
    last_row = [0.10, 0.25, 0.235, 0.10, 0.315]
    before = LayerView.of(attention=last_row)
    here = LayerView.of(stream_key=torch.eye(5))
    tokens = Tokens.start(torch.zeros(5, 1), [0, 1, 2, 3], (1, 4), before, here, layer=2)
    return Case("four patches in a row get .10 .25 .235 .10, and one is kept", replace(tokens, prompt=tokens))


def four_logits():
    """For thresholds."""
    row = [0.0, 0.0, 1.0, -1.0, 0.0]
    before = LayerView.of(logits=[row] * 5)
    tokens = Tokens.start(torch.zeros(5, 1), [0, 1, 2, 3], (1, 4), before, layer=2)
    return Case("four visual tokens get the logits 0 0 1 -1 from each row; the thresholds are 0.3 and 0.5",
                replace(tokens, prompt=tokens))


TYPED = {
    "forgotten sort": directions,
    "head max for mean": two_heads,
    "span shifted by one": needle,
    "unnormalised merge": recycled,
    "chains in the merge": chain,
    "Gaussian off centre": four_in_a_row,
    "threshold on logits": four_logits,
}
