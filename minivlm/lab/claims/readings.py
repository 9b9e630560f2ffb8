"""Weigh the readings of papers: how many tokens each changes, and how many answers.

If a paper leaves something open, or its code differs, pruning/readings has the other choice under a name. Each is
compared with its method at the same budget, on the same questions. With --out every answer is kept, so that the same
command continues.

examples:
  python run.py readings --out readings.json
  python run.py readings asap,atp --keep 0.25,0.1 --model DIR --data QUESTIONS
"""

from functools import partial
from pathlib import Path

from minivlm.lab.claims import contest
from minivlm.lab.claims.claim import OPEN, Claim, verdict
from minivlm.lab.claims.comparisons import Pair
from minivlm.lab.cli import output, parallel, session
from minivlm.lab.cli.arguments import add_model, add_processes, new_name
from minivlm.lab.cli.options import read_from
from minivlm.lab.lineup.variants import words
from minivlm.lab.score.answers import mean
from minivlm.lab.score.eval import add_questions, asked
from minivlm.lab.score.log import Log
from minivlm.lab.score.statistics import jaccard
from pruning import METHODS, READINGS
from pruning.base import UserError

LEGEND = (
    "changed: of the tokens that a reading or its method keeps, the share that only one of them does; then right",
    "answers, in % of the method and as the difference in points, with its 95 % interval (Bonett and Price)",
)


def add_arguments(parser):
    """The methods, the budgets, the questions, the output, the model."""
    parser.add_argument("methods", nargs="?", metavar="A,B,..", help="whose readings (default: of all methods)")
    parser.add_argument("--keep", default="0.1",
                        help="visual tokens left, of methods that have a budget (default: 0.1)")
    parser.add_argument("--out", type=new_name, metavar="JSON",
                        help="write every number; next to it .jsonl, every answer")
    add_processes(parser)
    add_questions(parser)
    add_model(parser)


def main(args):
    """Answer, compare, print, write."""
    output.writable(args.out, ".json")
    claims = weighed(args.methods, words("--keep", args.keep))
    items = asked(args)
    path = args.out and Path(args.out).with_suffix(".jsonl")
    is_kept = output.interruptible(path, output.SAME_COMMAND)
    with is_kept, parallel.processes(args.device) as (rank, size, args.device):
        model = session.opened(args)
        count = args.processes or parallel.worthwhile(model)
        if size == 1 and count > 1:
            return parallel.spread(args.again, count)
        prompt = contest.entry(model, items)
        template = session.template(args, model)
        rows, entered = contest.rows(prompt, items, claims, template, partial(Log, path), rank, size)
    if rank == 0:
        answers = contest.answers(prompt, items, entered, rows)
        table = [row for claim in claims for row in facts(claim, answers)]
        print("\n".join(lines(table, len(items), args.model)))
        output.save_json(args.out, table)


def weighed(names, keeps):
    """[Claim], one for each reading of these methods. Nothing is claimed: the question is whether answers differ."""
    chosen = words("methods", names) if names else list(METHODS)
    unknown = [name for name in chosen if name not in METHODS]
    if unknown:
        raise UserError(f"no method {unknown[0]!r}: use some of {', '.join(METHODS)}")
    pairs = [(name, read_from(name)) for name in READINGS if read_from(name) in chosen]
    return [Claim(method, name, Pair(name, method, "the reading", None, tuple(keeps))) for name, method in pairs]


def facts(claim, answers):
    """The rows of a reading, one per budget, as plain data; with the reason if it does not run."""
    return [compared(answers, budget, reading.label, method.label)
            for budget, reading, method in claim.test.pairs(answers.prompt)]


def compared(answers, budget, reading, method):
    """One row: what the reading changes at that budget. reading, method: their labels among the answers."""
    row = dict(reading=reading, method=method, budget=budget)
    reason = answers.reason(reading, method)
    if reason:
        return dict(row, why_not=reason)
    measured = answers.difference(reading, method)
    return dict(
        row,
        changed=changed(answers, reading, method),
        accuracy=mean(answers.right(method)),
        difference=measured.difference,
        interval=measured.interval,
        verdict=verdict(measured.interval, None),
    )


def changed(answers, reading, method):
    """Of the tokens that at least one of the two keeps, the share that only one keeps, on average over the draws."""
    shares = []
    for own, other in zip(answers.rows[reading], answers.rows[method]):
        shares += [1 - jaccard(int(a, 16), int(b, 16)) for a, b in zip(own["kept"], other["kept"])]
    return mean(shares)


def lines(table, questions, model):
    """The table as text."""
    width = max(len(row["reading"]) for row in table)
    other = max(len(row["method"]) for row in table)
    yield f"{model}: {questions} questions"
    yield ""
    yield f"{'':{width}}  {'method':{other}}  changed   right  difference"
    for row in table:
        yield f"{row['reading']:{width}}  {row['method']:{other}}  {cells(row)}".rstrip()
    yield ""
    yield from LEGEND


def cells(row):
    """The columns of a row behind its names, or why there are none."""
    if "why_not" in row:
        return f"does not run here: {row['why_not']}"
    low, high = row["interval"]
    interval = f"({low:+.1f} to {high:+.1f})"
    differs = "" if row["verdict"] == OPEN else row["verdict"]
    accuracy = 100 * row["accuracy"]
    return f"{row['changed']:7.0%}  {accuracy:6.1f}  {row['difference']:+5.1f} {interval} {differs}"
