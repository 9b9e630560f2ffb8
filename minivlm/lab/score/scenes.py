"""Draw the world of the shipped model: pictures, questions, answers, evidence.

The folder has pictures and questions.jsonl, one line per question with its answer and the patches that are its
evidence, so that any code can be scored on it. `eval --data DIR` reads it.

example:
  python run.py scenes --out scenes --count 300
"""

import os
from typing import Annotated

from minivlm.lab.cli.arguments import Seed, new_name, within
from minivlm.toy import benchmark
from minivlm.toy.scenes import SETS
from pruning.base import UserError
from pruning.fields import Range

Most = Annotated[int, Range(1, 10_000)]            # of each family: 80,000 questions, on up to as many pictures


def add_arguments(parser):
    """The folder and what is drawn."""
    parser.add_argument("--out", type=new_name, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--count", type=within(Most), default=300,
                        help="questions of each of the eight families, up to 10000 (default: 300)")
    parser.add_argument("--set", dest="name", choices=SETS, default="heldout",
                        help="pairs: kinds of objects never shown in training (default: heldout)")
    parser.add_argument("--seed", type=within(Seed), default=0, help="of what is drawn (default: 0)")


def main(args):
    """Write the folder."""
    if os.path.lexists(args.out):
        raise UserError(f"{args.out} is there already: name a new folder")
    count = benchmark.write(args.out, args.name, args.count, args.seed)
    print(f"wrote {count} questions to {args.out}")
