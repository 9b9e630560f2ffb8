"""The student's process, as the grader sees it: started, asked, and ended when it takes too long.

What it protects from: mistakes. Loops without end, too much memory, exit(), crashes and prints cost the check in which
they happen. It does not protect from code that means harm: that has the rights of who grades.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from minivlm.course.exercises.grading import wire
from minivlm.course.exercises.grading.sides import Side, failure
from minivlm.course.exercises.problem import ROOT, Ended, Stopped
from minivlm.course.exercises.stub import write_tree
from pruning.base import UserError

HERE = Path(__file__).parent
PROGRAM = ("student.py", "calls.py", "wire.py")
PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "TMPDIR")     # of the environment
STARTING = 120                         # seconds in which torch is imported


@dataclass(frozen=True)
class Limits:
    """What the student's code may use."""

    seconds: float = 10.0              # for one check, and for the import of the file
    memory: int = 2 ** 30              # bytes besides those of torch
    cpu: int = 300                     # seconds of processor time for one submission


class ForkServer:
    """A process that has imported torch and is forked for each submission. A context manager."""

    def __init__(self, problems, limits=Limits()):
        self.problems = problems
        self.limits = limits

    def __enter__(self):
        if not hasattr(os, "fork"):
            raise UserError("exercises are graded on Linux and macOS only: on Windows, use WSL")
        self.folder = Path(tempfile.mkdtemp(prefix="minivlm-"))
        program = self.folder / "program"
        program.mkdir()
        for name in PROGRAM:
            shutil.copy(HERE / name, program)
        self.control, other_end = socket.socketpair()
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= dict(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", HOME=str(self.folder))
        arguments = json.dumps([libraries(), str(self.folder)])
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(program / "student.py"), arguments],
            stdin=other_end, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
        )
        other_end.close()
        return self

    def __exit__(self, *error):
        self.control.close()
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def submission(self, problem, file):
        """The Side of a student's file, in a folder of its own: no other submission's code has been there."""
        folder = self.folder / "submission"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tree").mkdir(parents=True)
        write_tree(folder / "tree", problem, self.problems)
        return Submission(self, folder, Path(file).resolve())

    def connected(self):
        """A socket to a fresh process."""
        ours, theirs = socket.socketpair()
        socket.send_fds(self.control, [b"1"], [theirs.fileno()])
        theirs.close()
        return ours


def libraries():
    """Where Python's own modules and the installed ones lie; nothing of this repository."""
    paths = []
    for path in sys.path:
        inside = Path(path or ".").resolve()
        is_installed = "site-packages" in inside.parts or "dist-packages" in inside.parts
        is_pythons = inside.is_relative_to(Path(sys.base_prefix).resolve()) and not inside.is_relative_to(ROOT)
        if is_installed or is_pythons:
            paths.append(str(inside))
    return paths


class Submission(Side):
    """A student's file in a process of its own, which is started when it is first asked."""

    def __init__(self, server, folder, file):
        self.server = server
        self.folder = folder
        self.file = file
        self.connection = None
        self.error = None              # why the file cannot be imported
        self.begin()

    def begin(self):
        self.end_at = monotonic() + self.server.limits.seconds

    def close(self):
        """End the process."""
        if self.connection is not None:
            self.connection.close()
            kill(self.pid)
            self.connection = None

    def ask(self, of, options, wanted, gradient=False):
        if self.connection is None and self.error is None:
            self.start()
        if self.error is not None:
            raise Stopped(self.error)
        reply = self.exchange(dict(of=of, options=options, calls=wanted, gradient=gradient), wanted)
        error = reply["error"]
        if error is not None:
            raise failure(error, wanted)
        return reply["results"]

    def start(self):
        """Start the process, and import the file in it."""
        limits = self.server.limits
        work = self.folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        self.connection = self.server.connected()
        task = dict(
            tree=str(self.folder / "tree"),
            folder=str(work),
            file=str(self.file),
            memory=limits.memory,
            cpu=limits.cpu,
        )
        self.connection.settimeout(STARTING)
        self.connection.sendall(json.dumps(task).encode() + b"\n")
        try:
            self.pid = wire.unpack(wire.receive(self.connection))
        except EOFError:
            raise RuntimeError("the process for students' code does not start") from None
        self.begin()
        what = "the import of the file"
        try:
            error = self.reply(what)
        except Ended as ended:
            self.error = str(ended)
            raise
        if error is not None:
            self.error = str(failure(error, [(what, ())]))
            self.close()
        self.begin()

    def exchange(self, request, wanted):
        """The reply to a request. Ended if none comes in time."""
        names = " or ".join(dict.fromkeys(name for name, _ in wanted))
        self.connection.settimeout(self.left())
        try:
            wire.send(self.connection, request)
        except OSError:
            raise self.ended(f"{names} ends the process") from None
        return self.reply(names)

    def reply(self, names):
        """What the process sends next. Ended if that is nothing, or no message, or if it comes too late."""
        try:
            self.connection.settimeout(self.left())
            return wire.unpack(wire.receive(self.connection))
        except TimeoutError:
            raise self.ended(f"{names} takes more than {self.server.limits.seconds:g} s") from None
        except (EOFError, OSError):
            raise self.ended(f"{names} ends the process: a crash, too much memory or os._exit") from None
        except Exception:              # not of our making
            raise self.ended(f"{names} sends what nobody can read") from None

    def left(self):
        """Seconds of this check."""
        return max(0.01, self.end_at - monotonic())

    def ended(self, why):
        """The exception that says why the process has ended; it is ended now."""
        self.close()
        return Ended(why)


def kill(pid):
    """End a process of a submission and those that it has started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
