"""Results of a command: checked before any work, written whole or not at all, and words that several share."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from minivlm.io.atomic import written
from minivlm.lab.cli import parallel
from pruning.base import UserError

RESUME = "go on with --resume"                     # after Ctrl-C
SAME_COMMAND = "the same command goes on from there"


def writable(path, suffix=None):
    """UserError, before any work, if a result could not be written there; no path is none to check."""
    if not path:
        return
    path = Path(path)
    if suffix and path.suffix.lower() != suffix:
        raise UserError(f"{path}: what is written is {suffix[1:].upper()}, so name it *{suffix}")
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise UserError(f"{path} cannot be written: name a file in a folder that exists")


def save(path, write):
    """Write the result whole or not at all: `write` gets the path to write to."""
    with written(path) as place:
        write(place)
    print(f"wrote {path}")


def save_json(path, data):
    """Write plain data there; nothing if no path is given."""
    if path:
        save(path, lambda place: place.write_text(json.dumps(data, indent=1)))


def printed(data, lines, as_json):
    """Print the data as JSON, or the lines that say the same."""
    print(json.dumps(data, indent=1) if as_json else "\n".join(lines))


def size(count):
    """size(14_126_854_144) -> "14.1 GB": bytes, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000


def refusals(why_not):
    """A line for each method of {label: why it does not run here}, after an empty one."""
    lines = [f"{label} does not run here: {reason}" for label, reason in why_not.items()]
    return ["", *lines] if lines else []


@contextmanager
def interruptible(path, remedy):
    """On Ctrl-C one line says what stays (what is at `path`) and how to go on; the exit status is 130."""
    try:
        yield
    except KeyboardInterrupt:
        if parallel.first():
            is_kept = path and Path(path).exists()
            kept = f"what is done is in {path}: {remedy}" if is_kept else "nothing was kept"
            print(f"\nrun.py: interrupted; {kept}", file=sys.stderr)
        raise
