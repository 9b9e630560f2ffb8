"""The shipped model: its folder, its answers, the command without words, what it says of what it does not know."""

import json
import re

import pytest
import torch
from PIL import Image

import weights
from command import done
from live import live
from minivlm.generate import Conversation
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.check import hf
from minivlm.lab.check.stages import FACTOR, verify
from minivlm.lab.cli import shipped
from minivlm.lab.cli.options import build, own_settings
from minivlm.lab.score.contestants import Oracle
from minivlm.toy import scenes
from minivlm.toy.benchmark import items
from minivlm.toy.questions import FAMILIES, WORDS
from paths import PICTURE
from pruning import METHODS
from pruning.base import Reduction

ROWS = [json.loads(line) for line in (shipped.SAMPLES / "questions.jsonl").read_text().splitlines()]
SCENE = str(shipped.SAMPLES / ROWS[0]["image"])
SELECTING = [
    name
    for name, method in METHODS.items()
    if "keep" in method.__dataclass_fields__ and "select" in method().laws and not method().mask_at(8)
]
READ_ATTENTION = ("fastv", "sparsevlm", "pyramiddrop", "adaptprune", "asap", "fitprune_single", "visionzip",
                  "vispruner", "hired")
RESULTS = json.loads((shipped.FOLDER / "results.json").read_text())
RECORDED = RESULTS["seeds"][RESULTS["shipped"]]


@pytest.fixture(scope="module")
def model():
    return weights.load(shipped.FOLDER, dtype=torch.float32)


def right(model, chosen, pruner=None, reduced=lambda tokens, item: tokens):
    """{family: share of right answers} of greedy one-word answers."""
    score = {}
    for item in chosen:
        ids = model.tokenizer.encode(prompt([(item.question, None)]))
        tokens = model.embed(ids, [model.processor.pixels(item.picture)])
        logits, _ = model.prefill(reduced(tokens, item), pruner)
        score.setdefault(item.family, []).append(WORDS[logits.argmax()] == item.answer)
    return {family: sum(answers) / len(answers) for family, answers in score.items()}


def test_the_folder_is_small_and_whole(model):
    assert (shipped.FOLDER / "model.safetensors").stat().st_size < 8_000_000
    assert model.visual_tokens(model.processor.pixels(Image.open(SCENE))) == 144
    assert len({row["image"] for row in ROWS}) == 4 and {row["family"] for row in ROWS} == set(FAMILIES)


@pytest.mark.slow
def test_recorded_accuracy_on_fresh_scenes(model):
    """320 questions of another seed: the mean within four standard errors of the recorded one,
    no family far below its own."""
    measured = right(model, items("heldout", 40, seed=5))
    recorded = {family: x / 100 for family, x in RECORDED["heldout"].items()}
    mean, before = (sum(each.values()) / len(FAMILIES) for each in (measured, recorded))
    assert abs(mean - before) < 4 * (before * (1 - before) / 320) ** 0.5 + 0.005
    for family in FAMILIES:
        assert measured[family] > recorded[family] - 4 * (recorded[family] * (1 - recorded[family]) / 40 + 1e-4) ** 0.5


@pytest.mark.slow
def test_the_background_alone_tells_the_scene_only(model):
    """Without the patches that show a thing: near chance, but for the scene.
    Chance: the share of the commonest answer."""
    chosen = items("heldout", 40, seed=6)

    def background(tokens, item):
        batch, at = divmod(item.image, 32)
        area = scenes.worlds("heldout", 6, batch, 32).area[at].sum(axis=0)
        return tokens.reduced(Reduction(torch.tensor(area == 0).nonzero().squeeze(1)))

    measured = right(model, chosen, reduced=background)
    assert measured.pop("scene") > 0.9
    for family, share in measured.items():
        answers = [item.answer for item in chosen if item.family == family]
        commonest = max(map(answers.count, answers)) / len(answers)
        assert share < commonest + 0.25, family


@pytest.mark.slow
def test_the_things_alone_are_counted_as_in_the_whole_picture(model):
    """Half of the tokens, with all that show a thing: a model trained without hidden blocks would count too many."""
    chosen = [item for item in items("validation", 200) if item.family == "count"]
    def half(tokens, item):
        return tokens.reduced(Oracle(keep=0.5, things=item.things).reduce(tokens))

    things = right(model, chosen, reduced=half)
    assert things["count"] > right(model, chosen)["count"] - 0.05


@pytest.mark.parametrize("name", SELECTING)
def test_to_keep_all_is_to_prune_nothing(model, name):
    """Every method that selects, with a budget of all 144 tokens. Those that merge or mask change what they keep."""
    own, row = own_settings(shipped.FOLDER), ROWS[0]
    ids, pixels = model.tokenizer.encode(prompt([(row["question"], None)])), model.processor.pixels(Image.open(SCENE))
    results = []
    for pruner in (None, build(name, "144", own=own)):
        talk = Conversation(model, pruner)
        talk.read(ids, [pixels])
        results.append((tuple(talk.generate(4)), talk.trace.visual))
    assert results[0] == results[1]


def test_without_words_every_method_answers(first_look):
    """A line and a panel each; the command in place of none is printed, and how to read the table."""
    out, page = first_look
    assert re.match(r"python run\.py compare \S+\.png '.+ \?' --keep 0\.1 --out pruned\.png", out)
    assert all(f"\n{name} " in out for name in METHODS) and "wrote pruned.png" in out
    assert all(f"\n{word}: " in out for word in ("agreement", "2x144 6x14", "evidence"))
    assert page.width > 1000
    assert "does not run here" not in out


def test_the_first_look_teaches(first_look):
    """Without the image the answer is wrong, and with random tokens; unpruned it is right, and so are some methods that
    read attention, but not all. VTW, which sees the image in seven of eight layers, has that share of the evidence."""
    out, _ = first_look
    image, question = shipped.FIRST
    asked = next(row for row in ROWS if row["image"] == image and row["question"] == question)
    lines = {line.split(" ")[0]: line for line in out.splitlines()}
    is_right = {name: lines[name].endswith(f"; {asked['answer']}") for name in METHODS}
    assert is_right["none"] and not is_right["blind"] and not is_right["random"]
    assert {is_right[name] for name in READ_ATTENTION} == {True, False}
    evidence = {name: lines[name].split("B  ")[1].split()[0] for name in ("none", "blind", "vtw")}
    assert evidence == {"none": "100%", "blind": "0%", "vtw": "88%"}


def test_without_the_model_one_is_asked_for(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    for words in ([], ["ask", SCENE, "what scene is this ?"], ["inspect"]):
        status, _, err = done(capsys, *words)
        assert status == 2 and "--model" in err and len(err.splitlines()) == 1


def test_what_it_does_not_know_is_said(capsys):
    """An unknown word is an error that lists the words; a photograph gets an answer and a note;
    its own scene gets none."""
    status, _, err = done(capsys, "ask", SCENE, "is there a violet dog ?")
    assert status == 2 and "'dog', 'violet'" in err and "triangle" in err
    status, out, err = done(capsys, "ask", PICTURE, "what scene is this ?")
    assert status == 0 and out and "drawn world" in err
    assert "drawn world" not in done(capsys, "ask", SCENE, "What scene is this?")[2]


def test_inspect_lists_its_words(capsys):
    status, out, _ = done(capsys, "inspect")
    assert status == 0
    assert "\nwords: user assistant : ? ." in out
    assert out.split("words: ")[1].split("\n")[0].split()[-1] == WORDS[-1]


@live
@pytest.mark.parametrize("row", ROWS[::4], ids=lambda row: row["family"])
def test_transformers_says_the_same(row, model):
    """Every stage as close as float32 can know it, and the same greedy ids."""
    expected = hf.live(shipped.FOLDER, shipped.SAMPLES / row["image"], row["question"])
    rows = {result.stage: result for result in verify(model, shipped.FOLDER, expected)}
    assert [result.stage for result in rows.values() if not result.passed] == []
    assert rows["logits"].difference <= FACTOR * rows["logits"].own_error
    assert rows["greedy ids"].difference == 0
