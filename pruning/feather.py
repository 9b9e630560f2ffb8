"""FEATHER. Endo, Wang and Yeung-Levy, "Feather the Throttle: Revisiting Visual Token Pruning for Vision-Language Model
Acceleration", ICCV 2025, arXiv:2412.13180.

RoPE favours keys that are near the query, and the last token comes after the image: so FastV keeps the bottom of it.
FEATHER ranks by the last token's attention without RoPE. In early layers that is still a weak criterion, so the first
stage keeps a uniform sample of the image, too. The second stage, in deeper layers, prunes harder, by attention only.

Paper and code: the second stage keeps (1 - R)^2 of the tokens that are left, not of all. The code takes the softmax
over the image only, so that each head has one vote, however little of its attention the image gets; FEATHERRow in
readings/ takes it over the row. The code rounds shares down, in a small image to nothing; this file chooses at least
one token.
"""

from dataclasses import dataclass

import torch

from pruning.base import Pruner, Reduction, UserError
from pruning.budget import tokens_to_keep
from pruning.fields import Amount, FromOne, Layer, option
from pruning.ranked import top
from pruning.views import for_each_head


@dataclass(frozen=True)
class FEATHER(Pruner):
    """Keep what the last token attends to without RoPE: with a uniform sample at first, then without."""

    layers: tuple[Layer, Layer] = option((8, 16), "K: the first layer of each stage")
    keep: Amount = option(0.3, "1 - R: share, or number, of visual tokens that attention chooses at first")
    stride: FromOne = option(3, "the uniform sample has every stride-th row and column")

    laws = frozenset({"select", "ordered"})

    def __post_init__(self):
        super().__post_init__()
        first, second = self.layers
        if first >= second:
            raise UserError(f"FEATHER: layers must rise; got {self.layers}")
        tokens_to_keep(self.keep, 2 ** 20)         # raises UserError if no prompt is long enough

    def reduce_at(self, layers):
        return self.layers

    def reduce(self, tokens):
        score = self.criterion(tokens)                                             # (n,)
        if tokens.layer == self.layers[1]:
            # second stage: the best by attention, (1 - R)^2 of those that are left
            return Reduction(top(score, self.second(tokens.n, tokens.N)), score=score)
        # first stage: the best by attention, united with the uniform sample
        attended = top(score, self.first(tokens.n))                                # (k,)
        keep = torch.cat([attended, uniform(tokens.grid, self.stride)]).unique()
        reason = (~torch.isin(keep, attended)).long()
        return Reduction(keep, score=score, reason=reason, reasons=("attended", "uniform"))

    def criterion(self, tokens):
        """(n,) attention without RoPE from the last prompt token in layer K-1, mean over heads"""
        logits = unrotated_logits(tokens)[:, tokens.visual]                        # (H, n)
        return logits.softmax(dim=1).mean(dim=0)

    def first(self, n):
        """How many of n tokens attention chooses in the first stage."""
        return tokens_to_keep(self.keep, n)

    def second(self, n, N):
        """How many of n tokens, of N at first, are kept in the second stage."""
        share = self.keep if isinstance(self.keep, float) else self.keep / N
        return tokens_to_keep(share ** 2, n)


def unrotated_logits(tokens):
    """(H, T) query of the last row times all keys, over sqrt(Dh), before RoPE and without a mask, in layer K-1"""
    query = tokens.before.query("last", rope=False)                                # (H, 1, Dh)
    key = for_each_head(tokens.before.key(rope=False), len(query))                 # (H, T, Dh)
    logits = query @ key.mT / query.shape[-1] ** 0.5                               # (H, 1, T)
    return logits[:, 0].float()


def uniform(grid, stride):
    """Indices of the tokens on every stride-th row and column of their tile; newlines are on none. (n, 3) -> (m,)"""
    row = grid[:, 1]
    column = grid[:, 2]
    is_sampled = (row >= 0) & (row % stride == 0) & (column % stride == 0)
    return is_sampled.nonzero().squeeze(1)
