"""The class that a name means: a method's, a reading's, or that of a method of your own, FILE.py:NAME.

NAME is a class like those of pruning/ (a Pruner), or a function, of which a class is made:

    def score(tokens):                             # (n,) scores: the best are kept
        return tokens.before.mean_attention("last")[0, tokens.visual]

The names of its arguments say what it is given (inputs.py). If `keep` is among them, it returns the visual tokens that
it keeps, as indices, instead. It acts before a layer of the decoder; if it reads `cls_attention`, after the tower.
"""

import inspect
from functools import cache

from minivlm.lab.named.file import from_file, own_fault
from minivlm.lab.named.inputs import arguments, called, scores
from pruning import EVERY, METHODS
from pruning.base import Pruner, Reduction, UserError
from pruning.ranked import Ranked, top
from pruning.vision_site import VisionSite


def kind_of(name):
    """kind_of("fastv") -> FastV; kind_of("mine.py:Mine") -> the class in that file, which is executed.

    UserError, with what is known, for a name that means no method.
    """
    if in_file(name):
        return of_file(name)
    if name not in EVERY:
        raise UserError(f"--method {name}: {name!r} is not known: use one of {', '.join(METHODS)}, "
                        "a reading (run.py methods --readings), or a method of your own, FILE.py:NAME")
    return EVERY[name]


def built(kind, name, **options):
    """An object of the class that the name means. UserError if it does not take these options."""
    try:
        return kind(**options)
    except TypeError as error:
        if own_fault(error):           # raised inside it
            raise
        given = ", ".join(options) or "no options"
        raise UserError(f"{name} cannot be built with {given} ({error}): give each field a default, and decorate the "
                        "class with @dataclass(frozen=True)") from None


def is_known(name):
    """Whether it is a name of the registry, or means a file of the user's own."""
    return name in EVERY or in_file(name)


def in_file(name):
    """Whether it is FILE.py:NAME, or meant as such."""
    return ".py:" in name or name.endswith(".py")


def of_file(name):
    """The class that a file defines, or that of its function."""
    own = from_file(name)
    if not inspect.isclass(own):
        return of_function(own)
    if not issubclass(own, Pruner):
        raise UserError(f"{name}: the class is no Pruner: derive it from pruning.base.Pruner")
    return own


@cache
def of_function(function):
    """A method that ranks by the function's scores, or keeps the indices that it returns; see above. Always the same.
    """
    given = arguments(function)
    result = Indices if "keep" in given else Scores
    site = AfterTower if "cls_attention" in given else BeforeLayer
    attributes = dict(function=staticmethod(function), __module__=function.__module__, __doc__=function.__doc__)
    return type(function.__name__, (result, site), attributes)


class BeforeLayer(Ranked):
    """Before layer K of the decoder."""

    laws = frozenset({"select", "ordered", "budget"})


class AfterTower(VisionSite):
    """After the vision tower, which has a class token; all tiles of an image together."""

    per = "image"
    laws = frozenset({"select", "ordered", "budget"})


class Scores:
    """The function gives scores (n,)."""

    def reduce(self, tokens):
        score = scores(self.function, tokens)                                      # (n,)
        return Reduction(top(score, self.budget(tokens.n)), score=score)


class Indices:
    """The function gives the indices (k,) of the tokens that it keeps."""

    def reduce(self, tokens):
        return called(self.function, tokens, self.budget(tokens.n))
