"""minivlm on the command line. `python run.py --help` shows the commands, `python run.py ask --help` the options of one."""

import argparse
import json
import os
import sys
from dataclasses import fields
from math import isfinite
from pathlib import Path

import torch

from minivlm.chat import Conversation, Sampling
from minivlm.image import open_image
from minivlm.lab import bench, compare, draw, hf, inspect, report, verify
from minivlm.lab.options import build, build_all
from minivlm.text import next_turn, prompt
from pruning import METHODS
from pruning.base import UserError
from weights import load

EXAMPLES = """examples:
  python run.py ask photo.jpg "What is on the table?" --model llava-hf/llava-1.5-7b-hf
  python run.py ask photo.jpg "What is this?" --model DIR --method fastv --keep 128 --set layer=3 --out kept.png
  python run.py chat photo.jpg --model DIR --method fastv --keep 0.25
  python run.py compare photo.jpg "What is this?" --model DIR --average 128 --out sheet.png          every method
  python run.py inspect DIR                  which stored tensor fills which module
  python run.py verify DIR                   every stage against recorded outputs of transformers
  python run.py verify DIR --live photo.jpg "What is this?"          the same against transformers, here and now
  python run.py methods                      what each method needs, where it acts, its options
  python run.py bench --against hf           speed, as ratios in one run
bad input ends with one line and exit status 2"""


def ask(args):
    """Answer one question about pictures (or about none)."""
    *pictures, question = args.input
    if os.path.isfile(question):
        raise UserError(f"{question!r} is a picture and no question follows it: end with the question, in quotes")
    _writable(args.out, ".png")
    _writable(args.json)
    talk, model, images = _conversation(args, pictures)
    turn = prompt([(question, None)], len(images), _template(args, model))
    talk.read(model.tokenizer.encode(turn), [model.processor.pixels(image) for image in images])
    answer = _stream(talk, args)
    print("\n".join(report.cost_lines(talk)))
    if args.out:
        panels = [p for i, image in enumerate(images)
                  for p in draw.panels(image, model.processor.box(*image.size), talk.trace, image=i)]
        _save(args.out, draw.sheet([panels], header=f"{question}  {answer}").save)
    if args.json:
        told = dict(model=str(args.model), images=pictures, question=question, answer=answer, **report.facts(talk))
        _save(args.json, lambda path: Path(path).write_text(json.dumps(told, indent=1)))


def chat(args):
    """Talk about pictures: one question a line; an empty line or the end of the input ends."""
    talk, model, images = _conversation(args, args.images)
    pixels, turns = [model.processor.pixels(image) for image in images], 0
    if sys.stdin.isatty():
        print("One question a line; an empty line ends. What the first question dropped stays dropped.")
    while question := _line():
        if turns:
            text = next_turn(question, ended=False)
            talk.read(model.tokenizer.encode(_unended(talk, text), bos=False))
        else:
            text = prompt([(question, None)], len(images), _template(args, model))
            talk.read(model.tokenizer.encode(text), pixels)
            print("  " + "\n  ".join(report.cost_lines(talk)), file=sys.stderr)
        _stream(talk, args)
        turns += 1


def compare_(args):
    """Answer one question under several methods: a table, and one sheet of what each of them kept."""
    _writable(args.out, ".png")
    _writable(args.json)
    image, model = open_image(args.image), _model(args)
    ids = model.tokenizer.encode(prompt([(args.question, None)], 1, _template(args, model)))
    pixels = model.processor.pixels(image)
    n = len(model.embed(ids, [pixels]).visual)
    pruners = build_all(args.method, args.keep, args.average, args.set, n, model.config.text.num_hidden_layers)
    runs = compare.compare(model, ids, [pixels], pruners, args.max_new_tokens)
    told = compare.facts(runs, model.config)
    print("\n".join(compare.lines(told)))
    if args.out:
        _save(args.out, compare.picture(runs, image, model.processor.box(*image.size), args.question).save)
    if args.json:
        _save(args.json, lambda path: Path(path).write_text(json.dumps(told, indent=1)))


def inspect_(args):
    """Show a checkpoint: its configuration, and every group of stored tensors with its module, dtype and size."""
    told = inspect.inspect(args.model)
    print(json.dumps(told, indent=1) if args.json else "\n".join(inspect.lines(told)))


def verify_(args):
    """Compare every stage of the model with recorded (or, --live, running) transformers; exit status 1 on FAIL."""
    dtype = getattr(torch, args.dtype)
    live = args.live and hf.live(args.model, *args.live, dtype=dtype, device=args.device)
    rows = verify.verify(load(args.model, dtype, args.device), args.model, live or args.expected, args.images)
    if args.json:
        told = [dict(row._asdict(), passed=row.passed) for row in rows]
        print(json.dumps([t if isfinite(t["difference"]) else dict(t, difference=None) for t in told], indent=1))
    else:
        for row in rows:
            print(f"{'PASS' if row.passed else 'FAIL'}  {row.stage:24} {row.difference:9.2e}  of {row.tolerance:.0e}  {row.where}")
    return 0 if all(row.passed for row in rows) else 1


def methods(args):
    """List the methods: where each acts, what it needs, the laws it keeps, its paper, its options and their defaults."""
    for name, method in METHODS.items():
        paper = sys.modules[method.__module__].__doc__.splitlines()[0]
        print(f"{name}: {paper}")
        needs, laws = (", ".join(sorted(words)) or "nothing" for words in (method.needs, method.laws))
        print(f"  acts at the {method.site} site; needs {needs}; keeps the laws {laws}")
        print("  options: " + ", ".join(f"{f.name}={f.default}" for f in fields(method)))


def bench_(args):
    """Measure prefill, decoding and the vision tower, as ratios in one run."""
    bench.main(args)


def _conversation(args, pictures):
    pruner = build(args.method, args.keep, args.set)
    images = [open_image(path) for path in pictures]
    args.sampling = Sampling(args.temperature, args.top_p, args.seed)
    model = _model(args)
    return Conversation(model, pruner), model, images


def _model(args):
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: ask for at least one")
    model = load(args.model, args.dtype, args.device)
    if model.tokenizer is None:
        raise UserError(f"{args.model} has no tokenizer.json and no tokenizer.model: copy one of them from the checkpoint")
    return model


def _template(args, model):
    return args.template or ("llava_v1" if model.config.original else "llava-hf")


def _stream(talk, args):
    """Print the answer as it comes; return it."""
    text = talk.model.tokenizer.stream()
    parts = []
    for id in talk.generate(args.max_new_tokens, args.sampling):
        parts.append(text.push(id))
        print(parts[-1], end="", flush=True)
    parts.append(text.finish())
    print(parts[-1], flush=True)
    return "".join(parts).strip()


def _unended(talk, text):
    """The text of a further turn, without its </s> where the model ended its answer with that itself."""
    end = talk.model.tokenizer.eos
    return text.removeprefix("</s>") if talk.pending == [end] else text


def _line():
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _writable(path, suffix=None):
    """UserError, before any work, where a result could not be written."""
    if path and suffix and Path(path).suffix.lower() != suffix:
        raise UserError(f"{path}: the picture is written as PNG, so name it *{suffix}")
    if path and (Path(path).is_dir() or not os.access(Path(path).absolute().parent, os.W_OK)):
        raise UserError(f"{path} cannot be written: name a file in a folder that exists")


def _save(path, write):
    """Write beside the place and move there, so that an interruption leaves no half file."""
    beside = Path(path).with_name("." + Path(path).name)
    write(beside)
    beside.replace(path)
    print(f"wrote {path}")


def _parser():
    parser = argparse.ArgumentParser("run.py", description="LLaVA from scratch, with visual token pruning.", epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, function):
        command = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        command.set_defaults(function=function)
        return command

    one = add("ask", ask)
    one.add_argument("input", nargs="+", metavar="IMAGE.. QUESTION", help="pictures, then the question; <image> marks in it place them")
    one.add_argument("--out", metavar="PNG", help="draw which patches each reduction kept")
    one.add_argument("--json", metavar="FILE", help="write the answer, the tokens of each layer and the kept indices")
    talk = add("chat", chat)
    talk.add_argument("images", nargs="*", metavar="IMAGE")
    side = add("compare", compare_)
    side.add_argument("image", metavar="IMAGE")
    side.add_argument("question", metavar="QUESTION")
    side.add_argument("--method", default="all", metavar="A,B,..", help="methods, with commas, or all (default)")
    budget = side.add_mutually_exclusive_group()
    budget.add_argument("--keep", help="visual tokens left after the reduction: a number or a share (default: the methods' own)")
    budget.add_argument("--average", type=float, metavar="A", help="visual tokens entering a layer on average: each method solves for its budget")
    side.add_argument("--set", action="append", default=[], metavar="METHOD.OPTION=VALUE", help="another option of one method")
    side.add_argument("--out", metavar="PNG", help="draw what each method kept")
    side.add_argument("--json", metavar="FILE", help="write the table as JSON")
    for command in (one, talk):
        command.add_argument("--method", help=f"one of {', '.join(METHODS)} (default: none)")
        command.add_argument("--keep", help="visual tokens to keep: a number (128) or a share (0.25)")
        command.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="another option of the method")
        command.add_argument("--temperature", type=float, default=0.0, help="0 (default): always the likeliest token")
        command.add_argument("--top-p", type=float, default=1.0)
        command.add_argument("--seed", type=int, default=0)
    for command in (one, talk, side):
        command.add_argument("--model", required=True, help="a checkpoint folder or a hub id")
        command.add_argument("--max-new-tokens", type=int, default=512, metavar="N")
        command.add_argument("--template", help="llava-hf, llava_v1 or vicuna_v1 (default: the checkpoint's)")
        command.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as stored)")
    show = add("inspect", inspect_)
    show.add_argument("model")
    check = add("verify", verify_)
    check.add_argument("model")
    check.add_argument("--expected", metavar="JSON", help="the recording (default: expected.json in the folder)")
    check.add_argument("--images", metavar="DIR", help="the folder of its pictures")
    check.add_argument("--live", nargs=2, metavar=("IMAGE", "QUESTION"), help="run transformers instead of reading a recording")
    check.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    for command in (show, check):
        command.add_argument("--json", action="store_true", help="print JSON")
    for command in (one, talk, side, check):
        command.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ..")
    add("methods", methods)
    bench.options(add("bench", bench_))
    return parser


def main(argv=None):
    """Run one command; the exit status."""
    args = _parser().parse_args(argv)
    try:
        return args.function(args) or 0
    except UserError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
