"""`eval --task`: a model asked the questions of a benchmark by its prompts, scored by its metric, under methods."""

import json

import pytest

from command import done
from minivlm.lab.score.answers import Contest
from minivlm.lab.tasks.metrics.pope import Pope
from minivlm.lab.tasks.question import Question
from minivlm.lab.tasks.report import facts, verdicts
from minivlm.toy import benchmark
from paths import ROOT

SHIPPED = ROOT / "minivlm" / "toy" / "model"
WORDS = ["--processes", "1", "--draws", "2", "--method", "fastv,downsample_image", "--keep", "0.1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Questions of the drawn world, typed as POPE's and as TextVQA's; the shipped model knows all the words."""
    path = tmp_path_factory.mktemp("pope")
    benchmark.write(path, count=2)
    rows = [json.loads(line) for line in (path / "questions.jsonl").read_text().splitlines()]
    pope = [dict(question_id=i, image=row["image"], text=row["question"], label=row["answer"])
            for i, row in enumerate(rows) if row["answer"] in ("yes", "no")]
    pope += [row | dict(question_id=100 + row["question_id"]) for row in reversed(pope)]
    (path / "coco_pope_random.json").write_text("".join(json.dumps(row) + "\n" for row in pope))
    words = [dict(question_id=i, image_id=row["image"].removesuffix(".png"), question=row["question"],
                  answers=[row["answer"]] * 2 + ["nothing"] * 8) for i, row in enumerate(rows[:3])]
    (path / "TextVQA_0.5.1_val.json").write_text(json.dumps(dict(data=words)))
    for row in rows[:3]:                                   # TextVQA's names end in .jpg
        (path / row["image"]).with_suffix(".jpg").write_bytes((path / row["image"]).read_bytes())
    return path


@pytest.fixture
def plain(monkeypatch):
    """The prompts without "Answer the question ..", whose words the shipped model does not know."""
    monkeypatch.setattr("minivlm.lab.tasks.prompts.SHORT", "")


def evaluated(capsys, folder, file, *more, task="pope"):
    """What is printed."""
    status, out, err = done(capsys, "eval", "--task", task, "--data", folder / file, "--images", folder, *WORDS, *more)
    assert status == 0, err
    return out


def test_pope(capsys, folder, plain, tmp_path):
    """The table has the F1 with an interval and the difference to no pruning; the JSON agrees with a count of the
    logged answers; questions that the small picture does not solve are apart; the same command asks nothing again."""
    words = ("coco_pope_random.json", "--out", tmp_path / "a.json")
    out = evaluated(capsys, folder, *words)
    assert "pope, official rules:" in out and "against none" in out and "bootstrap over pictures" in out
    assert "downsample_image 0.1 does not solve" in out
    result = json.loads((tmp_path / "a.json").read_text())
    log = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()][1:]
    measured = {row["contestant"]: row for row in result["measured"]}
    ran = {row["contestant"] for row in result["contestants"]}
    assert set(measured) == ran >= {"none", "random 0.1", "uniform 0.1", "fastv 0.1", "downsample_image 0.1"}
    labels = [json.loads(line) for line in (folder / "coco_pope_random.json").read_text().splitlines()]
    for label in ("none", "random 0.1"):
        rows = [row for row in log if row["contestant"] == label]
        assert len(rows) == result["questions"] == len(labels)
        accuracy = sum(row["right"] for row in rows) / len(rows)
        assert measured[label]["parts"]["accuracy"] == pytest.approx(100 * accuracy)
        assert len(rows[0]["answers"]) == (1 if label == "none" else 2) and rows[0]["evidence"] is None
    assert set(measured["fastv 0.1"]["against"]) == {"none", "random 0.1"}
    assert measured["none"]["value"] > 50 and (tmp_path / "a.png").exists()

    def refuse(*args):
        raise AssertionError("a question was asked again")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Contest, "answer", refuse)
        assert evaluated(capsys, folder, *words) == out
        status, _, err = done(capsys, "eval", "--task", "pope", "--data", folder / words[0], "--images", folder, *WORDS,
                              "--out", tmp_path / "a.json", "--rules", "lmms-eval")
    assert status == 2 and "is of a run with" in err and "rules" in err


def test_a_soft_score(capsys, folder, plain, tmp_path):
    """The model's word is that of two of ten people, 0.6, or it is nobody's: all sums are of these."""
    out = evaluated(capsys, folder, "TextVQA_0.5.1_val.json", "--out", tmp_path / "a.json", task="textvqa")
    assert "textvqa, without OCR hints, official rules: 3 questions" in out
    log = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()][1:]
    scores = {row["right"] for row in log}
    assert scores <= {0, .3, .6} and .6 in scores, scores
    result = json.loads((tmp_path / "a.json").read_text())
    none = result["contestants"][0]["all"]
    assert none["accuracy"] == pytest.approx(result["measured"][0]["value"] / 100) and result["metric"] == "accuracy"


def test_limit_takes_the_first(capsys, folder, plain):
    assert "3 questions about" in evaluated(capsys, folder, "coco_pope_random.json", "--limit", 3, "--method", "none")


@pytest.mark.parametrize("words, message", [
    (["--task", "pope"], "--task pope needs its file"),
    (["--task", "pope", "--data", "{file}"], "name their folder with --images"),
    (["--task", "pope", "--data", "{file}", "--images", "nowhere"], "nowhere: there is no picture"),
    (["--task", "pope", "--data", "{file}", "--count", "3"], "--count is for drawn questions"),
    (["--task", "pope", "--data", "{file}", "--oracles"], "--oracles need to know what a picture shows"),
    (["--task", "pope", "--data", "{file}", "--ocr", "{file}"], "--ocr is for textvqa"),
    (["--limit", "3"], "--limit is for a benchmark"),
    (["--rules", "lmms-eval"], "--rules lmms-eval is for a benchmark"),
])
def test_bad_input_is_one_line(capsys, folder, words, message):
    words = [str(folder / "coco_pope_random.json") if word == "{file}" else word for word in words]
    status, out, err = done(capsys, "eval", *words, *WORDS)
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not out


def test_worse_than_random_is_said():
    """Always wrong against always right."""
    labels = ["yes", "no"] * 30
    questions = [Question(f"{i // 2}.png", None, "s", "?", label, names=(str(i),)) for i, label in enumerate(labels)]
    metric = Pope(questions, "official")
    right = [(question.answer,) for question in questions]
    wrong = [("no" if answer == "yes" else "yes",) for answer, in right]
    rows = facts(metric, {"random 9": right, "fastv 9": wrong}, {"fastv 9": ["random 9"]})
    sentence, = verdicts(metric, rows)
    assert sentence.startswith("fastv 9 is worse than random tokens at the same place and budget (random 9)")
    assert "-100.0 (-100.0 to -100.0)" in sentence
