"""A run that is killed at any rename and gone on with leaves the files of one that was not, to the byte."""

import contextlib
from functools import cache, partial

import pytest
import torch
from PIL import Image

import run
from atp_runs import atp_command, write_instructions
from minivlm.io import atomic
from minivlm.lab.studies.ablation import study
from minivlm.lab.train import instruct
from minivlm.llava import Llava
from minivlm.toy import benchmark, folder, scenes, train
from tiny import toy_config


class Killed(BaseException):
    """The end of the process."""


@contextlib.contextmanager
def killed_at(monkeypatch, rename=None):
    """The renames of the block. The process ends before rename number `rename`: it removes nothing any more."""
    renames, replace_file = [], atomic.os.replace

    def replaced(source, target):
        if len(renames) + 1 == rename:
            patch.setattr(atomic, "remove", lambda path: None)
            patch.setattr(atomic, "remove_empty", lambda folders: None)
            raise Killed
        renames.append(target)
        replace_file(source, target)
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "replace", replaced)
        yield renames


def files(path):
    """{name: bytes} of all files in a folder and in its folders."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def check_every_rename(monkeypatch, tmp_path, command):
    """The files that it leaves. `command`: (folder of the results, whether there is a state) -> exit status."""
    def ended(out):
        with torch.enable_grad():
            assert command(out, (out / "state.safetensors").exists()) == 0
    (tmp_path / "whole").mkdir()
    with killed_at(monkeypatch) as renames:
        ended(tmp_path / "whole")
    assert renames
    whole = files(tmp_path / "whole")
    for rename in range(1, len(renames) + 1):
        out = tmp_path / str(rename)
        out.mkdir()
        with killed_at(monkeypatch, rename), pytest.raises(Killed):
            ended(out)
        ended(out)
        after = files(out)
        assert after.keys() == whole.keys(), f"killed at rename {rename}, of {renames[rename - 1]}"
        different = [name for name in whole if after[name] != whole[name]]
        assert not different, f"killed at rename {rename}, of {renames[rename - 1]}"
    return whole.keys()


@pytest.mark.parametrize("frozen, steps", [(True, 3), (False, 2)])
def test_train_atp(monkeypatch, tmp_path, frozen, steps):
    """Killed before the last module, it once said "wrote" on --resume, and left the module of the save before."""
    write_instructions(tmp_path)
    more = ["--save-every", "1", *["--freeze-lm"] * frozen]

    def command(out, begun):
        return run.main(atp_command(tmp_path, out, *more, *["--resume"] * begun, steps=steps))
    names = check_every_rename(monkeypatch, tmp_path, command)
    assert {"state.safetensors", "log.jsonl", "atp.safetensors"} <= names and ("model.safetensors" in names) != frozen


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch):
    """The same scenes are drawn once for all runs of a test."""
    monkeypatch.setattr(scenes, "worlds", cache(scenes.worlds))


def accuracy(self, pool):
    """In place of the validation set: rises with the steps."""
    return torch.full((8,), self.at / 10)


@pytest.mark.slow
def test_train_toy(monkeypatch, tmp_path):
    """Three steps, a checkpoint each, and the folder written from the best one, without its samples."""
    recipe = partial(train.Recipe, vision_steps=1, vision_batch=2, joint_steps=2, joint_batch=2, warmup=1, whole=1 / 2)
    monkeypatch.setattr(train, "Recipe", recipe)
    monkeypatch.setattr(train, "config", lambda: toy_config(2))
    monkeypatch.setattr(train, "train", partial(train.train, every=1))
    monkeypatch.setattr(train.Run, "check", accuracy)
    monkeypatch.setattr(folder.benchmark, "write", lambda path, **options: path.mkdir())

    def command(out, begun):
        return run.main(["train", "toy", "--out", str(out), *["--resume"] * begun])
    names = check_every_rename(monkeypatch, tmp_path, command)
    assert {"state.safetensors", "best.safetensors", "whole.safetensors", "log.txt", "model/model.safetensors"} <= names
    assert (tmp_path / "1" / "log.txt").read_text().count("step ") == 3


@pytest.fixture
def model(tmp_path):
    """A checkpoint of a tiny model."""
    torch.manual_seed(0)
    folder.save(Llava(toy_config(8)), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_ablate(monkeypatch, tmp_path, model):
    """No pruning, and a row that trains the decoder: what is trained, answered, drawn and reported. Three questions."""
    items = benchmark.items
    monkeypatch.setattr(instruct.drawn, "__defaults__", (1,))
    monkeypatch.setattr(benchmark, "items", lambda *args: items(*args)[:3])
    monkeypatch.setattr(study, "picture", lambda *args: Image.new("RGB", (8, 8)))

    def command(out, begun):
        words = ["ablate", "--out", str(out), "--count", "1"]
        status = run.main([*words, "--model", str(model), "--rows", "none,adaptive", "--steps", "1", "--batch", "2"])
        return status or run.main([*words, "--report"])
    names = check_every_rename(monkeypatch, tmp_path, command)
    assert {"tables.json", "none/answers.jsonl", "adaptive/kept.png", "adaptive/model.safetensors"} <= names


def test_eval(monkeypatch, tmp_path, model):
    """The numbers, and the picture of them."""
    benchmark.write(tmp_path / "data", count=1)

    def command(out, begun):
        return run.main(["eval", "--model", str(model), "--data", str(tmp_path / "data"), "--method", "fastv",
                         "--keep", "0.1", "--max-new-tokens", "1", "--draws", "1", "--processes", "1",
                         "--out", str(out / "o.json")])
    assert check_every_rename(monkeypatch, tmp_path, command) == {"o.json", "o.jsonl", "o.png"}


def test_scenes(monkeypatch, tmp_path):
    """A folder of pictures is written whole: the same command writes it anew."""
    def command(out, begun):
        return run.main(["scenes", "--out", str(out / "set"), "--count", "1"])
    assert "set/questions.jsonl" in check_every_rename(monkeypatch, tmp_path, command)
