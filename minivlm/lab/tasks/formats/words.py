"""VQAv2, TextVQA, GQA, DocVQA and ChartQA: questions that are answered with a few words."""

from pathlib import Path

from minivlm.io.data import check_row, read_lines
from minivlm.lab.tasks.formats.entries import ID, beside, checked, entries, files, table
from minivlm.lab.tasks.question import Question, named
from pruning.base import UserError

TEXTS = tuple[str, ...]
PEOPLE = 10                            # who answered each question of VQAv2 and TextVQA
HINTS = "Reference OCR token:"


def read_vqav2(path):
    """v2_mscoco_val2014_annotations.json, with v2_OpenEnded_mscoco_val2014_questions.json next to it; or their folder.
    """
    path, = files(path, "*mscoco_val2014_annotations.json")[:1]
    what = "annotation of VQAv2"
    rows = checked(entries(path, what, "annotations"), what, question_id=ID, image_id=int, answer_type=str)
    questions_path = beside(path, _questions_name(path.name), "v2_OpenEnded_mscoco_val2014_questions.json")
    text_of = _questions_of_vqav2(questions_path)
    part = "train2014" if "train2014" in path.name else "val2014"
    questions = []
    for where, row in rows:
        id = row["question_id"]
        if id not in text_of:
            raise UserError(f"{where}: question {id} is not in {questions_path}")
        image = f"COCO_{part}_{row['image_id']:012}.jpg"
        answers = _people(where, row, _word)
        questions.append(Question(image, None, row["answer_type"], text_of[id], answers, names=named(id)))
    return questions


def _questions_of_vqav2(path):
    """{id: question}"""
    what = "question of VQAv2"
    rows = checked(entries(path, what, "questions"), what, question_id=ID, question=str)
    return {row["question_id"]: row["question"] for _, row in rows}


def _questions_name(name):
    return name.replace("v2_mscoco", "v2_OpenEnded_mscoco").replace("annotations", "questions")


def _word(answer):
    """What a person answered, None if that is no word."""
    return answer.get("answer") if isinstance(answer, dict) else None


def _people(where, row, word=lambda answer: answer):
    """The ten answers. UserError if there are others. word: what a person answered, of an entry of the list."""
    answers = [word(answer) for answer in row.get("answers") or ()]
    are_words = all(isinstance(answer, str) for answer in answers)
    if len(answers) != PEOPLE or not are_words:
        raise UserError(f"{where}: answers must be those of {PEOPLE} people; a test set has none, and needs its server")
    return tuple(answers)


def read_textvqa(path):
    """TextVQA_0.5.1_val.json."""
    path, = files(path, "TextVQA_0.5.1_val.json")
    what = "question of TextVQA"
    rows = checked(entries(path, what, "data"), what, question=str, image_id=str)
    questions = []
    for where, row in rows:
        answers = _people(where, row)
        names = named(row["image_id"], row["question"])[1:]
        if "question_id" in row:
            names += named(row["question_id"])
        image = f"{row['image_id']}.jpg"
        questions.append(Question(image, None, "", row["question"], answers, names=names))
    return questions


def read_hints(path):
    """{picture without .jpg: "word, word"}: what was read in the pictures of TextVQA.

    The file is LLaVA's llava_textvqa_val_v051_ocr.jsonl, or TextVQA_Rosetta_OCR_v0.2_val.json.
    """
    if Path(path).suffix == ".jsonl":
        rows = checked(read_lines(path, "question with hints"), "question with hints", question_id=str, text=str)
        return {row["question_id"]: _hint(row["text"]) for _, row in rows}
    rows = checked(entries(path, "words of pictures", "data"), "words of a picture", image_id=str, ocr_tokens=TEXTS)
    return {row["image_id"]: ", ".join(row["ocr_tokens"]) for _, row in rows}


def _hint(text):
    """The words after "Reference OCR token:", "" without such a line."""
    lines = [line for line in text.split("\n") if line.startswith(HINTS)]
    return lines[0].removeprefix(HINTS).strip() if lines else ""


def read_gqa(path):
    """testdev_balanced_questions.json, or another of its kind; of all questions those that are balanced."""
    path, = files(path, "testdev_balanced_questions.json")
    what = "question of GQA"
    questions = []
    for where, id, row in table(path, what):
        check_row(row, where, what, question=str, answer=str, imageId=ID, isBalanced=bool)
        if row["isBalanced"]:
            image = f"{row['imageId']}.jpg"
            questions.append(Question(image, None, _kind(row), row["question"], row["answer"], names=named(id)))
    return questions


def _kind(row):
    """"open" or "binary", as GQA's script has it."""
    types = row.get("types")
    is_open = isinstance(types, dict) and types.get("structural") == "query"
    return "open" if is_open else "binary"


def read_docvqa(path):
    """val_v1.0.json, or val_v1.0_withQT.json."""
    path, = files(path, "val_v1.0*.json")[:1]
    what = "question of DocVQA"
    rows = checked(entries(path, what, "data"), what, questionId=ID, question=str, image=str, answers=TEXTS | None)
    questions = []
    for where, row in rows:
        if not row.get("answers"):
            raise UserError(f"{where}: there are no answers; a test set has none, and needs its server")
        answers = tuple(row["answers"])
        questions.append(Question(row["image"], None, "", row["question"], answers, names=named(row["questionId"])))
    return questions


def read_chartqa(path):
    """test_human.json and test_augmented.json, or one of them. Their entries have no ids: "human/0" is the first."""
    questions = []
    for file in files(path, "test_*.json"):
        what = "question of ChartQA"
        rows = checked(entries(file, what), what, imgname=str, query=str, label=ID | float)
        kind = file.stem.rpartition("_")[2]
        for number, (_, row) in enumerate(rows):
            names = (f"{kind}/{number}", named(row["imgname"], row["query"])[1])
            questions.append(Question(row["imgname"], None, kind, row["query"], str(row["label"]), names=names))
    return questions
