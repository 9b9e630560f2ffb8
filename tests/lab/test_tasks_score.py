"""`score`: answers of other code, joined to the official file, in a table that hand computation gives."""

import json

import pytest

from command import done

POPE = [dict(question_id=i, image=f"{i // 2}.jpg", text="Is there a cat?", label="yes" if i % 2 else "no")
        for i in range(1, 9)]


def write(path, rows):
    """A JSON object on each line; a list in a .json."""
    if path.suffix == ".json" and "pope" not in path.name:
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pope(tmp_path):
    """Eight questions, of which 1, 3, 5 and 7 are yes."""
    return write(tmp_path / "coco_pope_random.json", POPE)


def answers(path, said):
    """LLaVA's answers: what is said to each question."""
    rows = [dict(question_id=row["question_id"], prompt=row["text"], text=text) for row, text in zip(POPE, said)]
    return write(path, rows)


def score(capsys, path, data, *more, task="pope"):
    """What is printed."""
    status, out, err = done(capsys, "score", path, "--task", task, "--data", data, *more)
    assert status == 0, err
    return out


def test_pope_of_a_file(capsys, tmp_path, pope):
    """Yes to 1, 3, 5 and 2, no to the others: TP 3, FP 1, FN 1, TN 3: all of P, R, F1 and accuracy 75 %."""
    path = answers(tmp_path / "answers.jsonl", ["yes", "Yes.", "yes", "no", "yes", "no", "no way", "hm no"])
    out = score(capsys, path, pope)
    assert "pope, official rules: 8 questions about 5 pictures" in out
    line = next(line for line in out.splitlines() if line.startswith(str(path)))
    assert line.split()[1] == "75.0" and line.split()[-5:] == ["75.0", "75.0", "75.0", "50.0", "25.0%"]
    data = json.loads(score(capsys, path, pope, "--json"))
    row, = data["contestants"]
    assert row["value"] == pytest.approx(75) and row["interval"][0] < 75 < row["interval"][1] and not row["against"]
    assert data == json.loads(score(capsys, path, pope, "--json")), "the bootstrap is seeded"


def test_against_another_file(capsys, tmp_path, pope):
    """All right against three quarters: the difference of the F1 is 25 points, and of a file to its copy none."""
    right = answers(tmp_path / "right.jsonl", [row["label"] for row in POPE])
    other = answers(tmp_path / "other.jsonl", ["yes", "yes", "yes", "no", "yes", "no", "no", "no"])
    _, row = json.loads(score(capsys, other, pope, "--against", right, "--json"))["contestants"]
    assert row["against"][str(right)]["difference"] == pytest.approx(-25)
    assert f"against {right}" in score(capsys, other, pope, "--against", right)
    status, _, err = done(capsys, "score", right, "--task", "pope", "--data", pope, "--against", right)
    assert status == 2 and "is the file of answers itself" in err


def test_rules_differ(capsys, tmp_path, pope):
    """An answer in a sentence is yes or no by the official rules, and lost by lmms-eval's."""
    path = answers(tmp_path / "a.jsonl", [f"{row['label']}, it is" for row in POPE])
    values = [json.loads(score(capsys, path, pope, "--rules", rules, "--json"))["contestants"][0]["value"]
              for rules in ("official", "lmms-eval")]
    assert values == [100, 0]


@pytest.mark.parametrize("change, message", [
    (lambda rows: rows[:-2], "lacks 2 of 8 answers, the first to question random/7"),
    (lambda rows: [*rows, rows[0]], "line 9: question 1 has an answer already"),
    (lambda rows: [rows[0] | dict(question_id=99)], "line 1: 99 is the id of no question"),
    (lambda rows: [dict(text="yes")], "line 1: write an id as one of question_id"),
    (lambda rows: [dict(question_id=1)], "the answer as one of text"),
    (lambda rows: [dict(question_id=1, text=5)], "the answer as one of text"),
    (lambda rows: [[1]], "entry 1: no answer in JSON"),
    (lambda rows: [], "there is no answer in it"),
])
def test_what_does_not_fit_is_one_line(capsys, tmp_path, pope, change, message):
    rows = [dict(question_id=row["question_id"], text="yes") for row in POPE]
    path = write(tmp_path / "a.jsonl", change(rows))
    status, out, err = done(capsys, "score", path, "--task", "pope", "--data", pope)
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not out


@pytest.mark.parametrize("words, message", [
    ([], "--task pope needs its file: name it with --data"), (["--data", "none.json"], "none.json"),
    (["--data", "{pope}", "--limit", "0"], "--limit 0"), (["--data", "{pope}", "--rules", "mine"], "--rules"),
    (["--data", "{pope}", "--against", "none.jsonl"], "none.jsonl"),
])
def test_bad_options_are_one_line(capsys, tmp_path, pope, words, message):
    path = answers(tmp_path / "a.jsonl", ["yes"] * 8)
    words = [str(pope) if word == "{pope}" else word for word in words]
    status, out, err = done(capsys, "score", path, "--task", "pope", *words)
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not out


def test_a_part(capsys, tmp_path, pope):
    """The answers to the first four questions of eight, or to all."""
    few = answers(tmp_path / "few.jsonl", ["yes", "no", "yes", "no"])
    every = answers(tmp_path / "all.jsonl", ["yes", "no", "yes", "no", "?", "?", "?", "?"])
    for path in (few, every):
        assert "4 questions" in score(capsys, path, pope, "--limit", 4)


def test_splits_have_ids_of_their_own(capsys, tmp_path, pope):
    """With the category they are told apart."""
    write(tmp_path / "coco_pope_popular.json", POPE)
    path = answers(tmp_path / "a.jsonl", ["yes"] * 8)
    status, _, err = done(capsys, "score", path, "--task", "pope", "--data", tmp_path)
    assert status == 2 and "1 is the id of 2 questions" in err and "score one file at a time" in err
    rows = [dict(question_id=row["question_id"], text=row["label"], category=split)
            for split in ("random", "popular") for row in POPE]
    assert "16 questions" in score(capsys, write(tmp_path / "b.jsonl", rows), tmp_path)


def test_answers_of_lmms_eval(capsys, tmp_path, pope):
    """A line of --log_samples has the question as doc and the answer in a list."""
    rows = [dict(doc_id=i, doc=dict(question_id=str(row["question_id"]), category="random"), target=row["label"],
                 filtered_resps=[row["label"]]) for i, row in enumerate(POPE)]
    assert "100.0" in score(capsys, write(tmp_path / "a.jsonl", rows), pope)


def test_ids_that_questions_share(capsys, tmp_path):
    """LLaVA names TextVQA's and MME's questions by their pictures: the prompt says which is meant."""
    text_vqa = dict(data=[dict(image_id="0a", question_id=i, question=text, answers=[word] * 10)
                          for i, (text, word) in enumerate((("What brand?", "nokia"), ("What color?", "red")))])
    data = tmp_path / "TextVQA_0.5.1_val.json"
    data.write_text(json.dumps(text_vqa))
    rows = [dict(question_id="0a", prompt=f"{text}\nReference OCR token: x\nAnswer the ..", text=word)
            for text, word in (("what color?", "Red"), ("what brand?", "Nokia."))]
    out = score(capsys, write(tmp_path / "a.jsonl", rows), data, task="textvqa")
    assert "accuracy" in out and " 100.0 (" in out and "OCR" not in out, "nobody knows how they were asked"
    (tmp_path / "count.txt").write_text("1.png\tIs it 1? Please answer yes or no.\tYes\n"
                                        "1.png\tIs it 2? Please answer yes or no.\tNo\n")
    rows = [dict(question_id="count/1.png", prompt=f"Is it {i}?\nAnswer the ..", text=word)
            for i, word in ((2, "no"), (1, "yes"))]
    out = score(capsys, write(tmp_path / "b.jsonl", rows), tmp_path / "count.txt", task="mme")
    assert " 200.0 (" in out and "perception" in out


def test_questions_without_a_picture_may_be_left_out(capsys, tmp_path):
    """ScienceQA: all three, of which two have a picture, or these two."""
    problem = dict(question="Which?", choices=["cat", "dog"], answer=1, hint="")
    problems = {str(i): problem | dict(image="image.png" if i < 3 else None) for i in (1, 2, 3)}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps(dict(test=["1", "2", "3"])))
    rows = [dict(question_id=str(i), text=letter) for i, letter in ((1, "B"), (2, "A"), (3, "B"))]
    data = json.loads(score(capsys, write(tmp_path / "a.jsonl", rows), tmp_path, "--json", task="scienceqa"))
    row, = data["contestants"]
    assert data["questions"] == 3 and row["parts"] == {"image": 50, "no image": 100}
    out = score(capsys, write(tmp_path / "b.jsonl", rows[:2]), tmp_path, task="scienceqa")
    assert "2 questions about 2 pictures" in out and " 50.0 (" in out
    path = write(tmp_path / "c.jsonl", rows[1:])
    status, _, err = done(capsys, "score", path, "--task", "scienceqa", "--data", tmp_path)
    assert status == 2 and "lacks 1 of 3" in err


def test_captions_are_a_list(capsys, tmp_path):
    """The official results file. Each picture's own reference: CIDEr-D 10, which papers print as 1000."""
    rows = [dict(image_id=i, id=i, caption=text) for i, text in ((1, "a dog runs fast"), (2, "one cat sleeps here"))]
    images = [dict(id=i, file_name=f"{i}.jpg") for i in (1, 2)]
    (tmp_path / "captions.json").write_text(json.dumps(dict(annotations=rows, images=images)))
    said = write(tmp_path / "results.json", [dict(image_id=row["image_id"], caption=row["caption"]) for row in rows])
    out = score(capsys, said, tmp_path / "captions.json", task="coco-caption")
    assert " 1000.0 (" in out and "these 2 pictures" in out
    assert " 10.0 (" in score(capsys, said, tmp_path / "captions.json", "--rules", "lmms-eval", task="coco-caption")
