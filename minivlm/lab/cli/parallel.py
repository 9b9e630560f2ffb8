"""One job on several processes, as torchrun starts them: which one this is, on which device, and what all of them have found."""

import os
import socket
import sys
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context, parent_process
from threading import Thread

import torch
import torch.distributed as dist

SMALL = 10 ** 8                                    # parameters
PATIENCE = timedelta(days=30)                      # with a process that has more to do: one that has ended is noticed at once


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
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield dist.get_rank(), dist.get_world_size(), device
        dist.barrier()                             # nobody leaves while another may still talk to it
    finally:
        dist.destroy_process_group()


def first():
    """Whether this is the process that prints: the only one, that of rank 0, or the one that started the others."""
    return os.environ.get("RANK", "0") == "0" and parent_process() is None


def gathered(rows):
    """The rows of every process, joined, on each of them."""
    if not dist.is_initialized():
        return rows
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, rows)
    return [row for rows in every for row in rows]


def worthwhile(model):
    """How many processes to start on this machine: for a small model on the CPU one a core, at most 8; else 1."""
    return min(8, os.cpu_count() or 1) if small(model) and model.device.type == "cpu" and "LOCAL_RANK" not in os.environ else 1


def small(model):
    """Whether its products are too small for two threads, which would wait for each other."""
    return sum(p.numel() for p in model.parameters()) < SMALL


def spread(function, argument, count):
    """The worst exit status of function(argument) in `count` processes of this machine, started as torchrun would, which share its threads."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    told, threads = dict(WORLD_SIZE=str(count), MASTER_ADDR="localhost", MASTER_PORT=str(port)), max(1, torch.get_num_threads() // count)
    ranks = [get_context("spawn").Process(target=_rank, args=(function, argument, threads, told | dict(RANK=str(n), LOCAL_RANK=str(n))),
                                          daemon=True) for n in range(count)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return max(abs(rank.exitcode) for rank in ranks)


def _rank(function, argument, threads, told):
    Thread(target=_follow, daemon=True).start()
    os.environ.update(told)
    torch.set_num_threads(threads)
    sys.exit(function(argument))


def _follow():
    """End with the process that started this one, however it ended."""
    parent_process().join()
    os._exit(1)
