"""Who competes on a task: no pruning, the methods at each budget, and the controls, which need no idea.

The controls, random and uniform tokens, act where a method does, since what two layers have read is worth more than
what none has: before layer 2 ("random"), before another layer ("random@3"), or before layer 0 ("random embed"). A
method that drops tokens at several places, by a schedule or as A+B, has controls of its own: "random as pyramiddrop"
are random tokens, as many in each layer as PyramidDrop's.
"""

from dataclasses import dataclass, replace
from itertools import product

import torch

from minivlm.lab.cli.options import (
    averaged,
    build,
    check,
    entering,
    own_settings,
    share,
)
from minivlm.lab.lineup.lineup import built, chosen, listed, takes_keep
from minivlm.toy.benchmark import on_patches
from pruning.base import Pruner, Reduction, UserError
from pruning.compose import Both, Schedule
from pruning.controls import Random
from pruning.ranked import top

CONTROLS = ("random", "uniform")
DEFAULT = "fastv,divprune,adaptprune,asap,vispruner"


@dataclass(frozen=True)
class Contestant:
    """A method with a budget, or why it does not run here."""

    method: str
    keep: str | None = None            # as the user wrote it; None if the method has no such option
    pruner: Pruner | None = None       # None: no pruning
    why_not: str = ""
    place: int | None = Random.layer   # the layer before which it drops tokens (0: before the decoder); None: several

    @property
    def label(self):
        """Its name in tables: "fastv 0.1"."""
        return " ".join(filter(None, (self.method, self.keep)))

    @property
    def rival(self):
        """The label of the random tokens at its places and budget."""
        if self.place is None:
            return f"random as {self.label}"
        return f"{control_name('random', self.place)} {self.keep}"


@dataclass(frozen=True)
class Entry:
    """What contestants are built from: a model, a picture of the task, and the settings of each method."""

    model: object
    pixels: object
    settings: dict

    @property
    def layers(self):
        """Of the decoder."""
        return self.model.config.text.num_hidden_layers

    @property
    def tokens(self):
        """Visual tokens of the picture."""
        return self.model.visual_tokens(self.pixels)

    @property
    def parts(self):
        """The tiles and images that a budget may count."""
        return self.model.parts([self.pixels])

    def pruner(self, name, keep=None, settings=()):
        """The method, as Python has it: what its number means is decided for each picture. UserError if no tokens can
        meet it."""
        settings = [*settings, *self.settings[name]]
        own = own_settings(self.model.folder)
        pruner = build(name, keep, settings, own=own)
        averaged(pruner, None, self.tokens, self.layers, self.parts)
        return pruner

    def contestant(self, name, keep, pruner):
        """The method, or the UserError that forbids it, with its place, or with the reason if it does not run here."""
        if isinstance(pruner, UserError):
            return Contestant(name, keep, why_not=str(pruner))
        place = place_of(pruner, keep, self.layers)
        contestant = Contestant(name, keep, place=place)
        try:
            return replace(contestant, pruner=check(pruner, self.model))
        except UserError as error:
            return replace(contestant, why_not=str(error))

    def counts(self, pruner):
        """Visual tokens that enter each decoder layer; None if the prompt decides it."""
        return entering(pruner, self.tokens, self.layers, self.parts)


def contestants(model, pixels, names, keeps, settings, oracles=False):
    """[Contestant], no pruning first: `names` "all" or "a,b", `keeps` "0.5,0.1", settings ["method.option=value", ..],
    "option=value" if there is only one method.

    With "all" a method that cannot be built is there with its reason, else it is a UserError; one that cannot run on
    this model has its reason in any case. pixels: of a picture, whose tokens the budgets are checked against. oracles:
    as well as random tokens, those on things first, and those on the background.
    """
    always = ("none", *CONTROLS)
    methods = [name for name in chosen(names) if name not in always]
    if len(methods) == 1:
        settings = [with_method(setting, *methods) for setting in settings]
    entry = Entry(model, pixels, share(settings, [*CONTROLS, *methods]))
    keeps = listed("--keep", keeps)
    # the methods at each budget
    entered = []
    for name in methods:
        budgets = keeps if takes_keep(name) else [None]
        for keep in budgets:
            pruner = built(names, lambda: entry.pruner(name, keep))
            entered.append(entry.contestant(name, keep, pruner))
    # the controls where these act
    controls = at_places(entry, entered, keeps)
    controls += at_several_places(entry, entered)
    known = oracles_of(controls) if oracles else []
    every = [Contestant("none"), *controls, *known, *entered]
    by_label = {contestant.label: contestant for contestant in every}
    return list(by_label.values())


def with_method(setting, method):
    """A setting of the only method with its name: "layer=3" -> "fastv.layer=3", "a.layer=3" -> "a+b.a.layer=3"."""
    option, _, _ = setting.partition("=")
    name, dot, _ = option.partition(".")
    parts = method.split("+") if "+" in method else []
    if dot and name not in parts:                          # of a control, or with its name already
        return setting
    return f"{method}.{setting}"


def places(pruner, layers):
    """The layers, of `layers` in all, before which a method drops tokens; 0: before the decoder."""
    before = pruner.at("image") or pruner.at("vision") or pruner.at("embed")
    decoder = pruner.at("decoder")
    where = [0] if before else []
    if decoder:
        where += decoder.reduce_at(layers)
    return where


def place_of(pruner, keep, layers):
    """The place where it leaves `keep` tokens; None if there are several, or the number is its own."""
    where = places(pruner, layers)
    has_budget = keep is not None and "+" not in keep
    return where[0] if has_budget and len(where) == 1 else None


def control_name(name, place):
    """The name of a control by the layer before which it acts: "random embed", "random", "random@3"."""
    if place == 0:
        return f"{name} embed"
    return name if place == Random.layer else f"{name}@{place}"


def at_places(entry, entered, keeps):
    """The controls at the place of each method, at each budget; before layer 2 if there is none."""
    ran = [contestant for contestant in entered if contestant.pruner]
    where = {contestant.place for contestant in ran if contestant.place is not None}
    where = where or {Random.layer}
    before_layers = sorted(where - {0})
    before_all = sorted(where & {0})
    budgets = [keep for keep in keeps if "+" not in keep]
    controls = []
    for place in [*before_layers, *before_all]:
        settings = [f"layer={place}"] if place else ["site=embed"]
        for name, keep in product(CONTROLS, budgets):
            pruner = entry.pruner(name, keep, settings)
            contestant = entry.contestant(name, keep, pruner)
            method = control_name(name, contestant.place)
            controls.append(replace(contestant, method=method))
    return controls


def at_several_places(entry, entered):
    """The controls of each method that drops tokens at several places."""
    several = [contestant for contestant in entered if contestant.pruner and contestant.place is None]
    controls = []
    for contestant in several:
        counts = entry.counts(contestant.pruner)
        if counts is None:                                 # the prompt decides
            continue
        if min(counts) in (0, entry.tokens):               # none are left to choose, or all
            continue
        for name in CONTROLS:
            control = replace(entry.pruner(name), site="decoder")
            pruner = as_many(control, entry.tokens, counts)
            method = f"{name} as {contestant.method}"
            controls.append(entry.contestant(method, contestant.keep, pruner))
    return controls


def as_many(control, n, counts):
    """The control, so that of n visual tokens as many enter each layer as `counts` says.

    as_many(Random(), 144, [72, 72, 9]) -> Both(Random before layer 0, 72 of 144; Random before layer 2, 9 of 72).
    """
    first = min(n, counts[0])          # at the vision site a method counts what the tower gives, which may be more
    methods = []
    if first < n:
        at_first = replace(control, site="embed", keep=as_share(first, n))
        methods.append(at_first)
    # the share that is left before each layer that fewer enter
    shares = {}
    before = first
    for layer, count in enumerate(counts):
        if count < before:
            shares[layer] = as_share(count, first)
        before = count
    if shares:
        layers = tuple(shares)
        ratios = tuple(shares.values())
        methods.append(Schedule(control, layers, ratios))
    return methods[0] if len(methods) == 1 else Both(tuple(methods))


def as_share(count, n):
    """The share of n that is `count`, for pictures of other sizes too: half a token more, since it is rounded down."""
    return (count + 0.5) / n


def oracles_of(controls):
    """Those that know the picture, in place of random tokens."""
    chance = [contestant for contestant in controls if isinstance(contestant.pruner, Random)]
    known = []
    for contestant in chance:
        for name in ("things", "background"):
            oracle = Oracle(**vars(contestant.pruner), first=name == "things")
            method = contestant.method.replace("random", name)
            known.append(replace(contestant, method=method, pruner=oracle))
    return known


@dataclass(frozen=True)
class Oracle(Random):
    """What no method can do: keeps the tokens on `things` first, or last; at random among the others.

    A table shows how a model answers with such a choice.
    """

    things: tuple = ()                 # patches of the drawn picture, those first that show most of a thing
    first: bool = True

    def reduce(self, tokens):
        k = self.budget(tokens.n)
        generator = torch.Generator().manual_seed(self.seed)
        score = torch.rand(tokens.n, generator=generator).to(tokens.grid.device)   # (n,)
        patches = self.things[:k] if self.first else self.things
        on_things = on_patches(tokens.grid, patches)
        score[on_things] += 1 if self.first else -1
        return Reduction(top(score, k))
