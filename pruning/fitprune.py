"""FitPrune. Ye et al., "Fit and Prune", AAAI 2025, arXiv:2409.10197.

How many visual tokens each layer may lose is fitted once, on a few prompts, so that the attention that text and image
pay to the image stays, in every layer, within a tolerance alpha of what it was; alpha is searched so that the FLOPs meet
the budget. The recipe is a table, one number a layer. At inference layer l deletes its number of tokens, those with the
smallest product of cross attention (received from the text after the image) and self attention (from the image).

Paper and code: tokens die inside layer l, between attention and output projection, which equals dropping them before
layer l + 1. The attention of a pair is the largest over heads. The fit deletes what both criteria would; at inference the
counts alone are used, and the product. The released fit prints the table of the alpha that it tried last, even if that
missed the budget (last_tried=True; here, of those that met it, the smallest), and where no prefix is too long it uses the
count of another layer (here: all tokens but one). The released tables are of LLaVA-1.5-7B: 32 layers, 576 tokens; another
n scales the counts, fewer layers use the first ones. They save 6, 15, 28, 39, 50, 54, 60, 70, 80 and 90 % of the FLOPs of
the visual tokens for the names 10, 20, .. 50, 55, 60, .. 90.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from pruning.base import Pruner, Reduction, UserError, solve, tokens_to_keep, top
from pruning.fields import Amount, Layer

TABLES = {                             # LLaVA-1.5-7B, 576 tokens: percent of FLOPs to save -> deletions in layers 0..31
    0: (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    10: (0, 0, 1, 2, 1, 0, 1, 4, 5, 5, 11, 4, 2, 2, 0, 0, 1, 1, 2, 4, 2, 10, 1, 1, 1, 2, 1, 1, 0, 1, 0, 0),
    20: (0, 0, 3, 3, 1, 1, 4, 16, 14, 15, 24, 4, 2, 3, 2, 0, 6, 0, 5, 13, 4, 19, 2, 1, 1, 1, 1, 1, 2, 1, 0, 0),
    30: (0, 0, 7, 6, 4, 5, 16, 40, 24, 21, 24, 4, 2, 3, 4, 0, 16, 0, 11, 26, 6, 32, 3, 1, 0, 1, 2, 2, 4, 0, 0, 0),
    40: (0, 1, 21, 13, 14, 11, 41, 53, 29, 15, 14, 5, 1, 4, 5, 1, 26, 1, 13, 28, 6, 27, 2, 1, 0, 0, 1, 1, 2, 0, 0, 0),
    50: (3, 7, 49, 24, 29, 17, 59, 41, 26, 8, 10, 6, 2, 5, 7, 2, 30, 3, 13, 27, 5, 23, 2, 1, 0, 0, 1, 1, 2, 0, 0, 0),
    55: (6, 17, 69, 31, 34, 19, 59, 30, 23, 6, 8, 7, 2, 5, 8, 2, 29, 4, 12, 25, 4, 19, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
    60: (14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4, 26, 5, 11, 24, 4, 18, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
    70: (48, 79, 118, 41, 33, 17, 36, 9, 9, 2, 3, 2, 1, 3, 4, 8, 18, 7, 8, 20, 4, 13, 2, 1, 0, 0, 1, 0, 1, 0, 0, 0),
    80: (128, 127, 118, 35, 26, 8, 13, 3, 2, 1, 0, 0, 0, 2, 1, 8, 7, 8, 5, 11, 2, 6, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0),
    90: (262, 153, 80, 19, 13, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 1, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0),
}


@dataclass(frozen=True)
class FitPrune(Pruner):
    """Delete in each layer as many visual tokens as its table says."""

    ratio: int = 60                    # percent of the FLOPs to save: which of the released tables
    table: tuple[int, ...] = ()        # deletions in each layer, in place of a released table
    visual: int = 576                  # visual tokens for which the table was fitted

    rows = "all"
    across_heads = "max"
    laws = frozenset({"select", "ordered", "scale", "needle"})
    preconditions = frozenset({"text", "calibration"})

    def __post_init__(self):
        super().__post_init__()
        if not self.table and self.ratio not in TABLES:
            raise UserError(f"FitPrune: no table for ratio {self.ratio}: use one of {', '.join(map(str, TABLES))}")
        if self.visual < 1 or any(d < 0 for d in self.table) or sum(self.table) > self.visual:
            raise UserError(f"FitPrune: the table deletes {sum(self.table)} of {self.visual} tokens; entries are at least 0")

    @property
    def fitted(self):
        """Decoder layers of the model that the table was fitted to."""
        return len(self.table or TABLES[self.ratio])

    def deleted(self, layer, n):
        """How many of n tokens are gone before `layer`."""
        return sum((self.table or TABLES[self.ratio])[:layer]) * n // self.visual

    def reduce_at(self, layers):
        return tuple(l for l in range(1, layers) if self.deleted(l, self.visual) > self.deleted(l - 1, self.visual))

    def schedule(self, n, layers):
        return [n - self.deleted(l, n) for l in range(layers)]

    def with_average(self, average, n, layers):
        """Of the released tables the one that deletes most."""
        return solve(FitPrune, sorted(TABLES, reverse=True), average, n, layers)

    def reduce(self, tokens):
        cross, own = received(tokens)
        n = tokens.entered
        return Reduction(top(cross * own, n - self.deleted(tokens.layer, n)), score=cross * own)


@dataclass(frozen=True)
class SingleFitPrune(Pruner):
    """FitPrune's score in the place of FastV's: once, before layer K (AdaptPrune's Table 5 (a), arXiv:2503.08019)."""

    layer: Layer = 2                   # K: the first layer that runs on the kept tokens
    keep: Amount = 0.1                 # share, or number, of visual tokens kept
    heads: Literal["max", "mean"] = "max"  # attention over heads: "max", as in FitPrune, or "mean"
    rounding: str = "floor"            # of share * n

    rows = "all"
    across_heads = property(lambda self: self.heads)
    laws = frozenset({"select", "ordered", "budget", "scale", "needle"})
    preconditions = frozenset({"text"})

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # what no prompt can meet fails here, before the model runs

    def reduce_at(self, layers):
        return (self.layer,)

    def budget(self, n):
        return tokens_to_keep(self.keep, n, self.rounding)

    def reduce(self, tokens):
        cross, own = received(tokens, self.heads)
        return Reduction(top(cross * own, self.budget(tokens.n)), score=cross * own)


def received(tokens, heads="max"):
    """Attention that each visual token receives: from the text after the image, in sum (n,); from the image, in mean (n,)."""
    if not len(tokens.text()):
        raise UserError("FitPrune ranks by the attention of the text after the image: this prompt ends with its image")
    attn = tokens.attn.amax(dim=0) if heads == "max" else tokens.attn.mean(dim=0)  # (R, T)
    text, image = (torch.isin(tokens.rows, rows) for rows in (tokens.text(), tokens.visual))       # (R,) each
    attn = attn[:, tokens.visual]                                                  # (R, n)
    return attn[text].sum(dim=0), attn[image].mean(dim=0)


def fit(prefill, prompts, ratio, width=4096, intermediate=11008, last_tried=False):
    """The FitPrune of the smallest tolerance that saves the share `ratio` of a decoder's FLOPs, in all, over `prompts`.

    `prefill(prompt, pruner)` runs a prompt with one image under a method and gives its Trace: eight times for each prompt.
    `width` and `intermediate` are the decoder's. Raises UserError where nothing saves so much.
    """
    whole = [[] for _ in prompts]                                                  # of each prompt: (cross, self) of each layer
    unpruned = [prefill(prompt, _Watch(masses)).visual for prompt, masses in zip(prompts, whole)]  # (prompts, L)
    if len({counts[0] for counts in unpruned}) != 1:
        raise UserError("FitPrune: the fit needs prompts that have the same number of visual tokens")
    budget = (1 - ratio) * sum(flops(counts, width, intermediate) for counts in unpruned)
    low, high, table = 0.0, 1.0, None
    while high - low > 0.01 + 1e-6:
        alpha = (low + high) / 2
        entering = [prefill(prompt, _Walk(alpha, masses)).visual for prompt, masses in zip(prompts, whole)]
        stop = next((l for l, c in enumerate(_costs(entering, width, intermediate)) if c <= budget), None)
        if stop is not None or last_tried:
            table = _mean_deletions(entering, stop)
        low, high = (alpha, high) if stop is None else (low, alpha)
    if table is None:
        raise UserError(f"FitPrune: no tolerance saves {ratio:.0%} of the FLOPs on these prompts: ask for less")
    return FitPrune(table=table, visual=unpruned[0][0])


@dataclass(frozen=True)
class _Watch(Pruner):
    """Keeps all, and notes how much attention the image receives in each layer but the last."""

    masses: list
    rows = "all"
    across_heads = "max"

    def reduce_at(self, layers):
        return range(1, layers)

    def reduce(self, tokens):
        self.masses.append([score.sum() for score in received(tokens)])
        return Reduction(torch.arange(tokens.n, device=tokens.visual.device))


@dataclass(frozen=True)
class _Walk(Pruner):
    """Deletes in each layer what is light by both criteria: what remains has 1 - alpha of the unpruned model's mass."""

    alpha: float
    masses: list
    rows = "all"
    across_heads = "max"

    def reduce_at(self, layers):
        return range(1, layers)

    def reduce(self, tokens):
        cross, own = (_light(score, (1 - self.alpha) * mass)
                      for score, mass in zip(received(tokens), self.masses[tokens.layer - 1]))
        return Reduction((~(cross & own)).nonzero().squeeze(1))


def _light(score, least):
    """(n,) bool: the most tokens, lightest first, without which the others still sum to `least`."""
    ascending = score.argsort(stable=True)
    remains = score.sum() - score[ascending].cumsum(dim=0)                         # (n,) without the first 1, 2, ..
    return torch.zeros_like(score, dtype=torch.bool).index_put((ascending,), remains >= least)


def flops(entering, width, intermediate):
    """Multiplications: projections and attention of the tokens that enter each layer, the rest of those that leave it."""
    leaving = [*entering[1:], entering[-1]]
    return (sum(3 * m * width ** 2 + 2 * m ** 2 * width for m in entering)
            + sum(m * width ** 2 + 3 * width * intermediate * m for m in leaving))


def _costs(entering, width, intermediate):
    """FLOPs if from layer 0, 1, .. on nothing more were deleted."""
    return [sum(flops(m[:l] + [m[l]] * (len(m) - l), width, intermediate) for m in entering) for l in range(len(entering[0]))]


def _mean_deletions(entering, stop):
    """In each layer before `stop`, over the prompts; 0 in the others."""
    deleted = [sum(before) - sum(after) for before, after in zip(zip(*entering), list(zip(*entering))[1:])] + [0]
    return tuple(d // len(entering) if stop is None or l < stop else 0 for l, d in enumerate(deleted))
