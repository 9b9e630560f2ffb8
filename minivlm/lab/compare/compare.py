"""Methods side by side on one picture and question: answers, tokens, FLOPs, cache, and one sheet of what each kept."""

from dataclasses import dataclass
from itertools import groupby

from tqdm import tqdm

from minivlm.generate import Conversation
from minivlm.lab.draw.evidence import entering, share
from minivlm.lab.cli.options import check
from minivlm.lab.cli.output import size
from minivlm.lab.cost.flops import average, flops
from minivlm.lab.draw import draw
from minivlm.lab.draw.sheet import sheet
from minivlm.lab.lineup.lineup import Entrant, Prompt
from minivlm.toy.benchmark import on_patches
from minivlm.trace import Trace, runs
from pruning.base import UserError

LEGEND = (
    "agreement: the same ids as the unpruned answer, or how many of its ids come before the first that differs",
    "2x144 6x14: 144 image tokens enter each of 2 layers, then 14 each of 6",
)
LEGEND_OF_EVIDENCE = (
    "evidence: of the tokens that show what the question is about, the share that enters a layer, on average;"
    " merged ones count",
)


@dataclass(frozen=True)
class Run(Entrant):
    """One method's answer at one budget, or why there is none."""

    ids: tuple = ()
    answer: str = ""
    trace: Trace | None = None
    kv_bytes: int = 0                  # of the prompt
    why_not: str = ""


def compare(model, ids, pixels, entrants, max_new_tokens=64):
    """[Run] of the unpruned model, first, and of each Entrant, one budget after the other."""
    unpruned = answered(model, ids, pixels, Entrant("none"), max_new_tokens)
    runs = [unpruned]
    others = [entrant for entrant in entrants if entrant.method != "none"]
    for entrant in tqdm(by_budget(others), desc="compare", leave=False):
        try:
            run = answered(model, ids, pixels, entrant, max_new_tokens)
        except UserError as error:
            run = Run(entrant.method, entrant.budget, why_not=str(error))
        runs.append(run)
    return runs


def by_budget(entrants):
    """Those of the first budget, then those of the next, then those without; with one budget in the order they have."""
    budgets = budgets_of(entrants)
    if len(budgets) == 1:
        return entrants
    return sorted(entrants, key=lambda entrant: [*budgets, None].index(entrant.budget))


def budgets_of(runs):
    """The budgets, each once."""
    return list(dict.fromkeys(run.budget for run in runs if run.budget))


def answered(model, ids, pixels, entrant, max_new_tokens):
    """The Run of one method at one budget. UserError if it cannot run."""
    pruner = entrant.on(Prompt(model, pixels))
    if isinstance(pruner, UserError):
        raise pruner
    pruner = check(pruner, model)
    talk = Conversation(model, pruner)
    talk.read(ids, pixels)
    kv_bytes = talk.cache.bytes
    answer = tuple(talk.generate(max_new_tokens))
    text = model.tokenizer.decode(answer).strip()
    return Run(entrant.method, entrant.budget, pruner, entrant.average, answer, text, talk.trace, kv_bytes)


def agreement(run, unpruned):
    """"same", or how many ids of the unpruned answer come before the first that differs."""
    if run.ids == unpruned.ids:
        return "same"
    alike = 0
    for a, b in zip(run.ids, unpruned.ids):
        if a != b:
            break
        alike += 1
    return f"{alike} of {len(unpruned.ids)} ids"


def facts(runs, config, evidence=()):
    """The table as data: per run the label ("contestant"), the visual tokens that enter each layer, their average,
    FLOPs and bytes as shares.

    evidence: the patches that hold the answer, if they are known: how much of it enters each layer, and on average.
    """
    unpruned = runs[0]
    shape = (config.text.hidden_size, config.text.intermediate_size)
    whole = flops(unpruned.trace.tokens, *shape)
    rows = []
    for run in runs:
        names = {"contestant": run.label, "method": run.method, "budget": run.budget}
        if run.why_not:
            rows.append({**names, "why_not": run.why_not})
            continue
        row = {**names, "answer": run.answer, "agreement": agreement(run, unpruned)}
        row["visual"] = run.trace.visual
        row["average"] = average(run.trace.visual)
        row["flops_share"] = flops(run.trace.tokens, *shape) / whole
        row["kv_bytes"] = run.kv_bytes
        counts = entering(run.trace, evidence)
        if counts:
            row["evidence"] = counts
            row["evidence_share"] = share(run.trace, evidence)
        rows.append(row)
    return rows


def lines(rows):
    """The same as text, a block per budget if there are several, with a legend."""
    wide = max(len(row["contestant"]) for row in rows)
    has_evidence = "evidence" in rows[0]
    evidence = "  evidence" if has_evidence else ""
    head = f"{'method':{wide}}  average  FLOPs   KV cache{evidence}"
    yield f"{head}  agreement     visual tokens entering the layers; answer"
    for i, block in enumerate(blocks(rows, lambda row: row["budget"])):
        if i:
            yield ""
        for row in block:
            yield line(row, wide)
    yield ""
    yield from legend(rows)


def legend(rows):
    """How to read the table, a line each."""
    return LEGEND + LEGEND_OF_EVIDENCE if "evidence" in rows[0] else LEGEND


def blocks(runs, budget):
    """The runs of each budget, one after the other; with one budget all of them are together. budget: that of a run."""
    several = {budget(run) for run in runs} - {None}
    if len(several) < 2:
        return [runs]
    return [list(block) for _, block in groupby(runs, budget)]


def line(row, wide):
    """One method's, its name so many characters wide."""
    if "why_not" in row:
        return f"{row['contestant']:{wide}}  does not run here: {row['why_not']}"
    kv_bytes = size(row["kv_bytes"])
    cells = [f"{row['contestant']:{wide}}", f"{row['average']:7.1f}", f"{row['flops_share']:5.1%}", f"{kv_bytes:>8}"]
    if "evidence" in row:
        cells.append(f"{row['evidence_share']:8.0%}")
    answer = " ".join(row["answer"].split())
    cells.append(f"{row['agreement']:12}")
    cells.append(f"{runs(row['visual'])}; {answer}")
    return "  ".join(cells)


def picture(runs, image, box, header, index=0, columns=4, evidence=(), maps=False):
    """One sheet: for each method the picture after its last reduction, with its name and answer below, evidence
    outlined. Each budget begins a new row.

    With maps, below it what the method ranked by there and what it merged.
    """
    shown = [run for run in runs if not run.why_not]
    kinds = [draw.panels]
    if maps:
        kinds += [draw.score_maps, draw.merge_maps]
    rows = []
    for block in blocks(shown, lambda run: run.budget):
        for i in range(0, len(block), columns):
            for kind in kinds:
                row = [last(kind, run, image, box, index, evidence) for run in block[i:i + columns]]
                if any(row):
                    rows.append(row)
    return sheet(rows, header, legend=draw.legend(evidence))


def last(kind, run, image, box, index, evidence):
    """The last picture of one kind of a run."""
    tokens = on_patches(run.trace.grid, evidence).tolist()
    title = f"{run.label}: {run.answer}"
    drawn = kind(image, box, run.trace, index, title, tokens)
    return drawn[-1]
