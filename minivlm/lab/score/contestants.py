"""Who competes on a task: no pruning, the methods at each budget, and the controls, which need no idea.

The controls, random and uniform tokens, act where a method does, since what two layers have read is worth more than
what none has: before layer 2 ("random"), before another layer ("random@3"), or before layer 0 ("random embed"). A
method that drops tokens at several places, by a schedule or as A+B, has controls of its own: "random as pyramiddrop"
are random tokens, as many in each layer as PyramidDrop's.
"""

from dataclasses import dataclass, replace
from itertools import product

import torch

from minivlm.lab.cli.options import check, entering
from minivlm.lab.lineup.lineup import Budget, Entrant, Prompt, budgets, entrant_of, lineup
from minivlm.lab.lineup.variants import Variant, settings_of
from minivlm.toy.benchmark import on_patches
from pruning.base import Reduction, UserError
from pruning.compose import Both, Schedule
from pruning.controls import Random
from pruning.ranked import top

CONTROLS = ("random", "uniform")
ALWAYS = ("none", *CONTROLS)
DEFAULT = "fastv,divprune,adaptprune,asap,vispruner"
KEEP = "0.5,0.25,0.1"                              # if neither --keep nor --average nor --schedule is given


@dataclass(frozen=True)
class Contestant(Entrant):
    """A method with a budget on this model, or why it does not run here."""

    why_not: str = ""
    place: int | None = Random.layer   # the layer before which it drops tokens (0: before the decoder); None: several

    @property
    def rival(self):
        """The label of the random tokens at its places and budget."""
        if self.place is None:
            return f"random as {self.label}"
        return f"{control_name('random', self.place)} {self.budget}"


@dataclass(frozen=True)
class Entry(Prompt):
    """What contestants are built from: a model, a picture of the task, and the settings of the controls."""

    settings: dict

    def contestant(self, entrant):
        """The entrant with its place, or with the reason if it does not run here."""
        contestant = Contestant(entrant.method, entrant.budget, average=entrant.average)
        if isinstance(entrant.pruner, UserError):
            return replace(contestant, why_not=str(entrant.pruner))
        place = place_of(entrant, self)
        contestant = replace(contestant, place=place)
        try:
            return replace(contestant, pruner=check(entrant.pruner, self.model))
        except UserError as error:
            return replace(contestant, why_not=str(error))

    def control(self, name, place, budget):
        """Random or uniform tokens before a layer, 0: before the decoder, at a budget."""
        there = f"layer={place}" if place else "site=embed"
        own = [*self.own.get(name, ()), there]
        variant = Variant(name, tuple(self.settings[name]))
        entrant = entrant_of(variant, budget, {name: own})
        entrant.on(self)                                   # UserError if the tokens cannot meet the budget
        contestant = self.contestant(entrant)
        return replace(contestant, method=control_name(name, contestant.place))

    def counts(self, contestant):
        """Visual tokens that enter each decoder layer; None if the prompt decides it."""
        return entering(contestant.on(self), self.n, self.layers, self.parts)


def contestants(model, pixels, names, keep=None, settings=(), oracles=False, average=None, schedule=None):
    """[Contestant], no pruning first, then the controls. The words are those of lineup.lineup.

    With "all" a method that cannot be built is there with its reason, else it is a UserError; one that cannot run on
    this model has its reason in any case. pixels: of a picture, whose tokens the budgets are checked against. oracles:
    as well as random tokens, those on things first, and those on the background.
    """
    if {keep, average, schedule} == {None}:
        keep = KEEP
    of_method = settings_of(names, settings, CONTROLS)
    entry = Entry(model, [pixels], of_method)
    # the methods at each budget
    entrants = lineup(names, keep, average, settings, entry, schedule, CONTROLS)
    entered = [entry.contestant(entrant) for entrant in entrants if entrant.method not in ALWAYS]
    # the controls where these act
    controls = at_places(entry, entered, budgets(keep, average, schedule))
    controls += at_several_places(entry, entered)
    known = oracles_of(controls) if oracles else []
    return [Contestant("none"), *controls, *known, *entered]


def places(pruner, layers):
    """The layers, of `layers` in all, before which a method drops tokens; 0: before the decoder."""
    before = pruner.at("image") or pruner.at("vision") or pruner.at("embed")
    decoder = pruner.at("decoder")
    where = [0] if before else []
    if decoder:
        where += decoder.reduce_at(layers)
    return where


def place_of(entrant, prompt):
    """The place where it leaves as many tokens as its budget says; None if there are several, or it has no keep."""
    pruner = entrant.on(prompt)
    where = places(pruner, prompt.layers)
    has_budget = entrant.budget and hasattr(pruner, "keep")
    return where[0] if has_budget and len(where) == 1 else None


def control_name(name, place):
    """The name of a control by the layer before which it acts: "random embed", "random", "random@3"."""
    if place == 0:
        return f"{name} embed"
    return name if place == Random.layer else f"{name}@{place}"


def at_places(entry, entered, given):
    """The controls at the place of each method, at each of the budgets given; before layer 2 if there is no place."""
    ran = [contestant for contestant in entered if contestant.pruner]
    where = {contestant.place for contestant in ran if contestant.place is not None}
    where = where or {Random.layer}
    before_layers = sorted(where - {0})
    before_all = sorted(where & {0})
    of_one_cut = [budget for budget in given if not budget.schedule and "+" not in str(budget)]
    controls = []
    for place in [*before_layers, *before_all]:
        for name, budget in product(CONTROLS, of_one_cut):
            controls.append(entry.control(name, place, budget))
    return controls


def at_several_places(entry, entered):
    """The controls of each method that drops tokens at several places."""
    several = [contestant for contestant in entered if contestant.pruner and contestant.place is None]
    controls = []
    for contestant in several:
        counts = entry.counts(contestant)
        if counts is None:                                 # the prompt decides
            continue
        if min(counts) in (0, entry.n):                    # none are left to choose, or all
            continue
        for name in CONTROLS:
            variant = Variant(name, tuple(entry.settings[name]))
            control = entrant_of(variant, Budget(), entry.own).pruner
            pruner = as_many(replace(control, site="decoder"), entry.n, counts)
            controls.append(entry.contestant(Entrant(f"{name} as {contestant.method}", contestant.budget, pruner)))
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
