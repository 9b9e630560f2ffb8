"""What work takes: seconds by the machine's own clock or the device's events, and memory above what was held before."""

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch


@dataclass
class Clock:
    """Marks in time on one device. On CUDA they are events in its queue, read at the end, so that nothing waits."""

    device: torch.device
    work: list = field(default_factory=list)           # (start, end) of what a method itself did

    def mark(self):
        """A moment: now, or when the device comes to it."""
        if self.device.type != "cuda":
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, start, end):
        """Between two marks."""
        if self.device.type != "cuda":
            return end - start
        torch.cuda.synchronize(self.device)
        return start.elapsed_time(end) / 1e3

    def worked(self):
        """Seconds that methods took by themselves since this was last asked."""
        work = self.work
        self.work = []
        return sum(self.seconds(*marks) for marks in work)


class Timed:
    """A method whose own work, `reduce`, `merge` and `mask`, is noted on a clock; in all else it is that method."""

    def __init__(self, pruner, clock):
        self.pruner = pruner
        self.clock = clock

    def __getattr__(self, name):
        return getattr(self.pruner, name)

    def at(self, site):
        """The method at that site, timed too."""
        method = self.pruner.at(site)
        return method and Timed(method, self.clock)

    def reduce(self, *args):
        """As the method does."""
        return self._noted(self.pruner.reduce, *args)

    def merge(self, *args):
        """As the method does."""
        return self._noted(self.pruner.merge, *args)

    def mask(self, *args):
        """As the method does."""
        return self._noted(self.pruner.mask, *args)

    def _noted(self, work, *args):
        start = self.clock.mark()
        result = work(*args)
        self.clock.work.append((start, self.clock.mark()))
        return result


class Memory:
    """Most bytes held at once since `Memory(device)`, above what was held then; None if the system does not say."""

    STATUS = Path("/proc/self/status")
    RESET = Path("/proc/self/clear_refs")

    def __init__(self, device):
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            self.before = self._reset() and self._resident("VmRSS")

    def peak(self):
        """In bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        return None if self.before is None else max(0, self._resident("VmHWM") - self.before)

    def _reset(self):
        """Reset the system's record of the most memory, after what is free has been given back (Linux, glibc)."""
        try:
            ctypes.CDLL(None).malloc_trim(0)
            self.RESET.write_text("5")
            return True
        except (OSError, AttributeError):
            return None

    def _resident(self, name):
        line = next(line for line in self.STATUS.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) * 1024
