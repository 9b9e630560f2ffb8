"""Every row of rows.py trained the same way on the drawn world, and scored there.

DIR/ROW holds what a row's training left, answers.jsonl its answers, kept.png what it keeps of two scenes. What is
trained and answered is not done again, so that an interrupted study goes on, and rows may run as several processes.
"""

from dataclasses import replace
from pathlib import Path

import torch

from minivlm.generate import Conversation
from minivlm.io.atomic import filled, written
from minivlm.io.data import check_row, read_lines
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import modules
from minivlm.lab.draw import draw
from minivlm.lab.draw.sheet import sheet
from minivlm.lab.score.answers import Contest
from minivlm.lab.score.contestants import Contestant
from minivlm.lab.score.log import Log
from minivlm.lab.studies.ablation.rows import ROWS
from minivlm.lab.train import train_atp
from minivlm.lab.train.atp_student import prepared
from pruning.base import UserError
from weights import load

ANSWERS = "answers.jsonl"


def study(source, folder, recipe, data, items, rows=ROWS, device="cpu"):
    """Train and score each row."""
    model = load(source, "float32", device)
    for row in rows:                   # what cannot be trained is refused before any work
        if row.trained:
            prepared(model, *trained_as(row, model, recipe))
    folder = Path(folder)
    with filled(folder):
        for row in rows:
            model = load(source, "float32", device)
            score(row, model, recipe, data, items, folder / row.name)


def trained_as(row, model, recipe):
    """The ATP of a row, with no module yet, and its recipe."""
    size = shape(model)
    own = replace(recipe, target=row.target(*size), freeze_lm=row.frozen, seed=recipe.seed + row.seed)
    return row.pruner(*size), own


def shape(model):
    """Decoder layers, and visual tokens of a picture."""
    return len(model.language_model.layers), model.visual_tokens(torch.empty(1))


def score(row, model, recipe, data, items, folder):
    """Train a row, or go on with it; write its answers, and the picture of what it keeps."""
    if row.trained:
        pruner = trained(row, model, recipe, data, folder)
    else:
        pruner = row.pruner(*shape(model))
    answer(model.requires_grad_(False), Contestant(row.name, None, pruner), items, folder)
    if row.trained:
        with torch.inference_mode(), written(folder / "kept.png") as beside:
            picture(model, pruner, items).save(beside)


def trained(row, model, recipe, data, folder):
    """The ATP of a row after its training, or the rest of it. The model is trained too, unless it is frozen."""
    atp, own = trained_as(row, model, recipe)
    print(f"{row.name}: trained to {own.target:.4g} tokens in a layer", flush=True)
    train_atp.train(model, atp, own, data, folder, resume=(folder / train_atp.STATE).exists())
    return modules.with_module(modules.read(folder), model)


def answer(model, contestant, items, folder):
    """Write the rows of answers of a contestant. UserError if one cannot be answered."""
    contest = Contest(model, items, [contestant], model.config.template)
    with torch.inference_mode(), filled(folder):
        rows = contest.run(Log(folder / ANSWERS, contest.recipe()))
    for row in rows:
        if "why_not" in row:
            raise UserError(f"{contestant.label}, question {row['question']}: {row['why_not']}")


def read(folder, items, rows=ROWS):
    """{name: rows of answers, in the order of the questions} of the rows of a study that are answered to the end."""
    results = {}
    for row in rows:
        path = Path(folder) / row.name / ANSWERS
        if path.exists():
            answers = read_answers(path)
            if sorted(answers) == list(range(len(items))):
                results[row.name] = [answers[i] for i in range(len(items))]
    return results


def read_answers(path):
    """{number of the question: its row} of a file of answers; its first line is the recipe."""
    _, *lines = read_lines(path, "answer")
    for where, row in lines:
        check_row(row, where, "answer", question=int, right=float, visual=tuple[float, ...])
    return {row["question"]: row for _, row in lines}


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
