"""PruMerge: the paper's text, the released PruMerge+, and a tower without a class token."""

from dataclasses import dataclass

import torch

from pruning.fields import Amount, option
from pruning.prumerge import PruMerge, PruMergePlus, full_width
from pruning.ranked import descending


@dataclass(frozen=True)
class PruMergeAverage(PruMerge):
    """The paper's text: each row is an average weighted by attention, that of the kept token, too."""

    @property
    def laws(self):
        return super().laws | {"convex"}

    def attention_and_keys(self, tokens):
        attention, key = super().attention_and_keys(tokens)
        tiny = torch.finfo(attention.dtype).tiny           # so that no sum of weights is 0
        return attention.clamp_min(tiny), key

    def own_weight(self, attention):
        return attention

    def normalised(self, merge):
        return merge / merge.sum(dim=1, keepdim=True)


@dataclass(frozen=True)
class PruMergePaper(PruMergeAverage):
    """The paper's text throughout: weighted averages; attention of the block that makes the features, mean over heads;
    only pruned tokens are merged, and there is no pooled token."""

    merges_kept = False
    pooled = 0

    @property
    def laws(self):
        return super().laws | {"needle"}

    def attention_and_keys(self, tokens):
        attention = tokens.before.cls_attention().mean(dim=0)                      # (n,)
        tiny = torch.finfo(attention.dtype).tiny
        key = full_width(tokens.before.key())                                      # (T, C)
        return attention.clamp_min(tiny), key[tokens.visual]


@dataclass(frozen=True)
class PruMergePlusReleased(PruMergePlus):
    """The released fixed-ratio PruMerge+: a strong patch that is also sampled is kept twice, and for each of these the
    first patch of the rest is lost."""

    keep: Amount = option(0.25, "share, or number, of each tile's tokens left")

    laws = frozenset()

    def selected(self, attention):
        m = len(attention)
        half = (self.count(attention) + 1) // 2
        strong = descending(attention)[:half]
        step = m // max(1, len(strong))
        sample = torch.arange(step // 2, m - 1, step, device=attention.device)
        return torch.cat([strong, sample])

    def not_kept(self, attention, kept):
        rest = super().not_kept(attention, kept)
        kept_twice = len(kept) + len(rest) - len(attention)
        return rest[kept_twice:]


class PruMergeByReceived:
    """Attention and keys of a PruMerge without a class token."""

    preconditions = frozenset()

    def attention_and_keys(self, tokens):
        key = full_width(tokens.before.key())                                      # (T, C)
        return tokens.before.received(), key[tokens.visual]


@dataclass(frozen=True)
class PruMergeReceived(PruMergeByReceived, PruMerge):
    """Without a class token: the attention that patches receive from all patches of their tile, and keys, both of the
    block that makes the features."""


@dataclass(frozen=True)
class PruMergePlusReceived(PruMergeByReceived, PruMergePlus):
    """Without a class token: the attention that patches receive from all patches of their tile, and keys, both of the
    block that makes the features."""
