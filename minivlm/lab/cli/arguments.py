"""What several commands read from the command line: numbers within bounds, and groups of options."""

import argparse
import errno
import os
from typing import Annotated, get_args

from pruning import METHODS
from pruning.base import UserError
from pruning.fields import NotNegative, Positive, Range, fault

DTYPES = ("float32", "bfloat16", "float16")

Number = Annotated[int, Range(1, 10 ** 6)]         # of tokens, questions, rounds: more would fill the memory
Threads = Annotated[int, Range(1, 1024)]
Seed = Annotated[int, Range(0, 2 ** 31 - 1)]
Probability = Annotated[float, Range(above=0, high=1)]


class OneLine(argparse.ArgumentParser):
    """A parser that complains in one line, without repeating the usage, and prints the description as it is."""

    def __init__(self, prog, description):
        super().__init__(prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--debug", action="store_true", help="show where a bug of ours is")

    def error(self, message):
        if message.startswith("argument --"):          # "argument --count: 0 ..": as one would type it
            message = message.removeprefix("argument ").replace(":", "", 1)
        raise UserError(f"{message}: see `python {self.prog} --help`")


def command_of(argv, commands):
    """The command that the first words name, and the other words: ["train", "toy", "-h"] -> "train toy", ["-h"]."""
    for count in (1, 2):
        name = " ".join(argv[:count])
        if name in commands:
            return name, argv[count:]
    group = [name for name in commands if name.startswith(argv[0] + " ")]
    name = " ".join(argv[:2]) if group else argv[0]
    raise UserError(f"{name!r} is no command: use one of {', '.join(group or commands)}: see `python run.py --help`")


def within(annotation):
    """What reads a number within the annotation's range, as the `type` of an option."""
    kind = (*get_args(annotation), annotation)[0]

    def number(text):
        value = kind(text)
        wrong = fault(annotation, value)
        if wrong:
            raise argparse.ArgumentTypeError(f"{text}: {wrong}")
        return value
    number.__name__ = kind.__name__                    # argparse says "invalid int value"
    return number


def layer_numbers(text):
    """layer_numbers("1,2") -> [1, 2]: what reads --layers."""
    numbers = [int(part) for part in text.split(",") if part.isdecimal()]
    if len(numbers) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"{text}: give numbers of layers from 0, with commas")
    return numbers


def new_name(text):
    """The text itself, if it can be the name of what a command writes: the `type` of --out."""
    wrong = _wrong_in_name(text)
    if wrong:
        raise argparse.ArgumentTypeError(f"{text!r} can name no file and no folder ({wrong})")
    return text


def _wrong_in_name(text):
    """Why neither the system nor the libraries that write take it as a name; "" if they do."""
    if not text:
        return "it is empty"
    try:
        os.lstat(text.encode() + b".")                 # one letter more: the name until it is whole, see io/atomic.py
    except OSError as error:
        return error.strerror if error.errno == errno.ENAMETOOLONG else ""
    except ValueError as error:                        # a NUL, or bytes that are no UTF-8
        return str(error)
    return ""


def check_device(name):
    """UserError, before any work, for a device that cannot be used here. torchrun's processes each get their own."""
    from weights import device_of                  # only commands with a device need what it imports
    if "LOCAL_RANK" not in os.environ:
        device_of(name)


def add_model(parser):
    """The model, its prompt's template, its precision and device; see session.opened and session.template."""
    from minivlm.io.text.template import TEMPLATES
    group = parser.add_argument_group("model")
    add_model_name(group)
    group.add_argument("--template", metavar="T",
                       help=f"{', '.join(TEMPLATES)}; or a file, in jinja (default: the checkpoint's)")
    group.add_argument("--system", metavar="TEXT",
                       help="the system message, for a template that has a place for it")
    group.add_argument("--raw", action="store_true",
                       help="no template: the prompt is the question as it is, with one <image> mark per picture")
    group.add_argument("--dtype",
                       help="float32, bfloat16 or float16 (default: as stored; on a CPU float32, if half precision "
                            "is slow there and memory suffices)")
    add_device(group)


def add_model_name(parser):
    """--model only."""
    parser.add_argument("--model", help="a checkpoint folder or a hub id (default: the shipped model)")


def add_model_first(parser):
    """The model as the first word, or as --model; `model_of` reads it."""
    parser.add_argument("first", nargs="?", metavar="MODEL", help="the same as --model")
    add_model_name(parser)


def model_of(args):
    """The model that is named in either place; None if it is in neither."""
    if args.first and args.model:
        raise UserError(f"two models are named, {args.first} and {args.model}: give one of them")
    return args.first or args.model


def add_device(parser):
    """The device of the model."""
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ..")


def add_dtype(parser, default="float32"):
    """The precision of a model that is not asked, only measured."""
    parser.add_argument("--dtype", default=default, choices=DTYPES, help=f"(default: {default})")


def add_method(parser):
    """One method and its budget; session.conversation builds it."""
    group = parser.add_argument_group("method")
    group.add_argument("--method", help=f"one of {', '.join(METHODS)}; a variant, like fastv@layer=3; a file that "
                                        "`fit` wrote; A+B, one after the other; or one of your own, FILE.py:NAME, "
                                        "a class or a function: the file is executed (default: none)")
    group.add_argument("--keep", help="visual tokens to keep: a number (128), of the whole prompt, or a share (0.25); "
                                      "for A+B one each (256+64)")
    group.add_argument("--average", type=within(Positive), metavar="A",
                       help="in place of --keep: visual tokens entering a layer on average")
    group.add_argument("--schedule", metavar="LAYER:KEEP,..", help="act before several layers, like 4:136,14:68,24:34")
    add_settings(group, "another option of the method; for A+B, A.OPTION=VALUE")


def add_settings(parser, help):
    """--set, once for each option."""
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help=help)


def add_sampling(parser):
    """How the next token is chosen, and how many at most."""
    group = parser.add_argument_group("answer")
    group.add_argument("--temperature", type=within(NotNegative), default=0.0,
                       help="0 (default): always the likeliest token")
    group.add_argument("--top-p", type=within(Probability), default=1.0,
                       help="choose among the likeliest tokens with this probability together (default: 1)")
    group.add_argument("--seed", type=within(int), default=0, help="of the choice (default: 0)")
    add_length(group)


def add_processes(parser, more=""):
    """--processes: among how many the questions are divided. more: what the help says besides."""
    parser.add_argument("--processes", type=within(Threads), metavar="N",
                        help=f"on this machine (default: one per core for a small model on the CPU, else 1){more}")


def add_length(parser, default=512, words=None):
    """The most tokens of an answer. words: of the default, if it depends."""
    parser.add_argument("--max-new-tokens", type=within(Number), default=default, metavar="N",
                        help=f"the most tokens of an answer (default: {words or default})")


def add_output(parser, about):
    """A picture of what was kept, and a JSON file. about: what that file holds. Returns the group, for more options."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=new_name, metavar="PNG", help="draw which patches were kept")
    group.add_argument("--maps", action="store_true",
                       help="draw as well what a method ranked by, and what it merged")
    group.add_argument("--json", type=new_name, metavar="FILE", help=f"write {about}")
    return group


def add_json(parser):
    """JSON in place of text."""
    parser.add_argument("--json", action="store_true", help="print JSON")
