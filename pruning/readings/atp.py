"""ATP-LLaVA: what the paper leaves open, equation by equation."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from pruning.atp import ATP
from pruning.base import UserError
from pruning.budget import staged
from pruning.fields import FromOne, option
from pruning.ranked import descending, finite


@dataclass(frozen=True)
class ATPGiven(ATP):
    """Eq. 3 as the order of its arguments suggests: what a token gives to the others, not what it receives."""

    def between_visual(self, tokens):
        return super().between_visual(tokens).T


@dataclass(frozen=True)
class ATPProbs(ATP):
    """Eq. 3 with attention weights, as in Eq. 4, instead of logits: a token receives nothing from earlier ones."""

    def between_visual(self, tokens):
        return tokens.before.mean_attention("visual")[:, tokens.visual]


@dataclass(frozen=True)
class ATPRawScores(ATP):
    """Eq. 6 reads the scores of Eq. 3 and 4 as they are; only Eq. 9 compares normalised ones."""

    def read_by_linear(self, raw, normalised):
        return raw


@dataclass(frozen=True)
class ATPUnnormalised(ATP):
    """The paper to the letter: scores are averaged, and compared with thresholds in (0, 1), without normalisation."""

    def normalised(self, S, alive):
        return S


@dataclass(frozen=True)
class ATPSoftmaxScores(ATP):
    """Each score is a softmax over the tokens that are left."""

    def normalised(self, S, alive):
        return S.masked_fill(~self.is_left(alive), -torch.inf).softmax(dim=1)


@dataclass(frozen=True)
class ATPRankedScores(ATP):
    """Each score is its rank among the tokens that are left, from 1 down to 0."""

    def normalised(self, S, alive):
        is_left = self.is_left(alive)
        S = finite(S, "the attention scores")              # NaN would get a rank
        S = S.masked_fill(~is_left, -torch.inf)
        order = S.argsort(dim=1, descending=True, stable=True)                     # (2, n)
        rank = order.argsort(dim=1)                                                # (2, n)  from 0, the best
        return 1 - rank / (is_left.sum() - 1).clamp_min(1)


@dataclass(frozen=True)
class ATPPooled(ATP):
    """For prompts with another number of visual tokens: the scores of Eq. 6 are pooled to the module's length."""

    def at_length(self, S, N):
        return S if S.shape[1] == N else F.adaptive_avg_pool1d(S, N)


@dataclass(frozen=True)
class ATPDetached(ATP):
    """Training: no gradient goes through the scores that Eq. 6 reads, only through those that Eq. 9 compares."""

    def thresholds(self, i, S, tokens):
        return super().thresholds(i, S.detach(), tokens)


@dataclass(frozen=True)
class ATPMaskedSelf(ATP):
    """Training: the soft mask of a token weakens what it sees of itself, too."""

    sees_itself = False


@dataclass(frozen=True)
class ATPMoreRates(ATP):
    """Eq. 5 with the rates in between, 1/4, 1/8, 1/16, 1/32 and 1/64: columns are thinned out before rows."""

    def samples(self):
        strides = sorted(self.strides)
        finer_rows = list(zip(strides, strides[1:]))
        return sorted([*super().samples(), *finer_rows])


@dataclass(frozen=True)
class ATPCentres(ATP):
    """Eq. 5 with samples in the middle of equal squares, as in `uniform`, not from the first row and column on."""

    def offset(self, stride):
        return stride // 2


@dataclass(frozen=True)
class ATPFixedRatio(ATP):
    """Table 2's pre-defined ratio: `counts` tokens are kept before each layer, without thresholds.

    The spatial samples come first, those of the widest stride before the others; of equal S_spatial the order is that
    of S_redundant.
    """

    counts: tuple[FromOne, ...] = option((136, 68, 34), "one number per layer")

    preconditions = frozenset({"text"})

    def __post_init__(self):
        super().__post_init__()
        if len(self.counts) != len(self.layers):
            raise UserError("ATP: counts are numbers from 1, one per layer; "
                            f"got {self.counts} for layers {self.layers}")

    def schedule(self, n, layers):
        stages = [(layer, min(n, k)) for layer, k in zip(self.layers, self.counts)]
        return staged(stages, n, layers)

    def order(self, S_redundant, S_spatial):
        """Indices of all tokens, the first to be kept first. (n,)"""
        order = descending(S_redundant)                                            # (n,)
        samples_first = descending(S_spatial[order])                               # (n,)
        return order[samples_first]

    def soft_masks(self, tokens, i, alive):
        S = self.normalised(self.scores(tokens, alive), alive)                     # (2, n)
        S_redundant = self.redundant_pruning_score(S)                              # (n,)
        S_spatial = self.spatial_pruning_score(tokens.grid)                        # (n,)
        order = self.order(S_redundant, S_spatial)                                 # (n,)
        is_left = alive[order] >= 0.5
        best = order[is_left][:self.counts[i]]                                     # (k,)
        mask = torch.zeros_like(S_redundant).index_fill(0, best, 1)                # (n,)
        return S_redundant, mask[None]


@dataclass(frozen=True)
class ATPFixedRatioMax(ATPFixedRatio):
    """Table 2's pre-defined ratio: the larger of the two scores ranks, as Eq. 11 takes the larger of two masks."""

    def order(self, S_redundant, S_spatial):
        return descending(torch.maximum(S_redundant, S_spatial))


@dataclass(frozen=True)
class ATPFixedRatioRedundant(ATPFixedRatio):
    """A pre-defined ratio without the spatial samples that the paper's has: S_redundant ranks."""

    def order(self, S_redundant, S_spatial):
        return descending(S_redundant)


@dataclass(frozen=True)
class ATPRenumbered(ATP):
    """Table 4 without PP: the remaining tokens get position ids 0, 1, ..; they do not keep theirs."""

    positions = "renumber"


@dataclass(frozen=True)
class ATP2D(ATP):
    """Table 4 with PP, the 2-D rotary embedding, which the paper does not define: rows and columns for the image.

    The patch in row r, column c of an image that starts at position p gets (p + r, p + c); text at p gets (p, p). The
    text after an image starts at p + its longer side. Half of the RoPE pairs rotate by the first, half by the second.
    """

    def with_positions(self, tokens):
        if not tokens.n:
            return tokens
        # the step to the next position: 1 after text, 0 inside an image, its longer side after its last token
        step = torch.ones_like(tokens.position).index_fill_(0, tokens.visual, 0)   # (T,)
        for tile in tokens.grid[:, 0].unique():
            in_tile = tokens.grid[:, 0] == tile
            last_row = tokens.visual[in_tile][-1]
            longer_side = tokens.grid[in_tile, 1:].max() + 1
            step[last_row] = longer_side
        start = step.cumsum(0) - step                                              # (T,)
        position = start[:, None].repeat(1, 2)                                     # (T, 2)
        position[tokens.visual] += tokens.grid[:, 1:].clamp_min(0)
        return replace(tokens, position=position, next_position=int(step.sum()))
