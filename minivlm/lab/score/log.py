"""Rows of a long run on disk, one JSON object per line.

Each is written before work on the next begins, so that an interrupted run can continue.
"""

import json
import os
import re
from pathlib import Path

from minivlm.lab.score.statistics import NAMES
from pruning.base import UserError
from pruning.fields import shown

ROW = {"contestant", "question"}
ANSWERED = ROW | {"answers", "right", "visual", "evidence", "kept", "statistics"}
FAILED = ROW | {"why_not"}
MOST_TOKENS = 10 ** 9
HEXADECIMAL = re.compile("[0-9a-f]+")


class Log:
    """The rows of a file that several processes may write to. Its first line is the recipe of the run.

    Without a path, nothing is kept. The file appears with the first row.
    """

    def __init__(self, path, recipe):
        """Goes on with the file that is there. UserError if it is of another recipe, or no such file."""
        self.path = path and Path(path)
        text = _text(self.path)
        first = json.dumps(dict(recipe=recipe)) + "\n"
        lines = _lines(text)
        recipes = [line["recipe"] for line in lines.values() if "recipe" in line]
        is_cut_short = first.encode().startswith(text)             # a run that was killed in its first line, or none
        if not is_cut_short and (not recipes or "recipe" not in next(iter(lines.values()))):
            raise UserError(f"{path} holds something else than the answers of a run: name another --out")
        for other in recipes:
            _check_same(path, other, json.loads(json.dumps(recipe)))
        self.rows = {}
        for number, row in lines.items():
            if "recipe" not in row:
                _check_row(f"{path}, line {number}", row)
                self.rows[row["contestant"], row["question"]] = row
        # what is to be written before the first new row
        self.before = "\n" if text and not text.endswith(b"\n") else ""
        if is_cut_short and not recipes:
            self.before += first

    def add(self, row):
        """Append a row."""
        if self.path:
            self._append(self.before + json.dumps(row) + "\n")
            self.before = ""

    def _append(self, text):
        """In one call of the system, so that lines of other processes stay whole."""
        with open(self.path, "ab", buffering=0) as file:
            file.write(text.encode())


def _text(path):
    """What the file holds, in bytes; nothing if there is none."""
    if not path or not os.path.lexists(path):
        return b""
    if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
        raise UserError(f"{path} is no file that can be read and written: name another --out")
    return path.read_bytes()


def _lines(text):
    """{number: line} of the lines that can be read, as dicts. What a line cut short was about is worked on again."""
    lines = {}
    for number, line in enumerate(text.split(b"\n"), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            lines[number] = row
    return lines


def _check_row(where, row):
    """UserError for a row that no run has written."""
    if row.keys() == FAILED:
        is_row = isinstance(row["why_not"], str)
    else:
        is_row = row.keys() == ANSWERED and _is_answer(row)
    if not is_row or not isinstance(row["contestant"], str) or not _is_count(row["question"]):
        raise UserError(f"{where} is no answer of a run: remove the line, and the question is asked again")


def _is_answer(row):
    """Whether the words, the shares and the numbers of tokens are such."""
    answers = row["answers"]
    visual = row["visual"]
    has_words = isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
    has_tokens = isinstance(visual, list) and visual and all(_is_number(n, MOST_TOKENS) for n in visual)
    has_evidence = row["evidence"] is None or _is_number(row["evidence"], 1)
    has_numbers = has_words and has_tokens and has_evidence and _is_number(row["right"], 1)
    return has_numbers and _has_kept(row["kept"], len(answers)) and _has_statistics(row["statistics"])


def _has_kept(kept, draws):
    """Whether it is a number in hexadecimal for each draw."""
    is_list = isinstance(kept, list) and len(kept) == draws
    return is_list and all(isinstance(bits, str) and HEXADECIMAL.fullmatch(bits) for bits in kept)


def _has_statistics(numbers):
    """Whether each is a number or not known."""
    is_table = isinstance(numbers, dict) and numbers.keys() == set(NAMES)
    return is_table and all(x is None or _is_number(x, MOST_TOKENS, least=-1) for x in numbers.values())


def _is_count(x):
    return isinstance(x, int) and not isinstance(x, bool) and x >= 0


def _is_number(x, most, least=0):
    """From `least` to `most`, and so not NaN."""
    return isinstance(x, (int, float)) and not isinstance(x, bool) and least <= x <= most


def _check_same(path, other, own):
    """UserError unless the file's recipe is this run's."""
    if not isinstance(other, dict):
        raise UserError(f"{path} holds something else than the answers of a run: name another --out")
    for name in {**other, **own}:
        if other.get(name) != own.get(name):
            raise UserError(f"{path} is of a run with {name} {shown(other.get(name))}, and this one has "
                            f"{shown(own.get(name))}: go on with the same options, or name another --out")
