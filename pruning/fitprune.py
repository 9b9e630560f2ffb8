"""FitPrune. Ye et al., "Fit and Prune", AAAI 2025, arXiv:2409.10197.

How many visual tokens each layer may lose is fitted once, on a few prompts: in every layer, the remaining visual tokens
must receive a share of at least 1 - alpha of the attention that all received, from the text and from the image. Alpha
is the smallest tolerance that meets the FLOPs budget. The result is a table with one number per layer. At inference
layer l deletes that number of tokens: those with the smallest product of cross attention (received from the text after
the image) and self attention (received from the image).

Paper and code: the code deletes tokens inside layer l, between attention and output projection, which equals dropping
them before layer l + 1. It takes the largest attention over heads. Its fit deletes a token if both kinds of attention
allow it; at inference only the number of deletions is used, and the product ranks. Of the tolerances that meet the
budget this file takes the smallest; the released search takes the one that it tried last.
"""

from dataclasses import dataclass

import torch

from pruning.base import Pruner, Reduction, UserError
from pruning.budget import solve
from pruning.fields import Amount, Count, FromOne, option
from pruning.ranked import Ranked, top

# LLaVA-1.5-7B, 576 tokens: percent of the FLOPs to save, then the deletions in layers 0..31. In fact these tables save
# 0, 6, 15, 28, 39, 50, 54, 60, 70, 80 and 90 % of the FLOPs of the visual tokens.
RELEASED = """
 0      0   0   0  0  0  0  0  0  0  0  0 0 0 0 0 0  0 0  0  0 0  0 0 0 0 0 0 0 0 0 0 0
10      0   0   1  2  1  0  1  4  5  5 11 4 2 2 0 0  1 1  2  4 2 10 1 1 1 2 1 1 0 1 0 0
20      0   0   3  3  1  1  4 16 14 15 24 4 2 3 2 0  6 0  5 13 4 19 2 1 1 1 1 1 2 1 0 0
30      0   0   7  6  4  5 16 40 24 21 24 4 2 3 4 0 16 0 11 26 6 32 3 1 0 1 2 2 4 0 0 0
40      0   1  21 13 14 11 41 53 29 15 14 5 1 4 5 1 26 1 13 28 6 27 2 1 0 0 1 1 2 0 0 0
50      3   7  49 24 29 17 59 41 26  8 10 6 2 5 7 2 30 3 13 27 5 23 2 1 0 0 1 1 2 0 0 0
55      6  17  69 31 34 19 59 30 23  6  8 7 2 5 8 2 29 4 12 25 4 19 2 1 0 0 1 0 1 0 0 0
60     14  33  89 36 36 20 55 21 18  4  7 5 2 5 7 4 26 5 11 24 4 18 2 1 0 0 1 0 1 0 0 0
70     48  79 118 41 33 17 36  9  9  2  3 2 1 3 4 8 18 7  8 20 4 13 2 1 0 0 1 0 1 0 0 0
80    128 127 118 35 26  8 13  3  2  1  0 0 0 2 1 8  7 8  5 11 2  6 1 1 0 0 0 1 0 0 0 0
90    262 153  80 19 13  1  2  0  0  0  0 0 0 0 0 1  1 2  1  2 0  1 0 0 0 0 0 1 0 0 0 0
"""


def released_tables():
    """{percent: (deletions in each layer)}"""
    tables = {}
    for line in RELEASED.strip().splitlines():
        percent, *deletions = [int(word) for word in line.split()]
        tables[percent] = tuple(deletions)
    return tables


TABLES = released_tables()


@dataclass(frozen=True)
class FitPrune(Pruner):
    """In each layer, delete the number of visual tokens that the table says."""

    ratio: Count = option(60, "percent of the FLOPs to save: which of the released tables")
    table: tuple[Count, ...] = option((), "deletions in each layer, instead of a released table")
    visual: FromOne = option(576, "visual tokens for which the table was fitted; scaled for other numbers")

    laws = frozenset({"select", "ordered", "scale", "needle"})
    preconditions = frozenset({"text", "calibration"})

    def __post_init__(self):
        super().__post_init__()
        if not self.table and self.ratio not in TABLES:
            raise UserError(f"FitPrune: no table for ratio {self.ratio}: use one of {', '.join(map(str, TABLES))}")
        if sum(self.table) > self.visual:
            raise UserError(f"FitPrune: the table deletes {sum(self.table)} of {self.visual} tokens")

    @property
    def deletions(self):
        """The number of deletions in each layer."""
        return self.table or TABLES[self.ratio]

    @property
    def fitted(self):
        """Decoder layers of the model that the table was fitted to."""
        return len(self.deletions)

    def deleted(self, layer, n):
        """How many of n tokens have been deleted before `layer`."""
        return sum(self.deletions[:layer]) * n // self.visual

    def reduce_at(self, layers):
        cuts = []
        for l in range(1, layers):
            if self.deleted(l, self.visual) > self.deleted(l - 1, self.visual):
                cuts.append(l)
        return tuple(cuts)

    def schedule(self, n, layers):
        return [n - self.deleted(l, n) for l in range(layers)]

    def with_average(self, average, n, layers):
        """The released table that deletes most and still has the average."""
        percents = sorted(TABLES, reverse=True)
        return solve(FitPrune, percents, average, n, layers)

    def reduce(self, tokens):
        cross, own = received(tokens)                      # (n,) twice
        score = cross * own
        k = tokens.N - self.deleted(tokens.layer, tokens.N)
        return Reduction(top(score, k), score=score)


@dataclass(frozen=True)
class SingleFitPrune(Ranked):
    """FastV with FitPrune's score: one cut, before layer K (AdaptPrune's Table 5 (a), arXiv:2503.08019)."""

    keep: Amount = option(0.1, "share, or number, of visual tokens kept")

    preconditions = frozenset({"text"})

    def score(self, tokens):
        cross, own = received(tokens)
        return cross * own


def largest(view, rows):
    """(R, T) attention of these rows, the largest over heads"""
    attention = None
    for head in view.each_head(rows):                      # (R, T), one head at a time to save memory
        attention = head if attention is None else torch.maximum(attention, head)
    return attention


def received(tokens, over_heads=largest):
    """Cross and self attention that each visual token receives. (n,) twice

    Cross: the sum over the text after the image. Self: the mean over the image. over_heads: how heads are joined.
    """
    text = tokens.text()                                   # (m,)
    if not len(text):
        raise UserError("FitPrune ranks by attention of the text after the image: this prompt has none")
    rows = torch.cat([text, tokens.visual])                # (m+n,)
    attention = over_heads(tokens.before, rows)[:, tokens.visual]                  # (m+n, n)
    from_text = attention[:len(text)]                      # (m, n)
    from_image = attention[len(text):]                     # (n, n)
    return from_text.sum(dim=0), from_image.mean(dim=0)


# --- the fit ----------------------------------------------------------------------------------------------------------

def fit(prefill, prompts, ratio, width=4096, intermediate=11008):
    """The FitPrune whose table saves the share `ratio` of the FLOPs of these prompts with the smallest tolerance.

    `prefill(prompt, pruner)` runs a prompt with one image under a method and returns its Trace; it is called eight
    times per prompt. `width` and `intermediate` are the decoder's. Raises UserError if no tolerance saves enough.
    """
    # how much attention the image receives in each layer of the unpruned model
    masses = []                                            # of each prompt: [(cross, self) of each layer]
    unpruned = []                                          # of each prompt: [visual tokens that enter each layer]
    for prompt in prompts:
        watch = Watch([])
        unpruned.append(prefill(prompt, watch).visual)
        masses.append(watch.masses)
    n = unpruned[0][0]
    if any(entering[0] != n for entering in unpruned):
        raise UserError("FitPrune: the fit needs prompts that have the same number of visual tokens")
    whole = sum(flops(entering, width, intermediate) for entering in unpruned)
    budget = (1 - ratio) * whole
    # bisect the tolerance, to within 0.01
    low = 0.0
    high = 1.0
    table = None
    while high - low > 0.01 + 1e-6:
        alpha = (low + high) / 2
        entering = []                                      # of each prompt: [visual tokens that enter each layer]
        for prompt, masses_of_prompt in zip(prompts, masses):
            entering.append(prefill(prompt, Walk(alpha, masses_of_prompt)).visual)
        stop = first_within(budget, entering, width, intermediate)
        if stop is None:
            low = alpha
        else:
            table = mean_deletions(entering, stop)
            high = alpha
    if table is None:
        raise UserError(f"FitPrune: no tolerance saves {ratio:.0%} of the FLOPs on these prompts: ask for less")
    return FitPrune(table=table, visual=n)


@dataclass(frozen=True)
class Watch(Pruner):
    """Keeps all tokens, and notes how much attention the image receives in each layer except the last."""

    masses: list

    def reduce_at(self, layers):
        return range(1, layers)

    def reduce(self, tokens):
        cross, own = received(tokens)
        self.masses.append((cross.sum(), own.sum()))
        return Reduction(torch.arange(tokens.n, device=tokens.visual.device))


@dataclass(frozen=True)
class Walk(Pruner):
    """Deletes tokens in each layer so that, by both criteria, the rest has 1 - alpha of the unpruned model's mass."""

    alpha: float
    masses: list

    def reduce_at(self, layers):
        return range(1, layers)

    def reduce(self, tokens):
        cross, own = received(tokens)
        cross_mass, own_mass = self.masses[tokens.layer - 1]
        share = 1 - self.alpha
        is_light = light(cross, share * cross_mass) & light(own, share * own_mass)
        return Reduction((~is_light).nonzero().squeeze(1))


def light(score, least):
    """(n,) bool: the lightest tokens, as many as can go if the scores (n,) of the others must sum to `least`."""
    ascending = score.argsort(stable=True)
    remains = score.sum() - score[ascending].cumsum(dim=0)                         # (n,) without the lightest 1, 2, ..
    can_go = remains >= least
    return torch.zeros_like(can_go).index_put((ascending,), can_go)


def flops(entering, width, intermediate):
    """Multiplications in all layers: queries, keys, values and attention of what enters, the rest of what leaves."""
    leaving = [*entering[1:], entering[-1]]                # the last layer deletes nothing
    total = 0
    for tokens in entering:
        total += 3 * tokens * width ** 2
        total += 2 * tokens ** 2 * width
    for tokens in leaving:
        total += tokens * width ** 2
        total += 3 * tokens * width * intermediate
    return total


def first_within(budget, entering, width, intermediate):
    """The first layer from which on nothing more need be deleted to meet the budget; None if all layers miss it."""
    layers = len(entering[0])
    for l in range(layers):
        total = 0
        for counts in entering:
            stopped = counts[:l] + [counts[l]] * (layers - l)
            total += flops(stopped, width, intermediate)
        if total <= budget:
            return l
    return None


def mean_deletions(entering, stop):
    """Deletions in each layer, the mean over the prompts, rounded down; 0 from layer `stop` on."""
    deletions = [0] * len(entering[0])
    for l in range(stop):
        deleted = sum(counts[l] - counts[l + 1] for counts in entering)
        deletions[l] = deleted // len(entering)
    return tuple(deletions)
