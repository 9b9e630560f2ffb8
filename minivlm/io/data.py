"""Data files of a user: questions, instructions, recordings, fitted methods. Read within limits, checked by field.

Nothing is read that is no regular file (a pipe would wait for ever, a device has no end) or that is larger than files
of its kind are. What is wrong is a UserError that names the file, the line or entry, and the field.
"""

import os

from minivlm.io.files import parse_json, read_bytes, reason_of
from pruning.base import UserError
from pruning.fields import fault, plain, shown

LARGE = 2 ** 32                        # bytes: LLaVA's largest file of instructions has 1.1e9
MIDDLE = 2 ** 28                       # questions, recordings
SMALL = 2 ** 22                        # settings of a method


def read_text(path, what, most=MIDDLE):
    """The text of a UTF-8 file of at most so many bytes; `what` says in a message what it should hold."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except (OSError, ValueError) as error:         # the second: no UTF-8, or a name that no file can have
        raise UserError(f"{path}: no {what} that can be read ({reason_of(error)})") from None


def read_json(path, what, most=MIDDLE):
    """The value in a JSON file."""
    return _value(read_text(path, what, most), path, what)


def read_lines(path, what):
    """[("path, line 1", value), ..] of a file with JSON on each line; blank lines are passed over."""
    lines = read_text(path, what).split("\n")      # splitlines() would cut at marks that a text may contain
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            rows.append((where, _value(line, where, what)))
    if not rows:
        raise UserError(f"{path}: there is no {what} in it")
    return rows


def _value(text, where, what):
    try:
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{where}: no {what} in JSON ({error})") from None


def check_row(row, where, what, complaint=None, **annotations):
    """UserError unless `row` is a JSON object whose fields are as annotated (pruning/fields.py).

    What may be None may be missing. complaint: what to say of a value of a wrong kind, in place of a sentence on that
    field.
    """
    if not isinstance(row, dict):
        names = ", ".join(annotations)
        raise UserError(f"{where}: no {what} in JSON: write an object {{..}} with {names}; got {shown(row)}")
    for name, annotation in annotations.items():
        if name not in row and fault(annotation, None):
            raise UserError(f"{where}: there is no {name!r} in it")
        wrong = fault(annotation, plain(row.get(name)))
        if wrong:
            sentence = complaint or f"{name} {wrong}; got {shown(row[name])}"
            raise UserError(f"{where}: {sentence}")


def check_pictures(pictures):
    """UserError for the first (where, path) whose picture is not there: raised before hours of work, not after them."""
    for where, path in pictures:
        if not os.path.isfile(path):
            raise UserError(f"{where}: there is no picture {path}")
