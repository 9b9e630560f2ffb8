"""The words of the command line: one function for each command's arguments, and the groups that several of them share."""

import argparse
from typing import Annotated, get_args

from minivlm.io.text.template import TEMPLATES
from minivlm.lab.cost import shapes
from minivlm.lab.score import answers as evaluate, contestants, tasks
from minivlm.lab.studies import ablation as ablate, recomputed as tables
from minivlm.lab.train import fit, modules
from minivlm.lab.train.train_atp import Recipe
from minivlm.toy import scenes
from minivlm.toy.train import HIDING
from pruning import METHODS
from pruning.base import UserError
from pruning.fields import FromOne, NotNegative, Positive, Range, Share, fault

EXAMPLES = """examples:
  python run.py                              every method on a picture and question that are shipped
  python run.py ask photo.jpg "What is on the table?" --model llava-hf/llava-1.5-7b-hf
  python run.py ask photo.jpg "What is this?" --model DIR --method fastv --keep 128 --set layer=3 --out kept.png
  python run.py ask photo.jpg "What is this?" --model DIR --method vispruner+fastv --keep 256+64
  python run.py chat photo.jpg --model DIR --method fastv --keep 0.25
  python run.py compare photo.jpg "What is this?" --model DIR --average 128 --out sheet.png          every method
  python run.py fit fitprune --model DIR --questions q.jsonl --ratio 0.6 --out fitted.json           then --method fitted.json
  python run.py train atp --model DIR --data toy --target-tokens 36 --layers 1,3,6 --freeze-lm --out TRAINED
  python run.py ablate --out STUDY           the rows of ATP's Tables 1 to 5: trained, scored, printed
  python run.py scenes --out scenes --count 300        a drawn benchmark: pictures, questions, answers, evidence
  python run.py eval --method fastv,divprune --keep 0.25,0.1 --out scores.json          accuracy on it, with intervals
  python run.py inspect DIR                  which stored tensor fills which module
  python run.py verify DIR                   every stage against recorded outputs of transformers
  python run.py verify DIR --live photo.jpg "What is this?"          the same against transformers, here and now
  python run.py methods fastv                what a method needs, where it acts, its options; without a name, all of them
  python run.py cost --method fastv,divprune --keep 192,64           tokens, FLOPs and bytes of a shape; no weights needed
  python run.py tables                       every cost that three papers print, recomputed
  python run.py bench --against hf           speed, as ratios in one run
  python run.py growth --model minivlm/toy   time and memory as prompts and answers grow longer
bad input ends with one line and exit status 2"""
TRAINED = dict(steps=int, batch=int, accumulate=int, lr=float, lr_module=float, lambda_atp=float, lambda_target=float, warmup=float,
               theta_r=float, theta_s=float, width=int, activation=str, seed=int)      # a Recipe checks them more closely
GROUPS = {"train": "Train the shipped model (toy), or the module of a method (atp)."}
DTYPES = ("float32", "bfloat16", "float16")


Number = Annotated[int, Range(1, 10 ** 6)]         # of tokens, questions, rounds: more would fill the memory
Threads = Annotated[int, Range(1, 1024)]
Seed = Annotated[int, Range(0, 2 ** 31 - 1)]
Probability = Annotated[float, Range(above=0, high=1)]


class OneLine(argparse.ArgumentParser):
    """A parser that complains in one line, without repeating the usage."""

    def error(self, message):
        if message.startswith("argument --"):          # "argument --count: 0 ..": as one would type it
            message = message.removeprefix("argument ").replace(":", "", 1)
        raise UserError(f"{message}: see `python {self.prog} --help`")


def of(annotation):
    """What reads a number within the annotation's range, as the `type` of an option."""
    kind = (*get_args(annotation), annotation)[0]

    def number(text):
        value = kind(text)
        if wrong := fault(annotation, value):
            raise argparse.ArgumentTypeError(f"{text}: {wrong}")
        return value
    number.__name__ = kind.__name__                    # argparse says "invalid int value"
    return number


def parser(functions):
    """The parser of {command: function}; the function's docstring is the command's help."""
    whole = OneLine("run.py", description="LLaVA from scratch, with visual token pruning.", epilog=EXAMPLES,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"": whole.add_subparsers(dest="command", required=True, metavar="COMMAND")}
    for name, function in functions.items():
        group, _, own = name.rpartition(" ")           # "train toy": toy is a command of train
        if group not in commands:
            below = commands[""].add_parser(group, help=GROUPS[group], description=GROUPS[group])
            commands[group] = below.add_subparsers(required=True, metavar="WHAT")
        command = commands[group].add_parser(own, help=function.__doc__, description=function.__doc__)
        command.set_defaults(function=function)
        command.add_argument("--debug", action="store_true", help="show where a bug of ours is")
        ARGUMENTS[name](command.add_argument)
    return whole


def _ask(add):
    add("input", nargs="+", metavar="IMAGE.. QUESTION", help="pictures, then the question; <image> marks in it place them")
    _method(add)
    add("--out", metavar="PNG", help="draw which patches each reduction kept")
    add("--maps", action="store_true", help="draw as well what the method ranked by, and what it merged")
    add("--json", metavar="FILE", help="write the answer, the tokens of each layer and the kept indices")
    _sampling(add)
    _model(add)


def _chat(add):
    add("images", nargs="*", metavar="IMAGE")
    _method(add)
    _sampling(add)
    _model(add)


def _compare(add):
    add("image", metavar="IMAGE")
    add("question", metavar="QUESTION")
    add("--method", default="all", metavar="A,B,..", help="methods, with commas, or all (default)")
    add("--keep", help="visual tokens left after the reduction: a number, of the whole prompt, or a share (default: the methods' own)")
    add("--average", type=of(Positive), metavar="A", help="visual tokens entering a layer on average: each method solves for its budget")
    add("--set", action="append", default=[], metavar="METHOD.OPTION=VALUE", help="another option of one method")
    add("--out", metavar="PNG", help="draw what each method kept")
    add("--maps", action="store_true", help="draw as well what each ranked by, and what it merged")
    add("--json", metavar="FILE", help="write the table as JSON")
    _length(add)
    _model(add)


def _fit(add):
    add("fitted", choices=fit.FITTED, metavar="METHOD", help=" or ".join(fit.FITTED))
    add("--questions", required=True, metavar="JSONL", help='one {"image": .., "text": ..} a line')
    add("--images", metavar="DIR", help="the folder of its pictures (default: the file's)")
    add("--count", type=of(Number), default=64, help="read so many of them (default: 64)")
    add("--ratio", type=of(Share), default=0.6, help="fitprune: share of the FLOPs to save (default: 0.6)")
    add("--eta", type=of(NotNegative), default=0.003, help="vtw: the divergence allowed (default: 0.003)")
    add("--out", required=True, metavar="JSON", help="the file that --method reads")
    _model(add)


def _eval(add):
    add("--task", choices=tasks.TASKS, default="scenes", help="(default: scenes, the drawn world)")
    add("--data", metavar="DIR", help="a folder of questions, as `scenes` writes it (default: drawn here)")
    add("--split", metavar="NAME", help="of what is drawn: heldout (default), pairs (kinds of objects never shown in training), validation")
    add("--count", type=of(Number), metavar="N", help=f"questions of each family (default: {tasks.COUNT}; of a folder all)")
    add("--seed", type=of(Seed), help="of what is drawn (default: 0)")
    add("--method", default=contestants.DEFAULT, metavar="A,B,..", help=f"methods, or all (default: {contestants.DEFAULT}); none, random and "
                                                                      "uniform are always beside them")
    add("--keep", default="0.5,0.25,0.1", metavar="K,K,..", help="visual tokens left after the reduction: shares or numbers (default: 0.5,0.25,0.1)")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="another option; of several methods, METHOD.OPTION=VALUE")
    add("--oracles", action="store_true", help="as well tokens on things first, and on the background first, where it is known what a picture shows")
    add("--draws", type=of(Number), default=evaluate.Contest.draws, help=f"answers of a random method to each question (default: {evaluate.Contest.draws})")
    add("--out", metavar="JSON", help="write every number; beside it .png, accuracy against tokens, and .jsonl, every answer: the same command "
                                      "goes on from there when it was interrupted")
    add("--processes", type=of(Threads), metavar="N", help="on this machine (default: for a small model on the CPU one a core, else 1); "
                                                   "or start it with torchrun")
    add("--max-new-tokens", type=of(Number), default=evaluate.Contest.max_new_tokens, metavar="N", help=f"(default: {evaluate.Contest.max_new_tokens})")
    _model(add)


def _scenes(add):
    add("--out", required=True, metavar="DIR", help="a new folder")
    add("--count", type=of(Number), default=300, help="questions of each of the eight families (default: 300)")
    add("--set", dest="name", choices=scenes.SETS, default="heldout", help="pairs: kinds of objects never shown in training (default: heldout)")
    add("--seed", type=of(Seed), default=0)


def _train_toy(add):
    add("--out", required=True, metavar="DIR", help="the folder for checkpoints and results")
    add("--seed", type=of(Seed), default=0)
    add("--hide", choices=HIDING, default=HIDING[0], help="what the last part of the training hides from the decoder: blocks of neighbours "
                                                          "(default), single patches, or nothing")
    add("--minutes", type=of(NotNegative), metavar="M", help="stop after so many, to go on with --resume")
    add("--resume", action="store_true", help="go on from the state in --out")
    _device(add)


def _train_atp(add):
    add("--data", required=True, metavar="D", help="a json file in LLaVA's instruction format, or toy: the drawn world")
    add("--images", metavar="DIR", help="the folder of its pictures (default: the file's)")
    add("--target-tokens", type=of(Positive), required=True, metavar="N", help="visual tokens in a layer on average (N_target)")
    add("--method", choices=modules.READINGS, default="atp", help="the reading of the paper to train (default: atp)")
    add("--layers", default="4,14,24", help="modules act before these (default: 4,14,24)")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="another option of the method: strategy=spatial, ..")
    add("--freeze-lm", action="store_true", help="train the thresholds alone (Table 3)")
    add("--out", required=True, metavar="DIR", help="the folder for checkpoints and results")
    add("--resume", action="store_true", help="go on from the state in --out")
    add("--save-every", type=of(FromOne), default=100, metavar="STEPS")
    for name, kind in TRAINED.items():
        add(f"--{name.replace('_', '-')}", type=kind if kind is str else of(kind), default=getattr(Recipe, name), help=f"(default: {getattr(Recipe, name)})")
    add("--target-unit", choices=("tokens", "share"), default=Recipe.target_unit, help="of the distance to the target")
    add("--model", help="a checkpoint folder or a hub id (default: the shipped model)")
    add("--template", metavar="T", help="a name (`ask --help` lists them), or a file in jinja (default: the checkpoint's)")
    add("--dtype", choices=("float32", "bfloat16"), default=Recipe.dtype, help="of the products; what is trained is float32")
    _device(add)


def _ablate(add):
    add("--out", required=True, metavar="DIR", help="the folder for all that is trained, and for the answers: the same command goes on from there")
    add("--rows", metavar="A,B,..", help=f"of {', '.join(row.name for row in ablate.ROWS)} (default: all)")
    for name, default in (("steps", 150), ("batch", 16), ("lr", 2e-4), ("lr-module", 3e-3), ("count", 100), ("seed", 0)):
        add(f"--{name}", type=of(type(default)), default=default, help=f"(default: {default})")
    add("--model", help="a checkpoint folder (default: the shipped model)")
    _device(add)


def _inspect(add):
    add("model", nargs="?", help="a checkpoint folder or a hub id (default: the shipped model)")
    add("--json", action="store_true", help="print JSON")


def _verify(add):
    add("model")
    add("--expected", metavar="JSON", help="the recording (default: expected.json in the folder)")
    add("--images", metavar="DIR", help="the folder of its pictures")
    add("--live", nargs=2, metavar=("IMAGE", "QUESTION"),
        help="run transformers instead of reading a recording: every stage is compared, from the prompt's ids to the greedy ids; one passes "
             "within five times what rounding does to it (the reference's distance from itself in float64; of a recording, our model's)")
    add("--dtype", default="float32", choices=DTYPES)
    add("--json", action="store_true", help="print JSON")
    _device(add)


def _methods(add):
    add("name", nargs="?", metavar="METHOD", help="show this method, or reading, with its options")
    add("--readings", action="store_true", help="list other readings of the papers, each a method with a name of its own, with the method that it reads")
    add("--json", action="store_true", help="print JSON")


def _tables(add):
    add("papers", nargs="*", metavar="PAPER", help=f"of {', '.join(tables.PAPERS)} (default: all)")
    _formula(add)
    add("--text", type=of(Annotated[int, Range(0, 10 ** 6)]), help="text tokens that it counts besides the image's (default: none)")
    add("--json", action="store_true", help="print JSON")


def _cost(add):
    _shape(add, "llava-1.5-7b")
    _methods_and_budgets(add)
    add("--text", type=of(Number), default=64, help="text tokens of the prompt (default: 64)")
    _formula(add)
    add("--all-tokens", action="store_true", help="the formula counts the text too")
    add("--dtype", default="float16", choices=DTYPES)
    add("--json", action="store_true", help="print JSON")


def _formula(add):
    add("--ffn", type=int, choices=(2, 3), help="matrices of the MLP that the formula counts (default: as the paper's own)")
    add("--cut", choices=("before", "after"), help="count a layer before a cut with what enters it (default), or after, with what leaves it")


def _shape(add, default):
    add("--shape", choices=shapes.SHAPES, help=f"of the model (default: {default})")
    add("--model", metavar="DIR", help="in place of --shape: that of a checkpoint folder or hub id")
    add("--layers", type=of(int), metavar="N", help="only so many layers of its decoder")


def _methods_and_budgets(add):
    add("--method", metavar="A,B,..", help=f"of {', '.join(METHODS)}; a file that `fit` wrote; A+B; or all")
    add("--keep", metavar="K,K,..", help="image tokens left of the whole prompt: numbers (192,128) or shares (0.25)")
    add("--average", metavar="A,A,..", help="in place of --keep: image tokens entering a layer on average")
    add("--schedule", metavar="LAYER:KEEP,..", help="act before several layers, like 4:136,14:68,24:34")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="another option; of several methods, METHOD.OPTION=VALUE")


def _bench(add):
    _shape(add, "small")
    _methods_and_budgets(add)
    add("--against", choices=("hf",), help="also run transformers (sdpa and eager) on the same weights")
    add("--text", type=of(Number), default=64, help="text tokens of the prompt (default: 64)")
    add("--repeat", type=of(Number), default=5, help="rounds; medians are shown (default: 5); torchrun divides them over its processes, "
                                               "which need a GPU, or --threads cores, each")
    add("--steps", type=of(Number), default=10, help="tokens decoded a round (default: 10)")
    add("--dtype", default="float32", choices=DTYPES)
    add("--threads", type=of(Threads), default=2)
    add("--json", metavar="FILE", help="write every time")
    add("--out", metavar="PNG", help="draw the prefill's time against the tokens kept, with the line that FLOPs predict")
    _device(add)


def _growth(add):
    _shape(add, "small")
    add("--tokens", type=_lengths, default="160,320,640,1280,2560", metavar="T,T,..", help="tokens of the prompts (default: 160,320,640,1280,2560)")
    add("--decode", type=of(Number), default=1000, metavar="N", help="tokens after the first of them (default: 1000)")
    add("--prompts", type=of(Number), default=50, metavar="N", help="prompts in a row (default: 50)")
    add("--repeat", type=of(Number), default=3, help="rounds; medians are shown (default: 3)")
    add("--dtype", default="float32", choices=DTYPES)
    add("--threads", type=of(Threads), default=2)
    add("--json", metavar="FILE", help="write every number")
    _device(add)


def _lengths(text):
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = [0]
    if min(lengths) < 2 or max(lengths) > 10 ** 6:
        raise argparse.ArgumentTypeError(f"{text}: give numbers from 2 to a million, with commas")
    return lengths


def _method(add):
    add("--method", help=f"one of {', '.join(METHODS)}; a file that `fit` wrote; or A+B, one after the other (default: none)")
    add("--keep", help="visual tokens to keep: a number (128), of the whole prompt, or a share (0.25); for A+B one each (256+64)")
    add("--average", type=of(Positive), metavar="A", help="in place of --keep: visual tokens entering a layer on average")
    add("--schedule", metavar="LAYER:KEEP,..", help="act before several layers, like 4:136,14:68,24:34")
    add("--set", action="append", default=[], metavar="OPTION=VALUE", help="another option of the method; for A+B, A.OPTION=VALUE")


def _sampling(add):
    add("--temperature", type=of(NotNegative), default=0.0, help="0 (default): always the likeliest token")
    add("--top-p", type=of(Probability), default=1.0)
    add("--seed", type=of(int), default=0)
    _length(add)


def _length(add):
    add("--max-new-tokens", type=of(Number), default=512, metavar="N")


def _model(add):
    add("--model", help="a checkpoint folder or a hub id (default: the shipped model)")
    add("--template", metavar="T", help=f"{', '.join(TEMPLATES)}; or a file, in jinja (default: the checkpoint's)")
    add("--system", metavar="TEXT", help="what the model is told to be, where the template has a place for it")
    add("--raw", action="store_true", help="no template: the prompt is the question as it is, with one <image> mark a picture")
    add("--dtype", help="float32, bfloat16 or float16 (default: as stored; a small model on the CPU in float32)")
    _device(add)


def _device(add):
    add("--device", default="cpu", help="cpu (default), cuda, cuda:1, ..")


ARGUMENTS = {"ask": _ask, "chat": _chat, "compare": _compare, "fit": _fit, "eval": _eval, "scenes": _scenes, "train toy": _train_toy, "train atp": _train_atp, "ablate": _ablate, "inspect": _inspect, "verify": _verify,
             "methods": _methods, "tables": _tables, "cost": _cost, "bench": _bench, "growth": _growth}
