"""The other side of grading: processes that run students' code. The grader starts this file as a program of its own.

It imports torch once, then forks a process for each submission: no student's code meets that of another. A process
has a copy of the repository without the solutions, imports the student's file from where it lies, and answers what it
is asked. It prints nothing: its standard output and error lead nowhere.
"""

import gc
import importlib.util
import json
import os
import resource
import shutil
import signal
import socket
import sys
from contextlib import suppress

libraries, folder = json.loads(sys.argv[1])            # where these lie; what the grader has made for this run
sys.path[:] = [*libraries, os.path.dirname(os.path.abspath(__file__))]     # and calls.py and wire.py
import calls
import torch

MODULE = "submission"                  # the name under which the student's file is imported
FILES = 2 ** 26                        # bytes that a file may have


def main():
    """Fork a process for each socket that arrives on standard input, until that is closed."""
    torch.set_num_threads(1)
    gc.freeze()
    control = socket.socket(fileno=0)
    pid = 0
    while True:
        _, sockets, _, _ = socket.recv_fds(control, 1, 1)
        if not sockets:
            clear(pid)
            return
        pid = os.fork()
        if pid == 0:
            try:
                attend(socket.socket(fileno=sockets[0]))
            finally:
                os._exit(0)            # whatever happens, a submission's process does not go on here
        os.close(sockets[0])
        reap()


def clear(pid):
    """End the last process and remove the grader's folder, in case the grader was killed."""
    with suppress(ProcessLookupError):
        if pid:
            os.killpg(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def reap():
    """Forget the processes that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def attend(connection):
    """Answer until the grader has no more questions."""
    os.setsid()                        # so that what the student's code starts can be ended with it
    close_control()
    task = json.loads(connection.makefile().readline())
    os.chdir(task["folder"])
    sys.path.insert(0, task["tree"])
    import wire                        # it imports pruning, which must be that of the tree
    limit(task)
    wire.send(connection, os.getpid())
    module, error = imported(task["file"])
    wire.send(connection, error)
    while module is not None:
        try:
            request = wire.unpack(wire.receive(connection))
        except EOFError:
            return
        wire.send_packed(connection, answer(module, request, task["file"], wire.pack))


def close_control():
    """Put nothing in the place of the control socket; standard output and error lead nowhere already."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)


def limit(task):
    """Of the memory that is added from now on, of processor time and of files."""
    hard = {
        resource.RLIMIT_DATA: in_use() + task["memory"],
        resource.RLIMIT_CPU: task["cpu"],
        resource.RLIMIT_FSIZE: FILES,
        resource.RLIMIT_CORE: 0,
    }
    for which, most in hard.items():
        try:
            resource.setrlimit(which, (most, most))
        except (ValueError, OSError):  # not on this system, or stricter already
            continue


def in_use():
    """Bytes of data that this process has now; 0 if the system does not say."""
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmData"))
    except (OSError, StopIteration):
        return 0
    return int(line.split()[1]) * 1024


def imported(file):
    """(the student's file as a module, None), or (None, what went wrong)."""
    sys.path.append(os.path.dirname(file))
    spec = importlib.util.spec_from_file_location(MODULE, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        return None, calls.described(error, file)
    return module, None


def answer(module, request, file, pack):
    """The message with the results of a request's calls, or with what went wrong."""
    try:
        return pack(dict(results=calls.results(module, **request), error=None))
    except BaseException as error:     # exit() too, and what cannot be sent, such as a list that contains itself
        return pack(dict(results=None, error=calls.described(error, file)))


if __name__ == "__main__":
    main()
