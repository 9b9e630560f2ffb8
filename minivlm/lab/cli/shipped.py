"""The shipped model on the command line: its folder, its sample questions, and what it can be asked."""

import os
import shlex
from pathlib import Path

from minivlm.io.data import check_row, read_lines
from minivlm.io.image import local_file
from minivlm.toy.benchmark import ROW
from minivlm.toy.questions import ID, SPECIAL, WORDS
from minivlm.toy.scenes import SIDE
from pruning.base import UserError

TOY = Path(__file__).parents[2] / "toy"
FOLDER = TOY / "model"                             # the checkpoint
SAMPLES = TOY / "samples"                          # pictures and questions.jsonl, as `run.py scenes` writes them
# Without the image and with random tokens the answer is wrong; methods that know the question are right. Those that
# rank patches in the tower, before the question is known, drop the square; those that merge it with others lose it too.
FIRST = ("00001.png", "is there a cyan square ?")
FIRST_KEEP = "0.1"


def model_or(named):
    """The folder or hub id that was named, or the shipped model's folder. UserError if there is neither."""
    if named is not None:
        return named
    if not (FOLDER / "model.safetensors").is_file():
        raise UserError("--model is needed: name a checkpoint folder or a hub id")
    return FOLDER


def checked(model, question, images):
    """Notes for the reader, if the model is the shipped one. UserError for words that it does not know."""
    if Path(model.folder).resolve() != FOLDER.resolve():
        return []
    unknown = {word for word in words(question) if word not in ID}
    if unknown:
        known = [word for word in WORDS if word not in SPECIAL]
        names = ", ".join(map(repr, sorted(unknown)))
        raise UserError(f"the shipped model does not know {names}; its words: {' '.join(known)}")
    if all(image.size == (SIDE, SIDE) for image in images):
        return []
    return ["note: the shipped model knows only its drawn world; to a photograph its answer means nothing"]


def words(question):
    """What the tokenizer makes tokens of: "Is it red?" -> ["is", "it", "red", "?"]"""
    text = question.replace("<image>", " ").lower()
    spaced = [c if is_in_word(c) else f" {c} " for c in text]
    return "".join(spaced).split()


def is_in_word(character):
    """Whether a word may have it; a space ends a word by itself."""
    return character.isalnum() or character.isspace() or character == "_"


def first_look():
    """The command line in place of none: every method at a tenth of the tokens on one sample question."""
    model_or(None)
    image, question = FIRST
    words = ["compare", os.path.relpath(SAMPLES / image), question, "--keep", FIRST_KEEP, "--out", "pruned.png"]
    print(f"python run.py {shlex.join(words)}\n")
    return words


def known(picture, question):
    """What questions.jsonl in the picture's folder says of the question: a dict with answer and evidence.

    {} if there is no such question, or if the file is of another kind.
    """
    picture = Path(local_file(picture))
    fields = ROW | {"family": str | None}                  # other files need not have it
    try:
        rows = read_lines(picture.parent / "questions.jsonl", "question")
        for where, row in rows:
            check_row(row, where, "question", **fields)
    except UserError:
        return {}
    for _, row in rows:
        if row["image"] == picture.name and words(row["question"]) == words(question):
            return {name: value for name, value in row.items() if value is not None}
    return {}
