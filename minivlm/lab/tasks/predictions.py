"""Answers that any code has written, joined to the questions by their ids.

A file is a JSON list, or has a JSON object on each line: an id and an answer, under one of the names that LLaVA,
lmms-eval (--log_samples) and the official results files use. An id that several questions share, as LLaVA's of TextVQA
and MME, needs the prompt or the question as well. lmms-eval's logs of ScienceQA and ChartQA have no ids to join by.
"""

from minivlm.io.data import read_lines, read_text
from minivlm.lab.tasks.formats.entries import entries
from pruning.base import UserError
from pruning.fields import shown

IDS = ("question_id", "questionId", "image_id", "index", "id", "imgname")
TEXTS = ("text", "prediction", "answer", "caption")
ASKED = ("prompt", "question", "query")
PARTS = ("category", "split", "type")  # of POPE and ChartQA, in each of which ids begin anew


def joined(questions, path, is_part=False):
    """{place of the question: answer} of a file.

    UserError for an answer to no question or to several, and for a question with two answers. is_part: the questions
    are a part of the task's, so answers to others are passed over.
    """
    by_name = places_by_name(questions)
    answers = {}
    for where, row in rows_of(path):
        id, text, more = fields_of(where, row)
        i = place(where, id, more, by_name, is_part)
        if i is None:
            continue
        if i in answers:
            raise UserError(f"{where}: question {id} has an answer already: keep one of the two")
        answers[i] = text
    return answers


def places_by_name(questions):
    """{name: places of the questions that it may mean}"""
    by_name = {}
    for i, question in enumerate(questions):
        for name in question.names:
            by_name.setdefault(name, []).append(i)
    return by_name


def rows_of(path):
    """[("path, line 1", row), ..]"""
    text = read_text(path, "answer")
    is_list = text.lstrip().startswith("[")
    return entries(path, "answer") if is_list else read_lines(path, "answer")


def fields_of(where, row):
    """The id, the answer, and the row with what lmms-eval tells of the question."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: no answer in JSON: write an object with question_id and text; got {shown(row)}")
    if "filtered_resps" in row:
        row = logged(row)
    id = first_of(row, IDS)
    text = first_of(row, TEXTS)
    if not isinstance(id, (int, str)) or not isinstance(text, str):
        raise UserError(f"{where}: write an id as one of {', '.join(IDS)}, and the answer as one of {', '.join(TEXTS)}")
    return id, text, row


def logged(row):
    """A line of lmms-eval's log: what it tells of the question, and the answer, which lies in a list or two."""
    text = row["filtered_resps"]
    while isinstance(text, list) and text:
        text = text[0]
    doc = row.get("doc")
    told = doc if isinstance(doc, dict) else {}
    return {**told, "text": text}


def first_of(row, names):
    """The value of the first of these names that the row has; None if it has none."""
    return next((row[name] for name in names if name in row), None)


def place(where, id, row, by_name, is_part):
    """Which question is meant; None if it may be another one's. The names that tell most are tried first."""
    names = names_of(id, row)
    known = first_of(by_name, names)
    if known is None and is_part:
        return None
    if known is None:
        raise UserError(f"{where}: {id} is the id of no question of the task: is it another split or file?")
    if len(known) > 1:
        raise UserError(f"{where}: {id} is the id of {len(known)} questions: add \"prompt\" or \"category\", or "
                        "score one file at a time")
    return known[0]


def names_of(id, row):
    """Under which names the question of an answer may be known: with its part, with each line of its prompt, its id."""
    names = [f"{row[part]}/{id}" for part in PARTS if part in row]
    for asked in ASKED:
        text = str(row.get(asked, ""))
        for line in text.lower().split("\n"):
            names.append(f"{id}/{line.strip()}")
    return [*names, str(id)]


def complete(benchmark, answers, path):
    """The benchmark, and an answer for each of its questions. UserError if one is missing.

    ScienceQA's questions without a picture are left out if none of them is answered.
    """
    questions = benchmark.questions
    missing = [i for i in range(len(questions)) if i not in answers]
    without_picture = [i for i, question in enumerate(questions) if not question.image]
    is_left_out = missing == without_picture and len(missing) < len(questions)
    if missing and not is_left_out:
        raise UserError(f"{path} lacks {len(missing)} of {len(questions)} answers, the first to question "
                        f"{questions[missing[0]].names[0]}: answer all, or give the --limit of the run")
    if missing:
        benchmark = benchmark.of([questions[i] for i in sorted(answers)])
    return benchmark, [answers[i] for i in sorted(answers)]
