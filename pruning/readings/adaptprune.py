"""AdaptPrune: other readings."""

from dataclasses import dataclass, replace

from pruning.adaptprune import AdaptPrune


@dataclass(frozen=True)
class AdaptPruneNormedKeys(AdaptPrune):
    """The paper's "key vectors" as the layer's own keys: with its norm, before RoPE."""

    def keys(self, tokens):
        return tokens.here.projected_key(norm=True)


@dataclass(frozen=True)
class AdaptPruneKeepNewlines(AdaptPrune):
    """Several tiles: newline tokens are always kept."""

    laws = AdaptPrune.laws - {"needle"}

    def score(self, tokens):
        score = super().score(tokens)                                              # (n,)
        is_newline = tokens.grid[:, 1] < 0
        return score.masked_fill(is_newline, score.max() + 1)

    def reduce(self, tokens):
        true_score = super().score(tokens)
        return replace(super().reduce(tokens), score=true_score)                   # this is what pictures show
