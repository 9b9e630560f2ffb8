"""One job on several processes, as torchrun starts them: which one this is, its device, and the rows of all."""

import os
import socket
import sys
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from threading import RLock, Thread

import torch
import torch.distributed as dist
from tqdm import tqdm

SMALL = 10 ** 8                                    # parameters
PATIENCE = timedelta(days=30)                      # with a process that has more to do; one that has ended is noticed


@contextmanager
def processes(device):
    """(rank, number of processes, this one's device), as torchrun says; (0, 1, device) without it."""
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
    """How many processes to start on this machine: one per core for a small model on the CPU, at most 8; else 1."""
    is_worth_it = small(model) and model.device.type == "cpu" and "LOCAL_RANK" not in os.environ
    return min(8, os.cpu_count() or 1) if is_worth_it else 1


def small(model):
    """Whether its products are too small for two threads, which would wait for each other."""
    return sum(p.numel() for p in model.parameters()) < SMALL


def spread(command, count):
    """The worst exit status of command() in `count` processes of this machine, which share its threads.

    They are started as torchrun would start them. As soon as one fails the others are ended.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    threads = max(1, torch.get_num_threads() // count)
    ranks = []
    for n in range(count):
        variables = dict(WORLD_SIZE=count, MASTER_ADDR="localhost", MASTER_PORT=port, RANK=n, LOCAL_RANK=n)
        rank = get_context("spawn").Process(target=_rank, args=(command, threads, variables), daemon=True)
        rank.start()
        ranks.append(rank)
    return _status(ranks)


def _status(ranks):
    """The first exit status that is not 0, after the others have been ended; 0 if there is none."""
    running = list(ranks)
    while running:
        wait([rank.sentinel for rank in running])
        # TRAP: a status read twice may be None at first and a failure then, which nobody would see
        statuses = [rank.exitcode for rank in running]
        failed = [status for status in statuses if status]
        if failed:
            for rank in running:
                rank.terminate()
            return abs(failed[0])
        running = [rank for rank, status in zip(running, statuses) if status is None]
    return 0


def _rank(command, threads, variables):
    # tqdm's own lock is a semaphore of the system, which a process that is ended leaves behind
    tqdm.set_lock(RLock())
    Thread(target=_follow, daemon=True).start()
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(threads)
    sys.exit(command())


def _follow():
    """End with the process that started this one, however it ended."""
    parent_process().join()
    os._exit(1)
