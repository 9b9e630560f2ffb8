"""Training of the shipped model: it learns, resumes to the bit, trains the network that is shipped,
and hides fairly."""

from dataclasses import replace
from functools import partialmethod

import numpy as np
import pytest
import torch
from PIL import Image

from minivlm.toy import folder, questions, scenes
from minivlm.toy.optimiser import orthogonal
from minivlm.toy.packing import MIX, layout, pack, score
from minivlm.toy.questions import FAMILIES, ID, WORDS
from minivlm.toy.student import PATCHES, pixels
from minivlm.toy.train import HIDING, Recipe, Run, train
from pruning.base import Reduction, UserError
import weights
from scene_answers import answer_by_loops
from tiny import toy_config

MICRO = Recipe(seed=3, vision_steps=3, vision_batch=4, joint_steps=3, joint_batch=2, warmup=2)


@pytest.fixture(autouse=True)
def one_thread_with_gradients():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.enable_grad():
        yield
    torch.set_num_threads(before)


def same(a, b):
    """Whether two runs have the same bits everywhere."""
    first, second = ({**run.student.state_dict(), **run.optimiser.state} for run in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.slow
def test_loss_falls(tmp_path):
    """Over ten steps of each stage the mean of the last three is a tenth below that of the first three."""
    recipe = Recipe(vision_steps=10, vision_batch=16, joint_steps=10, joint_batch=4, warmup=2)
    run = Run(tmp_path, recipe, dtype=torch.float32)
    losses = [run.step()[0] for _ in range(20)]
    for stage in (losses[:10], losses[10:]):
        assert sum(stage[-3:]) < 0.9 * sum(stage[:3]), stage


@pytest.mark.parametrize("stop", [pytest.param(2, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)])
def test_resumed_run_gives_the_same_bits(monkeypatch, tmp_path, stop):
    """Interrupted in stage 1, between the stages, in stage 2; and run with threads or without. On a narrow model, and
    with one batch to score it on."""
    monkeypatch.setattr("minivlm.toy.train.config", lambda: toy_config(8))
    monkeypatch.setattr(Run, "check", partialmethod(Run.check, batches=1))
    whole = Run(tmp_path / "whole", MICRO)
    for _ in range(6):
        whole.step()
    part = Run(tmp_path / "part", MICRO)
    for _ in range(stop):
        part.step()
    part.save()
    rest = train(tmp_path / "part", MICRO, resume=True, every=100)
    assert rest.at == 6 and same(whole, rest)
    assert not same(whole, part)


def test_resume_of_another_recipe_is_refused(tmp_path):
    run = Run(tmp_path, MICRO)
    with pytest.raises(UserError, match="no run to resume"):
        run.resume()
    run.save()
    with pytest.raises(UserError, match="seed=3.*same options"):
        Run(tmp_path, replace(MICRO, seed=4)).resume()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The student of a run in float32, and the model as loaded from its folder."""
    path = tmp_path_factory.mktemp("saved")
    student = Run(path / "run", MICRO, dtype=torch.float32).student
    folder.save(student.llava, path / "model")
    model = weights.load(path / "model", dtype="float32")
    student.llava.load_state_dict(model.state_dict())                              # as rounded to float16
    return student, model


@pytest.mark.parametrize("hidden, closed", [(0, False), (60, False), (134, False), (60, True), (134, True)])
def test_packed_questions_equal_single_ones(saved, hidden, closed):
    """Every answer's logits in a packed row are those of its question alone, in the model as loaded from its folder."""
    student, model = saved
    worlds = scenes.worlds("heldout", 0, 0, 2)
    text, labels, shown = pack(np.random.default_rng(0), worlds, hidden)
    with torch.no_grad():
        features = student.llava.vision_tower(pixels(worlds), 3)[-1][:, 1:]
        packed = student.answers(features, text, shown, closed)
    block, _ = layout("cpu")
    for i in range(2):
        assert torch.equal(pixels(worlds)[i:i + 1], model.processor.pixels(Image.fromarray(worlds.pixels[i])))
        for q in range(len(MIX)):
            at = (block == q + 1).nonzero().squeeze(1)
            colon = at[(text[i, at] == ID[":"])][-1]
            ids = [ID["<s>"], ID["user"], ID[":"], ID["<image>"], *text[i, at[0]:colon + 1].tolist()]
            positions = "renumber" if closed else "keep"
            tokens = model.embed(ids, [pixels(worlds)[i:i + 1]]).reduced(Reduction(shown[i]), positions)
            assert torch.allclose(model.prefill(tokens)[0], packed[i, colon], atol=2e-5)


@pytest.mark.parametrize("hidden", [0, 72, 120])
def test_labels_are_what_is_left_to_see(hidden):
    """A label is the answer from the things still visible, by the slow check; none if the answer is in doubt."""
    worlds = scenes.worlds("train", 0, 0, 30)
    text, labels, shown = pack(np.random.default_rng(0), worlds, hidden)
    bright, (block, _) = np.zeros((30, PATCHES), bool), layout("cpu")
    np.put_along_axis(bright, shown.numpy(), True, axis=1)
    lights = [replace(worlds, present=worlds.present & visible) for visible in questions.visible(worlds, bright)]
    for i in range(30):
        for q, family in enumerate(MIX):
            words = [WORDS[id] for id in text[i, block == q + 1].tolist()]
            answers = {answer_by_loops(family, words[:words.index("assistant")], light, i) for light in lights}
            label = [WORDS[id] for id in labels[i, block == q + 1].tolist() if id >= 0]
            assert label == ([*answers, "</s>"] if len(answers) == 1 and answers != {None} else []), words


def shown(worlds, hidden, blocks):
    """(B, N) bool: the patches of each picture that are left."""
    _, _, left = pack(np.random.default_rng(0), worlds, hidden, mix=("scene",), blocks=blocks)
    bright = np.zeros((len(left), PATCHES), bool)
    np.put_along_axis(bright, left.numpy(), True, axis=1)
    return bright


@pytest.mark.parametrize("blocks", (False, True))
def test_hiding_favours_no_thing(blocks):
    """Over many pictures patches with a thing on them and without are hidden equally often, and each now and then."""
    worlds = scenes.worlds("train", 0, 0, 600)
    bright, things = shown(worlds, 72, blocks), worlds.area.sum(axis=1) > 0
    assert abs(bright[things].mean() - 0.5) < 0.02 and abs(bright[~things].mean() - 0.5) < 0.02
    assert bright.mean(axis=0).min() > 0.3 and bright.mean(axis=0).max() < 0.7


def test_blocks_hold_neighbours_together():
    """Neighbours share their fate more often than under single patches, and the number of things shown varies more."""
    worlds = scenes.worlds("train", 0, 0, 600)
    ways = [shown(worlds, 108, blocks).reshape(-1, 12, 12) for blocks in (False, True)]
    alike = [(bright[:, 1:] == bright[:, :-1]).mean() for bright in ways]
    assert abs(alike[0] - 0.625) < 0.01 and alike[1] > 0.75
    share = [[(worlds.area.sum(axis=1) > 0)[i][bright[i].ravel()].mean() for i in range(600)] for bright in ways]
    assert np.std(share[1]) > 1.2 * np.std(share[0])


@pytest.mark.internal
def test_nothing_is_hidden_where_nothing_is_to_be(tmp_path, monkeypatch):
    """How many patches the last steps hide, closed up or not, one by one or in a block, under each way of hiding."""
    calls = []
    def loss(*args):
        calls.append(args[3:])
        return args[0].heads["place"].bias.sum(), 0

    monkeypatch.setattr("minivlm.toy.train.joint_loss", loss)
    for hidden in HIDING:
        run = Run(tmp_path / hidden, replace(MICRO, hidden=hidden, whole=0, hide=1.0))
        run.at = 3
        run.step()
    blocks, patches, nothing = calls[::2]
    assert patches[0] == blocks[0] > 0 and patches[1] == blocks[1] and (patches[2], blocks[2]) == (False, True)
    assert nothing == (0, False, False)


def test_orthogonal():
    """Muon's update has singular values near 1, whatever those of the gradient are."""
    x = torch.randn(2, 96, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1, 40)
    for way in (x, x.mT):
        values = torch.linalg.svdvals(orthogonal(way))
        assert values.min() > 0.4 and values.max() < 1.4


def test_score_counts_by_family():
    """One picture, every label right but those of count."""
    _, labels, _ = pack(np.random.default_rng(0), scenes.worlds("train", 0, 0, 1), 0)
    asked = (labels >= 0) & (labels != ID["</s>"])
    logits = torch.nn.functional.one_hot(labels.clamp(min=0), 96).float()
    count = (layout("cpu")[0][None] - 1).apply_(lambda q: MIX[q] == "count").bool()
    logits[count] = 0
    right, all_ = score(logits, labels, asked)
    assert right[FAMILIES.index("count")] == 0 and all_[FAMILIES.index("count")] == MIX.count("count")
    assert (right == all_).sum() == len(FAMILIES) - 1


def test_words(tmp_path):
    """Questions in any case and spacing become the ids of training;
    a word that is not known is <unk>, and shows as such."""
    folder.save(Run(tmp_path / "run", MICRO).student.llava, tmp_path / "model")
    model = weights.load(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").stat().st_size < 8e6 and model.eos == (ID["</s>"],)
    ids = model.tokenizer.encode("USER: <image>\nWhere is the red Circle? ASSISTANT:")
    words = "<s> user : <image> where is the red circle ? assistant :".split()
    assert model.tokenizer.pieces(ids) == words and ids == [ID[word] for word in words]
    assert ID["<unk>"] in model.tokenizer.encode("where is the dog ?")
    assert model.tokenizer.decode([ID["two"], ID["</s>"]]) == "two"
