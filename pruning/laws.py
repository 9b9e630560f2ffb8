"""The laws: what a method promises. Each is a sentence, a function that is true if the promise is kept, and a remedy.

A method names the laws that it keeps in `laws`; causal and shift hold for every method. The tests check them on random
tokens, and `broken` says in words which one a method breaks on given tokens. Letters as in base.py.
"""

from dataclasses import replace
from typing import Callable, NamedTuple

import torch

from pruning.altered import ScaledView, shifted


class Law(NamedTuple):
    """One promise."""

    sentence: str
    remedy: str
    holds: Callable | None             # (pruner, tokens) -> bool; None: only a run of a model shows it


def select(pruner, tokens):
    """Tokens are kept as they are, none twice."""
    r = pruner.reduce(tokens)
    return r.merge is None and len(r.keep.unique()) == len(r.keep)


def convex(pruner, tokens):
    """Merge weights are not negative, and each row sums to 1."""
    merge = pruner.reduce(tokens).merge
    if merge is None:                  # a selection
        return True
    total = merge.double().sum(dim=1)                                              # (k,)
    return bool((merge >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-5)


def disjoint(pruner, tokens):
    """No token goes into two rows."""
    merge = pruner.reduce(tokens).merge
    if merge is None:                  # a selection
        return True
    destinations = (merge != 0).sum(dim=0)                                         # (n,)  of each token
    return bool((destinations <= 1).all())


def ordered(pruner, tokens):
    """Kept tokens are in sequence order."""
    return bool((pruner.reduce(tokens).keep.diff() > 0).all())


def budget(pruner, tokens):
    """Exactly budget(n) tokens are left; if the method counts per tile, of each tile."""
    k = len(pruner.reduce(tokens).keep)
    if pruner.per != "tile":
        return k == pruner.budget(tokens.n)
    tiles = len(tokens.grid[:, 0].unique())
    return k == tiles * pruner.budget(tokens.n // tiles)


def scale(pruner, tokens, factor=1024.0):
    """Attention times a positive constant (a power of two, so that nothing is rounded) selects the same."""
    scaled = replace(tokens, before=ScaledView(tokens.before, factor), here=ScaledView(tokens.here, factor))
    return pruner.reduce(tokens).keep.equal(pruner.reduce(scaled).keep)


def needle(pruner, tokens):
    """The token that gets nearly all the attention is kept."""
    if pruner.site == "vision":
        received = tokens.before.cls_attention().mean(dim=0)                       # (n,)
    else:
        received = tokens.before.mean_attention("last")[0, tokens.visual]          # (n,)
    return int(received.argmax()) in pruner.reduce(tokens).keep.tolist()


def shift(pruner, tokens, rows=3):
    """Text put before the image changes no choice: a method reads the visual rows, wherever these are."""
    return pruner.reduce(tokens).keep.equal(pruner.reduce(shifted(tokens, rows)).keep)


LAWS = {
    "causal": Law(
        "no token looks at later text, and text before the image never sees it",
        "let mask only widen what visual rows see of their own image",
        None,
    ),
    "convex": Law(
        "merged tokens are weighted means: weights are not negative and sum to 1",
        "divide each row of merge by its sum",
        convex,
    ),
    "disjoint": Law(
        "no token is merged into two",
        "give each source one destination",
        disjoint,
    ),
    "budget": Law(
        "exactly budget(n) tokens are left",
        "count what is kept, merged tokens too",
        budget,
    ),
    "select": Law(
        "tokens are kept as they are, none twice",
        "return Reduction(keep=indices) without merge",
        select,
    ),
    "ordered": Law(
        "kept tokens are in sequence order",
        "sort keep, as top does",
        ordered,
    ),
    "scale": Law(
        "attention times a positive constant selects the same",
        "compare scores with each other, not with numbers",
        scale,
    ),
    "needle": Law(
        "a token that gets nearly all the attention is kept",
        "read the attention at tokens.visual, of the last row",
        needle,
    ),
    "shift": Law(
        "text put before the image changes no choice",
        "index with tokens.visual, never with the first n rows",
        shift,
    ),
}
OF_ALL = ("causal", "shift")           # laws that every method keeps, declared or not


def broken(pruner, tokens):
    """A sentence for each law that the method promises and breaks on these tokens, with the case and the remedy."""
    promised = [name for name in LAWS if name in pruner.laws or name in OF_ALL]
    for name in promised:
        law = LAWS[name]
        if law.holds is not None and not law.holds(pruner, tokens):
            yield (f"{type(pruner).__name__} breaks {name}: {law.sentence}. Case: {in_words(pruner, tokens)}. "
                   f"Remedy: {law.remedy}.")


def in_words(pruner, tokens):
    """The tokens of a case, and the method's result, in one line."""
    return (f"{len(tokens.hidden)} tokens, of which rows {tokens.visual.tolist()} are visual, "
            f"before layer {tokens.layer}: {pruner.reduce(tokens)!r}")


PER = {
    "prompt": "all visual tokens of a prompt together, of all its images and tiles",
    "image": "the tokens of each image, all its tiles together; "
             "commands take a number for the whole prompt and divide it among the images, rounded down",
    "tile": "the tokens of each tile, the same number of every one; "
            "commands take a number for the whole prompt and divide it among the tiles, rounded down",
}
PRECONDITIONS = {
    "cls": "a vision tower with a class token",
    "grid": "every patch of the image's grid, none dropped before",
    "text": "text after the image",
    "calibration": "a table fitted to the model",
    "training": "a module trained for the model",
}
