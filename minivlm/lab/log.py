"""Rows of a long run on disk, one JSON object a line, written before the next is worked on, so that a run can go on later."""

import json
from pathlib import Path

from pruning.base import UserError


class Log:
    """The rows of a file that several processes may write to. Its first line is the recipe of the run. Without a path, nothing is kept."""

    def __init__(self, path, recipe):
        """Goes on with the file that is there. UserError if it is of another recipe, or no such file."""
        self.path = path and Path(path)
        text = self.path.read_bytes() if path and self.path.exists() else b""
        told, ours = _whole(text), json.loads(json.dumps(recipe))
        if text and (not told or "recipe" not in told[0]):
            raise UserError(f"{path} holds something else than the answers of a run: name another --out")
        for theirs in (line["recipe"] for line in told if "recipe" in line):
            _same(path, theirs, ours)
        self._write("" if text.endswith(b"\n") else "\n" if text else json.dumps(dict(recipe=recipe)) + "\n")
        self.rows = {(row["contestant"], row["question"]): row for row in told if "contestant" in row}

    def add(self, row):
        """Append a row."""
        self._write(json.dumps(row) + "\n")

    def _write(self, text):
        """In one call of the system, so that lines of other processes stay whole."""
        if self.path:
            with open(self.path, "ab", buffering=0) as file:
                file.write(text.encode())


def _whole(text):
    """The lines that can be read, as dicts; what one that was cut short was about is worked on again."""
    told = []
    for line in text.splitlines():
        try:
            told.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            continue
    return told


def _same(path, theirs, ours):
    for name in {**theirs, **ours}:
        if theirs.get(name) != ours.get(name):
            raise UserError(f"{path} is of a run with {name} {theirs.get(name)}, and this one has {ours.get(name)}: go on with the same "
                            "options, or name another --out")
