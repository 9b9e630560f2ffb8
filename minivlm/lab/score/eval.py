"""Score the model on a task, unpruned and under methods.

The table has accuracy with intervals, and what pruning costs on the same questions. No pruning, random and uniform
tokens are always among the contestants. With downsample_image among the methods there is a second table, of the
questions that a smaller picture does not solve. An interrupted run continues if the same command is given again.

A task is the drawn world, or a benchmark, whose official file and pictures are named with --data and --images; its
prompts and its metric are the official ones. `score` does the same with answers of other code.

examples:
  python run.py eval --method fastv,divprune --keep 0.25,0.1 --out scores.json
  python run.py eval --method downsample_image,divprune,divprune@positions=keep --keep 0.1
  python run.py eval --method fastv,fastv_all,asap --set asap.threshold=.8,.9,.95 --average 72
  python run.py eval --method fastv,divprune --keep 0.1 --statistics
  python run.py eval --data FOLDER --model DIR --method all --keep 0.25
  python run.py eval --task pope --data coco_pope_random.json --images val2014 --model DIR --method fastv --keep 128
"""

from dataclasses import replace
from pathlib import Path

from minivlm.lab.cli import output, parallel, session
from minivlm.lab.cli.arguments import Number, Seed, add_length, add_model, add_processes, new_name, within
from minivlm.lab.lineup.arguments import add_lineup
from minivlm.lab.score import accuracy, answers, statistics, unsolved
from minivlm.lab.score.contestants import DEFAULT, KEEP, contestants
from minivlm.lab.score.curves import curves
from minivlm.lab.score.log import Log
from minivlm.lab.tasks import options as benchmarks
from minivlm.lab.tasks import report as metrics
from minivlm.lab.tasks.tasks import TASKS as BENCHMARKS
from minivlm.toy import benchmark
from pruning.base import UserError

COUNT = 40                                         # drawn questions of each family, if the user names no number


def scenes(data=None, split=None, count=None, seed=None):
    """The drawn world: questions of the set `split` (heldout), or those of a folder that `run.py scenes` wrote."""
    if data is None:
        return benchmark.items(split or "heldout", count or COUNT, seed or 0)
    if split is not None or seed is not None:
        raise UserError(f"{data} holds its questions: --split and --seed are for those that are drawn")
    return first(benchmark.read(data), count)


def first(items, count):
    """The first `count` questions of each family, all without a count."""
    if count is None:
        return items
    seen = {}
    kept = []
    for item in items:
        seen[item.family] = seen.get(item.family, 0) + 1
        if seen[item.family] <= count:
            kept.append(item)
    return kept


# A task is a function (data, split, count, seed) -> [Item]: the folder of its files, which part of it, how many
# questions of each family, the seed of what is drawn; each is None if the user says nothing. Items of one picture have
# the same `image` and follow one another. An answer is right if it is the Item's, to the letter.
TASKS = {"scenes": scenes}


def add_questions(parser, count=COUNT, tasks=tuple(TASKS)):
    """The task, its files, and how many questions; `asked` reads them. count: drawn ones of each family."""
    group = parser.add_argument_group("questions")
    group.add_argument("--task", choices=tasks, default="scenes", help="(default: scenes, the drawn world)")
    group.add_argument("--data", metavar="DIR",
                       help="a folder of questions, as `scenes` writes it (default: they are drawn)")
    group.add_argument("--split", metavar="NAME",
                       help="of what is drawn: heldout (default), pairs (kinds of objects never shown in training), "
                            "validation")
    group.add_argument("--count", type=within(Number), metavar="N",
                       help=f"questions of each family (default: {count}; of a folder all)")
    group.add_argument("--seed", type=within(Seed), help="of what is drawn (default: 0)")


def asked(args, count=COUNT):
    """[Item] that the options of `add_questions` name."""
    number = args.count
    if number is None and args.data is None:
        number = count
    return TASKS[args.task](args.data, args.split, number, args.seed)


def question_options(args):
    """The options of `add_questions`, for the recipe of a run."""
    return {name: getattr(args, name) for name in ("task", "data", "split", "count", "seed")}


def add_arguments(parser):
    """The questions, the contestants, the output, and the rest."""
    add_questions(parser, tasks=(*TASKS, *BENCHMARKS))
    group = parser.add_argument_group("benchmarks (--data is the official file, or its folder)")
    benchmarks.add_pictures(group)
    benchmarks.add_rules(group)
    add_lineup(parser, DEFAULT, KEEP)
    _add_controls(parser)
    _add_run(parser)
    add_model(parser)


def _add_controls(parser):
    group = parser.add_argument_group("controls (none, random and uniform are always there)")
    group.add_argument("--oracles", action="store_true",
                       help="add tokens on things first, and on the background first, if it is known what a picture "
                            "shows")
    group.add_argument("--draws", type=within(Number), default=answers.Contest.draws,
                       help=f"answers of a random method to each question (default: {answers.Contest.draws})")


def _add_run(parser):
    group = parser.add_argument_group("run and output")
    add_length(group, None, f"{answers.Contest.max_new_tokens}, or the benchmark's own")
    group.add_argument("--statistics", action="store_true",
                       help="print as well which tokens are kept: how alike they are, how near, of what rank, and how "
                            "many of them for another question too")
    add_processes(group, "; or start it with torchrun")
    group.add_argument("--out", type=new_name, metavar="JSON",
                       help="write every number; next to it .png, accuracy against tokens, and .jsonl, every answer: "
                            "the same command continues from there after an interruption")


def main(args):
    """Ask, print the table, write the numbers and the picture."""
    output.writable(args.out, ".json")
    log_path = args.out and Path(args.out).with_suffix(".jsonl")
    task = benchmarks.asked(args)
    items = task.questions if task else asked(args)
    is_kept = output.interruptible(log_path, output.SAME_COMMAND)
    with is_kept, parallel.processes(args.device) as (rank, size, args.device):
        model = session.opened(args)
        pixels = model.processor.pixels(items[0].picture)
        entered = contestants(model, pixels, args.method, args.keep, args.set, args.oracles, args.average,
                              args.schedule)
        template = session.template(args, model)
        contest = contest_of(args, task, model, items, entered, template)
        recipe = contest.recipe(model=str(args.model), **question_options(args), **benchmarks.options_of(args))
        log = Log(log_path, recipe)
        count = args.processes or parallel.worthwhile(model)
        if size == 1 and count > 1:
            return parallel.spread(args.again, count)
        rows = contest.run(log, rank, size)
    if rank == 0:
        numbers = accuracy.facts(items, entered, rows, by_picture=task is not None)
        result = dict(recipe=recipe, questions=len(items), contestants=numbers)
        result |= by_difficulty(items, entered, rows, task)
        if task:
            result |= measured(task, items, entered, rows)
        report(result, args.out, args.statistics, task)


def contest_of(args, task, model, items, entered, template):
    """The Contest; a benchmark has its own score and length of an answer."""
    contest = answers.Contest(model, items, entered, template, args.draws)
    if task:
        contest = replace(contest, score=task.metric.score, max_new_tokens=task.length)
    return replace(contest, max_new_tokens=args.max_new_tokens or contest.max_new_tokens)


def measured(task, items, entered, rows):
    """{"metric": its name, "measured": numbers of the contestants that ran}"""
    ran, _ = accuracy.answered(items, entered, rows)
    draws = {label: [row["answers"] for row in own] for label, own in ran.items()}
    rivals = {c.label: [other for other in ("none", c.rival) if other in ran and other != c.label] for c in entered}
    return dict(metric=task.metric.name, measured=metrics.facts(task.metric, draws, rivals))


def by_difficulty(items, entered, rows, task=None):
    """{"unsolved": numbers}, if downsample_image was run; else {}. No caption is ever wholly right."""
    if task and task.name == "coco-caption":
        return {}
    groups = unsolved.unsolved(items, entered, rows, by_picture=task is not None)
    return dict(unsolved=groups) if groups else {}


def report(result, path, with_statistics=False, task=None):
    """Print the tables; write them, and the picture of the first, if there is a path."""
    tables = [*(benchmark_lines(result, task) if task else accuracy.lines(result))]
    tables += unsolved.lines(result.get("unsolved", []))
    if with_statistics:
        tables += statistics.lines(result["contestants"])
    print("\n".join(tables))
    if path:
        output.save_json(path, result)
        output.save(Path(path).with_suffix(".png"), curves(result).save)


def benchmark_lines(result, task):
    """The table of a benchmark, and the sentences, as text."""
    recipe = result["recipe"]
    tokens = {row["contestant"]: row["tokens"] for row in result["contestants"] if "tokens" in row}
    why_not = {row["contestant"]: row["why_not"] for row in result["contestants"] if "why_not" in row}
    yield f"{recipe['model']} on {metrics.title(task)}, {recipe['dtype']}"
    yield ""
    yield from metrics.lines(task.metric, result["measured"], "none", tokens)
    yield from output.refusals(why_not)
    worse = list(metrics.verdicts(task.metric, result["measured"]))
    if worse:
        yield ""
        yield from worse
