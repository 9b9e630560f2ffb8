"""SparseVLM: the paper's text, and versions 1.0 and 2.0 of the released code."""

from dataclasses import dataclass
from typing import Annotated

import torch

from pruning.base import UserError
from pruning.budget import tokens_to_keep
from pruning.fields import Count, FromOne, NotNegative, Range, option
from pruning.ranked import top
from pruning.sparsevlm import SparseVLM, chosen_or_all, relevance

Zero = Annotated[float, Range(0, 0)]


@dataclass(frozen=True)
class SparseVLMRank(SparseVLM):
    """v1.0: four cuts, and scale * rank + bias tokens are kept. The rank is that of the raters' attention matrix."""

    layers: tuple[Count, ...] = option((2, 6, 15, 19), "cut after each of these layers")
    table: tuple[NotNegative, ...] = option((), "instead of keep: scale and bias")

    TABLE = {
        0: (0, 0),
        64: (.8, 0),
        128: (9, 6),
        192: (13.5, 0),
        576: (0, 576),
    }
    table_length = 2

    def schedule(self, n, layers):
        return None                    # the rank decides

    def level(self, n, N, cut, P=None):
        if not self.table and tokens_to_keep(self.keep, N) == N:
            return n
        rank = rank_of(P)
        if rank == n:
            return n
        scale, bias = self.table or self.row_of_table(N)
        k = int(scale * rank + bias)
        k = min(k, n - 1)              # at least one is dropped
        return max(1, k)


@dataclass(frozen=True)
class SparseVLMPaper(SparseVLMRank):
    """The paper's text: lam * (n - rank) tokens are dropped, raters are at or above the mean, a cluster is a sum."""

    lam: NotNegative = option(1.0, "lambda")

    laws = frozenset({"scale", "needle", "disjoint"})
    extra = 0

    def __post_init__(self):
        super().__post_init__()
        if self.table:
            raise UserError("SparseVLMPaper: lam says how many tokens are dropped, not a table")

    def level(self, n, N, cut, P=None):
        dropped = int(self.lam * (n - rank_of(P)))
        return max(1, n - dropped)

    def relevant_text(self, visual, text):
        votes = relevance(visual, text)
        return chosen_or_all(votes >= votes.mean())

    def cluster_weights(self, members):
        return members


def rank_of(P):
    """The rank of the raters' attention matrix (r, n)."""
    return int(torch.linalg.matrix_rank(P.nan_to_num()))


@dataclass(frozen=True)
class SparseVLMPlus(SparseVLM):
    """v2.0: nothing is recycled, and position ids are kept. Attention is divided by `gravity`, its value for distance
    only, and the heads count that pay the image most of it."""

    heads: FromOne = option(14, "heads that count")
    recycle: Zero = option(0.0, "tau")

    laws = frozenset({"select", "ordered", "scale"})       # not needle: gravity may be negative
    positions = "keep"
    TABLE = {
        0: (0, 0, 0),
        64: (66, 34, 20),
        96: (246, 54, 28),
        128: (238, 108, 60),
        192: (300, 200, 118),
        576: (576, 576, 576),
    }

    def rating(self, tokens, raters):
        attention = tokens.before.attention(raters)[:, :, tokens.visual]           # (H, r, n)
        attention = attention / self.gravity(tokens, raters)
        heads = top(attention.sum(dim=(1, 2)), self.heads)                         # (heads,)
        return attention[heads].mean(dim=0)                                        # (r, n)

    def gravity(self, tokens, raters):
        """(r, n) logit of two rotated vectors of ones: the value for distance only. It may be small or negative."""
        Dh = tokens.before.key().shape[-1]
        ones = torch.ones(len(tokens.hidden), Dh, device=tokens.visual.device)
        ones = tokens.before.rotated(ones)                                         # (T, Dh)
        return ones[raters] @ ones[tokens.visual].T / Dh ** 0.5
