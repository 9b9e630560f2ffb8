"""Who competes on a task: no pruning, the methods at each budget, and beside them the controls, which need no idea.

The controls, random and uniform tokens, stand at each site where a method acts. What is dropped before layer 0 was seen by
no layer: that is compared with random tokens dropped there ("random embed"), not with those that two layers have read.
"""

from dataclasses import dataclass, replace

from minivlm.lab.options import averaged, build, check, own_settings, share, takes_keep
from minivlm.toy.oracle import Oracle
from pruning import METHODS
from pruning.base import Pruner, UserError

CONTROLS = ("random", "uniform")
DEFAULT = "fastv,divprune,adaptprune,asap,vispruner"


@dataclass(frozen=True)
class Contestant:
    """A method with a budget, or why it does not run here."""

    method: str
    keep: str | None = None            # as it was asked for; None where the method has no such option
    pruner: Pruner | None = None       # None: no pruning
    why_not: str = ""

    @property
    def label(self):
        """Its name in tables: "fastv 0.1"."""
        return " ".join(filter(None, (self.method, self.keep)))

    @property
    def rival(self):
        """The label of the random tokens at its site and budget."""
        return f"{_at(self.site, 'random')} {self.keep}"

    @property
    def site(self):
        """Where it first drops tokens: "decoder", or "embed", which is before layer 0, for the vision site too."""
        early = self.pruner and (self.pruner.at("vision") or self.pruner.at("embed"))
        return "embed" if early else "decoder"


def contestants(model, pixels, names, keeps, settings, oracles=False):
    """[Contestant], no pruning first: `names` "all" or "a,b", `keeps` "0.5,0.1", settings ["method.option=value", ..],
    "option=value" where there is one method.

    With "all" a method that cannot be built is there with its reason, else it is a UserError; one that cannot run on this
    model has its reason in any case. pixels: of a picture, whose tokens the budgets are checked against. oracles: beside random
    tokens, those on things first, and those on the background.
    """
    chosen = [name for name in (METHODS if names == "all" else names.split(",")) if name not in ("none", *CONTROLS)]
    if len(chosen) == 1:                               # "layer=3" can be of no other method
        settings = [s if "." in s.partition("=")[0] else f"{chosen[0]}.{s}" for s in settings]
    given, own, keeps = share(settings, [*CONTROLS, *chosen]), own_settings(model.folder), keeps.split(",")
    fits = model.visual_tokens(pixels), model.config.text.num_hidden_layers, model.parts([pixels])

    def entered(method, name, keep, settings):
        try:
            return Contestant(method, keep, averaged(build(name, keep, settings, own=own), None, *fits))
        except UserError as error:
            if names != "all" or name in CONTROLS:
                raise
            return Contestant(method, keep, why_not=str(error))

    made = [entered(name, name, keep, given[name]) for name in chosen for keep in (keeps if takes_keep(name) else [None])]
    sites = {one.site for one in made if one.pruner} or {"decoder"}
    controls = [entered(_at(site, name), name, keep, [*given[name], f"site={site}"]) for site in sorted(sites) for name in CONTROLS
                for keep in keeps if "+" not in keep]
    known = [Contestant(one.method.replace("random", name), one.keep, Oracle(**vars(one.pruner), first=name == "things"))
             for one in controls if one.method.startswith("random") for name in ("things", "background") if oracles]
    return list({one.label: _checked(one, model) for one in (Contestant("none"), *controls, *known, *made)}.values())


def _at(site, name):
    return f"{name} embed" if site == "embed" else name


def _checked(contestant, model):
    try:
        return replace(contestant, pruner=check(contestant.pruner, model))
    except UserError as error:
        return replace(contestant, pruner=None, why_not=str(error))
