"""What several commands do with a model: open it, begin a conversation, stream an answer."""

import sys

import torch

from minivlm.generate import Conversation, Sampling
from minivlm.io.image import open_image
from minivlm.io.text.template import Raw, chosen
from minivlm.io.text.tokenizer import named
from minivlm.io.text.vocabulary import FILES
from minivlm.lab.cli import parallel, shipped
from minivlm.lab.cli.options import averaged, build, check, own_settings
from minivlm.lab.cli.precision import stays_half
from pruning.base import UserError
from weights import load


def conversation(args, pictures):
    """A conversation whose method fits the model and the pictures; the pictures; their pixels."""
    one_budget(args)
    images = [open_image(path) for path in pictures]
    model = opened(args)
    pixels = model.processor.pixels_of(images)
    pruner = build(args.method, args.keep, args.set, args.schedule, own_settings(model.folder))
    if images:                                         # without one there is nothing to reduce
        n = sum(model.visual_tokens(tiles) for tiles in pixels)
        pruner = averaged(pruner, args.average, n, model.config.text.num_hidden_layers, model.parts(pixels))
    return Conversation(model, check(pruner, model)), images, pixels


def one_budget(args):
    """UserError if two budgets are given."""
    if args.keep is not None and args.average is not None:
        raise UserError("give --keep or --average, not both: each says how many tokens are left")


def opened(args, dtype=None):
    """The model that --model names, or the shipped one, with a tokenizer.

    On the CPU a small one is read in float32 and runs on one thread: two would wait for each other. A larger one is, if
    half precision is slow here and there is room.
    """
    args.model = shipped.model_or(args.model)
    dtype = dtype or args.dtype
    model = load(args.model, dtype, args.device)
    if model.device.type == "cpu":
        model = for_cpu(model, dtype)
    if model.tokenizer is None:
        raise UserError(f"{args.model} has no {', no '.join(FILES)}: copy the tokenizer's files from the checkpoint")
    return model


def shipped_model():
    """The shipped model in float32, on one thread: two would wait for each other."""
    torch.set_num_threads(1)
    return load(shipped.model_or(None), torch.float32)


def for_cpu(model, dtype):
    """The model in the precision that suits this CPU, if no dtype is named."""
    is_small = parallel.small(model)
    if is_small:
        torch.set_num_threads(1)
    if dtype:
        return model
    stored = model.lm_head.weight.dtype
    weights = sum(p.numel() * p.itemsize for p in model.parameters())
    is_half = stored.itemsize == 2
    if is_small or not is_half:
        return model.float()
    if stays_half(weights, stored):
        return model
    name = str(stored).removeprefix("torch.")
    said = f"note: read in float32, as {name} is slow on this CPU: --dtype {name} takes half the memory"
    print(said, file=sys.stderr)
    return model.float()


def template(args, model):
    """The prompt's template: --raw, --template or the checkpoint's, with the message of --system."""
    system = getattr(args, "system", None)
    if getattr(args, "raw", False):
        if args.template or system:
            raise UserError("--raw takes the prompt as it is: leave --template and --system out")
        return Raw()
    template = model.config.template
    if args.template:
        template = chosen(args.template, model.folder, model.tokenizer)
    return template if system is None else named(template).with_system(system)


def note(model, question, images):
    """What a reader should know of the answer, on stderr. UserError for words that the shipped model does not know."""
    for note in shipped.checked(model, question, images):
        print(note, file=sys.stderr)


def sampling(args):
    """How the next token is chosen, the same draws for the same --seed."""
    return Sampling(args.temperature, args.top_p, args.seed)


def stream(talk, sampling, max_new_tokens):
    """Print the answer as it comes; return it."""
    text = talk.model.tokenizer.stream()
    parts = []
    try:
        for id in talk.generate(max_new_tokens, sampling):
            parts.append(text.push(id))
            print(parts[-1], end="", flush=True)
    except UserError:
        if parts:
            print(flush=True)                          # what was said stays, on a line of its own
        raise
    parts.append(text.finish())
    print(parts[-1], flush=True)
    return "".join(parts).strip()


def line():
    """The next line of the input, "" at its end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
