"""Methods side by side on one picture and question: answers, tokens, FLOPs, cache, and one sheet of what each kept."""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from minivlm.generate import Conversation
from minivlm.lab.cli.options import check
from minivlm.lab.compare import draw, report
from minivlm.lab.cost.flops import average, flops
from minivlm.toy.benchmark import on_patches
from minivlm.trace import Trace
from pruning.base import Pruner, UserError


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
    return draw.sheet([row for row in rows if any(row)], header)
