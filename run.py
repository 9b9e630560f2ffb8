"""minivlm on the command line. Alone, `python run.py` shows what every method does to a picture and question that are shipped;
`python run.py --help` shows the commands, `python run.py ask --help` the options of one."""

import json
import os
import sys
import warnings
from argparse import Namespace
from pathlib import Path

import torch

from minivlm.io.image import open_image
from minivlm.io.text.tokenizer import next_turn, prompt
from minivlm.lab.check import hf, inspect, stages as verify
from minivlm.lab.cli import methods, parallel, session, shipped
from minivlm.lab.cli.arguments import TRAINED, parser
from minivlm.lab.cli.options import build, build_all, own_settings
from minivlm.lab.compare import compare, draw, report
from minivlm.lab.cost import cost, count, shapes
from minivlm.lab.cost.flops import Formula
from minivlm.lab.score import accuracy as score, answers as evaluate, curves, tasks
from minivlm.lab.score.contestants import contestants
from minivlm.lab.score.log import Log
from minivlm.lab.speed import measure as bench, plot, verdict
from minivlm.lab.studies import ablation as ablate, recomputed as tables, scaling as growth
from minivlm.lab.train import fit, train_atp
from minivlm.lab.train.instruct import Instructions
from minivlm.toy import benchmark, folder, train
from pruning import METHODS, READINGS
from pruning.base import UserError
from weights import device_of, load


RESUME = "go on with --resume"                     # after Ctrl-C
SAME_COMMAND = "the same command goes on from there"


def ask(args):
    """Answer one question about pictures (or about none)."""
    *pictures, question = args.input
    if os.path.isfile(question):
        raise UserError(f"{question!r} is a picture and no question follows it: end with the question, in quotes")
    session.writable(args.out, ".png")
    session.writable(args.json)
    talk, images, pixels = session.conversation(args, pictures)
    model = talk.model
    session.note(model, question, images)
    turn = prompt([(question, None)], len(images), session.template(args, model))
    talk.read(model.tokenizer.encode(turn), pixels)
    answer = session.stream(talk, args)
    print("\n".join(report.cost_lines(talk)))
    if args.out:
        shown = draw.rows if args.maps else lambda *seen: [draw.panels(*seen)]
        rows = [row for i, image in enumerate(images) for row in shown(image, model.processor.box(*image.size), talk.trace, i)]
        session.save(args.out, draw.sheet(rows, header=f"{question}  {answer}").save)
    if args.json:
        told = dict(model=str(args.model), images=pictures, question=question, answer=answer, **report.facts(talk))
        session.save_json(args.json, told)


def chat(args):
    """Talk about pictures: one question a line; an empty line or the end of the input ends. A line that cannot be read is skipped."""
    talk, images, pixels = session.conversation(args, args.images)
    model, turns, read = talk.model, [], ""            # read: the text that the model has taken in last, with its answer
    template = session.template(args, model)
    if sys.stdin.isatty():
        print("One question a line; an empty line ends. What the first question dropped stays dropped.")
    refused = False
    while question := session.line():
        try:
            session.note(model, question, () if turns else images)
            if turns:
                text = next_turn(question, template=template, turns=turns)
                if talk.pending and talk.pending[0] in model.eos:      # the template writes how an answer ends
                    talk.pending = []
                talk.read(model.tokenizer.encode(text, bos=False, after=read))
            else:
                text = prompt([(question, None)], len(images), template)
                talk.read(model.tokenizer.encode(text), pixels)
                print("  " + "\n  ".join(report.cost_lines(talk)), file=sys.stderr)
            turns.append((question, ""))
            read = text
            answer = session.stream(talk, args)
            turns[-1] = question, answer
            read = text + answer
        except UserError as error:                     # what was said before stays; the next question may do
            print(error, file=sys.stderr)
            refused = True
    return 2 if refused and not turns else 0


def compare_(args):
    """Answer one question under several methods: a table, and one sheet of what each of them kept."""
    session.writable(args.out, ".png")
    session.writable(args.json)
    session.one_budget(args)
    image, model, known = open_image(args.image), session.opened(args), shipped.known(args.image, args.question)
    session.note(model, args.question, [image])
    ids = model.tokenizer.encode(prompt([(args.question, None)], 1, session.template(args, model)))
    pixels = model.processor.pixels(image)
    pruners = build_all(args.method, args.keep, args.average, args.set, model.visual_tokens(pixels),
                        model.config.text.num_hidden_layers, model.parts([pixels]), own_settings(model.folder))
    runs = compare.compare(model, ids, [pixels], pruners, args.max_new_tokens)
    told = compare.facts(runs, model.config, known.get("evidence", ()))
    asked = f"{args.question}  (right: {known['answer']})" if "answer" in known else args.question
    print("\n".join([asked, "", *compare.lines(told)]))
    if args.out:
        box = model.processor.box(*image.size)
        session.save(args.out, compare.picture(runs, image, box, asked, evidence=known.get("evidence", ()), maps=args.maps).save)
    session.save_json(args.json, told)


def fit_(args):
    """Fit a method to a model on a few questions: FitPrune's table, or VTW's layer. --method FILE then uses it."""
    session.writable(args.out, ".json")
    model = session.opened(args)
    prompts = fit.samples(model, args.questions, args.images, args.count, session.template(args, model))
    pruner = fit.fit(model, args.fitted, prompts, args.ratio, args.eta)
    print(pruner)
    session.save(args.out, lambda path: Path(path).write_text(fit.saved(args.fitted, pruner)))


def eval_(args):
    """Score the model on a task, unpruned and under methods: accuracy, and what pruning costs on the same questions, with intervals."""
    session.writable(args.out, ".json")
    session.positive(args, "count", "draws", "processes", "max_new_tokens")
    items = tasks.TASKS[args.task](args.data, args.split, args.count, args.seed)
    answers = args.out and Path(args.out).with_suffix(".jsonl")
    with session.interruptible(answers, SAME_COMMAND), parallel.processes(args.device) as (rank, size, args.device):
        model = session.opened(args)
        entered = contestants(model, model.processor.pixels(items[0].picture), args.method, args.keep, args.set, args.oracles)
        contest = evaluate.Contest(model, items, entered, session.template(args, model), args.draws, args.max_new_tokens)
        recipe = contest.recipe(model=str(args.model), **{name: getattr(args, name) for name in ("task", "data", "split", "count", "seed")})
        log = Log(answers, recipe)
        if size == 1 and (count := args.processes or parallel.worthwhile(model)) > 1:
            return parallel.spread(main, args.argv, count)
        rows = contest.run(log, rank, size)
    if rank == 0:
        told = dict(recipe=recipe, questions=len(items), contestants=score.facts(items, entered, rows))
        print("\n".join(score.lines(told)))
        if args.out:
            session.save_json(args.out, told)
            session.save(Path(args.out).with_suffix(".png"), curves.curves(told).save)


def scenes_(args):
    """Draw the world of the shipped model: pictures, and a questions file with answers and evidence, for any code to be scored on."""
    if args.count < 1:
        raise UserError(f"--count {args.count}: ask for at least one question of each family")
    if os.path.lexists(args.out):
        raise UserError(f"{args.out} is there already: name a new folder")
    count = benchmark.write(args.out, args.name, args.count, args.seed)
    print(f"wrote {count} questions to {args.out}")


def train_toy(args):
    """Train the shipped model anew, from nothing, on its drawn world; DIR/model is then a checkpoint folder."""
    state = Path(args.out) / "state.safetensors"
    if state.exists() and not args.resume:
        raise UserError(f"{args.out} holds a run already: go on with --resume, or name another --out")
    recipe = train.Recipe(seed=args.seed, hidden=args.hide)
    with session.interruptible(state, RESUME):
        run = train.train(args.out, recipe, args.device, args.resume, args.minutes)
    if run.at == run.total:
        run.resume("best")
        folder.save(run.student.llava, Path(args.out) / "model")
        print(f"wrote {Path(args.out) / 'model'}")
    else:
        print(f"stopped at step {run.at} of {run.total}: go on with --resume")


def train_module(args):
    """Train a method's module on a model and instructions, alone or under torchrun: ATP, by its losses. Then --set module=DIR."""
    if args.save_every < 1:
        raise UserError(f"--save-every {args.save_every}: at least every step")
    options = {"layers": f"[{args.layers}]"} | dict(pair.partition("=")[::2] for pair in args.set)
    atp = build(args.method, settings=[f"{name}={x}" for name, x in options.items()])
    data = Instructions(args.data, args.images)
    state = Path(args.out) / train_atp.STATE
    with session.interruptible(state, RESUME), parallel.processes(args.device) as (rank, size, args.device):
        frozen = args.freeze_lm and args.dtype == "bfloat16"       # what is trained stays in float32
        model = session.opened(args, "bfloat16" if frozen else "float32")
        chosen = {name: getattr(args, name) for name in (*TRAINED, "target_unit", "freeze_lm", "dtype")}
        recipe = train_atp.Recipe(args.target_tokens, template=session.template(args, model), **chosen)
        log = train_atp.train(model, atp, recipe, data, args.out, args.save_every, args.resume, rank, size)
        if rank == 0:
            last = log[-1]
            print(f"step {last['step'] + 1}: loss {last['loss']:.4g}, {last['average']:.1f} tokens in a layer, "
                  f"{', '.join(f'{k:.1f}' for k in last['kept'])} after layers {', '.join(map(str, atp.layers))}\nwrote {args.out}")


def ablate_(args):
    """Train ATP as each row of its paper's Tables 1 to 5 has it, on the drawn world, and print the tables."""
    names = args.rows.split(",") if args.rows else [row.name for row in ablate.ROWS]
    if lost := [name for name in names if name not in [row.name for row in ablate.ROWS]]:
        raise UserError(f"--rows {', '.join(lost)}: use some of {', '.join(row.name for row in ablate.ROWS)}")
    rows = [row for row in ablate.ROWS if row.name in names]
    session.positive(args, "count")
    recipe = train_atp.Recipe(0, args.steps, args.batch, lr=args.lr, lr_module=args.lr_module, seed=args.seed)
    items = benchmark.items("heldout", args.count)
    with session.interruptible(args.out, SAME_COMMAND):
        found = ablate.study(shipped.model_or(args.model), args.out, recipe, Instructions("toy"), items, rows)
    told = ablate.facts(found, items)
    print("\n".join(ablate.lines(told)))
    session.save_json(Path(args.out) / "tables.json", told)


def inspect_(args):
    """Show a checkpoint: its configuration, and every group of stored tensors with its module, dtype and size."""
    told = inspect.inspect(shipped.model_or(args.model))
    print(json.dumps(told, indent=1) if args.json else "\n".join(inspect.lines(told)))


def verify_(args):
    """Compare every stage of the model with recorded (or, --live, running) transformers; exit status 1 on FAIL."""
    dtype = getattr(torch, args.dtype)
    live = args.live and hf.live(args.model, *args.live, dtype=dtype, device=args.device)
    rows = verify.verify(load(args.model, dtype, args.device), args.model, live or args.expected, args.images)
    if args.json:
        print(json.dumps(verify.facts(rows), indent=1))
    else:
        print("\n".join(verify.lines(rows, "reference" if live else "model")))
    return 0 if all(row.passed for row in rows) else 1


def methods_(args):
    """List the methods: where each acts, what it needs, the laws it keeps, its paper; or one with its options."""
    names = [args.name] if args.name else READINGS if args.readings else METHODS
    told = [methods.facts(name) for name in names]
    if args.json:
        print(json.dumps(told, indent=1))
    else:
        print("\n".join(methods.described(told[0]) if args.name else methods.table(told)))


def tables_(args):
    """Recompute every FLOPs, ratio, average and storage figure of three papers, beside what they print."""
    variant = {name: getattr(args, name) for name in ("ffn", "text", "cut") if getattr(args, name) is not None}
    told = tables.entries(args.papers, **variant)
    print(json.dumps(tables.facts(told), indent=1) if args.json else "\n".join(tables.lines(told)).strip("\n"))


def cost_(args):
    """Count what a shape costs under methods, without weights: tokens, FLOPs, cache and weights, and the most there is to gain."""
    if args.text < 1:
        raise UserError(f"--text {args.text}: a prompt has at least one text token")
    shape = shapes.shape_of(args.shape, args.model, args.layers)
    pruners = shapes.lineup(args.method, args.keep, args.average, args.set, shape, args.schedule)
    pruners, why_not = count.able(shape, pruners) if args.method == "all" else (pruners, {})
    formula = Formula(args.ffn or 3, args.text if args.all_tokens else 0, args.cut or "before")
    told = cost.facts(shape, pruners, args.text, formula, getattr(torch, args.dtype))
    told["why_not"] = why_not
    print(json.dumps(told, indent=1) if args.json else "\n".join([*cost.lines(told), *report.refusals(why_not)]))


def bench_(args):
    """Measure encoding, prefill, decoding and memory, unpruned and under methods, beside what the counted FLOPs predict."""
    session.writable(args.out, ".png")
    session.writable(args.json)
    session.positive(args, "text", "repeat", "steps", "threads")
    torch.set_num_threads(args.threads)
    shape = shapes.shape_of(args.shape or (None if args.model else "small"), args.model, args.layers)
    chosen = (args.method, args.keep, args.average) if args.method or args.keep or args.average or args.schedule else ("fastv,divprune", "0.25", None)
    pruners = shapes.lineup(*chosen, args.set, shape, args.schedule)
    pruners, why_not = count.able(shape, pruners, counted=False) if args.method == "all" else (pruners, {})
    against = ("sdpa", "eager") if args.against else ()
    with parallel.processes(args.device) as (rank, size, device):
        told = bench.measure(shape, pruners, args.model, args.text, args.steps, args.repeat, getattr(torch, args.dtype), device, against, rank, size)
    if rank:
        return
    told["why_not"] = why_not
    print("\n".join([*verdict.lines(told), *report.refusals(why_not)]))
    session.save_json(args.json, told)
    if args.out:
        session.save(args.out, plot.plot(told).save)


def growth_(args):
    """Measure how time and memory grow with the tokens of a prompt, with the tokens decoded, and with one prompt after another."""
    session.writable(args.json)
    session.positive(args, "decode", "prompts", "repeat", "threads")
    torch.set_num_threads(args.threads)
    shape = shapes.shape_of(args.shape or (None if args.model else "small"), args.model, args.layers)
    model = bench.model_of(shape, args.model, getattr(torch, args.dtype), device_of(args.device))
    told = dict(growth.facts(shape, model, args.dtype, args.repeat), **growth.measure(model, args.tokens, args.decode, args.prompts, args.repeat))
    print("\n".join(growth.lines(told)))
    session.save_json(args.json, told)


COMMANDS = {"ask": ask, "chat": chat, "compare": compare_, "fit": fit_, "eval": eval_, "scenes": scenes_, "train toy": train_toy,
            "train atp": train_module, "ablate": ablate_, "inspect": inspect_, "verify": verify_, "methods": methods_, "tables": tables_,
            "cost": cost_, "bench": bench_, "growth": growth_}


def main(argv):
    """Run one command, without words the first look; the exit status: 2 after bad input, 70 after a bug of ours."""
    session.any_terminal()
    try:
        return ended(argv)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        line, status = refusal(error), 2
        if line is None:
            if "--debug" in argv or os.environ.get("MINIVLM_DEBUG"):   # the tests set the variable: a bug fails them
                raise
            name = type(error).__name__
            line = UserError(f"this is a bug: {name}: {error}; please report it, with what --debug prints")
            status = 70
        print(f"run.py: {line}", file=sys.stderr)
        return status


def ended(argv):
    """The exit status of a command. What libraries warn of is shown at its end, not around a refusal."""
    with warnings.catch_warnings(record=True) as caught:
        try:
            args = parser(COMMANDS).parse_args(shipped.first_look() if argv == [] else argv, Namespace(argv=argv))
            if "device" in args and "LOCAL_RANK" not in os.environ:    # torchrun's processes each get their own
                device_of(args.device)
            status = args.function(args) or 0
        except BrokenPipeError:                        # whoever read the output, like head, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 141
    for warning in caught:
        warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
    return status


def refusal(error):
    """The line on what a user can mend: the error's own, the system's with the file's name, a full memory; None for a bug."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return UserError(f"{error.filename or 'a file'} cannot be read or written ({error.strerror or error})")
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error):
        return UserError("the memory is full: take a smaller model, fewer tokens at once or --dtype bfloat16")
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
