"""The drawn world as a benchmark: any number of questions of every family, and the same as a folder of files.

    DIR/00000.png ...       the pictures
    DIR/questions.jsonl     a line per question: image, family, question, answer, and the patches (row * 12 + column)
                            that are its evidence, and those that show a thing
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image

from minivlm.io.atomic import write_text, written, written_folder
from minivlm.io.data import check_pictures, check_row, read_lines
from minivlm.io.image import open_image
from minivlm.toy import questions, scenes
from minivlm.toy.questions import FAMILIES, WORDS
from minivlm.toy.scenes import GRID
from pruning.base import UserError
from pruning.fields import Range

PATCHES = tuple[Annotated[int, Range(0, GRID ** 2 - 1)], ...]
ROW = dict(image=str, family=str, question=str, answer=str, evidence=PATCHES | None, things=PATCHES | None)
COMPLAINT = ("image, family, question and answer are words, evidence and things numbers of patches below "
             f"{GRID ** 2}")
BATCH = 32                                         # pictures drawn at once: the set depends on it


@dataclass(frozen=True)
class Item:
    """One question about one picture."""

    image: int | str                               # the picture's number in its set, or its name in a folder
    picture: Image.Image
    family: str
    question: str
    answer: str
    evidence: tuple = ()                           # patches, row by row from 0, that hold the answer
    things: tuple = ()                             # patches that show an object or a sign, those first that show most


def items(name="heldout", count=300, seed=0):
    """`count` questions of each family of the set `name`, of each family one per picture; the same at every call."""
    if name not in scenes.SETS:
        raise UserError(f"set {name!r} is not known: use one of {', '.join(scenes.SETS)}")
    if seed < 0:
        raise UserError(f"seed {seed}: give a number from 0 on")
    left = dict.fromkeys(FAMILIES, count)
    chosen = []
    batch = 0
    while any(left.values()):
        worlds = scenes.worlds(name, seed, batch, BATCH)
        rng = np.random.default_rng((seed, 90, batch))
        pictures = [Image.fromarray(pixels) for pixels in worlds.pixels]
        for family in FAMILIES:                    # drawn even if none is left, so that fewer are the first of more
            drawn = _asked(rng, family, worlds, pictures, batch, unseen=name == "pairs")
            drawn = drawn[:left[family]]
            left[family] -= len(drawn)
            chosen += drawn
        batch += 1
    return sorted(chosen, key=lambda item: item.image)


def _asked(rng, family, worlds, pictures, batch, unseen):
    """The items of one family: a question about each picture, unless it has no answer."""
    question = questions.ask(rng, family, worlds, unseen)
    answer = questions.answer(family, question, worlds, worlds.present)
    evidence = questions.evidence(family, question, worlds)
    # patches that show things, those that show most first
    pixels = worlds.area.sum(axis=1)                                               # (B, N) pixels of things
    order = (-pixels).argsort(axis=1, kind="stable")
    count = (pixels > 0).sum(axis=1)
    asked = []
    for i in range(BATCH):
        if answer[i] >= 0:
            words = questions.text(family, question[i])
            (needed,) = evidence[i].nonzero()
            things = order[i, :count[i]]
            image = batch * BATCH + i
            item = Item(image, pictures[i], family, " ".join(words), WORDS[answer[i]])
            asked.append(replace(item, evidence=tuple(needed.tolist()), things=tuple(things.tolist())))
    return asked


def write(folder, name="heldout", count=300, seed=0, pictures=None):
    """The set, or the questions about its first `pictures` pictures, as a folder of pictures and questions.jsonl -> how
    many questions."""
    chosen = items(name, count, seed)
    if pictures is not None:
        chosen = [item for item in chosen if item.image < pictures]
    picture_of = {item.image: item.picture for item in chosen}
    lines = [json.dumps(_row(item)) + "\n" for item in chosen]
    with written_folder(folder) as place:
        for number, picture in picture_of.items():
            with written(place / _file_name(number)) as beside:
                picture.save(beside)
        write_text(place / "questions.jsonl", "".join(lines))
    return len(chosen)


def _file_name(number):
    return f"{number:05}.png"


def _row(item):
    """The line of questions.jsonl of an item."""
    row = dict(image=_file_name(item.image))
    for name in ("family", "question", "answer", "evidence", "things"):
        row[name] = getattr(item, name)
    return row


def read(folder):
    """[Item] of a folder that `write` wrote, or of one like it; patches may be missing. UserError that names the
    line."""
    folder = Path(folder)
    rows = read_lines(folder / "questions.jsonl", "question")
    for where, row in rows:
        check_row(row, where, "question", COMPLAINT, **ROW)
    check_pictures((where, folder / row["image"]) for where, row in rows)
    opened = cache(open_image)
    return [_item(row, opened(folder / row["image"])) for _, row in rows]


def _item(row, picture):
    evidence = tuple(row.get("evidence") or ())
    things = tuple(row.get("things") or ())
    return Item(row["image"], picture, row["family"], row["question"], row["answer"], evidence, things)


def on_patches(grid, patches):
    """Indices of the places (N, 3) that share pixels with these patches of a drawn picture; none of a picture cut into
    tiles."""
    tile, row, column = grid.T
    if (tile != tile[0]).any():
        return tile.new_zeros(0)
    patches = torch.tensor(patches, dtype=torch.long, device=grid.device)
    rows = int(row.max()) + 1
    columns = int(column.max()) + 1
    share_rows = _overlap(row, rows, patches // GRID)                              # (N, patches)
    share_columns = _overlap(column, columns, patches % GRID)
    shares = (share_rows & share_columns).any(dim=1)
    is_on_grid = row >= 0
    return (shares & is_on_grid).nonzero().squeeze(1)


def _overlap(place, places, patch):
    """(N, patches) whether place `place` of `places` along a side and place `patch` of 12 have pixels in common."""
    place = place[:, None]
    begins_before = place * GRID < (patch + 1) * places
    ends_after = patch * places < (place + 1) * GRID
    return begins_before & ends_after
