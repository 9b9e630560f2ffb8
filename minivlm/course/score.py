"""Give a method its row of the leaderboard: accuracy between a floor and a ceiling, evidence, cost, laws.

METHOD is FILE.py:NAME, a class or a function of your own (the file is executed), or a method of the registry; with
commas between them several have one table. All answer the same questions, which are drawn from the seed. The floor is
random tokens at the same place and budget; the ceiling knows the answer and keeps its evidence first. What is printed
is Markdown.

examples:
  python run.py score mine.py:Mine
  python run.py score fastv,divprune,mine.py:Mine --keep 0.25 --seed 7
"""

from dataclasses import replace
from statistics import median

import torch

from minivlm.api import shipped
from minivlm.course.board import lines
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli.arguments import Number, Seed, within
from minivlm.lab.cli.options import root
from minivlm.lab.lineup.lineup import Prompt
from minivlm.lab.named.kind import kind_of
from minivlm.lab.own.promises import laws
from minivlm.lab.own.promises.contract import outcome
from minivlm.lab.own.promises.drawn import cases
from minivlm.lab.score.accuracy import facts
from minivlm.lab.score.answers import Contest
from minivlm.lab.score.contestants import contestants
from minivlm.lab.score.curves import kind
from minivlm.lab.score.log import Log
from minivlm.lab.speed.clock import Clock
from minivlm.lab.speed.measure import once
from minivlm.toy import benchmark
from pruning.base import UserError

COUNT = 40                             # questions of each of the eight families
KEEP = "0.1"
DRAWS = 3                              # of random tokens, for each question
TIMED = 16                             # questions on which a method's own time is measured
CEILING = "evidence first"
ROLE_OF = {"random": "floor", "things": "ceiling", "none": "", "uniform": "", "background": ""}


def add_arguments(parser):
    """The methods, their budget, and the questions."""
    parser.add_argument("methods", metavar="METHOD", help="FILE.py:NAME, or a name that `methods` lists; several with "
                                                          "commas; or all")
    parser.add_argument("--keep", default=KEEP, metavar="K",
                        help=f"visual tokens left: a share, or a number; several with commas (default: {KEEP})")
    parser.add_argument("--seed", type=within(Seed), default=0, help="of the questions (default: 0)")
    parser.add_argument("--count", type=within(Number), default=COUNT, metavar="N",
                        help=f"questions of each of the eight families (default: {COUNT})")


def main(args):
    """Ask all, and print the table."""
    refuse_answers(args.methods)
    torch.set_num_threads(1)
    model = shipped()
    items = [evidence_first(item) for item in benchmark.items("heldout", args.count, args.seed)]
    entered = competitors(model, items[0], args.methods, args.keep)
    contest = Contest(model, items, entered, model.config.template, DRAWS)
    rows = facts(items, entered, contest.run(Log(None, {})))
    for row, contestant in zip(rows, entered):
        row["role"] = role(contestant)
        row["rival"] = contestant.rival                    # the random tokens with which it is compared
        row["laws"] = []
        if "why_not" in row or row["role"] == "ceiling":
            continue
        row["seconds"] = own_seconds(model, contestant, items)
        if row["role"] == "method":
            row["laws"] = findings(contestant)
    refuse_only(rows)
    print("\n".join(lines(rows, len(items), args.seed)))


def refuse_answers(words):
    """UserError for a file of answers in place of a method."""
    if words.endswith((".json", ".jsonl")):
        raise UserError(f"{words}: a file of answers has no row yet: name a method, FILE.py:NAME or one that "
                        "`run.py methods` lists")


def refuse_only(rows):
    """UserError if no method ran: the reason of the first."""
    methods = [row for row in rows if row["role"] == "method"]
    if methods and all("why_not" in row for row in methods):
        raise UserError(f"{methods[0]['method']}: {methods[0]['why_not']}")


# --- who competes -----------------------------------------------------------------------------------------------------

def competitors(model, item, names, keep):
    """[Contestant]: random tokens, the methods, and the evidence first, where the methods act."""
    pixels = model.processor.pixels(item.picture)
    entered = []
    for contestant in contestants(model, pixels, names, keep, oracles=True):
        if role(contestant) == "ceiling":
            contestant = replace(contestant, method=contestant.method.replace("things", CEILING))
        if role(contestant):
            entered.append(contestant)
    return entered


def role(contestant):
    """"floor", "ceiling" or "method"; "" for other controls."""
    if contestant.method.startswith(CEILING):
        return "ceiling"
    return ROLE_OF.get(kind(contestant.method), "method")


def evidence_first(item):
    """The question with its evidence as the things of its oracle: pure background first, then what shows most.

    Things that the question is not about are left out, so that the oracle knows the question, not only the picture.
    """
    background = [patch for patch in item.evidence if patch not in item.things]
    shown = [patch for patch in item.things if patch in item.evidence]
    return replace(item, things=(*background, *shown))


# --- what is measured besides -----------------------------------------------------------------------------------------

def own_seconds(model, contestant, items):
    """The time that the method itself takes on a prompt, the median of some."""
    clock = Clock(model.device)
    seconds = []
    for item in [items[0], *items[:TIMED]]:
        text = prompt([(item.question, None)], 1, model.config.template)
        pixels = model.processor.pixels(item.picture)
        pruner = contestant.on(Prompt(model, [pixels]))
        times = once(model, model.tokenizer.encode(text), pixels, pruner, 1, clock)
        seconds.append(times["method"])
    return median(seconds[1:])                             # the first one warms up


def findings(contestant):
    """[Finding] of the laws that a method promises, on drawn prompts; None if it cannot be tried there."""
    if "+" in contestant.method or "training" in contestant.pruner.preconditions:
        return None
    method = kind_of(root(contestant.method))
    outcomes = [outcome(case) for case in cases(method)]
    tried = [result.case for result in outcomes if result.error is None]
    return laws.findings(method, tried) if tried else None
