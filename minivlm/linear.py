"""nn.Linear, by the fastest kernel that a CPU has for it."""

import torch
from torch import nn

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)      # None: this build of torch has no oneDNN


class Linear(nn.Linear):
    """x W^T + b. Of large weights, on a CPU and where no gradient is asked for, torch's choice of a kernel is not the fastest.

    In float32 it is MKL's; oneDNN's, which torch.compile would call, takes a tenth less time for many rows and half for a few. In
    bfloat16 it is oneDNN's, but that for a single row takes a fifth longer than that for two, so the row is asked for twice; and
    where few rows meet a weight with long rows, the weight stands better on the left.
    """

    LARGE, FEW = 2 ** 20, 192          # elements of a weight; rows

    def forward(self, x):
        """(.., in) -> (.., out)"""
        learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *self.parameters()))
        if x.device.type != "cpu" or learns or self.weight.numel() < self.LARGE or x.dtype != self.weight.dtype:
            return super().forward(x)
        return self._large(x.reshape(-1, self.in_features)).view(*x.shape[:-1], self.out_features)

    def _large(self, x):
        """(T, in) -> (T, out)"""
        if x.dtype == torch.float32 and ONEDNN is not None:
            return ONEDNN(x, self.weight, self.bias, "none", [], "")
        if x.dtype == torch.bfloat16 and len(x) == 1:
            return super().forward(x.expand(2, -1))[:1]
        if x.dtype == torch.bfloat16 and len(x) <= self.FEW and self.in_features > self.out_features:
            out = (self.weight @ x.T).T
            return out if self.bias is None else out + self.bias
        return super().forward(x)
