"""The drawn world: the same bytes at every call, exact answers, evidence that holds them, sets that do not overlap."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from minivlm.toy import benchmark, questions, scenes
from minivlm.toy.questions import FAMILIES, WORDS
from minivlm.toy.scenes import OBJECTS, RGB, SCENES, UNSEEN
from pruning.base import UserError
from scene_answers import answer_by_loops


def asked(family, name, seed, count=24):
    worlds = scenes.worlds(name, seed, 0, count)
    question = questions.ask(np.random.default_rng(seed), family, worlds, name == "pairs")
    return worlds, question, questions.answer(family, question, worlds, worlds.present)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10 ** 6), name=st.sampled_from(scenes.SETS))
def test_answers_are_exact(family, seed, name):
    worlds, question, answer = asked(family, name, seed)
    for i, (q, a) in enumerate(zip(question.tolist(), answer)):
        words = questions.text(family, q)
        expected = answer_by_loops(family, words, worlds, i)
        if expected is not None or a >= 0:             # else no question can be asked of this picture
            assert expected == (WORDS[a] if a >= 0 else None), words


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10 ** 6))
def test_evidence_is_enough_and_is_needed(family, seed):
    """Hiding all other patches leaves the answer; hiding the evidence loses it, but for scene, no and zero."""
    worlds, question, answer = asked(family, "heldout", seed)
    need = questions.evidence(family, question, worlds)
    answerable = answer >= 0
    for shown, same in ((need, True), (~need, family == "scene")):
        sure, perhaps = questions.visible(worlds, shown)
        for remaining in (questions.answer(family, question, worlds, v) for v in (sure, perhaps)):
            empty = np.isin(answer, questions.ids(("no", "zero")))
            assert ((remaining == answer) == same)[answerable & (~empty | same)].all()
    assert need[answerable].any(axis=1).all()


def test_evidence_shows_the_object():
    """Pixels of the object's hue lie in its patches and, for the only object of its colour, nowhere else."""
    worlds, question, answer = asked("shape", "heldout", 3, count=200)
    need = questions.evidence("shape", question, worlds)
    for i in (answer >= 0).nonzero()[0]:
        color = question[i, 1]
        if SCENES[worlds.scene[i]] != "night" or worlds.present[i, OBJECTS:].any():
            continue                               # on the dark ground without signs, bright pixels are objects
        light = worlds.pixels[i] / np.maximum(np.linalg.norm(worlds.pixels[i].astype(float), axis=2, keepdims=True), 1)
        hue = light @ (RGB / np.linalg.norm(RGB, axis=1, keepdims=True)).T          # (96, 96, 7)
        mine = (hue.argmax(axis=2) == color) & (worlds.pixels[i].max(axis=2) > 150)
        patch = np.kron(need[i].reshape(12, 12), np.ones((8, 8))) > 0
        assert mine[patch].sum() >= 20
        assert (mine & ~patch).sum() <= 2, "a few edge pixels blend into another hue"


def test_same_bytes_at_every_call():
    one, two = (scenes.worlds("train", 5, 2, 16) for _ in range(2))
    assert all(getattr(one, k).tobytes() == getattr(two, k).tobytes() for k in vars(one))
    assert hashlib.sha256(one.pixels.tobytes()).hexdigest()[:16] == "2e00919837e3bdf5"


def test_sets_do_not_overlap():
    sets = [scenes.worlds(name, seed, batch, 64).pixels for name in scenes.SETS for seed in (0, 1) for batch in (0, 1)]
    pictures = [picture.tobytes() for some in sets for picture in some]
    assert len(set(pictures)) == len(pictures)


def test_unseen_pairs_are_in_the_last_set_alone():
    for name in scenes.SETS:
        worlds = scenes.worlds(name, 0, 0, 300)
        drawn = worlds.present[:, :OBJECTS]
        rare = np.any([(worlds.shape == s) & (worlds.color == c) for s, c in UNSEEN], axis=0) & drawn
        assert rare.any(axis=1).all() if name == "pairs" else not rare.any()
        for family in ("exist", "relpos", "abspos"):
            question = questions.ask(np.random.default_rng(0), family, worlds, name == "pairs")
            pairs = {tuple(p) for p in question[:, :2].tolist()} & set(UNSEEN)
            assert len(pairs) == (4 if name == "pairs" else 0)


@pytest.mark.slow
def test_answers_are_balanced():
    """No family can be answered from its question alone: the commonest answer is at most as common as here."""
    most = dict(exist=.55, color=.25, shape=.25, count=.40, relpos=.33, read=.12, scene=.25, abspos=.33)
    for family in FAMILIES:
        _, _, answer = asked(family, "heldout", 0, count=1000)
        answer = answer[answer >= 0]
        assert len(answer) > 700 and np.bincount(answer).max() / len(answer) < most[family], family


def test_things_do_not_touch_and_lie_inside():
    worlds = scenes.worlds("train", 0, 0, 200)
    assert (worlds.area[~worlds.present].sum() == 0) and (worlds.area.sum(axis=2)[worlds.present] >= 25).all()
    assert worlds.area.sum(axis=1).max() <= scenes.PATCH ** 2, "two things on one pixel"


def test_hidden_patches_hide_things():
    """A thing is visible with a fifth of its pixels or more, hidden with none, and in doubt between."""
    worlds = scenes.worlds("train", 0, 0, 1)
    s = int(worlds.present[0].argmax())
    area = worlds.area[0, s]
    shown = np.zeros((1, 144), bool)
    sure, perhaps = questions.visible(worlds, shown)
    assert not sure.any() and not perhaps.any()
    shown[0, area.argmax()] = True
    sure, perhaps = questions.visible(worlds, shown)
    assert perhaps[0, s] and sure[0, s] == (area.max() >= 0.2 * area.sum())


def test_benchmark_folder(tmp_path):
    """As many questions of every family as asked for, the same as `items` gives, and fewer are the first of more."""
    n = benchmark.write(tmp_path, "pairs", count=5)
    lines = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert n == len(lines) == 40 and all((tmp_path / line["image"]).is_file() for line in lines)
    few, more = benchmark.items("pairs", 5), benchmark.items("pairs", 9)
    assert [i.question for i in few] == [line["question"] for line in lines]
    assert {(i.image, i.question) for i in few} <= {(i.image, i.question) for i in more}
    with pytest.raises(UserError, match="set 'test'"):
        benchmark.items("test")
