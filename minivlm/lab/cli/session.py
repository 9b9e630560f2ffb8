"""What several commands do: open the model, begin a conversation, stream an answer, write a result whole or not at all."""

import io
import json
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from minivlm.generate import Conversation, Sampling
from minivlm.io.atomic import written
from minivlm.io.image import open_image
from minivlm.io.text.template import Raw, chosen
from minivlm.io.text.tokenizer import named
from minivlm.io.text.vocabulary import FILES
from minivlm.lab.cli import parallel, shipped
from minivlm.lab.cli.options import averaged, build, check, own_settings
from pruning.base import UserError
from weights import load


def conversation(args, pictures):
    """A conversation whose method fits the model and the pictures; the pictures; their pixels."""
    one_budget(args)
    images, args.sampling = [open_image(path) for path in pictures], Sampling(args.temperature, args.top_p, args.seed)
    model = opened(args)
    pruner = build(args.method, args.keep, args.set, args.schedule, own_settings(model.folder))
    pixels = [model.processor.pixels(image) for image in images]
    if images:                                         # without one there is nothing to reduce
        n = sum(model.visual_tokens(tiles) for tiles in pixels)
        pruner = averaged(pruner, args.average, n, model.config.text.num_hidden_layers, model.parts(pixels))
    return Conversation(model, check(pruner, model)), images, pixels


def note(model, question, images):
    """What a reader should know of the answer, on stderr. UserError for words that the shipped model does not know."""
    for note in shipped.checked(model, question, images):
        print(note, file=sys.stderr)


def one_budget(args):
    """UserError where two budgets are given."""
    if args.keep is not None and args.average is not None:
        raise UserError("give --keep or --average, not both: each says how many tokens are left")


def opened(args, dtype=None):
    """The model that --model names, or the shipped one, with a tokenizer.

    On the CPU a small one is read in float32, since there is no fast float16, and runs on one thread: two would wait for each other.
    """
    if getattr(args, "max_new_tokens", 1) < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: ask for at least one")
    args.model = shipped.model_or(args.model)
    model = load(args.model, dtype or args.dtype, args.device)
    if parallel.small(model) and model.device.type == "cpu":
        torch.set_num_threads(1)
        model = model if dtype or args.dtype else model.float()
    if model.tokenizer is None:
        raise UserError(f"{args.model} has no {', no '.join(FILES)}: copy the tokenizer's files from the checkpoint")
    return model


def template(args, model):
    """The prompt's template: --raw, --template or the checkpoint's, with the message of --system."""
    system = getattr(args, "system", None)
    if getattr(args, "raw", False):
        if args.template or system:
            raise UserError("--raw takes the prompt as it is: leave --template and --system out")
        return Raw()
    template = chosen(args.template, model.folder, model.tokenizer) if args.template else model.config.template
    return template if system is None else named(template).with_system(system)


def stream(talk, args):
    """Print the answer as it comes; return it."""
    text = talk.model.tokenizer.stream()
    parts = []
    try:
        for id in talk.generate(args.max_new_tokens, args.sampling):
            parts.append(text.push(id))
            print(parts[-1], end="", flush=True)
    except UserError:
        if parts:
            print(flush=True)                          # what was said stays, on a line of its own
        raise
    parts.append(text.finish())
    print(parts[-1], flush=True)
    return "".join(parts).strip()


def any_terminal():
    """Print a substitute for a character that the terminal lacks; hand on bytes that are no UTF-8 to where the text is refused."""
    for stream, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace"), (sys.stdin, "surrogateescape")):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(io.UnsupportedOperation):    # it has been read from already
                stream.reconfigure(errors=errors)


def line():
    """The next line of the input, "" at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def writable(path, suffix=None):
    """UserError, before any work, where a result could not be written."""
    if path and suffix and Path(path).suffix.lower() != suffix:
        raise UserError(f"{path}: what is written is {suffix[1:].upper()}, so name it *{suffix}")
    if path and (Path(path).is_dir() or not os.access(Path(path).absolute().parent, os.W_OK)):
        raise UserError(f"{path} cannot be written: name a file in a folder that exists")


def positive(args, *names):
    """UserError where one of these options is a number below 1."""
    for name in names:
        if (number := getattr(args, name)) is not None and number < 1:
            raise UserError(f"--{name.replace('_', '-')} {number}: give a number from 1 on")


@contextmanager
def interruptible(path, remedy):
    """On Ctrl-C one line says what stays (what is at `path`) and how to go on; the exit status is 130."""
    try:
        yield
    except KeyboardInterrupt:
        if parallel.first():
            kept = f"what is done is in {path}: {remedy}" if path and Path(path).exists() else "nothing was kept"
            print(f"\nrun.py: interrupted; {kept}", file=sys.stderr)
        raise


def save(path, write):
    """Write the result whole or not at all: `write` gets the path to write to."""
    with written(path) as beside:
        write(beside)
    print(f"wrote {path}")


def save_json(path, told):
    """Write plain data there; nothing where no path was given."""
    if path:
        save(path, lambda beside: beside.write_text(json.dumps(told, indent=1)))
