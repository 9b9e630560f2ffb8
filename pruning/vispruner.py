"""VisPruner. Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
ICCV 2025, arXiv:2412.01818.

Before the projector, keep T patches of each tile: the few that receive the most attention from the class token
(important tokens), and out of the rest those that are least alike (diverse tokens). These are found by removing
duplicates: split the rest into two halves, drop from the first the tokens most like one of the second, and again.

Paper and code: no difference is known, but these are facts of the released code. It removes 8 tokens a round
(`removed`) and takes the halves in turn from a list that is ordered by attention at first and by likeness later. It
stops with an error where the rest is odd in number; here the first half is then the larger one. It gives T as a number;
a share is ours. T is per tile, each tile having its class token: 5 tiles of LLaVA-NeXT at keep=128 give 640 tokens, and
its newline tokens are dropped. There the released code cuts every picture into 2 x 2 tiles, prunes padding like the picture,
and sends the kept tokens on in the order of the picture, the base tile's first; here the tiles are the model's.
"""

from dataclasses import dataclass

import torch

from pruning.base import Pruner, Reduction, UserError, cosines, tokens_to_keep
from pruning.fields import Amount, FromOne, Share


@dataclass(frozen=True)
class VisPruner(Pruner):
    """Keep the patches that the class token looks at, and the most diverse of the others."""

    keep: Amount = 2 / 9               # T: number, or share, of the tokens of each tile kept: 128 of 576
    important: Share = 0.5             # r: share of T that is chosen by attention
    removed: FromOne = 8               # tokens removed from the rest in one round

    site = "vision"
    per = "tile"
    laws = frozenset({"select", "ordered", "budget", "scale"})
    preconditions = frozenset({"cls"})

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # a value of keep that no tile can meet fails here, before the model runs

    def budget(self, n, tiles=1):
        """Visual tokens left of n in all, the tiles being equal in size."""
        return tiles * tokens_to_keep(self.keep, n // tiles)

    def reduce(self, tokens):
        attn = tokens.attn.mean(dim=0).sum(dim=0)                                  # (T,)  from each row's own class token
        score, feature, tile = attn[tokens.visual], tokens.hidden[tokens.visual], tokens.cell[:, 0]
        if score.isnan().any() or feature.isnan().any():
            raise UserError("the image features contain NaN: the model overflowed; load it in float32 or bfloat16")
        here = [(tile == t).nonzero().squeeze(1) for t in tile.unique()]           # of each tile its (m,) tokens
        keep = [rows[self.selected(score[rows], feature[rows])] for rows in here]
        return Reduction(torch.cat(keep), score=score)

    def selected(self, score, feature):
        """Of one tile's attention (m,) and features (m, C): the important and the diverse, in sequence order."""
        k = tokens_to_keep(self.keep, len(score))                                  # T
        order = score.argsort(descending=True, stable=True)                        # (m,)
        important, rest = order.tensor_split([int(k * self.important)])
        similarity = cosines(feature, torch.float64)        # one swap of two near-equals changes all later halves
        rest = diverse(similarity, rest, k - len(important), self.removed)
        return torch.cat([important, rest]).sort().values


def diverse(similarity, rest, k, removed):
    """k of the indices `rest`, after removing again and again the `removed` ones that are most like another one."""
    if k == 0:
        return rest[:0]
    while len(rest) > k:
        first, second = rest[0::2], rest[1::2]
        likeness = similarity.take(first[:, None] * len(similarity) + second).amax(dim=1)          # (len(first),)
        first = first[likeness.argsort(descending=True, stable=True)]
        rest = torch.cat([first[min(removed, len(rest) - k):], second])            # its order decides the next halves
    return rest
