"""The drawn world as a benchmark: as many questions of every family as asked for, and the same as a folder of files.

    DIR/00000.png ...       the pictures
    DIR/questions.jsonl     a line a question: image, family, question, answer, and the patches (row * 12 + column) that
                            are its evidence, and those that show a thing
"""

import json
from dataclasses import dataclass
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
COMPLAINT = f"image, family, question and answer are words, evidence and things numbers of patches below {GRID ** 2}"
BATCH = 32                                         # pictures drawn at once: the set depends on it


@dataclass(frozen=True)
class Item:
    """One question about one picture."""

    image: int | str                               # the picture's number in its set, or its name in a folder
    picture: Image.Image
    family: str
    question: str
    answer: str
    evidence: tuple                                # patches, row by row from 0, that hold the answer
    things: tuple = ()                             # patches that show an object or a sign, those first that show most


def items(name="heldout", count=300, seed=0):
    """`count` questions of each family of the set `name`, one a family a picture; the same at every call."""
    if name not in scenes.SETS:
        raise UserError(f"set {name!r} is not known: use one of {', '.join(scenes.SETS)}")
    if seed < 0:
        raise UserError(f"seed {seed}: give a number from 0 on")
    left, found, batch = dict.fromkeys(FAMILIES, count), [], 0
    while any(left.values()):
        worlds, rng = scenes.worlds(name, seed, batch, BATCH), np.random.default_rng((seed, 90, batch))
        pictures = [Image.fromarray(pixels) for pixels in worlds.pixels]
        for family in FAMILIES:                    # drawn even where none is left, so that fewer are the first of more
            new = _asked(rng, family, worlds, pictures, batch, name == "pairs")[:left[family]]
            left[family] -= len(new)
            found += new
        batch += 1
    return sorted(found, key=lambda item: item.image)


def _asked(rng, family, worlds, pictures, batch, unseen):
    asked = questions.ask(rng, family, worlds, unseen)
    right, need = questions.answer(family, asked, worlds, worlds.present), questions.evidence(family, asked, worlds)
    shows = worlds.area.sum(axis=1)                                                # (B, N) pixels of things
    most, count = (-shows).argsort(axis=1, kind="stable"), (shows > 0).sum(axis=1)
    return [Item(batch * BATCH + i, pictures[i], family, " ".join(questions.text(family, asked[i])), WORDS[right[i]],
                 tuple(need[i].nonzero()[0].tolist()), tuple(most[i, :count[i]].tolist())) for i in range(BATCH) if right[i] >= 0]


def write(folder, name="heldout", count=300, seed=0, pictures=None):
    """The set, or what it asks of its first so many pictures, as a folder of pictures and questions.jsonl -> how many questions."""
    chosen = [i for i in items(name, count, seed) if pictures is None or i.image < pictures]
    lines = [dict(image=f"{i.image:05}.png", family=i.family, question=i.question, answer=i.answer, evidence=i.evidence,
                  things=i.things) for i in chosen]
    with written_folder(folder) as place:
        for item in {item.image: item for item in chosen}.values():
            with written(place / f"{item.image:05}.png") as beside:
                item.picture.save(beside)
        write_text(place / "questions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return len(chosen)


def read(folder):
    """[Item] of a folder that `write` wrote, or of one like it; patches may be missing. UserError that names the line."""
    folder, opened = Path(folder), cache(open_image)
    rows = read_lines(folder / "questions.jsonl", "question")
    for where, row in rows:
        check_row(row, where, "question", COMPLAINT, **ROW)
    check_pictures((where, folder / row["image"]) for where, row in rows)
    return [_item(row, opened(folder / row["image"])) for _, row in rows]


def _item(row, picture):
    evidence, things = (tuple(row.get(name) or ()) for name in ("evidence", "things"))
    return Item(row["image"], picture, row["family"], row["question"], row["answer"], evidence, things)


def on_patches(cells, patches):
    """Indices of the cells (N, 3) that share pixels with these patches of a drawn picture; none of a picture cut into tiles."""
    tile, row, column = cells.T
    if (tile != tile[0]).any():
        return tile.new_zeros(0)
    patches, h, w = torch.tensor(patches, dtype=torch.long, device=cells.device), int(row.max()) + 1, int(column.max()) + 1
    on = _overlap(row, h, patches // GRID) & _overlap(column, w, patches % GRID)   # (N, patches)
    return (on.any(dim=1) & (row >= 0)).nonzero().squeeze(1)


def _overlap(cell, cells, patch):
    """(N, patches) whether place `cell` of `cells` along a side and place `patch` of 12 have pixels in common."""
    return (cell[:, None] * GRID < (patch + 1) * cells) & (patch * cells < (cell[:, None] + 1) * GRID)
