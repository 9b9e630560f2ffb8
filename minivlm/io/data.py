"""Data files of a user: questions, instructions, recordings, fitted methods. Read within limits, checked by field.

Nothing is read that is no regular file (a pipe would wait for ever, a device has no end) or that is larger than files
of its kind are. What is wrong is a UserError that names the file, the line or entry, and the field.
"""

import json
import os
import stat
from pathlib import Path

from pruning.base import UserError
from pruning.fields import fault, plain, shown

LARGE = 2 ** 32                        # bytes: LLaVA's largest file of instructions has 1.1e9
MIDDLE = 2 ** 28                       # questions, recordings
SMALL = 2 ** 22                        # settings of a method


def read_text(path, what, most=MIDDLE):
    """The text of a UTF-8 file of at most so many bytes; `what` says in a message what it should hold."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: no {what}, since it is no file")
        if status.st_size > most:
            raise UserError(f"{path}: no {what} of {status.st_size} bytes are read, only of up to {most}")
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:         # the second: no UTF-8, or a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: no {what} that can be read ({reason})") from None


def read_json(path, what, most=MIDDLE):
    """The value in a JSON file."""
    return _value(read_text(path, what, most), path, what)


def read_lines(path, what):
    """[("path, line 1", value), ..] of a file with JSON on each line; blank lines are passed over."""
    lines = read_text(path, what).split("\n")      # splitlines() would cut at marks that a text may contain
    rows = [(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"{path}: there is no {what} in it")
    return [(where, _value(line, where, what)) for where, line in rows]


def _value(text, where, what):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # the second: brackets nested without an end
        raise UserError(f"{where}: no {what} in JSON ({error})") from None


def check_row(row, where, what, complaint=None, **annotations):
    """UserError unless `row` is a JSON object whose fields are as annotated (pruning/fields.py).

    What may be None may be missing. complaint: what to say of a value of a wrong kind, in place of a sentence on that field.
    """
    if not isinstance(row, dict):
        names = ", ".join(annotations)
        raise UserError(f"{where}: no {what} in JSON: write an object {{..}} with {names}; got {shown(row)}")
    for name, annotation in annotations.items():
        if name not in row and fault(annotation, None):
            raise UserError(f"{where}: there is no {name!r} in it")
        wrong = fault(annotation, plain(row.get(name)))
        if wrong:
            raise UserError(f"{where}: " + (complaint or f"{name} {wrong}; got {shown(row[name])}"))


def check_pictures(pictures):
    """UserError for the first (where, path) whose picture is not there: found before hours of work, not after them."""
    for where, path in pictures:
        if not os.path.isfile(path):
            raise UserError(f"{where}: there is no picture {path}")
