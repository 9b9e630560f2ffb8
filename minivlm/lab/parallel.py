"""One job on several processes, as torchrun starts them: which one this is, on which device."""

import os
from contextlib import contextmanager

import torch
import torch.distributed as dist


@contextmanager
def processes(device):
    """(rank, number of processes, this one's device), as torchrun says; alone without it."""
    if "LOCAL_RANK" not in os.environ:
        yield 0, 1, device
        return
    cuda = str(device).startswith("cuda")
    if cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield dist.get_rank(), dist.get_world_size(), device
    finally:
        dist.destroy_process_group()
