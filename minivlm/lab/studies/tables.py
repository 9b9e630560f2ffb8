"""Recompute every FLOPs, ratio, average and storage figure of three papers.

Each is compared with what the paper prints; so are the averages, percentages and differences of its accuracies.

examples:
  python run.py tables
  python run.py tables atp --ffn 3
"""

from typing import Annotated

from minivlm.lab.cli.arguments import add_json, within
from minivlm.lab.cli.output import printed
from minivlm.lab.cost.arguments import add_formula
from minivlm.lab.studies.recomputed import PAPERS, entries, facts, lines
from pruning.fields import Range


def add_arguments(parser):
    """The papers and the variant of the formula."""
    parser.add_argument("papers", nargs="*", metavar="PAPER", help=f"of {', '.join(PAPERS)} (default: all)")
    add_formula(parser)
    parser.add_argument("--text", type=within(Annotated[int, Range(0, 10 ** 6)]),
                        help="text tokens that it counts besides the image's (default: none)")
    add_json(parser)


def main(args):
    """Print the figures."""
    options = dict(ffn=args.ffn, text=args.text, cut=args.cut)
    variant = {name: value for name, value in options.items() if value is not None}
    figures = entries(args.papers, **variant)
    text = "\n".join(lines(figures)).strip("\n")
    printed(facts(figures), [text], args.json)
