"""Check a method of your own: does it keep its promises, what does it cost, and how well does it answer?

METHOD is FILE.py:NAME, a class like those of pruning/ (a Pruner) or a function, or a method of the registry. FILE.py is
executed. The page says where the method acts and what it reads, then tries every promise: what all methods owe, the
laws that it declares, and equalities in tiny random models (dropped = masked, cached = uncached, several images, tiles,
half precision). A broken promise has the smallest prompt found that breaks it, what the method did there, and the usual
cause. Then follow its cost, its own time, and its accuracy on the drawn world beside random tokens, evenly spaced ones
and FastV. The exit status is 1 if a promise is broken.

With --against it is compared with another method instead, on recordings of released code and on drawn prompts.

examples:
  python run.py check mine.py:Mine --out mine.png
  python run.py check mine.py:Mine --quick --junit report.xml
  python run.py check mine.py:select --against fastv
"""

from minivlm.lab.cli import output
from minivlm.lab.cli.arguments import Number, add_json, new_name, within
from minivlm.lab.cli.options import build
from minivlm.lab.named.inputs import INPUTS
from minivlm.lab.named.kind import built, kind_of
from minivlm.lab.own import against, page, worth
from minivlm.lab.own.examined import examined
from minivlm.lab.own.promises.finding import broken
from pruning import METHODS
from pruning.base import UserError
from pruning.laws import LAWS

COUNT = 40                             # questions of each family, 320 in all
KEEP = "0.1"


def add_arguments(parser):
    """The method, and what is done with it."""
    parser.add_argument("own", metavar="METHOD", help="FILE.py:NAME, a class or a function in a file that is executed; "
                                                      "or a method of the registry")
    parser.add_argument("--quick", action="store_true", help="the promises only: no cost, time, picture or accuracy")
    parser.add_argument("--keep", default=KEEP, metavar="K",
                        help=f"the budget of cost, picture and accuracy: a share, or a number (default: {KEEP})")
    parser.add_argument("--count", type=within(Number), default=COUNT, metavar="N",
                        help=f"questions of each of the eight families (default: {COUNT})")
    parser.add_argument("--out", type=new_name, metavar="PNG",
                        help="draw what it keeps, next to FastV and the controls")
    parser.add_argument("--junit", type=new_name, metavar="XML", help="write a test case per promise, for a CI")
    parser.add_argument("--against", metavar="METHOD",
                        help=f"compare it with one of {', '.join(METHODS)}, or a reading (run.py methods --readings)")
    add_json(parser)
    inputs = [f"  {name:16}{given.about}" for name, given in INPUTS.items()]
    parser.epilog = "\n".join(["arguments of a function:", *inputs])


def main(args):
    """Print the page, write the files; 1 if a promise is broken."""
    if args.against is not None:
        return against.compare(args)
    output.writable(args.out, ".png")
    output.writable(args.junit, ".xml")
    build("fastv", args.keep)          # UserError if it is no budget
    kind = runnable(args.own)
    result = examined(kind, args.own)
    if not args.json:
        print("\n".join(page.promises(result)), flush=True)
    if not args.quick:
        result |= worth.measured(args, result)
    if args.json:
        output.printed(page.data(result), (), True)
    for line in () if args.json else page.worth(result):
        print(line)
    if args.junit:
        page.write_junit(args.junit, result)
        if not args.json:
            print(f"wrote {args.junit}")
    return 1 if broken(result["promises"]) else 0


def runnable(name):
    """The class of the method. UserError if it cannot be built without options, or needs a training first."""
    kind = kind_of(name)
    pruner = built(kind, name)
    if "training" in pruner.preconditions:
        raise UserError(f"{name} needs a module trained for the model, and is checked without one: its tests are in "
                        "tests/laws")
    check_laws(pruner.laws, name)
    return kind


def check_laws(laws, name):
    """UserError for a law that there is not: it would never be tried."""
    is_set = isinstance(laws, (set, frozenset))
    unknown = sorted(map(str, laws - LAWS.keys())) if is_set else [str(laws)]
    if unknown:
        raise UserError(f"{name} declares {unknown[0]!r}, which is no law: `laws` is a frozenset of some of "
                        f"{', '.join(LAWS)}")
