"""Counts what a method asks of torch, so that a test can say that a loop does not wait for the device."""

from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts how often the host asks for the value of a tensor, since it then waits for the device; and all calls."""

    READS = ("_local_scalar_dense", "nonzero", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.count = 0
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        self.count += any(name in str(function) for name in self.READS)
        return function(*args, **(kwargs or {}))


def waits(reduce, *args):
    """(values that were asked for, all calls) of one call."""
    with Waits() as counted:
        reduce(*args)
    return counted.count, counted.calls
