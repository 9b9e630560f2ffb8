"""What a reader's own Python file defines, by FILE.py:NAME. The file is executed.

An exception that the reader's code raises is a UserError with the file and the line.
"""

import importlib.util
import sys
import traceback
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pruning.base import UserError

RAISED = (Exception, SystemExit)       # what a reader's own code may raise, and does not end the command
MODULE = "own_method:"                 # the file is imported under this name and its own


def from_file(words):
    """The function or class that "FILE.py:NAME" means. UserError if there is none, or if the file fails."""
    file, colon, name = words.rpartition(":")
    if not colon or not file.endswith(".py") or not name:
        raise UserError(f"{words}: write FILE.py:NAME, the file and what it defines")
    if not Path(file).is_file():
        raise UserError(f"{file}: there is no such file")
    module = executed(file, Path(file).stat().st_mtime_ns)
    # what it defines, not what it imports
    own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__}
    if name not in own or not callable(own[name]):
        known = [key for key, value in own.items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{file} defines no function or class {name!r}: it has {', '.join(known) or 'none'}")
    return own[name]


@cache
def executed(file, changed):
    """The file as a module, after it has run: once, until it is changed. It can import what lies in its own folder."""
    name = f"{MODULE}{file}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module         # dataclasses look there for the module of a class
    sys.path.insert(0, str(Path(file).resolve().parent))
    try:
        with blaming(file):
            spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def text_of(kind):
    """The text of the user's own file that defines a class; "" for a class of this repository."""
    if not kind.__module__.startswith(MODULE):
        return ""
    return Path(kind.__module__.removeprefix(MODULE)).read_text()


@contextmanager
def blaming(file):
    """An error raised inside becomes a UserError of one line, which names the file, and its line if the error has one.
    """
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:     # exit() too
        raise at_line(error, file) from error


def own_fault(error):
    """The UserError of an error that passed a reader's own file, with its file and line; None for any other.

    What our code cannot do with an object of a reader's class is of that file, too, but has no line.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [frame.f_globals.get("__name__", "") for frame in frames]
    if not isinstance(error, UserError):
        names += [type(frame.f_locals.get("self")).__module__ for frame in frames]
    for name in names:
        if name.startswith(MODULE):
            return at_line(error, name.removeprefix(MODULE))
    return None


def at_line(error, file):
    """The error as a UserError of one line: file, line if it has one, kind, message."""
    message = str(error).strip().splitlines()
    kind = "" if isinstance(error, UserError) else type(error).__name__
    words = ": ".join(filter(None, [kind, *message[:1]]))
    place = ":".join([file, *lines_of(error, file)[-1:]])
    return UserError(f"{place}: {words}")


def lines_of(error, file):
    """The numbers of the lines of the file that the error passed, as text."""
    if isinstance(error, SyntaxError):
        return [str(error.lineno)] if error.lineno else []
    path = Path(file).resolve()
    frames = traceback.extract_tb(error.__traceback__)
    return [str(frame.lineno) for frame in frames if Path(frame.filename).resolve() == path]
