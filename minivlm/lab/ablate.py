"""ATP's Tables 1 to 5 on a model of one's own: every row trained the same way, on the drawn world, and scored there.

DIR/ROW holds what a row's training left, answers.jsonl its answers, kept.png what it keeps of two scenes: what is trained and
answered is not done again, so that an interrupted study goes on. Layers and budgets are the paper's shares of depth and tokens
(before layers 4, 14, 24 of 32; 144 and 88 of 576 tokens). The paper's rows have the 2-D rotary embedding ("PP"), but for those with a frozen decoder, which would have
to know it already. The decoder here has learnt one dimension: to keep position ids stands for PP, and "2d" is a row of its own.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minivlm.atomic import filled, written
from minivlm.chat import Conversation
from minivlm.lab import draw, modules, train_atp
from minivlm.lab.atp_student import prepared
from minivlm.lab.contestants import Contestant
from minivlm.lab.evaluate import Contest, mean
from minivlm.lab.interval import wilson
from minivlm.lab.log import Log
from minivlm.lab.score import against
from minivlm.text import prompt
from pruning.atp import ATP
from pruning.base import UserError
from pruning.readings import ATP2D, ATPFixedRatio, ATPRenumbered
from weights import load

QUARTER, LESS = 144 / 576, 88 / 576                # of the tokens in a layer: Table 1's two budgets
DEPTH, LAYERS = 32, (4, 14, 24)


@dataclass(frozen=True)
class Row:
    """One row of the paper's tables: the reading of ATP, the budget, whether the decoder learns, and the paper's figure."""

    name: str
    tables: str                        # which of the paper's: "1 2"
    paper: float | None = None         # its mean over MMB, GQA, VQAv2 and SEED
    share: float = QUARTER
    frozen: bool = False
    drop: float = 0                    # Table 2's pre-defined ratio: what each reduction drops; 1: there is but one, before layer 1
    method: type = ATP
    options: tuple = ()                # of the method: ((name, value), ..)


ROWS = (
    Row("adaptive", "1 2 3 4 5", 64.80),
    Row("adaptive-88", "1 2 3", 62.60, LESS),
    Row("fixed-once", "2", 60.13, drop=1),
    Row("fixed-2-3", "2", 62.75, drop=2 / 3),
    Row("fixed-1-2", "2", 62.70, drop=1 / 2),
    Row("fixed-1-2-88", "2", None, LESS, drop=1 / 2),
    Row("frozen", "3", 62.78, frozen=True),
    Row("frozen-88", "3", None, LESS, frozen=True),
    Row("redundant", "4", 63.80, options=(("strategy", "redundant"),)),
    Row("spatial", "4", 62.68, options=(("strategy", "spatial"),)),
    Row("renumbered", "4", 63.75, method=ATPRenumbered),
    Row("2d", "4", None, method=ATP2D),
    Row("self", "5", 64.38, options=(("score", "self"),)),
    Row("cross", "5", 64.30, options=(("score", "cross"),)))
RIVALS = {"adaptive-88": ("fixed-1-2-88", "frozen-88"),
          "adaptive": ("fixed-once", "fixed-2-3", "fixed-1-2", "frozen", "redundant", "spatial", "renumbered", "self", "cross")}


def method(row, depth, N):
    """The ATP of a row, untrained, for that many layers and visual tokens. 32, 576 and a drop of 1/2 -> the paper's 136, 68, 34."""
    layers = tuple(max(1, layer * depth // DEPTH) for layer in LAYERS)
    if row.drop == 1:
        layers = (1,)
    if not row.drop:
        return row.method(layers=layers, **dict(row.options))
    # each stage keeps the same share of the one before; the first is what makes the average right
    lengths = [end - start for start, end in zip(layers, (*layers[1:], depth))]
    shares = [(1 - row.drop) ** i for i in range(len(layers))]
    weight = sum(length * share for length, share in zip(lengths, shares))
    first = N * (row.share * depth - layers[0]) / weight
    counts = tuple(max(1, round(first * share)) for share in shares)
    return ATPFixedRatio(layers=layers, counts=counts)


def study(source, folder, recipe, data, items, rows=ROWS):
    """Train and score each row -> {name: [row of answers of each question]}; "none" is the model as it is."""
    model = load(source, "float32")
    for row in rows:                   # what cannot be trained is refused before any work
        prepared(model, *trained_as(row, model, recipe))
    with filled(folder):
        found = {"none": answers(model, Contestant("none"), items, Path(folder) / "none")}
        for row in rows:
            found[row.name] = row_answers(row, load(source, "float32"), recipe, data, items, Path(folder) / row.name)
    return found


def trained_as(row, model, recipe):
    """The ATP of a row, untrained, and its recipe."""
    N = model.visual_tokens(torch.empty(1))
    own = replace(recipe, target=row.share * N, freeze_lm=row.frozen)
    return method(row, len(model.language_model.layers), N), own


def row_answers(row, model, recipe, data, items, folder):
    """Train a row, or go on with it; its rows of answers, and the picture of what it keeps."""
    atp, own = trained_as(row, model, recipe)
    N = model.visual_tokens(torch.empty(1))
    print(f"{row.name}: trained to {own.target:g} of {N} tokens in a layer", flush=True)
    train_atp.train(model, atp, own, data, folder, resume=(folder / train_atp.STATE).exists())
    pruner = modules.read(folder)
    rows = answers(model.requires_grad_(False), Contestant(row.name, None, pruner), items, folder)
    with torch.inference_mode(), written(folder / "kept.png") as beside:
        picture(model, pruner, items).save(beside)
    return rows


def answers(model, one, items, folder):
    """The rows of answers of one contestant, in the order of the questions. UserError if one cannot be answered."""
    contest = Contest(model, items, [one], model.config.template)
    with torch.inference_mode(), filled(folder):
        rows = contest.run(Log(folder / "answers.jsonl", contest.recipe()))
    for row in rows:
        if "why_not" in row:
            raise UserError(f"{one.label}, question {row['question']}: {row['why_not']}")
    return sorted(rows, key=lambda row: row["question"])


def facts(found, items, rows=ROWS):
    """[{"row", "tables", "paper", "visual", "accuracy", "interval", "families", "kept", "crowded", "against"}, ..]"""
    of = {row.name: row for row in rows}
    return [dict(row=name, tables=of[name].tables if name in of else "1 2 3 4 5", paper=of[name].paper if name in of else 65.85,
                 **_numbers(found[name], items), against={other: against(_right(found[name]), _right(found[other]))
                                                          for other in RIVALS.get(name, ()) if other in found}) for name in found]


def _right(answers):
    return [row["right"] for row in answers]


def _numbers(answers, items):
    """Accuracy, of each family too; tokens in each layer; tokens in a layer by family, and by thirds of how much the pictures show."""
    families = sorted({item.family for item in items})
    of = {family: [row for row, item in zip(answers, items) if item.family == family] for family in families}
    order = sorted(range(len(items)), key=lambda i: len(items[i].things))
    thirds = [order[len(order) * i // 3:len(order) * (i + 1) // 3] for i in range(3)]
    tokens = lambda rows: mean([mean(row["visual"]) for row in rows])
    return dict(accuracy=mean(_right(answers)), interval=wilson(mean(_right(answers)), len(answers)),
                visual=[mean(layer) for layer in zip(*(row["visual"] for row in answers))],
                families={family: mean(_right(rows)) for family, rows in of.items()}, kept={family: tokens(rows) for family, rows in of.items()},
                crowded=[tokens([answers[i] for i in third]) for third in thirds])


def lines(told):
    """The tables as text, and what holds here of the paper's orderings."""
    by, families = {row["row"]: row for row in told}, list(told[0]["families"])
    for table in "12345":
        yield f"Table {table}      tokens  {'  '.join(f'{f:>6}' for f in families)}     all               paper  tokens entering the layers"
        for row in (row for row in told if table in row["tables"].split()):
            low, high = (100 * end for end in row["interval"])
            yield (f"{row['row']:12} {mean(row['visual']):7.1f}  {'  '.join(f'{100 * x:6.1f}' for x in row['families'].values())}  {100 * row['accuracy']:6.1f} "
                   f"({low:.1f}-{high:.1f})  {row['paper'] or '':>6}  {' '.join(f'{n:.0f}' for n in row['visual'])}")
        yield ""
    for name, other, part in ((name, other, part) for name in RIVALS if name in by for other, part in by[name]["against"].items()):
        yield f"{name} against {other}: {_verdict(part, by[name]['paper'], by[other]['paper'])}"
    yield from ("", "tokens in a layer by family, and where pictures show little, more, most:")
    for row in (row for row in told if "2" in row["tables"] or "3" in row["tables"]):
        yield f"{row['row']:12} {'  '.join(f'{f} {n:.1f}' for f, n in row['kept'].items())};  {'  '.join(f'{n:.1f}' for n in row['crowded'])}"


def _verdict(part, ours, theirs):
    """+1.2 points (-0.3 to +2.7), in the paper +2.1: cannot be told here"""
    (low, high), paper = part["interval"], None if ours is None or theirs is None else ours - theirs
    here = f"{100 * part['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    if paper is None:
        return here
    holds = "cannot be told here" if low <= 0 <= high else "holds here" if (low > 0) == (paper > 0) else "does NOT hold here"
    return f"{here}, in the paper {paper:+.1f}: {holds}"


def picture(model, atp, items):
    """As Figure 4: what each boundary leaves of a scene that shows little, and of a crowded one, for the same family of question."""
    chosen = [item for item in items if item.family == "relpos"] or items
    few, many = min(chosen, key=lambda item: len(item.things)), max(chosen, key=lambda item: len(item.things))
    rows = []
    for item in (few, many):
        talk, pixels = Conversation(model, atp), model.processor.pixels(item.picture)
        talk.read(model.tokenizer.encode(prompt([(item.question, None)], 1, model.config.template)), [pixels])
        answer = model.tokenizer.decode(list(talk.generate(4))).strip()
        rows.append(draw.panels(item.picture, model.processor.box(*item.picture.size), talk.trace, title=f"{item.question} {answer}"))
    return draw.sheet(rows, header="What ATP leaves before each of its layers: a scene with few things, and a crowded one")
