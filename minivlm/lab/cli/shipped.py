"""The shipped model on the command line: where it lies, its sample questions, and what it can be asked."""

import json
import os
import shlex
from pathlib import Path

from minivlm.io.data import check_row, read_lines
from minivlm.io.image import local_file
from minivlm.toy.benchmark import ROW
from minivlm.toy.questions import ID, SPECIAL, WORDS
from minivlm.toy.scenes import SIDE
from pruning.base import UserError

FOLDER = Path(__file__).parents[2] / "toy"
SAMPLES = FOLDER / "samples"                       # pictures and questions.jsonl, as `run.py scenes` writes them


def model_or(named):
    """The folder or hub id that was named, or the shipped model's folder. UserError where neither is there."""
    if named is None and not (FOLDER / "model.safetensors").is_file():
        raise UserError("--model is needed: name a checkpoint folder or a hub id")
    return FOLDER if named is None else named


def checked(model, question, images):
    """Notes for the reader, where the model is the shipped one. UserError for words that it does not know."""
    if Path(model.folder).resolve() != FOLDER.resolve():
        return []
    unknown = sorted({word for word in words(question) if word not in ID})
    if unknown:
        known = " ".join(word for word in WORDS if word not in SPECIAL)
        raise UserError(f"the shipped model does not know {', '.join(map(repr, unknown))}; its words: {known}")
    foreign = any(image.size != (SIDE, SIDE) for image in images)
    return ["note: the shipped model knows its drawn world alone; to a photograph its answer means nothing"] if foreign else []


def words(question):
    """What the tokenizer makes tokens of: "Is it red?" -> ["is", "it", "red", "?"]"""
    spaced = "".join(c if c.isalnum() or c.isspace() or c == "_" else f" {c} " for c in question.replace("<image>", " ").lower())
    return spaced.split()


def first_look():
    """The command line that stands for none: every method at a tenth of the tokens, on the first sample question about two objects."""
    model_or(None)
    rows = map(json.loads, (SAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines())
    first = next(row for row in rows if row["family"] == "relpos")
    words = ["compare", os.path.relpath(SAMPLES / first["image"]), first["question"], "--keep", "0.1", "--out", "pruned.png"]
    print(f"python run.py {shlex.join(words)}\n")
    return words


def known(picture, question):
    """What the questions.jsonl beside the picture tells of the question: a dict with answer and evidence; {} without one.

    {} too where that file is of another kind: it need not be ours.
    """
    picture = Path(local_file(picture))
    try:
        rows = read_lines(picture.parent / "questions.jsonl", "question")
        for where, row in rows:
            check_row(row, where, "question", **ROW | dict(family=str | None))     # other files need not have it
    except UserError:
        return {}
    own = (row for _, row in rows if row["image"] == picture.name and words(row["question"]) == words(question))
    return {name: value for name, value in next(own, {}).items() if value is not None}
