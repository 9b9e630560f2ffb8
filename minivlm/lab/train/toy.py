"""Train the shipped model anew, from nothing, on its drawn world.

DIR/model is then a checkpoint folder. It takes hours on two cores. `--resume` continues an interrupted run and
reproduces it bit for bit.

examples:
  python run.py train toy --out RUN --minutes 60
  python run.py train toy --out RUN --resume
"""

from pathlib import Path

from minivlm.lab.cli import output
from minivlm.lab.cli.arguments import Seed, add_device, new_name, within
from minivlm.toy import folder, train
from pruning.base import UserError
from pruning.fields import NotNegative


def add_arguments(parser):
    """The folder, the recipe, and how long."""
    parser.add_argument("--out", type=new_name, required=True, metavar="DIR",
                        help="the folder for checkpoints and results")
    parser.add_argument("--seed", type=within(Seed), default=0, help="of all randomness (default: 0)")
    parser.add_argument("--hide", choices=train.HIDING, default=train.HIDING[0],
                        help="what the last part of the training hides from the decoder: blocks of neighbours "
                             "(default), single patches, or nothing")
    parser.add_argument("--minutes", type=within(NotNegative), metavar="M",
                        help="stop after M minutes; --resume continues")
    parser.add_argument("--resume", action="store_true", help="continue from the state in --out")
    add_device(parser)


def main(args):
    """Train, and write the model if the run has come to its end."""
    out = Path(args.out)
    state = out / "state.safetensors"
    if state.exists() and not args.resume:
        raise UserError(f"{args.out} holds a run already: go on with --resume, or name another --out")
    recipe = train.Recipe(seed=args.seed, hidden=args.hide)
    with output.interruptible(state, output.RESUME):
        run = train.train(args.out, recipe, args.device, args.resume, args.minutes)
    if run.at < run.total:
        print(f"stopped at step {run.at} of {run.total}: go on with --resume")
        return
    run.resume("best")
    folder.save(run.student.llava, out / "model")
    print(f"wrote {out / 'model'}")
