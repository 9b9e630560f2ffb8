"""VisionZip. Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025,
arXiv:2412.04467.

Before the projector, keep the tokens that the class token looks at most (dominant tokens), and merge the rest into a few:
targets at regular distances in the rest, each joined by the tokens whose keys are most like its own (contextual tokens).
Keys are averaged over heads, attention too, both in the block that makes the features.

Paper and code: the paper merges a target and its tokens by their average; the released code adds the average of the tokens
to the target, which weighs 2 in all (average=False, the default; average=True is the paper's). The code counts the class
token as the first dominant token and sends its embedding to the decoder (cls=True; False: patches alone). The distance
of targets is rounded down, so that the end of the rest has none. The released numbers are 54 + 10 of 577; 108 + 20 and
162 + 30 are customary, the same share of contextual tokens; the function's default is 191 + 30.

Each tile is reduced by itself, at LLaVA-NeXT too, padding like the picture, without newline tokens. Its tokens stand in the
order of the picture, the contextual ones after the dominant ones. LLaVA-NeXT is sent those of the base tile, then the other
tiles' dominant patches in the order of the whole picture, their class tokens, and their contextual tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Pruner, Reduction, UserError, tokens_to_keep, top
from pruning.fields import Amount


@dataclass(frozen=True)
class VisionZip(Pruner):
    """Keep the patches that the class token looks at, and merge the others by their keys."""

    keep: Amount = 1 / 9               # number, or share, of the tokens of each tile left, of both kinds: 64 of 576
    contextual: Amount = 10 / 64       # of these the contextual ones: share, rounded down, or number
    average: bool = False              # contextual tokens are averages (paper), not target + average of the others
    cls: bool = True                   # the class token is a visual token, and the first dominant one

    site = "vision"
    per = "tile"
    needs = frozenset({"attn", "past_key"})
    preconditions = frozenset({"cls"})

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.contextual <= (1 if isinstance(self.contextual, float) else 2 ** 20):
            raise UserError(f"VisionZip: contextual is a share from 0 to 1.0, or a number from 0; got {self.contextual}")
        self.counts(self.keep if isinstance(self.keep, int) else 2 ** 20)
        self.budget(2 ** 20)           # a value of keep that no tile can meet fails here, before the model runs

    @property
    def laws(self):
        return frozenset({"budget", "scale"} | ({"convex"} if self.average else set()))

    def budget(self, n, tiles=1):
        """Visual tokens left of n in all, the tiles being equal in size."""
        return tiles * tokens_to_keep(self.keep, n // tiles)

    def counts(self, k):
        """Of k tokens the numbers of dominant and of contextual ones. UserError if there are more of these than k."""
        contextual = int(k * self.contextual) if isinstance(self.contextual, float) else self.contextual
        if contextual > k:
            raise UserError(f"VisionZip: contextual {contextual} is more than the {k} tokens kept: give a share of them")
        return k - contextual, contextual

    def reduce(self, tokens):
        heads, tile, is_cls = len(tokens.attn), tokens.cell[:, 0], tokens.cell[:, 1] < 0
        attn = tokens.attn.mean(dim=0).sum(dim=0)[tokens.visual]                   # (n,)  from each one's own class token
        metric = tokens.past_key[tokens.visual].float().unflatten(1, (heads, -1)).mean(dim=1)      # (n, Dh)
        keep, merge = [], []
        for t in tile.unique():
            here = (tile == t).nonzero().squeeze(1)                                # (m,)
            place, weights = self.zipped(attn[here], metric[here], is_cls[here])   # (k,), (k, m)
            keep.append(here[place])
            merge.append(weights.new_zeros(len(place), tokens.n).index_copy(1, here, weights))
        return Reduction(torch.cat(keep), torch.cat(merge), attn)

    def assemble(self, cell, mosaic):
        """The base tile's as they are; the others' dominant patches in the order of the picture, class tokens, contextual ones."""
        tile, k = cell[:, 0], int((cell[:, 0] == 0).sum())
        contextual = torch.arange(len(cell), device=cell.device) % k >= self.counts(k)[0]
        last = contextual & (tile > 0)                     # every tile has k tokens, the contextual ones at its end
        order = mosaic.order(cell)
        return torch.cat([order[~last[order]], last.nonzero().squeeze(1)])

    def zipped(self, attn, metric, is_cls):
        """One tile's attention (m,), keys (m, Dh), class token or not (m,) -> places (k,) and weights (k, m)."""
        dominant, contextual = self.counts(self.budget(len(attn)))
        dominant = top(attn.masked_fill(is_cls, torch.inf), dominant)
        rest = torch.ones_like(is_cls).index_fill(0, dominant, False).nonzero().squeeze(1)
        target, weights = self.merged(metric, rest, contextual)
        one_hot = F.one_hot(dominant, len(attn)).to(weights)
        return torch.cat([dominant, target]), torch.cat([one_hot, weights])

    def merged(self, metric, rest, count):
        """The contextual tokens: places (c,) of the targets among `rest`, and weights (c, m)."""
        weights = torch.zeros(count, len(metric), device=metric.device)
        if count == 0:
            return rest[:0], weights
        target = rest[::max(1, len(rest) // count)][:count]
        other = rest[~torch.isin(rest, target)]
        unit = F.normalize(metric, dim=1)
        owner = (unit[other] @ unit[target].T).argmax(dim=1)                       # (m-k,)  the target each one joins
        weights[owner, other] = 1
        members = weights.sum(dim=1, keepdim=True)                                 # (c, 1)
        weights = weights / (members + 1 if self.average else members.clamp_min(1))
        own = 1 / (members + 1) if self.average else torch.ones_like(members)
        return target, weights.scatter(1, target[:, None], own)
