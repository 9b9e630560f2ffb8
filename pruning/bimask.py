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
from typing import Annotated, Literal

import torch

from pruning.base import Pruner, UserError
from pruning.fastv import FastV
from pruning.fields import AnyLayer, Positive, Range


@dataclass(frozen=True, kw_only=True)
class SGBiMask(Pruner):
    """4.1 Saliency-Guided Bidirectional Mask: in the layers before a cut, visual tokens see later salient ones.

    A plug-in: `class Mine(SGBiMask, AnyDecoderMethod)`, a dataclass again, is that method with the mask.
    """

    lambda_max: Annotated[float, Range(above=0, high=1)] = 1.0  # how visible the most salient later token is, in (0, 1]
    bidir_layers: tuple[AnyLayer, ...] = ()  # layers whose attention has the mask; (): each layer K-1
    per_head: bool = False             # each head masks by its own saliency, not by the mean over heads
    saliency_rows: Literal["all", "causal"] = "all"  # queries i in Eq. 2: "all" visual tokens, or "causal": those from j on
    saliency_floor: float | None = None  # least mass s_j that counts in Eq. 3
    eps: Positive = 1e-6               # of Eq. 3, 4, and the least weight that Eq. 6 divides by

    def mask_at(self, layers):
        if any(not 0 <= l < layers for l in self.bidir_layers):
            raise UserError(f"SG-BiMask: bidir_layers {self.bidir_layers}: this model has layers 0 to {layers - 1}")
        return tuple(self.bidir_layers) or tuple(l - 1 for l in self.reduce_at(layers))

    def mask(self, tokens, query, key, causal):
        mask = causal.expand(query.shape[-3] if self.per_head else 1, -1, -1).clone()              # (1 or H, T, T)
        whole = query.shape[-2] == len(tokens.hidden)              # the last layer asks for the last row alone: text, causal
        for image in images(tokens.visual) if whole else ():
            s_hat = self.saliency(query[..., image, :], key[..., image, :], self.per_head)[1]      # (1 or H, m)
            penalty = (self.lambda_max * s_hat).clamp_min(self.eps).log()[..., None, :]            # (1 or H, 1, m)  of lambda_j
            span = mask[..., image, image]                                         # (1 or H, m, m)
            later = torch.ones(span.shape[-2:], dtype=torch.bool, device=span.device).triu(1)      # i < j
            span.copy_(torch.where(later, penalty, span))                          # Eq. 4
        return mask

    def saliency(self, query, key, per_head=False):
        """Raw mass s_j and saliency in [0, 1] of the m tokens of one image, (1 or H, m) each; query (H, m, Dh), key (Hk, m, Dh).

        W_ij = q_i . k_j / sqrt(Dh), and the sum over i is (sum of the q_i) . k_j / sqrt(Dh): W itself is not needed.
        """
        from_j_on = self.saliency_rows == "causal"
        asked = query.flip(1).cumsum(1, dtype=torch.float32).flip(1) if from_j_on else query.sum(1, keepdim=True, dtype=torch.float32)
        grouped = asked.unflatten(0, (len(key), -1))                               # (Hk, H/Hk, m or 1, Dh)
        s = (grouped * key[:, None]).sum(dim=-1).flatten(0, 1) / key.shape[-1] ** 0.5              # (H, m)  Eq. 2
        s = s if per_head else s.mean(dim=0, keepdim=True)
        if not s.isfinite().all():
            raise UserError("the queries or keys contain NaN or infinity: the model overflowed; load it in float32 or bfloat16")
        if self.saliency_floor is not None:
            s = s.clamp_min(self.saliency_floor)
        s_min, s_max = s.amin(dim=-1, keepdim=True), s.amax(dim=-1, keepdim=True)
        return s, (s - s_min) / (s_max - s_min + self.eps)                         # Eq. 3


@dataclass(frozen=True)
class FastVBiMask(SGBiMask, FastV):
    """Appendix C.1: FastV with SG-BiMask. By the last row it keeps FastV's tokens, of richer content; so all rows rank."""

    query: Literal["last", "all"] = "all"  # whose attention counts


def images(visual):
    """The slices of the sequence that visual rows (n,) fill: one for each image, since text ends it."""
    rows = visual.cpu()
    ends = (rows.diff() > 1).nonzero().squeeze(1) + 1
    return [slice(int(part[0]), int(part[-1]) + 1) for part in rows.tensor_split(ends)]
