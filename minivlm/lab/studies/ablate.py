"""Train and score ATP as each row of its paper's Tables 1 to 5 has it.

Every row is trained the same way on the drawn world and scored there. DIR keeps what is trained and answered, so that
the same command continues an interrupted study.

examples:
  python run.py ablate --out STUDY
  python run.py ablate --out STUDY --rows adaptive,fixed-1-2 --steps 50
"""

from pathlib import Path

from minivlm.lab.cli import output, shipped
from minivlm.lab.cli.arguments import Number, add_device, add_model_name, new_name, within
from minivlm.lab.studies.ablation import study as ablation
from minivlm.lab.train.instruct import Instructions
from minivlm.lab.train.train_atp import Recipe
from minivlm.toy import benchmark
from pruning.base import UserError

NAMES = [row.name for row in ablation.ROWS]
RECIPE = dict(steps=150, batch=16, lr=2e-4, lr_module=3e-3, seed=0)


def add_arguments(parser):
    """The folder, the rows, the recipe, the model."""
    parser.add_argument("--out", type=new_name, required=True, metavar="DIR",
                        help="the folder for all that is trained, and for the answers")
    parser.add_argument("--rows", metavar="A,B,..", help=f"of {', '.join(NAMES)} (default: all)")
    for name, default in RECIPE.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=within(type(default)), default=default, help=f"(default: {default})")
    parser.add_argument("--count", type=within(Number), default=100, help="questions of each family (default: 100)")
    add_model_name(parser)
    add_device(parser)


def main(args):
    """Train and score the rows; print the tables and write them."""
    rows = chosen(args.rows)
    recipe = Recipe(0, **{name: getattr(args, name) for name in RECIPE})
    items = benchmark.items("heldout", args.count)
    with output.interruptible(args.out, output.SAME_COMMAND):
        model = shipped.model_or(args.model)
        answers = ablation.study(model, args.out, recipe, Instructions("toy"), items, rows, args.device)
    figures = ablation.facts(answers, items)
    print("\n".join(ablation.lines(figures)))
    output.save_json(Path(args.out) / "tables.json", figures)


def chosen(names):
    """The rows of "a,b,..", all without names."""
    names = names.split(",") if names else NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise UserError(f"--rows {', '.join(unknown)}: use some of {', '.join(NAMES)}")
    return [row for row in ablation.ROWS if row.name in names]
