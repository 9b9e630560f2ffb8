"""ATP's Tables 1 to 5 on another model: every row trained the same way, on the drawn world, and scored there.

DIR/ROW holds what a row's training left, answers.jsonl its answers, kept.png what it keeps of two scenes: what is
trained and answered is not done again, so that an interrupted study goes on. Layers and budgets are the
paper's shares of depth and tokens (before layers 4, 14, 24 of 32; 144 and 88 of 576 tokens).

The paper's rows have the 2-D rotary embedding ("PP"), except those with a frozen decoder, which would have to know it
already. The decoder here has learnt one dimension: keeping position ids stands for PP, and "2d" is a row of its own.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minivlm.generate import Conversation
from minivlm.io.atomic import filled, written
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import modules
from minivlm.lab.draw import draw
from minivlm.lab.draw.sheet import sheet
from minivlm.lab.score.accuracy import against, wilson
from minivlm.lab.score.answers import Contest, mean
from minivlm.lab.score.contestants import Contestant
from minivlm.lab.score.log import Log
from minivlm.lab.train import train_atp
from minivlm.lab.train.atp_student import prepared
from pruning.atp import ATP
from pruning.base import UserError
from pruning.readings import ATP2D, ATPFixedRatio, ATPRenumbered
from weights import load

QUARTER, LESS = 144 / 576, 88 / 576                # of the tokens in a layer: Table 1's two budgets
DEPTH, LAYERS = 32, (4, 14, 24)


@dataclass(frozen=True)
class Row:
    """One row of the paper's tables: the reading of ATP, the budget, whether the decoder learns, the paper's figure."""

    name: str
    tables: str                        # which of the paper's: "1 2"
    paper: float | None = None         # its mean over MMB, GQA, VQAv2 and SEED
    share: float = QUARTER
    frozen: bool = False
    drop: float = 0                    # Table 2's fixed ratio: what each reduction drops; 1: only one, before layer 1
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
RIVALS = {
    "adaptive-88": ("fixed-1-2-88", "frozen-88"),
    "adaptive": ("fixed-once", "fixed-2-3", "fixed-1-2", "frozen", "redundant", "spatial", "renumbered", "self",
                 "cross"),
}
UNPRUNED = Row("none", "1 2 3 4 5", 65.85)


def method(row, depth, N):
    """The ATP of a row, untrained, for that many layers and visual tokens.

    32 layers, 576 tokens and a drop of 1/2 -> the paper's counts 136, 68, 34.
    """
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


def study(source, folder, recipe, data, items, rows=ROWS, device="cpu"):
    """Train and score each row -> {name: [row of answers of each question]}; "none" is the model as it is."""
    model = load(source, "float32", device)
    for row in rows:                   # what cannot be trained is refused before any work
        prepared(model, *trained_as(row, model, recipe))
    folder = Path(folder)
    with filled(folder):
        results = {"none": answers(model, Contestant("none"), items, folder / "none")}
        for row in rows:
            model = load(source, "float32", device)
            results[row.name] = row_answers(row, model, recipe, data, items, folder / row.name)
    return results


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
    pruner = modules.with_module(modules.read(folder), model)
    rows = answers(model.requires_grad_(False), Contestant(row.name, None, pruner), items, folder)
    with torch.inference_mode(), written(folder / "kept.png") as beside:
        picture(model, pruner, items).save(beside)
    return rows


def answers(model, contestant, items, folder):
    """The rows of answers of a contestant, in the order of the questions. UserError if one cannot be answered."""
    contest = Contest(model, items, [contestant], model.config.template)
    with torch.inference_mode(), filled(folder):
        rows = contest.run(Log(folder / "answers.jsonl", contest.recipe()))
    for row in rows:
        if "why_not" in row:
            raise UserError(f"{contestant.label}, question {row['question']}: {row['why_not']}")
    return sorted(rows, key=lambda row: row["question"])


def facts(results, items, rows=ROWS):
    """[{"row", "tables", "paper", "visual", "accuracy", "interval", "families", "kept", "crowded", "against"}, ..]"""
    row_of = {row.name: row for row in (UNPRUNED, *rows)}
    return [_fact(row_of[name], results, items) for name in results]


def _fact(row, results, items):
    """The figures of one row, and how it compares with its rivals."""
    rivals = [name for name in RIVALS.get(row.name, ()) if name in results]
    own = results[row.name]
    compared = {name: against(_right(own), _right(results[name])) for name in rivals}
    figures = _figures(own, items)
    return dict(row=row.name, tables=row.tables, paper=row.paper, **figures, against=compared)


def _right(answers):
    return [row["right"] for row in answers]


def _tokens(answers):
    """Visual tokens in a layer, on average."""
    return mean([mean(row["visual"]) for row in answers])


def _figures(answers, items):
    """Accuracy and tokens in a layer: of all, by family, and by thirds of how much the pictures show."""
    accuracy = mean(_right(answers))
    by_layer = zip(*(row["visual"] for row in answers))
    by_family = {family: [] for family in sorted({item.family for item in items})}
    for row, item in zip(answers, items):
        by_family[item.family].append(row)
    families = {family: mean(_right(rows)) for family, rows in by_family.items()}
    kept = {family: _tokens(rows) for family, rows in by_family.items()}
    return dict(accuracy=accuracy, interval=wilson(accuracy, len(answers)), visual=[mean(layer) for layer in by_layer],
                families=families, kept=kept, crowded=_crowded(answers, items))


def _crowded(answers, items):
    """Tokens in a layer of the questions about the pictures that show least, of the next third, and of the last."""
    order = sorted(range(len(items)), key=lambda i: len(items[i].things))
    ends = [len(order) * i // 3 for i in range(4)]
    thirds = [order[start:end] for start, end in zip(ends, ends[1:])]
    return [_tokens([answers[i] for i in third]) for third in thirds]


def lines(rows):
    """The tables as text, and what holds here of the paper's orderings. rows: what facts gives."""
    families = "  ".join(f"{family:>6}" for family in rows[0]["families"])
    for table in "12345":
        yield f"Table {table}      tokens  {families}     all               paper  tokens entering the layers"
        for row in rows:
            if table in row["tables"].split():
                yield _line(row)
        yield ""
    paper = {row["row"]: row["paper"] for row in rows}
    for row in rows:
        for rival, compared in row["against"].items():
            yield f"{row['row']} against {rival}: {_verdict(compared, row['paper'], paper[rival])}"
    yield ""
    yield "tokens in a layer by family, and where pictures show little, more, most:"
    for row in rows:
        if "2" in row["tables"] or "3" in row["tables"]:
            kept = "  ".join(f"{family} {n:.1f}" for family, n in row["kept"].items())
            crowded = "  ".join(f"{n:.1f}" for n in row["crowded"])
            yield f"{row['row']:12} {kept};  {crowded}"


def _line(row):
    """A line of a table: tokens in a layer, accuracies in per cent, the paper's mean, tokens entering each layer."""
    tokens = mean(row["visual"])
    families = "  ".join(f"{100 * x:6.1f}" for x in row["families"].values())
    accuracy = 100 * row["accuracy"]
    low, high = row["interval"]
    interval = f"({100 * low:.1f}-{100 * high:.1f})"
    layers = " ".join(f"{n:.0f}" for n in row["visual"])
    return f"{row['row']:12} {tokens:7.1f}  {families}  {accuracy:6.1f} {interval}  {row['paper'] or '':>6}  {layers}"


def _verdict(compared, paper, rival_paper):
    """+1.2 points (-0.3 to +2.7), in the paper +2.1: undecided here"""
    low, high = compared["interval"]
    measured = f"{100 * compared['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
    if paper is None or rival_paper is None:
        return measured
    printed = paper - rival_paper
    if low <= 0 <= high:
        holds = "undecided here"
    elif (low > 0) == (printed > 0):
        holds = "holds here"
    else:
        holds = "does NOT hold here"
    return f"{measured}, in the paper {printed:+.1f}: {holds}"


def picture(model, atp, items):
    """As Figure 4: what each module leaves of a scene with few things and of a crowded one, asked the same way."""
    chosen = [item for item in items if item.family == "relpos"] or items
    few = min(chosen, key=lambda item: len(item.things))
    many = max(chosen, key=lambda item: len(item.things))
    rows = [_panels(model, atp, item) for item in (few, many)]
    header = "What ATP leaves before each of its layers: a scene with few things, and a crowded one"
    return sheet(rows, header=header)


def _panels(model, atp, item):
    """The pictures of one question: what is left of the image before each of the layers, and the answer."""
    talk = Conversation(model, atp)
    ids = model.tokenizer.encode(prompt([(item.question, None)], 1, model.config.template))
    talk.read(ids, [model.processor.pixels(item.picture)])
    answer = model.tokenizer.decode(list(talk.generate(4))).strip()
    box = model.processor.box(*item.picture.size)
    return draw.panels(item.picture, box, talk.trace, title=f"{item.question} {answer}")
