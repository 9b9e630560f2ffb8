"""The rows of ATP's Tables 1 to 5, others that the paper does not have, and the comparisons between them.

Layers and budgets are the paper's shares of depth and tokens. On eight layers [4, 14, 24] and [1, 13, 25] of 32 are
both [1, 3, 6], since no attention comes before layer 0. So the row of 88 tokens is trained to the average of the
paper's 98, 79 and 16 tokens after the modules: 32.5 of 144.

Table 4 has two readings, as its check marks and its text differ. By the marks, its fourth row has both kinds of pruning
and no positional embedding (PP); by the text (drops of 1.05 and 1.0, and 0.9 on MMB), it has spatial pruning and PP. PP
is the 2-D rotary embedding. The decoder of the shipped model has learnt one dimension, so rows with PP keep the
position ids, rows without it are renumbered, and "2d" is a row that the paper does not have. The paper's frozen row has
no PP; here it keeps the position ids, as the decoder knows them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from minivlm.lab.score.answers import mean
from pruning.atp import ATP
from pruning.fastv import FastV
from pruning.prumerge import PruMergePlus
from pruning.readings import (
    ATP2D, ATPCentres, ATPFixedRatio, ATPFixedRatioMax, ATPFixedRatioRedundant, ATPMoreRates, ATPRawScores,
    ATPRenumbered,
)
from pruning.sparsevlm import SparseVLM

DEPTH = 32                             # layers of the paper's model
TOKENS = 576                           # and its visual tokens
QUARTER = 144 / TOKENS                 # of the tokens in a layer on average: the budget of most rows
LAYERS = (4, 14, 24)
# MMB, GQA, VQAv2 and SEED of rows of Tables 2 and 4 that have two readings
ONE_CUT = (59.6, 56.2, 71.6, 53.1)
THIRDS = (62.7, 58.0, 74.6, 55.7)
HALVES = (63.2, 58.2, 73.9, 55.3)
ONLY_RP = (65.3, 58.3, 75.1, 56.5)
FOURTH = (65.2, 58.6, 74.9, 56.3)
LESS = (98, 79, 16)                                # Table 2: what ATP-LLaVA keeps with 88 tokens on average
LESS_LAYERS = (1, 13, 25)
FASTV = (2,)                                       # before which layer the rivals drop tokens, of 32
SPARSEVLM = (3, 7, 16)
REDUNDANT = (("strategy", "redundant"),)
SPATIAL = (("strategy", "spatial"),)


@dataclass(frozen=True)
class Row:
    """One row: what it is, and the paper's figures. Without a method of its own it is the unpruned model."""

    name: str
    what: str
    tables: str = ""                   # of the paper, "1 2"; none: the paper has no such row
    paper: tuple = ()                  # its MMB, GQA, VQAv2 and SEED in Tables 2 to 5
    percent: float | None = None       # its average in Table 1, in % of the unpruned model
    layers: tuple = LAYERS             # of 32, before which tokens are dropped
    kept: tuple = ()                   # the paper's tokens after each layer of LESS_LAYERS, if they decide the budget

    trained = False

    @property
    def mean(self):
        """The mean of the paper's figures, None without."""
        return mean(self.paper) if self.paper else None

    def target(self, depth, N):
        """Visual tokens in a layer on average, of N in `depth` layers."""
        if not self.kept:
            return QUARTER * N
        layers = scaled(LESS_LAYERS, depth)
        after = [length * k / TOKENS for length, k in zip(stages(layers, depth), self.kept)]
        return N * (layers[0] + sum(after)) / depth

    def pruner(self, depth, N):
        """The method for N visual tokens and that many layers."""
        return None


@dataclass(frozen=True)
class Trained(Row):
    """A row of ATP, which is trained."""

    method: type = ATP
    options: tuple = ()                # of the method: ((name, value), ..)
    drop: float = 0                    # Table 2: what each reduction drops
    frozen: bool = False               # the decoder is not trained
    seed: int = 0                      # added to that of the recipe

    trained = True

    def pruner(self, depth, N):
        """The ATP, with no module yet."""
        layers = scaled(self.layers, depth)
        if not self.drop:
            return self.method(layers=layers, **dict(self.options))
        counts = tuple(max(1, round(count)) for count in self.counts(layers, depth, N))
        return self.method(layers=layers, counts=counts)

    def counts(self, layers, depth, N):
        """Tokens kept at each layer, if each keeps the same share of the one before and the average is the target.

        32 layers, 576 tokens and a drop of 1/2 -> 136.3, 68.1, 34.1.
        """
        shares = [(1 - self.drop) ** i for i in range(len(layers))]
        of_first = sum(length * share for length, share in zip(stages(layers, depth), shares))
        first = (self.target(depth, N) * depth - N * layers[0]) / of_first
        return [first * share for share in shares]


@dataclass(frozen=True)
class Rival(Row):
    """Another method, as it is, at the average of an ATP row."""

    make: Callable | None = None       # (the layers before which it drops tokens) -> method

    def pruner(self, depth, N):
        cuts = [math.ceil(layer * depth / DEPTH) for layer in self.layers]
        return self.make(cuts).with_average(self.target(depth, N), N, depth)


def scaled(layers, depth):
    """The same shares of another depth: (4, 14, 24) of 32 -> (1, 3, 6) of 8."""
    return tuple(max(1, layer * depth // DEPTH) for layer in layers)


def stages(layers, depth):
    """How many layers run between one cut and the next, the end at last: (1, 3, 6), 8 -> [2, 3, 2]."""
    return [end - start for start, end in zip(layers, (*layers[1:], depth))]


def fastv(cuts):
    """FastV, whose layer K is the cut."""
    return FastV(layer=cuts[0])


def sparsevlm(cuts):
    """SparseVLM, whose layers run before the cuts."""
    return SparseVLM(layers=tuple(cut - 1 for cut in cuts))


def prumerge_plus(cuts):
    """PruMerge+, which has no layer."""
    return PruMergePlus()


ROWS = (
    Row("none", "nothing pruned", "1 2 3 4 5", (64.3, 62.0, 78.5, 58.6), 100.0),
    Trained("adaptive", "both thresholds, decoder trained too", "1 2 3 4 5", (66.0, 59.5, 76.4, 57.3), 98.1),
    Trained("adaptive-88", "to the paper's 88 of 576 tokens", "1 2", (64.7, 56.8, 73.3, 55.7), 94.6, LESS_LAYERS, LESS),
    Rival("fastv", "not trained; in the paper with 192 tokens", "1", (), 86.4, FASTV, make=fastv),
    Rival("sparsevlm", "not trained; in the paper with 192 tokens", "1", (), 94.2, SPARSEVLM, make=sparsevlm),
    Rival("prumerge_plus", "not trained", "1", (), 97.8, make=prumerge_plus),
    Rival("fastv-88", "not trained; in the paper with 128 tokens", "1", (), 79.9, FASTV, LESS, fastv),
    Rival("sparsevlm-88", "not trained; in the paper with 128 tokens", "1", (), 91.0, SPARSEVLM, LESS, sparsevlm),
    Trained("fixed-once", "one cut, samples first", "2", ONE_CUT, layers=(1,), method=ATPFixedRatio, drop=3 / 4),
    Trained("fixed-2-3", "each cut drops 2/3, samples first", "2", THIRDS, method=ATPFixedRatio, drop=2 / 3),
    Trained("fixed-1-2", "each cut drops 1/2, samples first", "2", HALVES, method=ATPFixedRatio, drop=1 / 2),
    Trained("fixed-once-max", "one cut, the larger score ranks", "2", ONE_CUT, layers=(1,), method=ATPFixedRatioMax,
            drop=3 / 4),
    Trained("fixed-2-3-max", "each drops 2/3, the larger score ranks", "2", THIRDS, method=ATPFixedRatioMax,
            drop=2 / 3),
    Trained("fixed-1-2-max", "each drops 1/2, the larger score ranks", "2", HALVES, method=ATPFixedRatioMax,
            drop=1 / 2),
    Trained("fixed-1-2-redundant", "each drops 1/2, no samples", method=ATPFixedRatioRedundant, drop=1 / 2),
    Trained("frozen", "decoder frozen", "3", (63.1, 57.9, 75.2, 54.9), frozen=True),
    Trained("redundant", "by the text: no spatial pruning", "4", ONLY_RP, options=REDUNDANT),
    Trained("spatial", "by the text: no redundant pruning", "4", FOURTH, options=SPATIAL),
    Trained("renumbered", "by the marks: no PP", "4", FOURTH, method=ATPRenumbered),
    Trained("redundant-renumbered", "by the marks: no spatial pruning, no PP", "4", ONLY_RP, method=ATPRenumbered,
            options=REDUNDANT),
    Trained("spatial-renumbered", "no redundant pruning, no PP", "4", (64.3, 57.1, 74.2, 55.1), method=ATPRenumbered,
            options=SPATIAL),
    Trained("2d", "positions of two dimensions", method=ATP2D),
    Trained("self", "S_self only", "5", (66.1, 58.7, 75.8, 56.9), options=(("score", "self"),)),
    Trained("cross", "S_cross only", "5", (65.4, 59.2, 76.1, 56.3), options=(("score", "cross"),)),
    Trained("raw", "Eq. 6 reads raw scores", method=ATPRawScores),
    Trained("again", "trained with another seed", seed=1),
    Trained("fixed-1-2-again", "trained with another seed", method=ATPFixedRatio, drop=1 / 2, seed=1),
    Trained("frozen-raw", "decoder frozen, Eq. 6 reads raw scores", method=ATPRawScores, frozen=True),
    Trained("frozen-rates", "decoder frozen, more sampling rates", method=ATPMoreRates, frozen=True),
    Trained("frozen-centres", "decoder frozen, samples inside squares", method=ATPCentres, frozen=True),
)
AGAIN = {"adaptive": "again", "fixed-1-2": "fixed-1-2-again"}      # the same rows, trained with another seed


@dataclass(frozen=True)
class Comparison:
    """A row and its control, which differ in one thing. The first is the row that the paper has above the other."""

    row: str
    control: str
    changes: str                       # what the row has that the control has not
    table: str = ""                    # of the paper, with the reading; none: the paper does not compare them
    same_tokens: bool = True           # False: the number of tokens is what is changed


COMPARISONS = (
    Comparison("adaptive", "none", "pruning, and training for it", "1", False),
    Comparison("adaptive", "fastv", "the method, and training for it", "1"),
    Comparison("adaptive", "sparsevlm", "the method, and training for it", "1"),
    Comparison("adaptive", "prumerge_plus", "the method, and training for it", "1"),
    Comparison("adaptive-88", "fastv-88", "the method, and training for it", "1"),
    Comparison("adaptive-88", "sparsevlm-88", "the method, and training for it", "1"),
    Comparison("frozen", "fastv", "the method"),
    Comparison("frozen", "sparsevlm", "the method"),
    Comparison("frozen", "prumerge_plus", "the method"),
    Comparison("adaptive-88", "adaptive", "fewer tokens", "2", False),
    Comparison("adaptive", "fixed-once", "thresholds, not numbers; three cuts, not one", "2"),
    Comparison("adaptive", "fixed-2-3", "thresholds, not numbers", "2"),
    Comparison("adaptive", "fixed-1-2", "thresholds, not numbers", "2"),
    Comparison("adaptive", "fixed-once-max", "thresholds, not numbers; three cuts, not one", "2, larger score"),
    Comparison("adaptive", "fixed-2-3-max", "thresholds, not numbers", "2, larger score"),
    Comparison("adaptive", "fixed-1-2-max", "thresholds, not numbers", "2, larger score"),
    Comparison("fixed-1-2", "fixed-1-2-redundant", "the spatial samples"),
    Comparison("adaptive", "frozen", "the decoder is trained", "3"),
    Comparison("adaptive", "redundant", "spatial pruning", "4, by the text"),
    Comparison("adaptive", "spatial", "redundant pruning", "4, by the text"),
    Comparison("spatial", "spatial-renumbered", "PP, by kept position ids", "4, by the text"),
    Comparison("adaptive", "renumbered", "PP, by kept position ids", "4, by the marks"),
    Comparison("renumbered", "redundant-renumbered", "spatial pruning", "4, by the marks"),
    Comparison("renumbered", "spatial-renumbered", "redundant pruning", "4, by the marks"),
    Comparison("2d", "adaptive", "positions of two dimensions"),
    Comparison("adaptive", "self", "S_cross", "5"),
    Comparison("adaptive", "cross", "S_self", "5"),
    Comparison("raw", "adaptive", "Eq. 6 reads raw scores"),
    Comparison("again", "adaptive", "the seed"),
    Comparison("fixed-1-2-again", "fixed-1-2", "the seed"),
    Comparison("frozen-raw", "frozen", "Eq. 6 reads raw scores"),
    Comparison("frozen-rates", "frozen", "more sampling rates"),
    Comparison("frozen-centres", "frozen", "samples inside squares"),
)
