"""Measure encoding, prefill, decoding and memory, unpruned and under methods.

The speed-up of each prefill is compared with what the counted FLOPs predict. Weights are random if no checkpoint is
given: speed does not depend on their values. Under torchrun the processes divide the rounds.

examples:
  python run.py bench --against hf           ratios to transformers in the same run
  python run.py bench --model DIR --method fastv,divprune --keep 192,64 --out speed.png
"""

import torch

from minivlm.lab.cli import output, parallel
from minivlm.lab.cli.arguments import Number, Threads, add_device, add_dtype, new_name, within
from minivlm.lab.cost.arguments import add_shape
from minivlm.lab.cost.count import able
from minivlm.lab.cost.shapes import shape_of
from minivlm.lab.lineup.arguments import add_lineup
from minivlm.lab.lineup.lineup import fitted, lineup
from minivlm.lab.speed import verdict
from minivlm.lab.speed.measure import measure
from minivlm.lab.speed.plot import plot

METHODS, KEEP = "fastv,divprune", "0.25"           # if neither a method nor a budget is named


def add_arguments(parser):
    """The shape, the methods, and how often."""
    add_shape(parser, "small")
    add_lineup(parser)
    parser.add_argument("--against", choices=("hf",), help="also run transformers (sdpa and eager) on the same weights")
    parser.add_argument("--text", type=within(Number), default=64, help="text tokens of the prompt (default: 64)")
    parser.add_argument("--repeat", type=within(Number), default=5,
                        help="rounds; medians are shown (default: 5); torchrun divides them over its processes, "
                             "which need a GPU, or --threads cores, each")
    parser.add_argument("--steps", type=within(Number), default=10, help="tokens decoded in a round (default: 10)")
    add_dtype(parser)
    parser.add_argument("--threads", type=within(Threads), default=2, help="of the CPU (default: 2)")
    parser.add_argument("--json", type=new_name, metavar="FILE", help="write every time")
    parser.add_argument("--out", type=new_name, metavar="PNG",
                        help="draw the prefill's time against the tokens kept, with the line that FLOPs predict")
    add_device(parser)


def main(args):
    """Measure, print, write."""
    output.writable(args.out, ".png")
    output.writable(args.json)
    torch.set_num_threads(args.threads)
    shape = shape_of(args.shape or (None if args.model else "small"), args.model, args.layers)
    pruners, why_not = contestants(args, shape)
    against = ("sdpa", "eager") if args.against else ()
    with parallel.processes(args.device) as (rank, size, device):
        table = measure(shape, pruners, args.model, args.text, args.steps, args.repeat, getattr(torch, args.dtype),
                        device, against, rank, size)
    if rank:
        return
    table["why_not"] = why_not
    print("\n".join([*verdict.lines(table), *output.refusals(why_not)]))
    output.save_json(args.json, table)
    if args.out:
        output.save(args.out, plot(table).save)


def contestants(args, shape):
    """{label: pruner}, and {label: why it does not run} with --method all."""
    is_named = {args.method, args.keep, args.average, args.schedule} != {None}
    if not is_named:
        return fitted(lineup(METHODS, KEEP, None, args.set, shape), shape), {}
    pruners = fitted(lineup(args.method, args.keep, args.average, args.set, shape, args.schedule), shape)
    return able(shape, pruners, counted=False) if args.method == "all" else (pruners, {})
