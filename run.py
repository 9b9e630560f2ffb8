"""minivlm on the command line: `python run.py --help` lists the commands, `python run.py ask --help` shows one.

Without words it runs `compare` on a picture and a question that are shipped. A command is a module of minivlm/lab or
minivlm/course with `add_arguments` and `main`. It is imported only if it is the one that runs.
"""

import sys
from functools import partial
from importlib import import_module

COMMANDS = {                           # name: (module in minivlm, the first line of its docstring)
    "ask": ("lab.compare.ask", "Answer one question about pictures, or about none."),
    "chat": ("lab.compare.chat", "Talk about pictures: one question per line."),
    "compare": (
        "lab.compare.side_by_side",
        "Answer one question under several methods: a table, a sheet of pictures, and a page for the browser.",
    ),
    "eval": ("lab.score.eval", "Score the model on a task, unpruned and under methods."),
    "attention": (
        "lab.attention.attention",
        "Show where on the image the decoder's attention lies, and whether position ids are the reason.",
    ),
    "sensitivity": (
        "lab.attention.sensitivity",
        "Prune before each layer in turn: which questions need image tokens up to which layer.",
    ),
    "scenes": ("lab.score.scenes", "Draw the world of the shipped model: pictures, questions, answers, evidence."),
    "fit": ("lab.train.fit", "Fit a method to a model on a few questions: FitPrune's table, or VTW's layer."),
    "train toy": ("lab.train.toy", "Train the shipped model anew, from nothing, on its drawn world."),
    "train atp": ("lab.train.atp", "Train a method's module on a model and instructions: ATP, by its losses."),
    "ablate": ("lab.studies.ablate", "Train and score ATP as each row of its paper's Tables 1 to 5 has it."),
    "claims": (
        "lab.claims.claims",
        "Test what papers claim, each claim by one comparison with its control, with a verdict.",
    ),
    "readings": (
        "lab.claims.readings",
        "Weigh the readings of papers: how many tokens each changes, and how many answers.",
    ),
    "tables": ("lab.studies.tables", "Recompute every FLOPs, ratio, average and storage figure of three papers."),
    "growth": ("lab.studies.growth", "Measure how time and memory grow with the tokens of a prompt and of an answer."),
    "cost": ("lab.cost.cost", "Count what a shape costs under methods: tokens, FLOPs, cache, weights."),
    "bench": ("lab.speed.bench", "Measure encoding, prefill, decoding and memory, unpruned and under methods."),
    "inspect": (
        "lab.check.inspect",
        "Show a checkpoint: its configuration, and which stored tensor fills which module.",
    ),
    "verify": ("lab.check.verify", "Compare every stage of a model with what transformers computes."),
    "check": (
        "lab.own.check",
        "Check a method of your own: does it keep its promises, what does it cost, and how well does it answer?",
    ),
    "errata": (
        "lab.check.errata",
        "Say where paper and released code differ, what this repository does, and show each reading's difference.",
    ),
    "methods": ("lab.check.methods", "List the methods, or describe one with its options."),
    "exercise": ("course.exercises.exercise", "Do the exercises: list them, start one, grade answers."),
    "bugs": (
        "course.bugs.bugs",
        "Find the bug: write twelve files of this repository with one mistake each, or grade what was found.",
    ),
    "new": ("course.new", "Write a method of your own: a file to start from, which runs."),
    "lab": ("course.lab", "Learn what pruning does by experiments: predict, measure, read what the numbers say."),
    "score": (
        "course.score",
        "Score a method: its row of the leaderboard; or answers that other code has written, on a benchmark.",
    ),
}
EXAMPLES = """examples:
  python run.py                              every method on a picture and question that are shipped
  python run.py ask photo.jpg "What is on the table?" --model llava-hf/llava-1.5-7b-hf --method fastv --keep 128
  python run.py compare photo.jpg "What is this?" --model DIR --average 128 --out sheet.png
  python run.py eval --method fastv,divprune --keep 0.25,0.1 --out scores.json
  python run.py methods fastv                what a method needs, where it acts, its options
`python run.py COMMAND --help` has the options and examples of one; bad input ends with one line and exit status 2"""


GROUPS = {name.rpartition(" ")[0] for name in COMMANDS}        # "train" of "train toy", and "" of the others


def main(argv):
    """Run one command, without words the first look; the exit status."""
    group = " ".join(argv[:-1])
    if argv[-1:] in (["-h"], ["--help"]) and group in GROUPS:
        print(overview(group))
        return 0
    try:
        from minivlm.lab.cli.ending import exit_status         # it imports torch, which takes seconds
    except KeyboardInterrupt:
        return 130
    return exit_status(run, argv)


def overview(group):
    """The help of all commands, or of those of a group."""
    rows = [f"  {name:11} {line}" for name, (_, line) in COMMANDS.items() if name.startswith(group)]
    usage = " ".join(["usage: run.py", *group.split(), "COMMAND .."])
    end = [] if group else ["", EXAMPLES]
    return "\n".join([usage, "", "LLaVA from scratch, with visual token pruning.", "", "commands:", *rows, *end])


def run(argv):
    """What the `main` of the command returns: None, or an exit status."""
    from minivlm.lab.cli import arguments, shipped
    command, args = parsed(argv or shipped.first_look())
    if "device" in args:
        arguments.check_device(args.device)
    args.again = partial(main, argv)                   # the same command, for another process
    return command.main(args)


def parsed(argv):
    """The module of a command, and its arguments. UserError if the words mean none."""
    from minivlm.lab.cli.arguments import OneLine, command_of
    name, words = command_of(argv, COMMANDS)
    command = import_module(f"minivlm.{COMMANDS[name][0]}")
    parser = OneLine(f"run.py {name}", description=command.__doc__)
    command.add_arguments(parser)
    return command, parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
