"""What this machine can do at most: its matmul rate and its reading bandwidth, measured in the run that they limit.

A prefill cannot be faster than its FLOPs at the matmul rate, a token not faster than its bytes at the bandwidth.
The share of that limit which a phase reaches says how much there is left to gain; 1.0 is the wall.
"""

from time import perf_counter

import torch

SIDE = 2048                            # of the matrices that a CPU multiplies: 17 GFLOP
READ = 2 ** 28                         # bytes that it reads: more than any cache holds
GPU_SIDE = 8192                        # an accelerator: 1.1 TFLOP, which fills it
GPU_READ = 2 ** 32
ROUNDS = 3


def limits(dtype, device):
    """{"flops_per_second", "bytes_per_second"} of this machine, the best of a few rounds."""
    is_cpu = torch.device(device).type == "cpu"
    side = SIDE if is_cpu else GPU_SIDE
    read = READ if is_cpu else GPU_READ
    a, b = torch.randn(2, side, side).to(device, dtype)
    weight = torch.ones(read // (dtype.itemsize * side), side, dtype=dtype, device=device)
    row = torch.ones(side, 1, dtype=dtype, device=device)
    product = _best(lambda: a @ b, device)
    reading = _best(lambda: weight @ row, device)
    return dict(flops_per_second=2 * side ** 3 / product, bytes_per_second=weight.numel() * dtype.itemsize / reading)


def shares(row, machine, bytes_read):
    """{phase: share of the machine's limit} of a row of `bench`; phases whose FLOPs are not known are left out."""
    time = row["median"]
    reached = {"decode": bytes_read / machine["bytes_per_second"] / time["decode"]}
    if "flops" in row:
        for phase, flops in row["flops"].items():
            reached[phase] = flops / machine["flops_per_second"] / time[phase]
    return reached


def _best(work, device):
    seconds = []
    for _ in range(ROUNDS):
        _wait(device)
        start = perf_counter()
        work()
        _wait(device)
        seconds.append(perf_counter() - start)
    return min(seconds)


def _wait(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
