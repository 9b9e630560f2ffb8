"""The pictures of a benchmark's questions: found in a folder before any work, opened one by one."""

from dataclasses import replace
from pathlib import Path

from pruning.base import UserError


def with_pictures(questions, folder):
    """The questions, each with the path of its picture. UserError if one is not there.

    A name of the files may lie in the folder itself, under its last part, or in an images/ or png/ of it.
    """
    missing = [question for question in questions if question.picture is None]
    if missing and folder is None:
        raise UserError(f"the pictures are in no file of the task: name their folder with --images, which has "
                        f"{missing[0].image}")
    place_of = {question.image: found(question.image, folder) for question in missing}
    pictures = [place_of.get(question.image, question.picture) for question in questions]
    return [replace(question, picture=picture) for question, picture in zip(questions, pictures)]


def found(name, folder):
    """The path of a picture."""
    name = Path(name)
    folder = Path(folder)
    for place in (name, name.parent / "images" / name.name, name.name, f"images/{name.name}", f"png/{name.name}"):
        if (folder / place).is_file():
            return folder / place
    raise UserError(f"{folder}: there is no picture {name} in it: name the folder that has it with --images")
