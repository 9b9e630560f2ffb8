"""Answer one question under several methods: a table, and a sheet of what each kept.

For each method the table has answer, tokens, FLOPs and cache.

examples:
  python run.py compare photo.jpg "What is this?" --model DIR --average 128 --out sheet.png          every method
  python run.py compare photo.jpg "What is this?" --model DIR --method fastv,divprune --keep 0.25
"""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from minivlm.generate import Conversation
from minivlm.io.image import open_image
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import output, session, shipped
from minivlm.lab.cli.arguments import add_length, add_model, add_output, add_settings, within
from minivlm.lab.cli.options import build_all, check, own_settings
from minivlm.lab.compare import draw, report
from minivlm.lab.compare.sheet import sheet
from minivlm.lab.cost.flops import average, flops
from minivlm.toy.benchmark import on_patches
from minivlm.trace import Trace
from pruning.base import Pruner, UserError
from pruning.fields import Positive


def add_arguments(parser):
    """Picture and question, the methods with one budget, and the rest."""
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("question", metavar="QUESTION")
    group = parser.add_argument_group("methods")
    group.add_argument("--method", default="all", metavar="A,B,..", help="methods, with commas, or all (default)")
    group.add_argument("--keep", help="visual tokens left after the reduction: a number, of the whole prompt, or a share "
                                      "(default: the methods' own)")
    group.add_argument("--average", type=within(Positive), metavar="A",
                       help="visual tokens entering a layer on average: each method solves for its budget")
    add_settings(group, "another option of one method", "METHOD.OPTION=VALUE")
    add_output(parser, "the table as JSON")
    add_length(parser)
    add_model(parser)


def main(args):
    """Print the table; write it and the sheet."""
    output.writable(args.out, ".png")
    output.writable(args.json)
    session.one_budget(args)
    image = open_image(args.image)
    model = session.opened(args)
    known = shipped.known(args.image, args.question)
    evidence = known.get("evidence", ())
    session.note(model, args.question, [image])
    text = prompt([(args.question, None)], 1, session.template(args, model))
    pixels = model.processor.pixels(image)
    pruners = build_all(args.method, args.keep, args.average, args.set, model.visual_tokens(pixels),
                        model.config.text.num_hidden_layers, model.parts([pixels]), own_settings(model.folder))
    runs = compare(model, model.tokenizer.encode(text), [pixels], pruners, args.max_new_tokens)
    rows = facts(runs, model.config, evidence)
    header = f"{args.question}  (right: {known['answer']})" if "answer" in known else args.question
    print("\n".join([header, "", *lines(rows)]))
    if args.out:
        box = model.processor.box(*image.size)
        output.save(args.out, picture(runs, image, box, header, evidence=evidence, maps=args.maps).save)
    output.save_json(args.json, rows)


@dataclass
class Run:
    """One method's answer, or why there is none."""

    name: str
    pruner: Pruner | None
    ids: tuple = ()
    answer: str = ""
    trace: Trace | None = None
    kv_bytes: int = 0                  # of the prompt
    why_not: str = ""


def compare(model, ids, pixels, pruners, max_new_tokens=64):
    """[Run] of the unpruned model, first, and of each method of {name: Pruner, or the UserError that forbids it}."""
    runs = []
    others = {name: pruner for name, pruner in pruners.items() if name != "none"}      # unpruned comes first, whatever its budget
    for name, pruner in tqdm({"none": None, **others}.items(), desc="compare", leave=False):
        try:
            if isinstance(pruner, UserError):
                raise pruner
            pruner = check(pruner, model)
            runs.append(_run(model, ids, pixels, name, pruner, max_new_tokens))
        except UserError as error:
            if name == "none":
                raise
            runs.append(Run(name, None, why_not=str(error)))
    return runs


def _run(model, ids, pixels, name, pruner, max_new_tokens):
    talk = Conversation(model, pruner)
    talk.read(ids, pixels)
    held = talk.cache.bytes
    answer = tuple(talk.generate(max_new_tokens))
    return Run(name, pruner, answer, model.tokenizer.decode(answer).strip(), talk.trace, held)


def agreement(run, unpruned):
    """"same", or how many ids of the unpruned answer come before the first that differs."""
    if run.ids == unpruned.ids:
        return "same"
    alike = next((i for i, (a, b) in enumerate(zip(run.ids, unpruned.ids)) if a != b), min(len(run.ids), len(unpruned.ids)))
    return f"{alike} of {len(unpruned.ids)} ids"


def evidence_kept(run, evidence):
    """(left, all): of the visual tokens on the evidence, how many are left, as tokens of their own, after the last reduction."""
    tokens = on_patches(run.trace.grid, evidence)
    kept = run.trace.steps[-1].kept if run.trace.steps else tokens
    return [int(torch.isin(tokens, kept).sum()), len(tokens)]


def facts(runs, config, evidence=()):
    """The table as data: for each run the visual tokens that enter each layer, their average, FLOPs and bytes as shares.

    evidence: the patches that hold the answer, where they are known.
    """
    first, shape = runs[0], (config.text.hidden_size, config.text.intermediate_size)
    whole = flops(first.trace.tokens, *shape)
    return [dict(method=run.name, why_not=run.why_not) if run.why_not else dict(
        method=run.name, answer=run.answer, agreement=agreement(run, first), visual=run.trace.visual,
        average=average(run.trace.visual), flops_share=flops(run.trace.tokens, *shape) / whole,
        kv_bytes=run.kv_bytes, **(dict(evidence=evidence_kept(run, evidence)) if evidence else {})) for run in runs]


def lines(told):
    """The same as text."""
    wide = max(len(row["method"]) for row in told)
    known = "evidence" in told[0]
    yield f"{'method':{wide}}  average  FLOPs   KV cache  {'evidence  ' * known}agreement     visual tokens entering the layers; answer"
    for row in told:
        if "answer" not in row:
            yield f"{row['method']:{wide}}  does not run here: {row['why_not']}"
            continue
        yield (f"{row['method']:{wide}}  {row['average']:7.1f}  {row['flops_share']:5.1%}  {report.size(row['kv_bytes']):>8}  "
               f"{'{:3} of {:<3}'.format(*row['evidence']) + ' ' if known else ''}{row['agreement']:12}  {report.runs(row['visual'])}; {' '.join(row['answer'].split())}")


def picture(runs, image, box, header, index=0, columns=4, evidence=(), maps=False):
    """One sheet: for each method the picture after its last reduction, with its name and answer below, evidence outlined.

    With maps, below it what the method ranked by there and what it merged.
    """
    shown = [run for run in runs if not run.why_not]
    kinds = (draw.panels, draw.score_maps, draw.merge_maps) if maps else (draw.panels,)
    drawn = [[kind(image, box, run.trace, index, f"{run.name}: {run.answer}", on_patches(run.trace.grid, evidence).tolist())[-1]
              for run in shown] for kind in kinds]
    rows = [row[i:i + columns] for i in range(0, len(shown), columns) for row in drawn]
    return sheet([row for row in rows if any(row)], header)
