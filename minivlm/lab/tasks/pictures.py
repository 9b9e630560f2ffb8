"""The pictures of a benchmark's questions: found in a folder before any work, opened one by one."""

from dataclasses import replace
from pathlib import Path

from pruning.base import UserError


def with_pictures(questions, folder):
    """The questions, each with the path of its picture. UserError if one is not there.

    A name of the files may lie in the folder itself, under its last part, or in an images/, test/ or png/ of it.
    """
    missing = [question for question in questions if question.picture is None]
    if missing and folder is None:
        raise UserError(f"the pictures are in no file of the task: name their folder with --images, which has "
                        f"{missing[0].image}")
    names = {question.image for question in missing}
    place_of = {name: found(name, folder) for name in sorted(names)}
    pictured = []
    for question in questions:
        picture = place_of.get(question.image, question.picture)
        pictured.append(replace(question, picture=picture))
    return pictured


def found(name, folder):
    """The path of a picture."""
    *above, last = Path(name).parts
    places = (
        name,
        Path(*above, "images", last),
        last,
        Path("images", name),
        Path("test", name),
        Path("png", name),
    )
    for place in places:
        path = Path(folder, place)
        if path.is_file():
            return path
    raise UserError(f"{folder}: there is no picture {name} in it: name the folder that has it with --images")
