"""Score a method: its row of the leaderboard; or answers that other code has written, on a benchmark.

METHOD is FILE.py:NAME, a class or a function of your own (the file is executed), or a method of the registry; with
commas between them several have one table. All answer the same questions, which are drawn from the seed. The floor is
random tokens at the same place and budget; the ceiling knows the answer and keeps its evidence first. What is printed
is Markdown.

With --task it is a file of answers instead: a JSON list, or a JSON object on each line, with question_id and text
(LLaVA's answers, lmms-eval's logged samples and the official results files are read too). They are joined by ids, and
all questions must be answered. Nothing is downloaded.

examples:
  python run.py score mine.py:Mine
  python run.py score fastv,divprune,mine.py:Mine --keep 0.25 --seed 7
  python run.py score answers.jsonl --task pope --data coco_pope_random.json
  python run.py score pruned.jsonl --task textvqa --data TextVQA_0.5.1_val.json --against unpruned.jsonl
  python run.py score answers.jsonl --task mme --data MME_Benchmark_release_version --rules lmms-eval
"""

from dataclasses import replace
from statistics import median

from minivlm.course.board import lines
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import output, session
from minivlm.lab.cli.arguments import Number, Seed, add_json, within
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
from minivlm.lab.tasks import score as benchmark
from minivlm.toy import benchmark as toy
from pruning.base import UserError

COUNT = 40                             # questions of each of the eight families
KEEP = "0.1"
DRAWS = 3                              # of random tokens, for each question
TIMED = 16                             # questions on which a method's own time is measured
CEILING = "evidence first"
ROLE_OF = {"random": "floor", "things": "ceiling", "none": "", "uniform": "", "background": ""}


def add_arguments(parser):
    """Methods, their budget and the questions; or answers and their benchmark."""
    parser.add_argument("what", metavar="METHOD", help="FILE.py:NAME, or a name that `methods` lists; several with "
                                                       "commas; or all. With --task the file of answers")
    group = parser.add_argument_group("methods")
    group.add_argument("--keep", metavar="K",
                       help=f"visual tokens left: a share, or a number; several with commas (default: {KEEP})")
    group.add_argument("--seed", type=within(Seed), help="of the questions (default: 0)")
    group.add_argument("--count", type=within(Number), metavar="N",
                       help=f"questions of each of the eight families (default: {COUNT})")
    group = parser.add_argument_group("answers")
    benchmark.add_options(group)
    add_json(parser)


def main(args):
    """Print the table of methods, or that of answers."""
    check_options(args)
    if args.task:
        benchmark.score(args.what, args)
        return
    seed = args.seed or 0
    rows = scored(args.what, args.keep or KEEP, seed, args.count or COUNT)
    data = [dict(row, laws=[finding.data() for finding in row["laws"] or ()]) for row in rows]
    output.printed(data, lines(rows, seed), args.json)


def check_options(args):
    """UserError for options that do not go with what is scored."""
    of_methods = {"--keep": args.keep, "--seed": args.seed, "--count": args.count}
    of_answers = {"--data": args.data, "--against": args.against, "--limit": args.limit}
    unused, of = (of_methods, "methods") if args.task else (of_answers, "answers: name their benchmark with --task")
    for name, value in unused.items():
        if value is not None:
            raise UserError(f"{name} is for {of}")
    if not args.task and args.what.endswith((".json", ".jsonl")):
        raise UserError(f"{args.what}: name the benchmark of a file of answers with --task; for a row of the "
                        "leaderboard name a method, FILE.py:NAME or one that `run.py methods` lists")


def scored(names, keep, seed, count):
    """The rows of the table, as plain data but for the Findings of their laws. UserError if no method runs."""
    model = session.shipped_model()
    items = [evidence_first(item) for item in toy.items("heldout", count, seed)]
    entered = competitors(model, items[0], names, keep)
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
    methods = [row for row in rows if row["role"] == "method"]
    if methods and all("why_not" in row for row in methods):
        raise UserError(f"{methods[0]['method']}: {methods[0]['why_not']}")
    return rows


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
