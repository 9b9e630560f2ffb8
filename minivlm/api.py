"""The model in a notebook or a script: `ask` a question, or `prune` without an answer; what is kept, and its picture.

These functions do what the command `ask` does. Like the lab they are built on everything else, so no other file of the
network imports them. An error that a user can cause is a UserError with the sentence that the command line prints.
"""

import os
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from minivlm.generate import Conversation
from minivlm.io.image import open_image
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli.options import check, entering
from minivlm.lab.cli.shipped import FOLDER, checked
from minivlm.lab.draw import draw
from minivlm.lab.draw.sheet import sheet
from minivlm.trace import Trace
from pruning.base import Pruner, UserError
from weights import load


@dataclass(frozen=True, repr=False)
class Pruned:
    """What a method keeps of the images of one prompt."""

    question: str
    images: list                       # RGB pictures
    boxes: list                        # the part of each image that the model sees, in pixels
    trace: Trace

    @property
    def kept(self):
        """(k,) the visual tokens that are left, as indices among those of the unpruned prompt."""
        return self.trace.kept

    @property
    def places(self):
        """(k, 3) their tile, row and column; row -1: on no grid, such as a newline of LLaVA-NeXT."""
        return self.trace.grid[self.kept]

    def picture(self):
        """A PIL image: one row per image, one panel per reduction, with the dropped patches darkened."""
        if not self.images:
            raise UserError("there is nothing to draw: the question was asked without an image")
        rows = []
        for i, (image, box) in enumerate(zip(self.images, self.boxes)):
            rows.append(draw.panels(image, box, self.trace, i))
        return sheet(rows, header=self._title())

    def _title(self):
        return self.question

    def __repr__(self):
        return f"Pruned({len(self.kept)} of {self.trace.N} visual tokens kept)"


@dataclass(frozen=True, repr=False)
class Answer(Pruned):
    """The same, and the answer that the model gives."""

    text: str
    ids: list                          # the generated ids, with the one that ends the answer

    def _title(self):
        return f"{self.question}  {self.text}"

    def __repr__(self):
        return f"Answer({self.text!r}, {len(self.kept)} of {self.trace.N} visual tokens kept)"


def shipped():
    """The shipped model in float32: a tiny LLaVA that knows one drawn world (minivlm/toy/README.md)."""
    return load(FOLDER, torch.float32)


def ask(model, images, question, method=None, max_new_tokens=64, sampling=None):
    """The Answer to a question about an image: ask(model, "cat.png", "What is it?", FastV(keep=0.1)).text

    images: a path, a PIL image or an array (height, width, 3) of bytes; a list of them; or None for a question without
    an image. method: an instance of a class of `pruning`; its fields count what its paper counts. sampling: by default
    greedy. Raises UserError.
    """
    talk, pictures = _read(model, images, question, method)
    ids = list(talk.generate(max_new_tokens, sampling))
    text = model.tokenizer.decode(ids).strip()
    return Answer(question, pictures, model.processor.boxes_of(pictures), talk.trace, text, ids)


def prune(model, images, question, method):
    """What the method keeps when the model reads the same prompt, without an answer: a Pruned. Raises UserError."""
    talk, pictures = _read(model, images, question, method)
    return Pruned(question, pictures, model.processor.boxes_of(pictures), talk.trace)


def _read(model, images, question, method):
    """A Conversation that has read the prompt, and the images as pictures."""
    if images is None:
        images = []
    if not isinstance(images, (list, tuple)):
        images = [images]
    pictures = [as_picture(image) for image in images]
    _check_words(model, question, pictures)
    pixels = model.processor.pixels_of(pictures)
    talk = Conversation(model, _fitting(method, model, pixels))
    turn = prompt([(question, None)], len(pictures), model.config.template)
    talk.read(model.tokenizer.encode(turn), pixels)
    return talk, pictures


def as_picture(image):
    """The upright RGB picture of a path, a PIL image or an array. Raises UserError."""
    if isinstance(image, (str, os.PathLike, Image.Image)):
        return open_image(image)
    try:
        picture = Image.fromarray(np.asarray(image))
    except (TypeError, ValueError) as error:
        raise UserError(f"no picture can be made of this {type(image).__name__} ({error}): give a path, a PIL image, "
                        "or an array (height, width, 3) of bytes") from None
    return open_image(picture)


def _check_words(model, question, pictures):
    """UserError for a question that the model cannot read; a warning where the shipped model's answer means nothing."""
    if not isinstance(question, str):
        raise UserError(f"the question is a {type(question).__name__}: give a str")
    if model.tokenizer is None:
        raise UserError(f"{model.folder} has no tokenizer: copy the tokenizer's files from the checkpoint")
    for note in checked(model, question, pictures):
        warnings.warn(note, stacklevel=4)


def _fitting(method, model, pixels):
    """The method, with the module that it needs. UserError if it cannot act on this model or meet its budget there."""
    if method is None:
        return None
    if not isinstance(method, Pruner):
        raise UserError(f"method is {method!r}: give an instance, such as FastV(keep=0.5)")
    method = check(method, model)
    if pixels:
        n = sum(model.visual_tokens(tiles) for tiles in pixels)
        entering(method, n, model.config.text.num_hidden_layers, model.parts(pixels))
    return method
