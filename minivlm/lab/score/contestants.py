"""Who competes on a task: no pruning, the methods at each budget, and beside them the controls, which need no idea.

The controls, random and uniform tokens, act wherever a method drops its first tokens: before layer 2 ("random"), before
another layer ("random@3"), or before layer 0 ("random embed"), since what two layers have read is worth more than what none has.
"""

from dataclasses import dataclass, replace
from itertools import product

import torch

from minivlm.lab.cli.options import averaged, build, built, check, chosen, listed, own_settings, share, takes_keep
from minivlm.toy.benchmark import on_patches
from pruning.base import Pruner, Reduction, UserError
from pruning.controls import Random
from pruning.ranked import top

CONTROLS = ("random", "uniform")
DEFAULT = "fastv,divprune,adaptprune,asap,vispruner"


@dataclass(frozen=True)
class Contestant:
    """A method with a budget, or why it does not run here."""

    method: str
    keep: str | None = None            # as it was asked for; None where the method has no such option
    pruner: Pruner | None = None       # None: no pruning
    why_not: str = ""
    place: int = Random.layer          # the decoder layer before which it drops its first tokens; 0: before the decoder

    @property
    def label(self):
        """Its name in tables: "fastv 0.1"."""
        return " ".join(filter(None, (self.method, self.keep)))

    @property
    def rival(self):
        """The label of the random tokens at its place and budget."""
        return f"{_named('random', self.place)} {self.keep}"


def contestants(model, pixels, names, keeps, settings, oracles=False):
    """[Contestant], no pruning first: `names` "all" or "a,b", `keeps` "0.5,0.1", settings ["method.option=value", ..],
    "option=value" where there is one method.

    With "all" a method that cannot be built is there with its reason, else it is a UserError; one that cannot run on this
    model has its reason in any case. pixels: of a picture, whose tokens the budgets are checked against. oracles: beside random
    tokens, those on things first, and those on the background.
    """
    methods = [name for name in chosen(names) if name not in ("none", *CONTROLS)]
    if len(methods) == 1:                              # "layer=3" can be of no other method
        settings = [s if "." in s.partition("=")[0] else f"{methods[0]}.{s}" for s in settings]
    given = share(settings, [*CONTROLS, *methods])
    own = own_settings(model.folder)
    keeps = listed("--keep", keeps)
    layers = model.config.text.num_hidden_layers

    def fitting(name, keep, where=()):
        """The method, as Python has it: what its number means is decided for each picture."""
        pruner = build(name, keep, [*where, *given[name]], own=own)
        averaged(pruner, None, model.visual_tokens(pixels), layers, model.parts([pixels]))
        return pruner

    # the methods
    entered = []
    for name in methods:
        for keep in keeps if takes_keep(name) else [None]:
            pruner = built(names, lambda: fitting(name, keep))
            refused = isinstance(pruner, UserError)
            one = Contestant(name, keep, why_not=str(pruner)) if refused else _placed(name, keep, pruner, layers)
            entered.append(_checked(one, model))

    # the controls, at the place of each method that runs
    places = {one.place for one in entered if one.pruner} or {Random.layer}
    controls = []
    for place in sorted(places, key=lambda place: (place == 0, place)):
        where = [f"layer={place}"] if place else ["site=embed"]
        for name, keep in product(CONTROLS, (keep for keep in keeps if "+" not in keep)):
            one = _placed(name, keep, fitting(name, keep, where), layers)
            controls.append(_checked(replace(one, method=_named(name, one.place)), model))

    # those that know the picture
    chance = [one for one in controls if oracles and one.pruner and one.method.startswith("random")]
    known = [replace(one, method=one.method.replace("random", name), pruner=Oracle(**vars(one.pruner), first=name == "things"))
             for one in chance for name in ("things", "background")]
    return list({one.label: one for one in (Contestant("none"), *controls, *known, *entered)}.values())


def _placed(name, keep, pruner, layers):
    """The contestant, with the layer at which it drops its first tokens; a method without a keep has the controls' own."""
    if pruner.at("vision") or pruner.at("embed"):
        return Contestant(name, keep, pruner, place=0)
    cuts = pruner.at("decoder").reduce_at(layers) if keep else ()
    return Contestant(name, keep, pruner, place=min(cuts, default=Random.layer))


def _named(name, place):
    """The name of a control by the layer before which it acts: "random embed", "random", "random@3"."""
    if place == 0:
        return f"{name} embed"
    return name if place == Random.layer else f"{name}@{place}"


def _checked(contestant, model):
    try:
        return replace(contestant, pruner=check(contestant.pruner, model))
    except UserError as error:
        return replace(contestant, pruner=None, why_not=str(error))


@dataclass(frozen=True)
class Oracle(Random):
    """What no method can do: keeps the tokens on `things` first, or last; at random among the others.

    The table of what a model makes of such a choice is made with it.
    """

    things: tuple = ()                 # patches of the drawn picture, those first that show most of a thing
    first: bool = True

    def reduce(self, tokens):
        score, k = torch.rand(tokens.n, generator=torch.Generator().manual_seed(self.seed)).to(tokens.grid.device), self.budget(tokens.n)
        score[on_patches(tokens.grid, self.things[:k] if self.first else self.things)] += 1 if self.first else -1
        return Reduction(top(score, k))
