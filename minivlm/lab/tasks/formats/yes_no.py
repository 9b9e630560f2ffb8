"""POPE and MME: files of questions whose answer is yes or no."""

from pathlib import Path

from minivlm.io.data import read_lines, read_text
from minivlm.lab.tasks.formats.entries import ID, checked, files, one_of
from minivlm.lab.tasks.metrics.mme import SUBTASKS
from minivlm.lab.tasks.prompts import SHORT, YES_OR_NO
from minivlm.lab.tasks.question import Question, named
from pruning.base import UserError

YES_NO = ("yes", "no")
POPE = ("*_pope_*.json", "coco/*_pope_*.json")


def read_pope(path):
    """coco_pope_random.json and its like, a JSON object on each line, a split per file; or a folder of them; or LLaVA's
    llava_pope_test.jsonl, whose labels are in such files next to it or in coco/."""
    paths = files(path, *POPE)
    rows = read_lines(paths[0], "question of POPE")
    _, first = rows[0]
    if isinstance(first, dict) and "category" in first and "label" not in first:
        return _pope_of_llava(paths[0], rows)
    questions = []
    for file in paths:
        questions += _split(file)
    return questions


def _split(path):
    """The questions of a file, whose family is the last word of its name."""
    split = path.stem.rpartition("_")[2]
    rows = checked(read_lines(path, "question of POPE"), "question of POPE", question_id=ID, image=str, text=str,
                   label=str)
    questions = []
    for where, row in rows:
        label = one_of(where, "label", row["label"], YES_NO)
        id = row["question_id"]
        names = (f"{split}/{id}", *named(id, row["text"]))
        questions.append(Question(row["image"], None, split, row["text"], label, names=names))
    return questions


def _pope_of_llava(path, rows):
    """LLaVA's file: each question gets the label of the same question about the same picture in its split."""
    checked(rows, "question of POPE", question_id=ID, image=str, text=str, category=str)
    labelled = {}
    for file in files(path.parent, *POPE):
        for question in _split(file):
            labelled[question.family, question.image, question.question] = question.answer
    questions = []
    for where, row in rows:
        text = row["text"].removesuffix(SHORT)
        split = row["category"]
        label = labelled.get((split, row["image"], text))
        if label is None:
            raise UserError(f"{where}: there is no label for {text!r} about {row['image']} in a file of {split}")
        names = named(row["question_id"])
        questions.append(Question(row["image"], None, split, text, label, names=names))
    return questions


def read_mme(path):
    """The folder of the release, or one with a SUBTASK.txt for each subtask, as the official tool has; or such a file.

    A line of these has a picture's name, a question, an answer and perhaps a prediction, with tabs between; in the
    release, a file per picture, the picture's name is the file's.
    """
    path = Path(path)
    if path.is_file():
        return _subtask(path)
    questions = []
    for name in SUBTASKS:
        if (path / f"{name}.txt").is_file():
            questions += _subtask(path / f"{name}.txt")
        elif (path / name).is_dir():
            questions += _released(path / name)
    if not questions:
        raise UserError(f"{path}: there is neither a folder nor a .txt of a subtask, like existence, in it")
    return questions


def _subtask(path):
    subtask = one_of(path, "the file's name", path.stem, SUBTASKS)
    return [_mme(where, subtask, *fields) for where, fields in _lines(path, 3)]


def _released(folder):
    """A folder of the release: a .txt for each picture, in it or in questions_answers_YN/."""
    questions = []
    texts = [*folder.glob("*.txt"), *folder.glob("questions_answers_YN/*.txt")]
    for file in sorted(texts):
        image = _picture_of(folder, file.stem)
        for where, (question, answer) in _lines(file, 2):
            questions.append(_mme(where, folder.name, image, question, answer))
    return questions


def _picture_of(folder, stem):
    """The name of the picture with this stem; with .jpg if the pictures are not there."""
    for place in (folder, folder / "images"):
        for path in sorted(place.glob(f"{stem}.*")):
            if path.suffix != ".txt":
                return path.name
    return f"{stem}.jpg"


def _lines(path, count):
    """[("path, line 1", its first fields), ..], `count` fields with tabs between; blank lines are passed over."""
    text = read_text(path, "questions of MME")
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        fields = line.rstrip("\r").split("\t")
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        if len(fields) < count:
            raise UserError(f"{where}: there are {len(fields)} fields with tabs between, and {count} are needed")
        rows.append((where, fields[:count]))
    return rows


def _mme(where, subtask, image, question, answer):
    label = one_of(where, "the answer", answer.strip().lower(), YES_NO)
    image = f"{subtask}/{image}"
    plain = question.removesuffix(YES_OR_NO)
    names = (named(image, question)[1], named(image, plain)[1])
    return Question(image, None, subtask, question, label, names=names)
