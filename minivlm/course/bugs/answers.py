"""ANSWERS.txt: what a student writes next to each file, and how it is read."""

import random
import re
import shlex
from difflib import get_close_matches
from typing import NamedTuple

from minivlm.course.bugs.planted import BUGS
from minivlm.course.bugs.promises.promises import PROMISES
from minivlm.io.data import SMALL, read_text
from pruning.base import UserError

NAME = "ANSWERS.txt"
LAST_SEED = 2 ** 31 - 1
ANSWER = re.compile(r"(?P<file>bug_\d+\.py)\s*:(?P<said>.*)")
NEARLY = re.compile(r"bug\W?_?\d", re.I)
SAID = re.compile(r"(?P<name>[a-z]+)(\s*,\s*(line\s*)?(?P<line>\d{1,6}))?")
PAGE = """\
Each file is one of this repository's, with one mistake. Write after its colon the promise that it breaks, as in
    bug_NN.py: budget
or with the number of the line, as in
    bug_NN.py: budget, 34
and then run
    python run.py bugs grade {folder}

seed: {seed}

{answers}

The promises:
{promises}
"""


class Answer(NamedTuple):
    """What is said of a file: the name of a promise, and a line or None."""

    name: str
    line: int | None


def shuffled(seed):
    """{"bug_01.py": planted mistake, ..} in the order of a seed."""
    bugs = list(BUGS)
    random.Random(seed).shuffle(bugs)
    return {f"bug_{number:02d}.py": bug for number, bug in enumerate(bugs, 1)}


def page(seed, folder):
    """The text of ANSWERS.txt before anything is answered."""
    answers = "\n".join(f"{file}:" for file in shuffled(seed))
    promises = "\n".join(listed())
    return PAGE.format(folder=shlex.quote(str(folder)), seed=seed, answers=answers, promises=promises)


def listed():
    """A line for each promise that can be named."""
    return [f"    {name:12} {promise.sentence}" for name, promise in PROMISES.items()]


def read(folder):
    """The seed, and {file: Answer}, of the files that are answered. UserError for what is no answer."""
    path = folder / NAME
    text = read_text(path, "answers", SMALL)
    seed = seed_in(text, path)
    known = shuffled(seed)
    answers = {}
    for where, file, said in written(text, path):
        if file not in known:
            raise UserError(f"{where}: there is no {file}: the files are {', '.join(known)}")
        if file in answers:
            raise UserError(f"{where}: {file} is answered twice: leave one of the two")
        answers[file] = answer_of(said, where)
    return seed, {file: answer for file, answer in answers.items() if answer}


def written(text, path):
    """(where, file, what is said of it) for each line with a file's name. # begins a comment.

    UserError for a line that begins like one and is none: it would be taken for no answer.
    """
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].strip()
        match = ANSWER.fullmatch(words)
        where = f"{path}, line {number}"
        if match:
            yield where, match["file"], match["said"].strip()
        elif NEARLY.match(words):
            raise UserError(f"{where}: write the name of the file in small letters, a colon, and what it breaks; got "
                            f"{words!r}")


def seed_in(text, path):
    """The number in the line of the seed."""
    lines = re.findall(r"^seed:(.*)$", text, re.M)
    if len(lines) > 1:
        raise UserError(f"{path}: it has {len(lines)} lines `seed: ..`: leave the one that `run.py bugs` wrote")
    if not lines:
        raise UserError(f"{path}: its line `seed: ..` is gone, which says which file has which mistake: put it back")
    words = lines[0].strip()
    if not re.fullmatch(r"\d{1,10}", words) or int(words) > LAST_SEED:
        raise UserError(f"{path}: the seed is a number up to {LAST_SEED}, as `run.py bugs` wrote it; got {words!r}")
    return int(words)


def answer_of(said, where):
    """The Answer in the text after a file's colon; None if it is empty."""
    if not said:
        return None
    match = SAID.fullmatch(said.lower())
    if not match:
        raise UserError(f"{where}: write the name of a promise, then perhaps a comma and the number of a line; "
                        f"got {said!r}")
    name = match["name"]
    if name not in PROMISES:
        close = get_close_matches(name, PROMISES, 1)
        hint = f"did you mean {close[0]}? The" if close else "the"
        raise UserError(f"{where}: {name!r} is no promise in the list: {hint} names are {', '.join(PROMISES)}")
    line = match["line"]
    return Answer(name, int(line) if line else None)

