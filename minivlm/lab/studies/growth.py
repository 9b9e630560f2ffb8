"""Measure how time and memory grow with the tokens of a prompt and of an answer.

And with one prompt after another: what is held after many prompts is what is held after a few.

examples:
  python run.py growth
  python run.py growth --model minivlm/toy/model --tokens 160,320
"""

import argparse

import torch

from minivlm.lab.cli import output
from minivlm.lab.cli.arguments import Number, Threads, add_device, add_dtype, new_name, within
from minivlm.lab.cost.arguments import add_shape
from minivlm.lab.cost.shapes import shape_of
from minivlm.lab.speed.measure import model_of
from minivlm.lab.studies import scaling
from weights import device_of

TOKENS = "160,320,640,1280,2560"


def add_arguments(parser):
    """The shape, the lengths, and how often."""
    add_shape(parser, "small")
    parser.add_argument("--tokens", type=lengths, default=TOKENS, metavar="T,T,..",
                        help=f"tokens of the prompts (default: {TOKENS})")
    parser.add_argument("--decode", type=within(Number), default=1000, metavar="N",
                        help="tokens after the first of them (default: 1000)")
    parser.add_argument("--prompts", type=within(Number), default=50, metavar="N",
                        help="prompts in a row (default: 50)")
    parser.add_argument("--repeat", type=within(Number), default=3, help="rounds; medians are shown (default: 3)")
    add_dtype(parser)
    parser.add_argument("--threads", type=within(Threads), default=2, help="of the CPU (default: 2)")
    parser.add_argument("--json", type=new_name, metavar="FILE", help="write every number")
    add_device(parser)


def main(args):
    """Measure and print."""
    output.writable(args.json)
    torch.set_num_threads(args.threads)
    shape = shape_of(args.shape or (None if args.model else "small"), args.model, args.layers)
    model = model_of(shape, args.model, getattr(torch, args.dtype), device_of(args.device))
    setting = scaling.facts(shape, model, args.dtype, args.repeat)
    numbers = dict(setting, **scaling.measure(model, args.tokens, args.decode, args.prompts, args.repeat))
    print("\n".join(scaling.lines(numbers)))
    output.save_json(args.json, numbers)


def lengths(text):
    """lengths("160,320") -> [160, 320]: what reads --tokens."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 2 or max(numbers) > 10 ** 6:
        raise argparse.ArgumentTypeError(f"{text}: give numbers from 2 to a million, with commas")
    return numbers
