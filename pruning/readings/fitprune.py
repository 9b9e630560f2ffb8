"""FitPrune's score: the mean over heads."""

from dataclasses import dataclass

from pruning.fitprune import SingleFitPrune, received


@dataclass(frozen=True)
class SingleFitPruneMean(SingleFitPrune):
    """Attention is the mean over heads, as in FastV, not the largest."""

    def score(self, tokens):
        cross, own = received(tokens, over_heads=mean_over_heads)
        return cross * own


def mean_over_heads(view, rows):
    """(R, T) attention of these rows, mean over heads"""
    return view.mean_attention(rows)
