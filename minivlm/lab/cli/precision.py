"""The precision in which a checkpoint is read on a CPU, if the user names none.

Many CPUs have no fast products in half precision. There float32 takes a fraction of the time and twice the memory.
"""

from pathlib import Path
from time import perf_counter

import torch

SIDE = 512                             # of the matrices that are multiplied: a few milliseconds
ROUNDS = 3
SLOWER = 2                             # times as slow as float32: worth twice the memory
ROOM = 2 ** 30                         # bytes that stay free besides the weights


def stays_half(weights, dtype):
    """Whether weights of so many bytes in half precision are left as they are: it is fast, or float32 has no room."""
    free = available(torch.device("cpu"))
    needed = 2 * weights + ROOM
    if free is not None and needed > free:
        return True
    return seconds(dtype) <= SLOWER * seconds(torch.float32)


def seconds(dtype):
    """What a product of two matrices takes; the best of some."""
    x = torch.ones(SIDE, SIDE, dtype=dtype)
    times = []
    for _ in range(ROUNDS + 1):                        # the first one warms up
        start = perf_counter()
        x @ x
        times.append(perf_counter() - start)
    return min(times[1:])


def available(device):
    """Bytes that are still free there, or None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return None
