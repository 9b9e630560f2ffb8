"""Several budgets for one method, and several methods for one prompt.

`Schedule` calls any method of the decoder that has a layer and a keep before several layers, each time with the number
of tokens that is to be left: the pre-defined ratios that ATP-LLaVA compares with (arXiv:2412.00447, Table 2). `Both`
lets methods of different sites act on one prompt, one after the other.

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
        options = {field.name for field in fields(self.method)}
        if self.method.site != "decoder" or not {"layer", "keep"} <= options:
            raise UserError(f"{name} cannot be scheduled: only a decoder method with a layer and a keep, like FastV")
        if self.method.rerank_each_step:
            raise UserError(f"{name} ranks again at each generated token: it goes with one layer, not with several")
        check_stages("Schedule", self)

    positions = property(lambda self: self.method.positions)
    prune_past_kv = property(lambda self: self.method.prune_past_kv)
    preconditions = property(lambda self: self.method.preconditions)
    laws = property(lambda self: self.method.laws - {"budget"})    # which is that of the last layer

    def reduce_at(self, layers):
        return tuple(self.layers)

    def mask_at(self, layers):
        masked = set()
        for layer in self.layers:
            stage = replace(self.method, layer=layer)
            masked.update(stage.mask_at(layers))
        return tuple(sorted(masked))

    def mask(self, tokens):
        """The mask of the stage that comes next; after the last cut, that of the last one."""
        following = [layer for layer in self.layers if layer > tokens.layer]
        following.append(self.layers[-1])
        return replace(self.method, layer=following[0]).mask(tokens)

    def budget(self, n):
        """Visual tokens left of n after the last cut."""
        last = self.layers[-1]
        entering = stages(self, n, last + 1)
        return entering[last]

    def schedule(self, n, layers):
        return stages(self, n, layers)

    def with_average(self, average, n, layers):
        """Every ratio times the same number."""
        counts = [tokens_to_keep(ratio, n, self.rounding) for ratio in self.ratios]

        def scaled(k):
            shares = [count / counts[0] for count in counts]
            return replace(self, ratios=at_least_one(k * share for share in shares))

        return solve(scaled, range(1, n + 1), average, n, layers)

    def reduce(self, tokens):
        ratio = self.ratios[self.layers.index(tokens.layer)]
        k = tokens_to_keep(ratio, tokens.N, self.rounding)
        k = min(k, tokens.n)           # what is gone does not come back
        stage = replace(self.method, layer=tokens.layer, keep=k)
        return stage.reduce(tokens)


def fixed_ratio(method, ratio, layers, average, n=576, depth=32):
    """The Schedule of Table 2: each stage drops the share `ratio` of the one before, `average` tokens enter a layer.

    fixed_ratio(FastV(), 1/2, (4, 14, 24), 144) leaves 136, 68, 34 tokens.
    """
    shares = [(1 - ratio) ** i for i in range(len(layers))]                        # of what the first stage keeps
    # average * depth = n * layers[0] + first * (sum over the stages of length * share)
    ends = (*layers[1:], depth)
    weight = 0
    for start, end, share in zip(layers, ends, shares):
        weight += (end - start) * share
    of_all_layers = average * depth
    before_the_first = n * layers[0]
    first = (of_all_layers - before_the_first) / weight
    if not 1 <= first <= n:
        raise UserError(f"an average of {average} is out of reach: {n} tokens enter each layer before {layers[0]}")
    return Schedule(method, tuple(layers), at_least_one(first * share for share in shares))


def at_least_one(counts):
    """The counts rounded, and none of them 0."""
    return tuple(max(1, round(count)) for count in counts)


@dataclass(frozen=True)
class Both(Pruner):
    """Methods of different sites, in the order of the pipeline: Both((VisPruner(keep=256), FastV(keep=64)))."""

    methods: tuple[Pruner, ...]

    @property
    def laws(self):
        """Those that all keep; but what one method is bound to keep another may have dropped before it."""
        kept_by_all = frozenset.intersection(*(method.laws for method in self.methods))
        return kept_by_all - {"needle"}

    def __post_init__(self):
        super().__post_init__()
        if any(isinstance(method, Both) for method in self.methods):
            raise UserError("give all methods to one Both, in the order of the pipeline")
        sites = [method.site for method in self.methods]
        for site in SITES:
            same = [type(method) for method in self.methods if method.site == site]
            if len(same) > 1:
                names = " and ".join(method.__name__ for method in same)
                raise UserError(f"{names} both act at the {site} site: compose methods of different sites")
        in_order = sorted(sites, key=SITES.index)
        if not sites or sites != in_order:
            raise UserError(f"methods compose in the order {', '.join(SITES)}; got {', '.join(sites) or 'none'}")
        first = type(self.methods[0]).__name__
        for method in self.methods[1:]:
            if "grid" in method.preconditions:
                name = type(method).__name__
                raise UserError(f"{name} needs the whole grid of patches, and {first} acts before: let it come first")

    def at(self, site):
        for method in self.methods:
            if method.site == site:
                return method
        return None

    def divided(self, parts):
        """Each method with its own budget divided."""
        return Both(tuple(method.divided(parts) for method in self.methods))

    def budget(self, n):
        """Visual tokens left of n after one method and the other, or None if one of them does not fix it."""
        return left_after(self.methods, n)

    def schedule(self, n, layers):
        *before, last = self.methods
        arriving = left_after(before, n)
        if arriving is None:
            return None
        return last.schedule(arriving, layers)

    def with_average(self, average, n, layers):
        """The last method solves; those before it keep their budgets."""
        *before, last = self.methods
        arriving = left_after(before, n)
        if arriving is None:
            raise UserError(f"the prompt decides how many tokens reach {type(last).__name__}, not a budget")
        return Both((*before, last.with_average(average, arriving, layers)))


def left_after(methods, n):
    """Visual tokens left of n after these methods, one after the other; None if one of them does not fix it."""
    for method in methods:
        if n is None:
            return None
        n = method.budget(n)
    return n


def stages(method, n, layers):
    """Visual tokens that enter each layer under method.layers and method.ratios, n at first."""
    return staged(zip(method.layers, method.ratios), n, layers, method.rounding)


def check_stages(name, method):
    """UserError unless layers rise from 1 and each has a ratio that some prompt can meet."""
    layers = method.layers
    ratios = method.ratios
    if not layers or len(layers) != len(ratios):
        raise UserError(f"{name}: give one ratio per layer; got {len(layers)} layers and {len(ratios)} ratios")
    rises = list(layers) == sorted(set(layers))
    if layers[0] < 1 or not rises:
        raise UserError(f"{name}: layers must rise from 1; got {layers}")
    stages(method, 2 ** 20, 1)         # what no prompt can meet fails here, before the model runs
