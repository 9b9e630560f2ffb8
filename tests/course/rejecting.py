"""Runs tests of this suite on copies of the sources: `rejecting.py FOLDER TEST FOLDER TEST ..` prints a JSON list.

torch and pytest are imported once; each run is a process forked from there, so that it takes a fraction of a second.
Of each: pytest's exit status (1: a test failed; 2 to 5: none could be run), and what it printed.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

import pytest

PRINTED = "printed.txt"
SLOW_TO_IMPORT = ("hypothesis", "numpy", "safetensors.torch", "torch")


def result(folder, test):
    """(exit status, printed) of one test in a folder with a copy of the sources."""
    child = os.fork()
    if child == 0:
        os._exit(status(folder, test))
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended), (Path(folder) / PRINTED).read_text()


def status(folder, test):
    """Run the test in this process, and print into a file."""
    os.chdir(folder)
    to = os.open(PRINTED, os.O_CREAT | os.O_WRONLY)
    os.dup2(to, 1)
    os.dup2(to, 2)
    code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--tb=native", test])
    sys.stdout.flush()
    return int(code)


if __name__ == "__main__":
    sys.path.pop(0)                    # the copies' conftest.py says where their modules are
    for name in SLOW_TO_IMPORT:
        import_module(name)
    given = sys.argv[1:]
    print(json.dumps([result(*pair) for pair in zip(given[::2], given[1::2])]))
