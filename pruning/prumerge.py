"""PruMerge and PruMerge+. Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal
Models", ICCV 2025, arXiv:2403.15388.

Before the projector, keep the patches whose attention from the class token is an outlier of its distribution (above
Q3 + 1.5 IQR), so that a busy image keeps more tokens than a plain one; then supplement each with the patches whose keys
are most like its own, weighted by their attention. PruMerge+ keeps a uniform sample of the patches as well.

Paper and code: the paper speaks of weighted averages of clusters; the released code adds the neighbours, weighted by
their bare attention, to the kept token with weight 1 (the default; its rows sum to more than 1), normalise=True is the
average, the kept token weighing its attention too. The code appends one more token, the sum of all that is not kept by
attention (pooled=True; the paper has none). It finds neighbours among all tokens (sources="all"); the paper's abstract
clusters the pruned ones ("pruned"). It takes queries and keys of the block after the features, as one head over the full
width (attention="last"); the paper speaks of the penultimate layer ("penultimate": the block that makes the features,
mean over heads). Its fixed-ratio PruMerge+ keeps a strong patch that lies on the grid twice, and loses the first patches
of the rest in exchange (duplicates=True); here the next strongest fills up. It stops where nothing, or more than a third,
is an outlier of PruMerge+; here at least one patch counts, and the grid is at most all. 32 neighbours and a grid three
times as dense as the outliers, without the last patch, are the code's constants.

Each tile is reduced by itself; in LLaVA-NeXT its tokens follow those of the tile before, without newlines. They stand by
falling attention, then the grid, then the pooled one, in the place of the strongest patch not kept; where all are kept there
is none (in the released code a zero vector).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from pruning.base import Pruner, Reduction, UserError, tokens_to_keep
from pruning.fields import Amount, Count, FromOne


@dataclass(frozen=True)
class PruMerge(Pruner):
    """Keep the outliers of the class token's attention and merge into each the tokens with similar keys.

    `keep` counts every token left of a tile, the pooled one too: 73 of 576 is the released code's fixed ratio 1/8.
    """

    keep: Amount | None = None         # None: as many as are outliers; else share, or number, of each tile's tokens left
    neighbours: Count = 32             # k nearest neighbours merged into each kept token
    normalise: bool = False            # divide by the sum of weights (paper)
    pooled: bool = True                # append the sum of all that is not kept (code)
    sources: Literal["all", "pruned"] = "all"  # what may be merged: "all" other tokens (code) or the "pruned" ones
    attention: Literal["last", "penultimate"] = "last"  # block that is looked at: "last" (code) or "penultimate" (paper)

    site = "vision"
    per = "tile"
    preconditions = frozenset({"cls"})

    def __post_init__(self):
        super().__post_init__()
        self.budget(2 ** 20)           # a value of keep that no tile can meet fails here, before the model runs

    @property
    def needs(self):
        return frozenset({"query", "key"} if self.attention == "last" else {"attn", "past_key"})

    @property
    def laws(self):
        held = {"convex": self.normalise, "budget": self.keep is not None, "needle": "attn" in self.needs}
        return frozenset(law for law in held if held[law])

    def budget(self, n, tiles=1):
        """Visual tokens left of n in all, the tiles being equal in size; None where the image decides."""
        return None if self.keep is None else tiles * tokens_to_keep(self.keep, n // tiles)

    def reduce(self, tokens):
        attn, key = last_attention(tokens) if self.attention == "last" else penultimate_attention(tokens)
        if attn.isnan().any():
            raise UserError("the attention scores contain NaN: the model overflowed; load it in float32 or bfloat16")
        keep, merge, tile = [], [], tokens.cell[:, 0]
        for t in tile.unique():                            # its class token, its outliers
            here = (tile == t).nonzero().squeeze(1)                                # (m,)
            place, weights = self.merged(attn[here], key[here])                    # (k,), (k, m)
            keep.append(here[place])
            merge.append(weights.new_zeros(len(place), tokens.n).index_copy(1, here, weights))
        return Reduction(torch.cat(keep), torch.cat(merge), attn)

    def assemble(self, cell, mosaic):
        """Tile after tile, as they are."""
        return torch.arange(len(cell), device=cell.device)

    def merged(self, attn, key):
        """One tile's attention (m,) and keys (m, C) -> places (k,) and weights (k, m) of the tokens left."""
        kept = self.selected(attn)                                                 # (c,)
        rest = without(torch.arange(len(attn), device=attn.device), kept)
        rest = rest[len(kept) + len(rest) - len(attn):]    # one fewer for each patch kept twice; else all
        if self.normalise:
            attn = attn.clamp_min(torch.finfo(attn.dtype).tiny)                    # a sum of zeros divides nothing
        merge = self.supplemented(attn, key, kept, rest)                           # (c, m)
        if self.pooled and len(rest):
            place = rest[attn[rest].argmax(dim=0, keepdim=True)]
            kept = torch.cat([kept, place])
            merge = torch.cat([merge, torch.zeros_like(attn).index_copy(0, rest, attn[rest])[None]])
        return kept, merge / merge.sum(dim=1, keepdim=True) if self.normalise else merge

    def selected(self, attn):
        """Adaptive important token selection: the outliers, or a given number, by falling attention. (m,) -> (c,)"""
        return attn.argsort(descending=True, stable=True)[:self.count(attn)]

    def count(self, attn):
        """How many patches are selected: all that is left but the pooled token."""
        return max(outliers(attn), 1 - self.pooled) if self.keep is None else self.budget(len(attn)) - self.pooled

    def supplemented(self, attn, key, kept, rest):
        """Token supplement: each kept patch and its nearest neighbours, weighted. (c, m)"""
        others = torch.cat([kept, rest]) if self.sources == "all" else rest        # (s,)
        near = F.normalize(key[kept], dim=1) @ F.normalize(key[others], dim=1).T   # (c, s)
        itself = len(kept) if self.sources == "all" else 0
        near[:, :itself].fill_diagonal_(-torch.inf)
        nearest = near.argsort(dim=1, descending=True, stable=True)[:, :min(self.neighbours, len(others) - (itself > 0))]
        own = attn[kept] if self.normalise else torch.ones_like(attn[kept])
        merge = torch.zeros(len(kept), len(attn), dtype=attn.dtype, device=attn.device)
        merge = merge.scatter_add(1, others[nearest], attn[others[nearest]])
        return merge.scatter_add(1, kept[:, None], own[:, None])


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge, and a uniform sample of the patches kept too; with `keep`, half is chosen by attention, half is the grid."""

    density: FromOne = 3               # of the grid, in multiples of the number of outliers; only with keep=None
    duplicates: bool = False           # with keep: count a patch twice that is strong and on the grid (released code)

    def __post_init__(self):
        super().__post_init__()
        if self.duplicates and self.keep is None:
            raise UserError("PruMergePlus: duplicates needs keep: the adaptive form keeps nothing twice")

    @property
    def laws(self):
        return super().laws - ({"budget"} if self.duplicates else set())

    def selected(self, attn):
        m, k = len(attn), self.count(attn)
        order = attn.argsort(descending=True, stable=True)                         # (m,)
        if self.keep is None:
            strong, stride = order[:k], max(1, m // max(1, k) // self.density)
            return torch.cat([strong, without(torch.arange(0, m - 1, stride, device=attn.device), strong)])
        strong, others = order.tensor_split([(k + 1) // 2])
        if self.duplicates:
            step = m // max(1, len(strong))
            return torch.cat([strong, torch.arange(step // 2, m - 1, step, device=attn.device)])
        count = k - len(strong)
        grid = (2 * torch.arange(count, device=attn.device) + 1) * m // max(1, 2 * count)      # middles of equal parts
        grid = without(grid, strong)
        return torch.cat([strong, grid, without(others, grid)])[:k]


def last_attention(tokens):
    """Attention of each patch from its tile's class token in the block after the features, as one head, and its keys."""
    dtype = torch.promote_types(tokens.key.dtype, torch.float32)
    query, key = tokens.query[tokens.rows].to(dtype), tokens.key.to(dtype)         # (tiles, C), (T, C)
    logits = key.unflatten(0, (len(query), -1)) @ query[:, :, None] * key.shape[1] ** -.5      # (tiles, 1+P, 1)
    return logits.softmax(dim=1).flatten()[tokens.visual], key[tokens.visual]


def penultimate_attention(tokens):
    """The same in the block that makes the features, mean over heads."""
    return tokens.attn.mean(dim=0).sum(dim=0)[tokens.visual], tokens.past_key[tokens.visual].float()


def outliers(attn):
    """How many values lie above Q3 + 1.5 IQR, in float32."""
    q1, q3 = attn.float().quantile(torch.tensor([.25, .75], device=attn.device))
    return int((attn.float() > q3 + 1.5 * (q3 - q1)).sum())


def without(index, gone):
    """`index` without the entries that are in `gone`, in its order."""
    return index[~torch.isin(index, gone)]
