"""Train and score ATP as each row of its paper's Tables 1 to 5 has it.

Every row is trained the same way on the drawn world and scored there, with rows that the paper does not have, and with
the rivals of Table 1 as they are. DIR keeps what is trained and answered, so that the same command continues an
interrupted study, and several can work on rows of their own at the same time.

examples:
  python run.py ablate --out STUDY
  python run.py ablate --out STUDY --rows adaptive,fixed-1-2 --steps 50
  python run.py ablate --out STUDY --report
"""

from pathlib import Path

from minivlm.lab.cli import output, shipped
from minivlm.lab.cli.arguments import Number, add_device, add_model_name, new_name, within
from minivlm.lab.studies.ablation import study, verdicts
from minivlm.lab.studies.ablation.rows import ROWS
from minivlm.lab.train.instruct import Instructions
from minivlm.lab.train.train_atp import Recipe
from minivlm.toy import benchmark
from pruning.base import UserError

NAMES = [row.name for row in ROWS]
RECIPE = dict(steps=100, batch=8, lr=2e-4, lr_module=3e-3, seed=0)


def add_arguments(parser):
    """The folder, the rows, the recipe, the model."""
    parser.add_argument("--out", type=new_name, required=True, metavar="DIR",
                        help="the folder for all that is trained, and for the answers")
    parser.add_argument("--rows", metavar="A,B,..", help=f"of {', '.join(NAMES)} (default: all)")
    for name, default in RECIPE.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=within(type(default)), default=default, help=f"(default: {default})")
    parser.add_argument("--count", type=within(Number), default=100, help="questions of each family (default: 100)")
    parser.add_argument("--report", action="store_true", help="train nothing: the tables of what is answered in --out")
    add_model_name(parser)
    add_device(parser)


def main(args):
    """Train and score the rows; print the tables of all that is answered, and write them if no rows were named."""
    rows = chosen(args.rows)
    items = benchmark.items("heldout", args.count)
    if not args.report:
        recipe = Recipe(0, **{name: getattr(args, name) for name in RECIPE})
        with output.interruptible(args.out, output.SAME_COMMAND):
            model = shipped.model_or(args.model)
            study.study(model, args.out, recipe, Instructions("toy"), items, rows, args.device)
    results = study.read(args.out, items)
    if not results:
        raise UserError(f"{args.out} has no row with {len(items)} answers: give the --count of the study")
    figures = verdicts.facts(results, items)
    print("\n".join(verdicts.lines(figures)))
    if args.rows is None:
        output.save_json(Path(args.out) / "tables.json", figures)


def chosen(names):
    """The rows of "a,b,..", all without names."""
    names = names.split(",") if names else NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise UserError(f"--rows {', '.join(unknown)}: use some of {', '.join(NAMES)}")
    return [row for row in ROWS if row.name in names]
