"""The options that name a benchmark, its pictures and its rules; `asked` gives its questions as a model reads them."""

from minivlm.lab.cli.arguments import Number, within
from minivlm.lab.tasks.metrics.base import RULES
from minivlm.lab.tasks.pictures import with_pictures
from minivlm.lab.tasks.question import by_picture
from minivlm.lab.tasks.tasks import TASKS, opened
from pruning.base import UserError


def add_rules(parser):
    """Whose rules, and how many questions."""
    parser.add_argument("--rules", choices=RULES, default=RULES[0],
                        help="whose prompts, parsing and answers' lengths, where they differ (default: official)")
    parser.add_argument("--limit", type=within(Number), metavar="N",
                        help="only the first N questions of a benchmark, and those that count together with them")


def add_pictures(parser):
    """What only a model needs."""
    parser.add_argument("--images", metavar="DIR", help="the folder of a benchmark's pictures")
    parser.add_argument("--ocr", metavar="FILE",
                        help="textvqa: words read in the pictures, as hints in the prompt: "
                             "llava_textvqa_val_v051_ocr.jsonl or TextVQA_Rosetta_OCR_v0.2_val.json")


def benchmark(args):
    """The Benchmark that --task and --data name, with all its questions. UserError if --data is missing."""
    if args.data is None:
        raise UserError(f"--task {args.task} needs its file: name it with --data ({TASKS[args.task].file})")
    return opened(args.task, args.data, args.rules, getattr(args, "ocr", None))


def asked(args):
    """The Benchmark with its questions about pictures, picture by picture, as prompts; None for another task.

    UserError for options that do not go with the task.
    """
    if args.task not in TASKS:
        check_unused(args)
        return None
    for name in ("split", "count", "seed"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is for drawn questions: --limit N takes the first of {args.task}")
    if args.oracles:
        raise UserError(f"--oracles need to know what a picture shows, and {args.task} does not tell: leave it out")
    whole = benchmark(args)
    about_pictures = [question for question in whole.questions if question.image]
    if not about_pictures:
        raise UserError(f"{args.data}: no question of it has a picture: `score` takes answers to such questions")
    part = whole.of(about_pictures).first(args.limit)
    pictured = part.of(with_pictures(part.questions, args.images))
    return part.of(by_picture(pictured.prompts()))


def check_unused(args):
    """UserError for an option that only benchmarks have."""
    for name in ("images", "ocr", "limit"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is for a benchmark: name it with --task")
    if args.rules != RULES[0]:
        raise UserError(f"--rules {args.rules} is for a benchmark: name it with --task")


def options_of(args):
    """Those that decide the result of a benchmark, for the recipe of a run; {} for another task."""
    if args.task not in TASKS:
        return {}
    return {name: getattr(args, name) for name in ("rules", "limit", "ocr")}
