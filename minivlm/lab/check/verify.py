"""Compare every stage of a model with what transformers computes.

Each stage of the pipeline, from the prompt's ids to the greedy ids, is compared with a recording: expected.json and
expected.safetensors in the model's folder (tests/record_hf.py writes them), and the pictures that it names. --live runs
the installed transformers on one picture and question instead. A stage passes within five times what rounding does to
it: the reference's distance from itself in float64 or, with a recording, our model's. The first line that fails names
the module to look at. The exit status is then 1.

examples:
  python run.py verify DIR
  python run.py verify --model DIR --live photo.jpg "What is this?"
"""

import torch

from minivlm.lab.check import hf
from minivlm.lab.check.stages import facts, lines, verify
from minivlm.lab.cli import shipped
from minivlm.lab.cli.arguments import add_device, add_dtype, add_json, add_model_first, model_of
from minivlm.lab.cli.output import printed
from weights import load


def add_arguments(parser):
    """The model, and what it is compared with."""
    add_model_first(parser)
    parser.add_argument("--expected", metavar="JSON", help="the recording (default: expected.json in the folder)")
    parser.add_argument("--images", metavar="DIR",
                        help="the folder of its pictures (default: images/ in the model's folder or next to it)")
    parser.add_argument("--live", nargs=2, metavar=("IMAGE", "QUESTION"),
                        help="run transformers instead of reading a recording")
    add_dtype(parser)
    add_json(parser)
    add_device(parser)


def main(args):
    """Print a line per stage; 1 if one fails."""
    folder = shipped.model_or(model_of(args))
    dtype = getattr(torch, args.dtype)
    expected = args.expected
    if args.live:
        expected = hf.live(folder, *args.live, dtype=dtype, device=args.device)
    rows = verify(load(folder, dtype, args.device), folder, expected, args.images)
    printed(facts(rows), lines(rows, "reference" if args.live else "model"), args.json)
    return 0 if all(row.passed for row in rows) else 1
