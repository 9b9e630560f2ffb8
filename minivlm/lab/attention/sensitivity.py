"""Prune before each layer in turn: which questions need image tokens up to which layer.

Each method acts before layer 1, before layer 2, and so on, at each budget, on the same questions as the unpruned model
and as random tokens, which are always there. The information horizon of a budget is the first layer from which on no
method differs from random tokens, by the intervals. An interrupted run continues if the same command is given again.

examples:
  python run.py sensitivity --out sensitivity.png
  python run.py sensitivity --model DIR --data FOLDER --layers 2,4,8,16,24 --method fastv,dart --keep 0.25
"""

from itertools import product
from pathlib import Path

from minivlm.lab.attention import horizon
from minivlm.lab.attention.horizon import RANDOM
from minivlm.lab.cli import output, parallel, session
from minivlm.lab.cli.arguments import Number, add_model, add_processes, layer_numbers, new_name, within
from minivlm.lab.cli.options import root
from minivlm.lab.lineup.lineup import lineup
from minivlm.lab.lineup.variants import words
from minivlm.lab.named.kind import kind_of
from minivlm.lab.score.answers import Contest
from minivlm.lab.score.contestants import Contestant, Entry
from minivlm.lab.score.eval import add_questions, asked, question_options
from minivlm.lab.score.log import Log
from pruning.base import UserError
from pruning.fields import annotations

COUNT = 20                             # drawn questions of each family


def add_arguments(parser):
    """The questions, the methods and layers, the output, and the rest."""
    add_questions(parser, COUNT)
    group = parser.add_argument_group("pruning")
    group.add_argument("--method", default="fastv", metavar="A,B,..",
                       help="methods with a layer and a keep (default: fastv); random is always added")
    group.add_argument("--keep", default="0.5,0.25,0.1", metavar="K,K,..",
                       help="visual tokens left: shares or numbers (default: 0.5,0.25,0.1)")
    group.add_argument("--layers", type=layer_numbers, metavar="L,L,..",
                       help="the layers before which is pruned, one at a time (default: all but layer 0)")
    group.add_argument("--draws", type=within(Number), default=1,
                       help="answers of random tokens to each question (default: 1)")
    group = parser.add_argument_group("run and output")
    add_processes(group)
    group.add_argument("--out", type=new_name, metavar="PNG",
                       help="draw accuracy against the layer; next to it .jsonl, every answer: the same command "
                            "continues from there after an interruption")
    group.add_argument("--json", type=new_name, metavar="FILE", help="write every number")
    add_model(parser)


def main(args):
    """Ask, print the tables and the horizon, draw."""
    output.writable(args.out, ".png")
    output.writable(args.json)
    result = args.out or args.json
    log_path = Path(result).with_suffix(".jsonl") if result else None
    items = asked(args, COUNT)
    is_kept = output.interruptible(log_path, output.SAME_COMMAND)
    with is_kept, parallel.processes(args.device) as (rank, size, args.device):
        model = session.opened(args)
        entered = contestants(model, items[0], args)
        contest = Contest(model, items, entered, session.template(args, model), args.draws)
        log = Log(log_path, contest.recipe(model=str(args.model), **question_options(args)))
        count = args.processes or parallel.worthwhile(model)
        if size == 1 and count > 1:
            return parallel.spread(args.again, count)
        rows = contest.run(log, rank, size)
    if rank == 0:
        report(args, horizon.facts(items, entered, rows))


def report(args, result):
    """Print the tables; draw them and write the numbers, if the options say so."""
    result = dict(model=str(args.model), **result)
    print("\n".join(horizon.lines(result)))
    if args.out:
        output.save(args.out, horizon.page(result).save)
    output.save_json(args.json, result)


def contestants(model, item, args):
    """[Contestant]: no pruning, then random tokens and each method before each layer at each budget."""
    depth = len(model.language_model.layers)
    layers = args.layers or list(range(1, depth))
    for l in layers:
        if not 0 < l < depth:
            raise UserError(f"--layers {l}: tokens can be dropped before layers 1 to {depth - 1} of this model")
    names = [name for name in words("--method", args.method) if name != RANDOM]
    for name in names:
        check_layer(name)
    variants = [f"{name}@layer={l}" for name, l in product([RANDOM, *names], layers)]
    entry = Entry(model, [model.processor.pixels(item.picture)], {})
    entered = [Contestant("none")]
    for entrant in lineup(",".join(variants), args.keep, None, (), entry):
        contestant = entry.contestant(entrant)
        if contestant.why_not:
            raise UserError(contestant.why_not)
        entered.append(contestant)
    return entered


def check_layer(name):
    """UserError for a method that does not act before one layer of the decoder."""
    method = root(name)
    if "+" in method or not {"layer", "keep"} <= annotations(kind_of(method)).keys():
        raise UserError(f"--method {method}: it has no layer and keep; name methods that have both, such as fastv")
