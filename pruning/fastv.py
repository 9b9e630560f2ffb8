"""FastV. Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv:2403.06764.

After layer K the image is read through few tokens, so drop the visual tokens that received the least attention in
layer K (counted from one: layer K-1 here), and let layers K.. run on the rest. Original position ids are kept.

Paper and code: the paper scores a token by the attention it receives on average from all other tokens; the released
code reads the last prompt token's row alone (query="last", the default here; query="all" is the paper's text, where a
token that comes late has fewer rows above it). The released variants round the number kept differently: the lmms-eval
one floors n * keep, the llava-hf one rounds half to even, the in-place one takes a number. Its token-mask variant keeps
all tokens and masks the keys of the dropped ones (mode="mask"); with a cache it ranks again at each generated token
(rerank_decode). Dropping and masking give the text rows the same values.
"""

from dataclasses import dataclass
from typing import Literal

from pruning.base import Pruner, Reduction, UserError, tokens_to_keep, top
from pruning.fields import Amount, Layer


@dataclass(frozen=True)
class FastV(Pruner):
    """Keep the visual tokens that receive the most attention in layer K-1."""

    across_heads = "mean"
    laws = frozenset({"select", "ordered", "budget", "scale", "needle"})

    layer: Layer = 2                   # K: the first layer that runs on the kept tokens
    keep: Amount = 0.5                 # 1 - R: share, or number, of visual tokens kept
    query: Literal["last", "all"] = "last"  # whose attention counts: "last" prompt token (code) or "all" tokens (paper)
    rounding: str = "floor"            # of share * n: "floor", "round" or "ceil"
    mode: Literal["drop", "mask"] = "drop"  # "drop" the tokens, or "mask" their keys in layers K..
    rerank_decode: bool = False        # rank again at each generated token; only with mode="mask"

    def __post_init__(self):
        super().__post_init__()
        if self.rerank_decode and self.mode != "mask":
            raise UserError('FastV: rerank_decode needs mode="mask": what was dropped cannot come back')

    @property
    def rows(self):
        return self.query

    @property
    def rerank(self):
        return self.rerank_decode

    def reduce_at(self, layers):
        return (self.layer,)

    def budget(self, n):
        return tokens_to_keep(self.keep, n, self.rounding)

    def reduce(self, tokens):
        attn = tokens.attn.mean(dim=0)                             # (R, T)  mean over heads
        score = attn[:, tokens.visual].mean(dim=0)                 # (n,)    attention received
        return Reduction(top(score, self.budget(tokens.n)), score=score, drop=self.mode == "drop")
