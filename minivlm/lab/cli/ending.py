"""How a command ends: its exit status, and one line on what a user can mend."""

import io
import os
import sys
import time
import warnings
from contextlib import suppress

import torch

from minivlm.lab.named.file import own_fault
from pruning.base import UserError

PATIENCE = 30                          # seconds that another process gets to print the same refusal


def exit_status(command, argv):
    """What command(argv) returns, 0 for None.

    After bad input it is 2, after a bug in minivlm 70, after Ctrl-C 130, and 141 if nobody reads the output any more.
    """
    any_terminal()
    try:
        return _ended(command, argv)
    except KeyboardInterrupt:
        return 130
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not own_fault(error):     # after --help
            raise
        refused = refusal(error)
        if refused is None and ("--debug" in argv or os.environ.get("MINIVLM_DEBUG")):     # the tests set the variable
            raise
        if refused:
            _let_the_first_process_print()
        print(f"run.py: {refused or bug(error)}", file=sys.stderr)
        return 2 if refused else 70


def any_terminal():
    """Print a substitute for a character that the terminal lacks.

    Bytes of the input that are no UTF-8 are passed on to where the text is refused.
    """
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace"), (sys.stdin, "surrogateescape")):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(io.UnsupportedOperation):    # it has been read from already
                stream.reconfigure(errors=errors)


def _ended(command, argv):
    """The exit status. What libraries warn of is shown at the end of a command, not around a refusal."""
    with warnings.catch_warnings(record=True) as caught:
        try:
            status = command(argv) or 0
            sys.stdout.flush()
        except BrokenPipeError:                        # whoever read the output, like head, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 141
    for warning in caught:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    return status


def refusal(error):
    """The line on what a user can mend; None for a bug.

    It is the error's own, with the line of a reader's own file if it comes from there; the system's with the file's
    name; or that the memory is full.
    """
    of_own_file = own_fault(error)
    if of_own_file:
        return of_own_file
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return UserError(f"{error.filename or 'a file'} cannot be read or written ({error.strerror or error})")
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error):
        return UserError("the memory is full: take a smaller model, fewer tokens at once or --dtype bfloat16")
    return None


def bug(error):
    """The line on an exception that nobody foresaw."""
    return UserError(f"this is a bug: {type(error).__name__}: {error}; please report it, with what --debug prints")


def _let_the_first_process_print():
    """Of several processes on this machine, which are refused alike, wait in all but the first.

    torchrun ends them as soon as the first has printed. One that is refused by itself prints after the wait.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(PATIENCE)
