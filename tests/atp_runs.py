"""A set of instructions about three pictures, and the command that trains ATP on it."""

import json

from paths import IMAGES, MODEL

PICTURES = ("gray_250x170.png", "land_500x333.png", "port_333x500.png")


def conversation(*texts):
    """The turns of a conversation in LLaVA's format; the human begins."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def write_instructions(folder, count=12):
    """Write data.json about three pictures, the last conversation without one; its path."""
    nouns = ("boat", "lake", "sign", "small square", "dog")
    talks = [conversation(f"<image>\nWhat is the {nouns[i % 5]}?", nouns[i % 4]) for i in range(count)]
    rows = [dict(id=str(i), image=PICTURES[i % 3], conversations=talk) for i, talk in enumerate(talks)]
    rows[1]["conversations"] += conversation("And which <image>color?", "white and bright")
    rows.append(dict(id="text", conversations=conversation("Hi", "Hello")))
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json"


def atp_command(folder, out, *more, steps=3):
    """The words of `train atp` on the instructions in `folder`."""
    return ["train", "atp", "--model", str(MODEL), "--data", str(folder / "data.json"), "--images", str(IMAGES),
            "--target-tokens", "8", "--layers", "1,2", "--steps", str(steps), "--batch", "2", "--lr", "1e-3",
            "--lr-module", "1e-2", "--width", "4", "--out", str(out), *more]
