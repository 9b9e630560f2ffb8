"""Which precision a checkpoint is read in on a CPU: that which is fast there, if there is room."""

import pytest
import torch

from minivlm.lab.cli import parallel, precision, session
from paths import PARITY
from weights import load

GB = 2 ** 30


@pytest.fixture
def cpu(monkeypatch):
    """Sets what a product takes in half precision (1 in float32), and the free memory."""
    def is_like(half, free):
        times = {torch.float32: 1.0}
        monkeypatch.setattr(precision, "seconds", lambda dtype: times.get(dtype, half))
        monkeypatch.setattr(precision, "available", lambda device: free)
    return is_like


@pytest.mark.parametrize("half, free, stays", [
    (0.6, 16 * GB, True),              # fast
    (2.0, 16 * GB, True),              # not worth twice the memory
    (2.1, 16 * GB, False),             # slow, and there is room
    (9.0, 5 * GB, False),              # 2 x 2 GB and one more: just enough
    (9.0, 5 * GB - 1, True),
    (9.0, None, False),                # the system does not say
])
def test_stays_half(cpu, half, free, stays):
    cpu(half, free)
    assert precision.stays_half(2 * GB, torch.bfloat16) is stays


@pytest.mark.parametrize("half, named, dtype, notes", [
    (0.6, None, torch.bfloat16, 0),
    (9.0, None, torch.float32, 1),
    (9.0, "bfloat16", torch.bfloat16, 0),
])
def test_a_checkpoint_that_is_not_small(cpu, monkeypatch, capsys, half, named, dtype, notes):
    """What the user names holds; else the machine decides, and says so if it is not what is stored."""
    cpu(half, 16 * GB)
    monkeypatch.setattr(parallel, "small", lambda model: False)
    model = session.for_cpu(load(PARITY / "llava15_gqa_bf16"), named)
    err = capsys.readouterr().err
    assert model.lm_head.weight.dtype == dtype
    assert err.count("read in float32, as bfloat16 is slow on this CPU: --dtype bfloat16") == notes


def test_a_small_one_is_read_in_float32(cpu):
    cpu(0.6, 16 * GB)
    assert session.for_cpu(load(PARITY / "llava15_gqa_bf16"), None).lm_head.weight.dtype == torch.float32


def test_a_product_takes_time():
    assert 0 < precision.seconds(torch.float32) < 10
