"""ScienceQA and MMBench: files of multiple choices."""

import base64
import binascii
import csv
import io
from contextlib import contextmanager
from zlib import crc32

from minivlm.io.data import LARGE, check_row, read_json, read_text
from minivlm.lab.tasks.formats.entries import beside, files, table
from minivlm.lab.tasks.metrics.choice import LETTERS
from minivlm.lab.tasks.question import Question, named
from pruning.base import UserError

PROBLEM = dict(question=str, choices=tuple[str, ...], answer=int, hint=str | None, image=str | None)
COLUMNS = ("index", "question", "A", "B", "answer", "image")
ROUND = 10 ** 6                        # is added to the index for each move of MMBench's choices
NAME_OF_PICTURE = 64                   # letters: a shorter "picture" is the index of the row that has it
LONGEST = 2 ** 31 - 1                  # letters of a field
MOST_DIGITS = 12                       # of an index
EMPTY = ("", "nan", "none")


def read_scienceqa(path):
    """problems.json, with pid_splits.json next to it; or their folder. The test split."""
    path, = files(path, "problems.json")
    splits = read_json(beside(path, "pid_splits.json"), "splits of ScienceQA")
    test = splits.get("test") if isinstance(splits, dict) else None
    problems = {id: (where, problem) for where, id, problem in table(path, "problem of ScienceQA")}
    if not isinstance(test, list) or any(str(id) not in problems for id in test):
        raise UserError(f"{path.parent / 'pid_splits.json'}: \"test\" must be a list of ids of {path}")
    return [_problem(str(id), *problems[str(id)]) for id in test]


def _problem(id, where, problem):
    check_row(problem, where, "problem of ScienceQA", **PROBLEM)
    choices = tuple(problem["choices"])
    if not 0 <= problem["answer"] < len(choices) <= len(LETTERS):
        raise UserError(f"{where}: answer must be the place of one of up to {len(LETTERS)} choices, counted from 0")
    image = problem.get("image")
    family = "image" if image else "no image"
    hint = problem.get("hint") or ""
    letter = LETTERS[problem["answer"]]
    return Question(f"{id}/{image}" if image else "", None, family, problem["question"], letter, names=named(id),
                    choices=choices, hint=hint)


def read_mmbench(path):
    """mmbench_dev_20230712.tsv, MMBENCH_DEV_EN.tsv and their like, which hold the pictures."""
    rows = _rows(files(path, "*.tsv")[0])
    encoded = {row["index"]: row["image"] for _, row in rows}
    questions = []
    for where, row in rows:
        image = row["image"]
        if len(image) < NAME_OF_PICTURE:
            image = encoded.get(image, "")
        questions.append(_row(where, row, image))
    return questions


def _rows(path):
    """[("path, row 1", row), ..] of a table with tabs. Its fields may have line breaks within quotes."""
    text = read_text(path, "questions of MMBench", LARGE)
    with _long_fields():
        try:
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
        except csv.Error as error:
            raise UserError(f"{path}: no table with tabs ({error})") from None
    where = [f"{path}, row {number}" for number in range(1, len(rows) + 1)]
    for place, row in zip(where, rows):
        missing = [name for name in COLUMNS if not row.get(name)]
        if missing:
            raise UserError(f"{place}: there is no {missing[0]} in it; a test set has no answer, and needs its server")
    if not rows:
        raise UserError(f"{path}: there are no questions in it")
    return list(zip(where, rows))


@contextmanager
def _long_fields():
    """csv refuses fields of more than 131072 letters, and a picture has more."""
    usual = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(usual)


def _row(where, row, image):
    index = row["index"]
    if not index.isdecimal() or len(index) > MOST_DIGITS:
        raise UserError(f"{where}: index must be a number, and is {index[:40]!r}")
    choices = _choices(row)
    if row["answer"] not in LETTERS[:len(choices)]:
        raise UserError(f"{where}: answer must be the letter of a choice, and is {row['answer']!r}")
    hint = row.get("hint") or ""
    return Question(
        f"{crc32(image.encode()):08x}", _picture(where, image), "", row["question"], row["answer"],
        names=named(index),
        choices=tuple(choices),
        hint="" if hint.lower() in EMPTY else hint,
        group=str(int(index) % ROUND),
    )


def _choices(row):
    """Two to four, up to the first that is empty."""
    choices = []
    for letter in LETTERS[:4]:
        choice = row.get(letter) or ""
        if choice.lower() in EMPTY:
            break
        choices.append(choice)
    return choices


def _picture(where, image):
    """What can be opened as a picture."""
    try:
        return io.BytesIO(base64.b64decode(image, validate=True))
    except binascii.Error as error:
        raise UserError(f"{where}: image is no picture in base64 ({error})") from None
