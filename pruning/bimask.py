"""SG-BiMask, the Saliency-Guided Bidirectional Mask of ASAP, as a plug-in for any decoder method. arXiv:2603.14549, 4.1.

Under the causal mask a visual token sees only those before it, so late tokens gather attention whatever they show. Here
it also sees later ones of its image, the more so the more salient those are: their logits are lowered by the logarithm of
their saliency. Text rows see what they saw.

Paper and code: no code is public. Eq. 2 has no head (here the mean: Eq. 6 needs one number a token; per_head) and no mask
(saliency_rows); W has the rotary positions, being "computed during the standard forward pass". Eq. 3 speaks of "floored
masses", but logits are finite (saliency_floor). lambda_max has no value. The mask acts in layer K-1 (bidir_layers) and
drives its output, as Eq. 5 says. The last row, which FastV ranks by, is as it was: by it FastV keeps the same tokens.
"""

from dataclasses import dataclass

import torch

from pruning.base import Pruner, UserError
from pruning.fastv import FastV


@dataclass(frozen=True, kw_only=True)
class SGBiMask(Pruner):
    """4.1 Saliency-Guided Bidirectional Mask: in the layers before a cut, visual tokens see later salient ones.

    A plug-in: `class Mine(SGBiMask, AnyDecoderMethod)`, a dataclass again, is that method with the mask.
    """

    lambda_max: float = 1.0            # how visible the most salient later token is, in (0, 1]
    bidir_layers: tuple = ()           # layers whose attention has the mask; (): each layer K-1
    per_head: bool = False             # each head masks by its own saliency, not by the mean over heads
    saliency_rows: str = "all"         # queries i in Eq. 2: "all" visual tokens, or "causal": those from j on
    saliency_floor: float | None = None  # least mass s_j that counts in Eq. 3
    eps: float = 1e-6                  # of Eq. 3, 4, and the least weight that Eq. 6 divides by

    def __post_init__(self):
        if not 0 < self.lambda_max <= 1 or not self.eps > 0 or self.saliency_rows not in ("all", "causal"):
            raise UserError(f'SG-BiMask: lambda_max is in (0, 1], eps above 0, saliency_rows "all" or "causal"; got '
                            f"{self.lambda_max}, {self.eps}, {self.saliency_rows!r}")

    def mask_at(self, layers):
        if any(not 0 <= l < layers for l in self.bidir_layers):
            raise UserError(f"SG-BiMask: bidir_layers {self.bidir_layers}: this model has layers 0 to {layers - 1}")
        return tuple(self.bidir_layers) or tuple(l - 1 for l in self.reduce_at(layers))

    def mask(self, tokens, logits, causal):
        visual = tokens.visual
        s_hat = self.saliency(logits, visual)[1]                                   # (.., 1 or H, n)
        penalty = (self.lambda_max * s_hat).clamp_min(self.eps).log()              # (.., 1 or H, n)  of lambda_j
        later = same_image(visual).triu(1)                                         # (n, n)  i < j
        mask = causal.expand(*s_hat.shape[:-1], -1, -1).clone()                    # (.., 1 or H, T, T)
        span = mask[..., visual[:, None], visual]                                  # (.., 1 or H, n, n)
        mask[..., visual[:, None], visual] = torch.where(later, penalty[..., None, :], span)       # Eq. 4
        return mask

    def saliency(self, logits, visual):
        """W (.., H, T, T) -> raw mass s_j and saliency in [0, 1] of each visual token, (.., 1 or H, n) each."""
        W = logits.float() if self.per_head else logits.mean(dim=-3, keepdim=True, dtype=torch.float32)
        image = same_image(visual)                                                 # (n, n)
        seen = image.tril() if self.saliency_rows == "causal" else image           # (n, n)  query i counts for key j
        s = W[..., visual[:, None], visual].masked_fill(~seen, 0).sum(dim=-2)      # Eq. 2
        if self.saliency_floor is not None:
            s = s.clamp_min(self.saliency_floor)
        s_min = s[..., None, :].masked_fill(~image, float("inf")).amin(dim=-1)     # (.., 1 or H, n)
        s_max = s[..., None, :].masked_fill(~image, float("-inf")).amax(dim=-1)
        return s, (s - s_min) / (s_max - s_min + self.eps)                         # Eq. 3


@dataclass(frozen=True)
class FastVBiMask(SGBiMask, FastV):
    """Appendix C.1: FastV with SG-BiMask. By the last row it keeps FastV's tokens, of richer content; so all rows rank."""

    query: str = "all"                 # whose attention counts

    def __post_init__(self):
        SGBiMask.__post_init__(self)
        FastV.__post_init__(self)


def same_image(visual):
    """(n, n) which visual rows (n,) have no text between them."""
    text_before = visual - torch.arange(len(visual), device=visual.device)
    return text_before[:, None] == text_before
