"""Train a method's module on a model and instructions: ATP, by its losses.

It needs a model with a fixed number of visual tokens per picture (LLaVA-1.5, or the shipped one) and instructions:
"toy", the drawn world, or a json file in LLaVA's format with its pictures. With --freeze-lm only the thresholds are
trained, else the decoder and the projector too. DIR then has the module, which --set module=DIR uses, and a log with
one line per step. Under torchrun, two processes equal one with twice the --accumulate.

examples:
  python run.py train atp --data toy --target-tokens 36 --layers 1,3,6 --freeze-lm --out TRAINED
  python run.py train atp --model DIR --data llava.json --images PICTURES --target-tokens 144 --out TRAINED
"""

from pathlib import Path

from minivlm.io.text.template import TEMPLATES
from minivlm.lab.cli import modules, output, parallel, session
from minivlm.lab.cli.arguments import add_device, add_model_name, add_settings, new_name, within
from minivlm.lab.cli.options import build
from minivlm.lab.train import train_atp
from minivlm.lab.train.instruct import Instructions
from minivlm.lab.train.train_atp import Recipe
from pruning.fields import FromOne, Positive

# options that are fields of the Recipe, which checks them more closely
NUMBERS = dict(steps=int, batch=int, accumulate=int, lr=float, lr_module=float, lambda_atp=float, lambda_target=float,
               warmup=float, theta_r=float, theta_s=float, width=int, seed=int)
FIELDS = (*NUMBERS, "activation", "target_unit", "freeze_lm", "dtype")


def add_arguments(parser):
    """The instructions, the method, the recipe, the model, the output."""
    group = parser.add_argument_group("instructions")
    group.add_argument("--data", required=True, metavar="D",
                       help="a json file in LLaVA's instruction format, or toy: the drawn world")
    group.add_argument("--images", metavar="DIR", help="the folder of its pictures (default: the file's)")
    _add_method(parser)
    _add_recipe(parser)
    group = parser.add_argument_group("model")
    add_model_name(group)
    group.add_argument("--template", metavar="T",
                       help=f"{', '.join(TEMPLATES)}; or a file, in jinja (default: the checkpoint's)")
    group.add_argument("--dtype", choices=("float32", "bfloat16"), default=Recipe.dtype,
                       help="of the products; what is trained is float32")
    add_device(group)
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=new_name, required=True, metavar="DIR",
                       help="the folder for checkpoints and results")
    group.add_argument("--resume", action="store_true", help="continue from the state in --out")
    group.add_argument("--save-every", type=within(FromOne), default=100, metavar="STEPS",
                       help="between two checkpoints (default: 100)")


def _add_method(parser):
    group = parser.add_argument_group("method")
    group.add_argument("--method", choices=modules.READINGS, default="atp",
                       help="the reading of the paper to train (default: atp)")
    group.add_argument("--target-tokens", type=within(Positive), required=True, metavar="N",
                       help="visual tokens in a layer on average (N_target)")
    group.add_argument("--layers", default="4,14,24", help="modules act before these (default: 4,14,24)")
    add_settings(group, "another option of the method: strategy=spatial, ..")


def _add_recipe(parser):
    group = parser.add_argument_group("recipe")
    group.add_argument("--freeze-lm", action="store_true", help="train only the thresholds (Table 3)")
    for name, kind in NUMBERS.items():
        default = getattr(Recipe, name)
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, type=within(kind), default=default, help=f"(default: {default})")
    group.add_argument("--activation", default=Recipe.activation, help=f"of z (default: {Recipe.activation})")
    group.add_argument("--target-unit", choices=("tokens", "share"), default=Recipe.target_unit,
                       help=f"of the distance to the target (default: {Recipe.target_unit})")


def main(args):
    """Train, and print the last step."""
    settings = [f"layers=[{args.layers}]", *args.set]
    atp = build(args.method, settings=settings)
    data = Instructions(args.data, args.images)
    state = Path(args.out) / train_atp.STATE
    is_kept = output.interruptible(state, output.RESUME)
    with is_kept, parallel.processes(args.device) as (rank, size, args.device):
        is_half = args.freeze_lm and args.dtype == "bfloat16"      # what is trained stays in float32
        model = session.opened(args, "bfloat16" if is_half else "float32")
        fields = {name: getattr(args, name) for name in FIELDS}
        recipe = Recipe(args.target_tokens, template=session.template(args, model), **fields)
        log = train_atp.train(model, atp, recipe, data, args.out, args.save_every, args.resume, rank, size)
    if rank == 0:
        print(summary(log[-1], atp.layers))
        print(f"wrote {args.out}")


def summary(step, layers):
    """The last step of a log in one line."""
    kept = ", ".join(f"{k:.1f}" for k in step["kept"])
    layers = ", ".join(map(str, layers))
    return (f"step {step['step'] + 1}: loss {step['loss']:.4g}, {step['average']:.1f} tokens in a layer, "
            f"{kept} after layers {layers}")
