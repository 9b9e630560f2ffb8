"""Linear: x W^T + b, whichever kernel is asked for it."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minivlm import linear
from minivlm.linear import Linear
from tiny import one_thread  # noqa: F401


def layer(out, bias, dtype):
    """40 -> out, with weights of its own."""
    torch.manual_seed(0)
    return Linear(40, out, bias=bias).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3), (torch.float64, 1e-12)])
@pytest.mark.parametrize("out, bias", [(48, False), (48, True), (32, False), (32, True)])
@pytest.mark.parametrize("shape", [(40,), (1, 40), (1, 1, 40), (1, 3, 40), (2, 3, 40), (250, 40), (0, 40)])
@pytest.mark.parametrize("large", (0, 2 ** 20))
def test_by_definition(shape, out, bias, dtype, atol, large, monkeypatch):
    """However many rows are multiplied, of a weight that counts as large or not, longer than wide or not."""
    monkeypatch.setattr(Linear, "LARGE", large)
    it, x = layer(out, bias, dtype), torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = it(x)
    assert found.shape == (*shape[:-1], out) and found.dtype == dtype
    expected = x.double() @ it.weight.double().T + (it.bias.double() if bias else 0)
    assert found.numel() == 0 or (found.double() - expected).abs().max() < atol


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("learns", ["x", "weight", "bias"])
def test_gradients(rows, dtype, learns, monkeypatch):
    """Where one is asked for, it is that of torch's own layer."""
    monkeypatch.setattr(Linear, "LARGE", 0)
    it, x = layer(32, True, dtype), torch.ones(rows, 40, dtype=dtype)
    asked = (x if learns == "x" else getattr(it, learns)).requires_grad_()
    with torch.enable_grad():
        found, = torch.autograd.grad(it(x).sum(), asked)
        expected, = torch.autograd.grad(torch.nn.functional.linear(x, it.weight, it.bias).sum(), asked)
    assert found.equal(expected)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_two_dtypes(dtypes, monkeypatch):
    """Are torch's error, not a number."""
    monkeypatch.setattr(Linear, "LARGE", 0)
    with pytest.raises(RuntimeError, match="dtype"):
        layer(32, False, dtypes[0])(torch.ones(3, 40, dtype=dtypes[1]))


def test_without_onednn(monkeypatch):
    """A build of torch that lacks it asks what it has."""
    monkeypatch.setattr(Linear, "LARGE", 0)
    it, x = layer(32, True, torch.float32), torch.randn(3, 40)
    with_it = it(x)
    monkeypatch.setattr(linear, "ONEDNN", None)
    assert torch.allclose(it(x), with_it, atol=1e-6)


def test_counted_where_nothing_is_computed(monkeypatch):
    """On the meta device, where FLOPs are counted, torch's counter must see the product."""
    monkeypatch.setattr(Linear, "LARGE", 0)
    with FlopCounterMode(display=False) as counter:
        layer(32, False, torch.float32).to("meta")(torch.empty(3, 40, device="meta"))
    assert counter.get_total_flops() == 2 * 3 * 40 * 32
