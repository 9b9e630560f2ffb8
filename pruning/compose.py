"""Several budgets for one method, and several methods for one prompt.

`Schedule` calls any method of the decoder that has a layer and a keep before several layers, each time with the number of
tokens that is to be left: the pre-defined ratios that ATP-LLaVA compares with (arXiv:2412.00447, Table 2). `Both` lets
methods of different sites act on one prompt, one after the other.

Paper and code: Table 2 names a pruning ratio, the layers (from 0, before their input) and the tokens kept, but no rule.
Its numbers are those for which each stage keeps 1 - ratio of the one before and the first is chosen so that 144 tokens
enter a layer on average; `fixed_ratio` gives all its rows. There is no released code.
"""

from dataclasses import dataclass, fields, replace

from pruning.base import Pruner, UserError
from pruning.budget import solve, staged, tokens_to_keep
from pruning.fields import Amount, AnyLayer

SITES = ("vision", "embed", "decoder")


@dataclass(frozen=True)
class Schedule(Pruner):
    """`method`, before each of `layers`, so that these shares of the visual tokens that entered layer 0 are left."""

    method: Pruner                     # FastV(), ..: its own layer and keep are not used
    layers: tuple[AnyLayer, ...] = (4, 14, 24)
    ratios: tuple[Amount, ...] = (136, 68, 34)  # shares, or numbers
    rounding: str = "floor"            # of share * n

    def __post_init__(self):
        super().__post_init__()
        name = type(self.method).__name__
        if self.method.site != "decoder" or not {"layer", "keep"} <= {f.name for f in fields(self.method)}:
            raise UserError(f"{name} cannot be scheduled: only a method of the decoder with a layer and a keep, like FastV, can")
        if self.method.rerank_each_step:
            raise UserError(f"{name} ranks again at each generated token, which goes with one layer alone: not in a schedule")
        check_stages("Schedule", self)

    positions = property(lambda self: self.method.positions)
    prune_past_kv = property(lambda self: self.method.prune_past_kv)
    preconditions = property(lambda self: self.method.preconditions)
    laws = property(lambda self: self.method.laws - {"budget"})    # which is that of the last layer

    def reduce_at(self, layers):
        return tuple(self.layers)

    def mask_at(self, layers):
        return tuple(sorted({l for stage in self._stages() for l in stage.mask_at(layers)}))

    def mask(self, tokens):
        """The mask of the stage that comes next; after the last cut, that of the last one."""
        following = [layer for layer in self.layers if layer > tokens.layer] or [self.layers[-1]]
        return replace(self.method, layer=following[0]).mask(tokens)

    def budget(self, n):
        """Visual tokens left of n after the last layer."""
        return stages(self, n, self.layers[-1] + 1)[-1]

    def schedule(self, n, layers):
        return stages(self, n, layers)

    def with_average(self, average, n, layers):
        """Every ratio times the same number."""
        first = tokens_to_keep(self.ratios[0], n, self.rounding)
        share = [tokens_to_keep(ratio, n, self.rounding) / first for ratio in self.ratios]

        def scaled(k):
            return replace(self, ratios=tuple(max(1, round(k * s)) for s in share))

        return solve(scaled, range(1, n + 1), average, n, layers)

    def reduce(self, tokens):
        ratio = self.ratios[self.layers.index(tokens.layer)]
        k = min(tokens.n, tokens_to_keep(ratio, tokens.N, self.rounding))
        return replace(self.method, layer=tokens.layer, keep=k).reduce(tokens)

    def _stages(self):
        return [replace(self.method, layer=layer) for layer in self.layers]


def fixed_ratio(method, ratio, layers, average, n=576, depth=32):
    """The Schedule of Table 2: each stage drops the share `ratio` of the one before, `average` of n tokens enter a layer.

    fixed_ratio(FastV(), 1/2, (4, 14, 24), 144) leaves 136, 68, 34 tokens.
    """
    lengths = [after - before for before, after in zip(layers, (*layers[1:], depth))]
    weight = sum(length * (1 - ratio) ** i for i, length in enumerate(lengths))
    first = (average * depth - n * layers[0]) / weight
    if not 1 <= first <= n:
        raise UserError(f"an average of {average} is out of reach: {n} tokens enter each layer before {layers[0]}")
    return Schedule(method, tuple(layers), tuple(max(1, round(first * (1 - ratio) ** i)) for i in range(len(layers))))


@dataclass(frozen=True)
class Both(Pruner):
    """Methods of different sites, in the order of the pipeline: Both((VisPruner(keep=256), FastV(keep=64)))."""

    methods: tuple[Pruner, ...]

    laws = property(lambda self: frozenset.intersection(*(m.laws for m in self.methods)) - {"needle"})

    def __post_init__(self):
        super().__post_init__()
        if any(isinstance(m, Both) for m in self.methods):
            raise UserError("give all methods to one Both, in the order of the pipeline")
        sites = [m.site for m in self.methods]
        for site in SITES:
            same = [type(m).__name__ for m in self.methods if m.site == site]
            if len(same) > 1:
                raise UserError(f"{' and '.join(same)} both act at the {site} site: compose methods of different sites")
        if not sites or sites != sorted(sites, key=SITES.index):
            raise UserError(f"methods compose in the order {', '.join(SITES)}; got {', '.join(sites) or 'none'}")
        for m in self.methods[1:]:
            if "grid" in m.preconditions:
                raise UserError(f"{type(m).__name__} needs the whole grid of patches, and {type(self.methods[0]).__name__} "
                                "acts before it: let it come first")

    def at(self, site):
        return next((m for m in self.methods if m.site == site), None)

    def divided(self, parts):
        """Each method with its own budget divided."""
        return Both(tuple(method.divided(parts) for method in self.methods))

    def budget(self, n):
        """Visual tokens left of n after one method and the other, or None where one of them does not fix it."""
        for m in self.methods:
            n = None if n is None else m.budget(n)
        return n

    def schedule(self, n, layers):
        *before, last = self.methods
        n = Both(before).budget(n) if before else n
        return None if n is None else last.schedule(n, layers)

    def with_average(self, average, n, layers):
        """The last method solves; those before it keep their budgets."""
        *before, last = self.methods
        n = Both(before).budget(n) if before else n
        if n is None:
            raise UserError(f"the prompt decides how many tokens reach {type(last).__name__}, not a budget")
        return Both((*before, last.with_average(average, n, layers)))


def stages(method, n, layers):
    """Visual tokens that enter each layer under method.layers and method.ratios, n at first."""
    return staged(zip(method.layers, method.ratios), n, layers, method.rounding)


def check_stages(name, method):
    """UserError unless layers rise from 1 and each has a ratio that some prompt can meet."""
    layers, ratios = method.layers, method.ratios
    if not layers or len(layers) != len(ratios):
        raise UserError(f"{name}: give one ratio a layer; got {len(layers)} layers and {len(ratios)} ratios")
    if layers[0] < 1 or any(a >= b for a, b in zip(layers, layers[1:])):
        raise UserError(f"{name}: layers must rise from 1 upwards; got {layers}")
    stages(method, 2 ** 20, 1)         # what no prompt can meet fails here, before the model runs
