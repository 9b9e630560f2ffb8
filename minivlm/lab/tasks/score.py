"""Score answers that other code has written, on the official file of a benchmark.

Answers are a JSON list, or a JSON object on each line, with question_id and text (LLaVA's answers, lmms-eval's logged
samples and the official results files are read too). They are joined by ids, and all questions must be answered.
Nothing is downloaded. The command is minivlm/course/score.py, which scores methods, too.
"""

from minivlm.lab.cli import output
from minivlm.lab.tasks import report
from minivlm.lab.tasks.options import add_rules, benchmark
from minivlm.lab.tasks.predictions import complete, joined
from minivlm.lab.tasks.tasks import TASKS
from pruning.base import UserError


def add_options(parser):
    """The task and its file."""
    files = "; ".join(f"{name}: {task.file}" for name, task in TASKS.items())
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--data", metavar="FILE", help=f"the official file, or its folder. {files}")
    parser.add_argument("--against", metavar="FILE",
                        help="answers of the unpruned model, or of any other, to the same questions")
    add_rules(parser)


def answered(whole, path, limit):
    """The benchmark that the file answers, and its answers."""
    answers = joined(whole.questions, path, is_part=limit is not None)
    return complete(whole, answers, path)


def score(predictions, args):
    """Print the table of a file of answers."""
    if args.against == predictions:
        raise UserError(f"--against {args.against} is the file of answers itself: name another")
    whole = benchmark(args).first(args.limit)
    paths = [path for path in (args.against, predictions) if path]
    given = {path: answered(whole, path, args.limit) for path in paths}
    scored = same_questions(given)
    draws = {}
    for path, (_, answers) in given.items():
        draws[path] = [(answer,) for answer in answers]
    first = paths[0]
    rows = report.facts(scored.metric, draws, {predictions: paths[:-1]})
    data = dict(
        task=args.task,
        data=args.data,
        rules=args.rules,
        limit=args.limit,
        questions=len(scored.questions),
        metric=scored.metric.name,
        contestants=rows,
    )
    lines = [report.title(scored, is_asked=False), "", *report.lines(scored.metric, rows, first)]
    output.printed(data, lines, args.json)


def same_questions(given):
    """The benchmark that all files answer. UserError if they answer different parts of it."""
    parts = [part for part, _ in given.values()]
    counts = [len(part.questions) for part in parts]
    if len(set(counts)) > 1:
        numbers = [f"{path} answers {count}" for path, count in zip(given, counts)]
        raise UserError(f"{' and '.join(numbers)} questions: compare answers to the same ones")
    return parts[0]
