"""Several budgets for one method, and several methods for one prompt.

`Schedule` calls any method of the decoder that has a layer and a keep before several layers, each time with the number
of tokens that is to be left: the pre-defined ratios that ATP-LLaVA compares with (arXiv:2412.00447, Table 2). `Both`
lets methods of different sites act on one prompt, one after the other.

Paper and code: Table 2 has the pruning ratio, the layers (from 0, before their input) and the tokens kept, but no rule.
Its numbers follow if each stage keeps 1 - ratio of the previous one, and the first keeps so many that 144 tokens enter
a layer on average; `fixed_ratio` gives all its rows. There is no released code.
"""

from dataclasses import dataclass, fields, replace

from pruning.base import Pruner, UserError
from pruning.fields import Amount, AnyLayer
from pruning.staged import Staged, at_least_one

SITES = ("image", "vision", "embed", "decoder")


@dataclass(frozen=True)
class Schedule(Staged):
    """Calls `method` before each of `layers`; `ratios` of the visual tokens that entered layer 0 are left."""

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

    # these are the method's
    positions = property(lambda self: self.method.positions)
    prune_past_kv = property(lambda self: self.method.prune_past_kv)
    preconditions = property(lambda self: self.method.preconditions)
    laws = property(lambda self: self.method.laws - {"budget"})    # budget(n) is what is left after the last cut

    def mask_at(self, layers):
        masked = set()
        for layer in self.layers:
            stage = replace(self.method, layer=layer)
            masked.update(stage.mask_at(layers))
        return tuple(sorted(masked))

    def mask(self, tokens):
        """The mask of the next stage; after the last cut, that of the last stage."""
        following = [layer for layer in self.layers if layer > tokens.layer]
        following.append(self.layers[-1])
        return replace(self.method, layer=following[0]).mask(tokens)

    def reduce(self, tokens):
        k = self.left_at(tokens)
        k = min(k, tokens.n)           # the method may have left fewer at an earlier cut
        stage = replace(self.method, layer=tokens.layer, keep=k)
        return stage.reduce(tokens)


def fixed_ratio(method, ratio, layers, average, n=576, depth=32):
    """The Schedule of Table 2: each cut drops the share `ratio`, and on average `average` tokens enter a layer.

    fixed_ratio(FastV(), 1/2, (4, 14, 24), 144) leaves 136, 68, 34 tokens.
    """
    # stage i keeps first * share_i tokens; solve for `first`:
    # average * depth = n * layers[0] + sum over stages of (layers in the stage) * first * share_i
    shares = [(1 - ratio) ** i for i in range(len(layers))]
    ends = (*layers[1:], depth)
    weight = 0
    for start, end, share in zip(layers, ends, shares):
        weight += (end - start) * share
    in_all_layers = average * depth
    before_first_cut = n * layers[0]
    first = (in_all_layers - before_first_cut) / weight
    if not 1 <= first <= n:
        raise UserError(f"an average of {average} is out of reach: {n} tokens enter each layer before {layers[0]}")
    return Schedule(method, tuple(layers), at_least_one(first * share for share in shares))


@dataclass(frozen=True)
class Both(Pruner):
    """Methods of different sites, in the order of the pipeline: Both((VisPruner(keep=256), FastV(keep=64)))."""

    methods: tuple[Pruner, ...]

    @property
    def laws(self):
        """The laws of all; but not needle, since an earlier method may drop the token that a later one would keep."""
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
        if sites[:2] == ["image", "vision"]:
            raise UserError(f"{first} gives the tower another picture, and {type(self.methods[1]).__name__} chooses "
                            f"among the patches of the whole one: compose {first} with methods of later sites")
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
        """Visual tokens left of n after all methods; None if one of them does not fix it."""
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
