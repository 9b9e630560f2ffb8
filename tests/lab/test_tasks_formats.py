"""Each official file, three rows of it typed by hand: what its reader gives, and the prompts."""

import base64
import io
import json

import pytest
from PIL import Image

from minivlm.io.image import open_image
from minivlm.lab.tasks.pictures import found, with_pictures
from minivlm.lab.tasks.tasks import TASKS, opened
from pruning.base import UserError

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def write(path, value):
    """A file of JSON, or of a JSON object per line if its name says so or POPE's does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, list) and (path.suffix == ".jsonl" or "pope" in path.name):
        path.write_text("".join(json.dumps(row) + "\n" for row in value))
    else:
        path.write_text(json.dumps(value))
    return path


def facts(questions, *fields):
    """The fields of each question."""
    return [tuple(getattr(question, field) for field in fields) for question in questions]


def asked(name, path, rules="official", **options):
    """The prompts."""
    return [question.question for question in opened(name, path, rules, **options).prompts()]


POPE = [dict(question_id=i, image=f"COCO_val2014_{i // 3:012}.jpg", text=f"Is there a {thing}?", label=label)
        for i, thing, label in ((1, "cat", "yes"), (2, "dog", "no"), (3, "car", "no"))]


def test_pope(tmp_path):
    """Ids begin anew in each split."""
    one = write(tmp_path / "coco_pope_random.json", POPE)
    write(tmp_path / "coco_pope_popular.json", POPE)
    assert facts(opened("pope", one).questions, "family", "answer", "image") == [
        ("random", "yes", "COCO_val2014_000000000000.jpg"), ("random", "no", "COCO_val2014_000000000000.jpg"),
        ("random", "no", "COCO_val2014_000000000001.jpg")]
    both = opened("pope", tmp_path).questions
    assert [question.family for question in both] == ["popular"] * 3 + ["random"] * 3
    assert both[0].names[0] == "popular/1" and both[3].names[0] == "random/1"
    assert asked("pope", one)[0] == "Is there a cat?" + SHORT


def test_pope_of_llava(tmp_path):
    """Its ids, the labels of coco/, whatever the order; the prompt is in the text already."""
    write(tmp_path / "coco" / "coco_pope_random.json", POPE)
    rows = [dict(question_id=100 + i, image=row["image"], text=row["text"] + SHORT, category="random")
            for i, row in enumerate(reversed(POPE))]
    path = write(tmp_path / "llava_pope_test.jsonl", rows)
    assert facts(opened("pope", path).questions, "answer", "names") == [("no", ("100",)), ("no", ("101",)),
                                                                       ("yes", ("102",))]
    assert asked("pope", path)[2] == POPE[0]["text"] + SHORT
    write(path, [rows[0] | dict(text="Is there a cow?")])
    with pytest.raises(UserError, match="line 1: there is no label for 'Is there a cow\\?'"):
        opened("pope", path)


def test_vqav2(tmp_path):
    people = [dict(answer=word, answer_confidence="yes", answer_id=i) for i, word in enumerate(["red"] * 9 + ["blue"])]
    rows = [dict(question_id=10 + i, image_id=42, answer_type=kind, question_type="what", answers=people)
            for i, kind in enumerate(("other", "yes/no", "number"))]
    path = write(tmp_path / "v2_mscoco_val2014_annotations.json", dict(annotations=rows))
    texts = [dict(question_id=10 + i, image_id=42, question=f"What {i}?") for i in (2, 1, 0)]
    questions = write(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", dict(questions=texts))
    assert facts(opened("vqav2", path).questions, "image", "family", "question", "names") == [
        ("COCO_val2014_000000000042.jpg", kind, f"What {i}?", (str(10 + i),))
        for i, kind in enumerate(("other", "yes/no", "number"))]
    assert opened("vqav2", tmp_path).questions[0].answer == ("red",) * 9 + ("blue",)
    questions.unlink()
    with pytest.raises(UserError, match="needs v2_OpenEnded_mscoco_val2014_questions.json in the same folder"):
        opened("vqav2", path)


TEXTVQA = [dict(image_id="0a1", question_id=34600 + i, question=text, answers=["nokia"] * 10)
           for i, text in enumerate(("what Brand is this?", "who Made it?", "Is it on?"))]


def test_textvqa(tmp_path):
    """lmms-eval's capital is the only one of its question. Hints come from either file."""
    path = write(tmp_path / "TextVQA_0.5.1_val.json", dict(data=TEXTVQA))
    assert facts(opened("textvqa", path).questions, "image", "names")[0] == (
        "0a1.jpg", ("0a1/what brand is this?", "34600"))
    assert asked("textvqa", path)[0] == "what Brand is this?" + SHORT
    assert asked("textvqa", path, "lmms-eval")[:2] == ["What brand is this?" + SHORT, "Who made it?" + SHORT]
    hint = "\nReference OCR token: NOKIA, 3310"
    rosetta = write(tmp_path / "ocr.json", dict(data=[dict(image_id="0a1", ocr_tokens=["NOKIA", "3310"])]))
    llava = write(tmp_path / "ocr.jsonl", [dict(question_id="0a1", image="0a1.jpg", text="what?" + hint + SHORT)])
    for hints in (rosetta, llava):
        assert asked("textvqa", path, hints=hints)[0] == "what Brand is this?" + hint + SHORT
    other = write(tmp_path / "other.json", dict(data=[dict(image_id="0b2", ocr_tokens=["NOKIA"])]))
    with pytest.raises(UserError, match="has no words of the task's pictures"):
        opened("textvqa", path, hints=other)
    with pytest.raises(UserError, match="--ocr is for textvqa"):
        opened("pope", path, hints=rosetta)


def test_a_test_set_has_no_answers(tmp_path):
    path = write(tmp_path / "test.json", dict(data=[{k: v for k, v in TEXTVQA[0].items() if k != "answers"}]))
    with pytest.raises(UserError, match="entry 1: answers must be those of 10 people"):
        opened("textvqa", path)


def test_gqa(tmp_path):
    """What is not balanced is no question of the benchmark."""
    rows = {f"20{i}": dict(question="Is it?", answer="yes", imageId=f"n{i}", isBalanced=i != 1,
                           types=dict(structural=kind)) for i, kind in enumerate(("verify", "query", "query"))}
    path = write(tmp_path / "testdev_balanced_questions.json", rows)
    assert facts(opened("gqa", path).questions, "image", "family", "names") == [
        ("n0.jpg", "binary", ("200",)), ("n2.jpg", "open", ("202",))]


def test_docvqa(tmp_path):
    rows = [dict(questionId=i, question="What?", image=f"documents/{i}.png", answers=["a", "b"]) for i in (1, 2, 3)]
    path = write(tmp_path / "val_v1.0.json", dict(dataset_name="docvqa", data=rows))
    assert facts(opened("docvqa", path).questions, "image", "answer", "names")[2] == (
        "documents/3.png", ("a", "b"), ("3",))


def test_chartqa(tmp_path):
    """Its entries have no ids; a label may be a number."""
    rows = [dict(imgname="1.png", query="How many?", label="14"), dict(imgname="2.png", query="Who?", label="x")]
    write(tmp_path / "test_human.json", rows)
    write(tmp_path / "test_augmented.json", [dict(imgname="3.png", query="How many?", label=0.5)])
    questions = opened("chartqa", tmp_path).questions
    assert facts(questions, "family", "answer", "names") == [
        ("augmented", "0.5", ("augmented/0", "3.png/how many?")), ("human", "14", ("human/0", "1.png/how many?")),
        ("human", "x", ("human/1", "2.png/who?"))]
    assert asked("chartqa", tmp_path)[2] == "Who?\nAnswer the question with a single word."


def test_captions(tmp_path):
    """A question per picture; of Karpathy's file the test pictures."""
    rows = [dict(image_id=id, id=i, caption=f"{i}") for i, id in enumerate((7, 8, 7))]
    images = [dict(id=id, file_name=f"{id}.jpg") for id in (7, 8)]
    path = write(tmp_path / "captions_val2014.json", dict(annotations=rows, images=images))
    assert facts(opened("coco-caption", path).questions, "image", "answer", "names") == [
        ("7.jpg", ("0", "2"), ("7", "7.jpg")), ("8.jpg", ("1",), ("8", "8.jpg"))]
    assert asked("coco-caption", path) == ["Provide a one-sentence caption for the provided image."] * 2
    rows = [dict(cocoid=i, filename=f"{i}.jpg", split=split, sentences=[dict(raw="a dog")])
            for i, split in enumerate(("train", "test", "test"))]
    path = write(tmp_path / "dataset_coco.json", dict(images=rows))
    assert facts(opened("coco-caption", path).questions, "names") == [(("1", "1.jpg"),), (("2", "2.jpg"),)]


MME = [("0001.png", f"Is it {n}? Please answer yes or no.", answer) for n, answer in ((5, "Yes"), (6, "No"))]


def test_mme(tmp_path):
    """The tool's files, one for each subtask, and the release, one for each picture, give the same questions."""
    (tmp_path / "tool").mkdir()
    lines = ["\t".join([*row, "yes"]) for row in MME]
    (tmp_path / "tool" / "count.txt").write_text("\n".join(lines) + "\n")
    folder = tmp_path / "release" / "count"
    (folder / "images").mkdir(parents=True)
    (folder / "questions_answers_YN").mkdir()
    (folder / "questions_answers_YN" / "0001.txt").write_text("\n".join("\t".join(row[1:]) for row in MME))
    (folder / "images" / "0001.png").write_bytes(b"")
    tool, release = (opened("mme", tmp_path / name).questions for name in ("tool", "release"))
    assert tool == release
    assert facts(tool, "image", "family", "answer") == [("count/0001.png", "count", "yes"),
                                                        ("count/0001.png", "count", "no")]
    assert tool[0].names == ("count/0001.png/is it 5? please answer yes or no.", "count/0001.png/is it 5?")
    assert asked("mme", tmp_path / "tool")[0] == "Is it 5?" + SHORT
    assert found("count/0001.png", tmp_path / "release") == folder / "images" / "0001.png"
    (tmp_path / "tool" / "count.txt").write_text("0001.png\tIs it 5?\n")
    with pytest.raises(UserError, match="line 1: there are 2 fields"):
        opened("mme", tmp_path / "tool")


def test_scienceqa(tmp_path):
    """The split says which problems, in its order; a context only where there is a hint."""
    problem = dict(question="Which?", choices=["cat", "dog"], answer=1, hint="", image=None, split="test")
    shown = problem | dict(image="image.png", hint="Look.")
    write(tmp_path / "problems.json", {"1": problem, "2": shown, "3": problem})
    write(tmp_path / "pid_splits.json", dict(test=["2", "1"], train=["3"]))
    assert facts(opened("scienceqa", tmp_path).questions, "image", "family", "answer", "names") == [
        ("2/image.png", "image", "B", ("2",)), ("", "no image", "B", ("1",))]
    assert asked("scienceqa", tmp_path) == [
        "Context: Look.\nWhich?\nA. cat\nB. dog" + LETTER, "Which?\nA. cat\nB. dog" + LETTER]
    write(tmp_path / "pid_splits.json", dict(test=["4"]))
    with pytest.raises(UserError, match="must be a list of ids"):
        opened("scienceqa", tmp_path)


def test_mmbench(tmp_path):
    """Pictures are in the table; a moved question names its first row in place of one."""
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "PNG")
    picture = base64.b64encode(file.getvalue()).decode()
    heads = "index question hint A B C D answer category image l2-category split".split()
    rows = [["5", "What?", '"Look\nwell"', "cat", "dog", "", "", "A", "x", picture, "y", "dev"],
            ["6", "Who?", "nan", "a", "b", "c", "", "C", "x", picture, "y", "dev"],
            ["1000005", "What?", '"Look\nwell"', "dog", "cat", "", "", "B", "x", "5", "y", "dev"]]
    path = tmp_path / "mmbench_dev.tsv"
    path.write_text("\n".join("\t".join(row) for row in [heads, *rows]))
    questions = opened("mmbench", path).questions
    assert facts(questions, "answer", "choices", "group", "hint") == [
        ("A", ("cat", "dog"), "5", "Look\nwell"), ("C", ("a", "b", "c"), "6", ""),
        ("B", ("dog", "cat"), "5", "Look\nwell")]
    assert len({question.image for question in questions}) == 1
    assert open_image(questions[2].picture).size == (3, 2) and open_image(questions[2].picture).size == (3, 2)
    assert asked("mmbench", path)[0] == "Look\nwell\nWhat?\nA. cat\nB. dog" + LETTER
    assert asked("mmbench", path, "lmms-eval")[1] == (
        "Who? There are several options:\nA. a\nB. b\nC. c\n" + LETTER)
    assert len(opened("mmbench", path).first(1).questions) == 2, "the other row of the first question too"
    path.write_text("\n".join("\t".join(row) for row in [heads, rows[0][:7] + [""] + rows[0][8:]]))
    with pytest.raises(UserError, match="row 1: there is no answer"):
        opened("mmbench", path)


@pytest.mark.parametrize("row, message", [
    (dict(POPE[0], label="maybe"), "line 1: label must be one of yes, no"),
    ({k: v for k, v in POPE[0].items() if k != "text"}, "line 1: there is no 'text'"),
    (dict(POPE[0], image=3), "line 1: image is a word"),
    ([1], "line 1: no question of POPE"),
])
def test_what_is_wrong_is_named(tmp_path, row, message):
    path = tmp_path / "coco_pope_random.json"
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match=message):
        opened("pope", path)


@pytest.mark.parametrize("name", TASKS)
def test_other_files_and_folders_are_refused(tmp_path, name):
    """An empty folder, a file of something else, and none."""
    (tmp_path / "empty").mkdir()
    other = write(tmp_path / "other.json", dict(a=1))
    for path in (tmp_path / "empty", other, tmp_path / "none.json"):
        with pytest.raises(UserError) as refused:
            opened(name, path)
        assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_pictures_are_looked_for_before_any_work(tmp_path):
    path = write(tmp_path / "coco_pope_random.json", POPE)
    questions = opened("pope", path).questions
    with pytest.raises(UserError, match="name their folder with --images"):
        with_pictures(questions, None)
    with pytest.raises(UserError, match="no picture COCO_val2014_000000000000.jpg"):
        with_pictures(questions, tmp_path)
    for number in (0, 1):
        (tmp_path / f"COCO_val2014_{number:012}.jpg").write_bytes(b"")
    assert with_pictures(questions, tmp_path)[2].picture == tmp_path / "COCO_val2014_000000000001.jpg"


@pytest.mark.parametrize("name, place", [
    ("documents/a.png", "a.png"), ("documents/a.png", "documents/a.png"), ("7/image.png", "test/7/image.png"),
    ("a.png", "png/a.png"), ("count/1.png", "count/images/1.png"),
])
def test_where_a_picture_may_lie(tmp_path, name, place):
    """As the releases unpack: in the folder that the file names, without it, or in another."""
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert found(name, tmp_path) == path
