"""States that are damaged, changed by hand, of another run or of an older version: one line, and nothing is changed."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import run
from atp_runs import atp_command, write_instructions
from command import done
from minivlm.lab.cli import modules
from minivlm.lab.score.answers import Contest
from minivlm.lab.score.log import Log
from minivlm.lab.train import train_atp
from minivlm.lab.train.train_atp import Recipe
from minivlm.toy import train
from pruning.base import UserError
from tiny import toy_config

WEIGHT = "weight.module.0.linear.weight"
STUDENT = "student.llava.lm_head.weight"


def tampered(path, change):
    """Write a state anew after change(tensors, metadata)."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    tensors, metadata = change(tensors, metadata) or (tensors, metadata)
    save_file(tensors, path, metadata=metadata)


def fact(name, value):
    """A change of one fact of the header."""
    def change(tensors, metadata):
        facts = json.loads(metadata["facts"])
        facts[name] = value
        metadata["facts"] = json.dumps(facts)
    return change


def header(**values):
    """A change of the header; None takes an entry out."""
    def change(tensors, metadata):
        metadata.update(values)
        for name in [name for name, value in metadata.items() if value is None]:
            del metadata[name]
    return change


def tensor(name, edit):
    """A change of one tensor: edit(tensor) -> tensor, or None to take it out."""
    def change(tensors, metadata):
        changed = edit(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed
    return change


def first(value):
    """An edit: the first number becomes this one."""
    def edit(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[0] = value
        return tensor
    return edit


def spare(tensors, metadata):
    tensors["weight.nothing"] = torch.ones(1)


def shared_changes(weight, at):
    """[(change, words)] that suit the states of both trainings."""
    wrong_steps = [(fact("at", value), "its at is") for value in (10 ** 6, -1, 1.5, True, "2", None, [2], float("nan"))]
    return [
        *wrong_steps,
        (header(version=None, step=str(at)), "another version .an older one"),
        (header(version="99\nx"), "another version .'99"),
        (lambda tensors, metadata: (tensors, None), "another version"),
        (header(facts=None), "does not say what run"),
        (header(facts="["), "does not say what run"),
        (header(facts="[1]"), "does not say what run"),
        (header(facts="[" * 100000), "does not say what run"),
        (tensor(weight, lambda x: None), f"{weight} is missing"),
        (spare, "weight.nothing is one tensor too many"),
        (tensor(weight, lambda x: x[:-1].clone()), f"{weight} is .*and should be"),
        (tensor(weight, lambda x: x.half()), f"{weight} is .*float16, and should be .*float32"),
        (tensor(weight, lambda x: x.int()), f"{weight} is .*I32, and should be .*float32"),
        (tensor(weight, first(float("nan"))), f"{weight} has numbers that are not finite"),
        (tensor(weight, first(float("-inf"))), f"{weight} has numbers that are not finite"),
    ]


# --- train atp -------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with data, and in out/ a run of two steps."""
    folder = tmp_path_factory.mktemp("atp")
    write_instructions(folder)
    with torch.enable_grad():
        assert run.main(atp_command(folder, folder / "out", "--freeze-lm", steps=2)) == 0
    return folder


@pytest.fixture
def out(finished):
    """The folder of the run, put back afterwards."""
    before = {path: path.read_bytes() for path in (finished / "out").iterdir()}
    yield finished / "out"
    for path, content in before.items():
        path.write_bytes(content)


def refused(capsys, out, words, *more):
    """Whether --resume is refused in one line, and every file stays as it is."""
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    status, _, err = done(capsys, *atp_command(out.parent, out, "--freeze-lm", "--resume", *more, steps=2))
    lines = err.splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith(f"run.py: {out / 'state.safetensors'}"), err
    assert re.search(words, lines[0]), err
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


ATP_CHANGES = shared_changes(WEIGHT, 2) + [
    (fact("at", 0), "its at is 0, and should be from 1 to 2"),
    (fact("at", 1), "log is .2, 7., .*should be .1, 7."),
    (fact("recipe", None), "what recipe the run had"),
    (fact("atp", [1]), "what atp the run had"),
    (fact("data", {"samples": 12}), "what data the run had"),
    (tensor("log", lambda x: x[:1].clone()), "log is .1, 7."),
    (tensor("log", lambda x: x.float()), "log is .*float32, and should be .*float64"),
    (tensor("log", first(float("nan"))), "log has numbers that are not finite"),
    (tensor("adam.module.0.linear.weight.step", first(3)), "step is not from 1 to 2"),
    (tensor("adam.module.0.linear.weight.exp_avg", first(float("inf"))), "exp_avg has numbers that are not finite"),
    (tensor("adam.module.0.linear.weight.exp_avg_sq", first(-1)), "exp_avg_sq has numbers below 0"),
]


@pytest.mark.parametrize("change, words", ATP_CHANGES)
def test_a_tampered_state_of_train_atp(capsys, out, change, words):
    tampered(out / "state.safetensors", change)
    refused(capsys, out, words)


@pytest.mark.parametrize("content, words", [
    (b"", "is damaged"), (b"no state", "is damaged"), (b"\xff" * 64, "is damaged"),
    (b"\x02" + b"\0" * 7 + b"{}", "another version")])
def test_a_file_that_is_no_state(capsys, out, content, words):
    (out / "state.safetensors").write_bytes(content)
    refused(capsys, out, words)


def test_a_state_that_is_cut_short(capsys, out):
    path = out / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(capsys, out, "is damaged")


def test_a_state_that_is_no_file(capsys, out):
    """A device would be read without an end."""
    path = out / "state.safetensors"
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(capsys, out, "no state to resume")
    path.unlink()


def test_other_conversations_and_weights_are_refused(capsys, out):
    """As many of the same names: the words of one answer, and one value of one matrix."""
    data = out.parent / "data.json"
    text = data.read_text()
    data.write_text(text.replace("white and bright", "white and tall"))
    refused(capsys, out, "with conversations [0-9]+, not [0-9]+: resume with the same options")
    data.write_text(text)
    tampered(out / "state.safetensors", other_weights)
    refused(capsys, out, "with weights 1, not [0-9]+: resume with the same options")


def other_weights(tensors, metadata):
    facts = json.loads(metadata["facts"])
    facts["model"]["weights"] = 1
    metadata["facts"] = json.dumps(facts)


def test_what_follows_from_a_state_is_written_anew(capsys, out):
    """The module and the log of a killed run may be older than its state."""
    results = {name: (out / name).read_bytes() for name in ("atp.safetensors", "log.jsonl")}
    (out / "atp.safetensors").write_bytes(b"old")
    (out / "log.jsonl").unlink()
    status, _, err = done(capsys, *atp_command(out.parent, out, "--freeze-lm", "--resume", steps=2))
    assert status == 0, err
    assert {name: (out / name).read_bytes() for name in results} == results


@pytest.mark.parametrize("field, value", [
    *((name, float(x)) for name in ("lr", "lr_module", "lambda_atp", "lambda_target", "warmup", "target")
      for x in ("nan", "inf", "-1")),
    *((name, x) for name in ("steps", "batch", "accumulate", "width") for x in (0, -1, 10 ** 9, 1.5, True)),
    ("seed", -1), ("seed", 2 ** 64), ("warmup", 1.1), ("lr", "1e-3")])
def test_bounds_of_the_recipe(field, value):
    with pytest.raises(UserError, match=f"{field} .*: give a finite number, at least [01]"):
        Recipe(**dict(target=8.) | {field: value})


@pytest.mark.parametrize("words", [["--lr-module", "nan"], ["--lr", "inf"], ["--theta-s", "nan"],
    ["--steps", "1000000000"], ["--seed", "-1"],
                                   ["--target-tokens", "nan"], ["--images", "nowhere"]])
def test_a_run_that_does_not_begin_leaves_no_folder(capsys, finished, tmp_path, words):
    """Nor its parents."""
    status, _, err = done(capsys, *atp_command(finished, tmp_path / "a" / "b"), *words)
    assert status == 2 and [line for line in err.splitlines() if "run.py: " in line], err
    assert list(tmp_path.iterdir()) == []


def test_the_models_own_folder_is_not_trained_into(capsys, finished, tmp_path):
    """The trained model would take the place of the one that it was trained from, and of its files."""
    model = Path(atp_command(finished, "x")[3])
    argv = atp_command(finished, model, steps=1)
    status, _, err = done(capsys, *argv)
    assert status == 2 and "own folder" in err and not (model / "state.safetensors").exists()


def test_ctrl_c_says_how_to_go_on(capsys, finished, tmp_path, monkeypatch):
    """Before the first state nothing is kept; after it --resume goes on."""
    step = train_atp.Run.step

    def interrupted_at(number):
        def interrupted(self, batches):
            if self.at == number:
                raise KeyboardInterrupt
            return step(self, batches)
        monkeypatch.setattr(train_atp.Run, "step", interrupted)
    argv = atp_command(finished, tmp_path / "out", "--freeze-lm", "--save-every", "1", steps=2)
    interrupted_at(0)
    status, _, err = done(capsys, *argv)
    assert status == 130 and err.endswith("run.py: interrupted; nothing was kept\n") and not (tmp_path / "out").exists()
    interrupted_at(1)
    status, _, err = done(capsys, *argv)
    state = tmp_path / "out" / "state.safetensors"
    assert status == 130 and err.endswith(f"what is done is in {state}: go on with --resume\n")
    monkeypatch.setattr(train_atp.Run, "step", step)
    assert done(capsys, *argv, "--resume")[0] == 0


# --- train toy -------------------------------------------------------------------------------------------------------

TOY = train.Recipe(vision_steps=1, vision_batch=2, joint_steps=1, joint_batch=2, warmup=1)


def toy_run(folder, monkeypatch, recipe=TOY):
    monkeypatch.setattr(train, "config", lambda: toy_config(2))
    return train.Run(folder, recipe, dtype=torch.float32)


@pytest.fixture(scope="module")
def both_steps(tmp_path_factory):
    """The folder of a run after both of its steps."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch, torch.enable_grad():
        toy = toy_run(folder, patch)
        toy.step()
        toy.step()
    toy.save()
    return folder


@pytest.fixture
def toy(both_steps, tmp_path):
    """A copy of it."""
    shutil.copytree(both_steps, tmp_path, dirs_exist_ok=True)
    return tmp_path


TOY_CHANGES = shared_changes(STUDENT, 2) + [
    (fact("at", 0), "momentum.heads.color.bias is one tensor too many"),
    (fact("at", 1), "momentum.llava.language_model.* is one tensor too many"),
    (fact("recipe", "Recipe(seed=4)"), r"a run with 'Recipe\(seed=4\)': resume it with the same options"),
    (fact("recipe", None), "a run with None: resume it with the same options"),
    (fact("dtype", "os"), "its dtype is 'os', and should be one of float32, bfloat16"),
    (fact("dtype", "float16"), "its dtype is 'float16'"),
    (fact("dtype", []), "its dtype is"),
    (fact("best", float("nan")), "its best is nan, and should be from -1.0 to 1.0"),
    (fact("best", "1"), "its best is '1'"),
    (fact("log", "step"), "its log is no list of lines"),
    (fact("log", ["a\nb"]), "its log is no list of lines"),
    (fact("log", ["a"] * 3), "its log is no list of lines, at most one per step"),
    (tensor(f"momentum.{STUDENT[8:]}", lambda x: None), "momentum.llava.lm_head.weight is missing"),
    (tensor(f"momentum.{STUDENT[8:]}", first(float("nan"))),
    "momentum.llava.lm_head.weight has numbers that are not finite"),
]


@pytest.mark.parametrize("change, words", TOY_CHANGES)
def test_a_tampered_state_of_train_toy(toy, monkeypatch, change, words):
    tampered(toy / "state.safetensors", change)
    again = toy_run(toy, monkeypatch)
    before = {name: x.clone() for name, x in again.student.state_dict().items()}
    with pytest.raises(UserError, match=words) as error:
        again.resume()
    assert "\n" not in str(error.value) and str(toy) in str(error.value)
    assert again.at == 0 and not again.optimiser.state and not again.log
    assert all(x.equal(before[name]) for name, x in again.student.state_dict().items())


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_state_of_either_stage_is_read(tmp_path, monkeypatch, steps):
    """What a state holds follows from its step: no momentum, that of the tower, or all."""
    first_run = toy_run(tmp_path, monkeypatch)
    with torch.enable_grad():
        for _ in range(steps):
            first_run.step()
    first_run.save()
    again = toy_run(tmp_path, monkeypatch)
    again.resume()
    assert again.at == steps and again.optimiser.state.keys() == first_run.optimiser.state.keys()


@pytest.mark.parametrize("field, value", [
    *((name, float(x)) for name in ("whole", "hide", "matrix_rate", "other_rate", "tower_share")
      for x in ("nan", "inf", "-1")),
    *((name, x) for name in ("vision_batch", "joint_batch", "joint_steps", "warmup") for x in (0, 10 ** 9, 1.5)),
    ("vision_steps", -1), ("seed", -1), ("seed", 2 ** 64)])
def test_bounds_of_the_toy_recipe(field, value):
    with pytest.raises(UserError, match=f"{field} .*: give a finite number, at least"):
        train.Recipe(**{field: value})


def test_an_unknown_way_of_hiding():
    with pytest.raises(UserError, match="hidden all: use one of blocks, patches, nothing"):
        train.Recipe(hidden="all")


@pytest.mark.parametrize("words", [["--minutes", "nan"], ["--minutes", "inf"], ["--minutes", "-1"], ["--seed", "-1"],
    ["--resume"]])
def test_a_toy_run_that_does_not_begin_leaves_no_folder(capsys, tmp_path, monkeypatch, words):
    monkeypatch.setattr(train, "config", lambda: toy_config(2))
    status, _, err = done(capsys, "train", "toy", "--out", tmp_path / "a" / "b", *words)
    assert status == 2 and len([line for line in err.splitlines() if "run.py: " in line]) == 1, err
    assert list(tmp_path.iterdir()) == []


def test_a_toy_loss_that_is_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "config", lambda: toy_config(2))
    monkeypatch.setattr(train.Run, "step", lambda self, pool: (float("nan"), None))
    with pytest.raises(UserError, match="loss is not finite at step 0: go on from the last state"):
        train.train(tmp_path / "a", TOY)
    assert not (tmp_path / "a").exists()


def test_the_best_network_is_missing(capsys, toy, monkeypatch):
    """Files that are missing are not put into the folder."""
    monkeypatch.setattr(train, "Recipe", lambda **options: TOY)
    monkeypatch.setattr(train, "config", lambda: toy_config(2))
    status, _, err = done(capsys, "train", "toy", "--out", toy, "--resume")
    assert status == 2 and "best.safetensors: no run to resume" in err and not (toy / "model").exists()


# --- eval and ablate -------------------------------------------------------------------------------------------------

RECIPE = dict(model="m", draws=3)
KEPT = dict(cosine=-.5, distance=None, rank=2.5)
ROW = dict(contestant="none", question=0, answers=["yes"], right=1.0, visual=[144, 14.5], evidence=None, kept=["25"],
           statistics=KEPT)
GAVE_UP = dict(contestant="none", question=1, why_not="too long")


def log_of(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return Log(path, RECIPE)


def test_a_log_is_read(tmp_path):
    """Rows, rows that say why not, and the recipe again; a line that was cut short is asked again."""
    log = log_of(tmp_path / "a.jsonl", dict(recipe=RECIPE), ROW, GAVE_UP, dict(recipe=RECIPE), '{"contestant": "no')
    assert log.rows == {("none", 0): ROW, ("none", 1): GAVE_UP}


@pytest.mark.parametrize("change", [
    dict(contestant=1), dict(contestant=None), dict(question="0"), dict(question=-1), dict(question=1.5),
    dict(question=True), dict(question=[1]),
    dict(answers="yes"), dict(answers=[1]), dict(right=float("nan")), dict(right=2), dict(right="1"),
    dict(right=None), dict(visual=[]),
    dict(visual=3), dict(visual=[None]), dict(visual=[-1]), dict(visual=[float("inf")]), dict(visual=[10 ** 400]),
    dict(evidence="1"),
    dict(kept="25"), dict(kept=["25", "25"]), dict(kept=[25]), dict(kept=["2g"]), dict(kept=[""]),
    dict(statistics=None), dict(statistics={}), dict(statistics=KEPT | dict(rank="2")),
    dict(statistics=KEPT | dict(rank=float("nan"))), dict(statistics=KEPT | dict(cosine=-2)),
    dict(evidence=-1), dict(more=1), dict(why_not="x")])
def test_a_row_that_no_run_wrote(tmp_path, change):
    """Keys, kinds and bounds."""
    with pytest.raises(
        UserError, match="line 2 is no answer of a run: remove the line, and the question is asked again"
    ):
        log_of(tmp_path / "a.jsonl", dict(recipe=RECIPE), ROW | change)


@pytest.mark.parametrize("lines, words", [
    ([ROW], "something else"), ([dict(recipe=[1])], "something else"), ([dict(recipe=None)], "something else"),
    (["[1]"], "something else"),
    (["[" * 100000], "something else"), ([dict(recipe=RECIPE | dict(draws="3\n" * 500))], r"draws '3\\n"),
    ([dict(recipe={})], "model None")])
def test_a_log_of_something_else(tmp_path, lines, words):
    with pytest.raises(UserError, match=words) as error:
        log_of(tmp_path / "a.jsonl", *lines)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 800


@pytest.mark.parametrize("kind", ["folder", "device", "pipe", "lost link"])
def test_a_log_that_is_no_file(tmp_path, kind):
    path = tmp_path / "a.jsonl"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "nowhere")
    with pytest.raises(UserError, match="no file that can be read and written: name another --out"):
        Log(path, RECIPE)


@pytest.mark.parametrize("length", [0, 1, 20, None])
def test_killed_in_the_first_line(tmp_path, length):
    """The first line cut short, or whole without its end, or none: the log is gone on with, and read again."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(dict(recipe=RECIPE))[:length])
    Log(path, RECIPE).add(ROW)
    assert Log(path, RECIPE).rows == {("none", 0): ROW}


def test_a_log_appears_with_its_first_row(tmp_path):
    """So that a run that fails before leaves none."""
    log = Log(tmp_path / "a.jsonl", RECIPE)
    assert list(tmp_path.iterdir()) == []
    log.add(ROW)
    log.add(GAVE_UP)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [dict(recipe=RECIPE), ROW, GAVE_UP]


@pytest.mark.parametrize("words", [["--steps", "0"], ["--lr", "nan"], ["--lr-module", "inf"], ["--count", "0"],
    ["--seed", "-1"], ["--batch", "1000000000"],
                                   ["--model", "nowhere"]])
def test_a_study_that_does_not_begin_leaves_no_folder(capsys, tmp_path, monkeypatch, words):
    monkeypatch.setattr("minivlm.lab.train.instruct.drawn.__defaults__", (1,))
    monkeypatch.setattr("minivlm.toy.benchmark.BATCH", 2)
    status, _, err = done(capsys, "ablate", "--out", tmp_path / "a", "--count", "1", *words)
    assert status == 2 and len(err.splitlines()) == 1, err
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_of_a_study(capsys, tmp_path, monkeypatch):
    """Before the first answer nothing is kept; after it the same command goes on."""
    monkeypatch.setattr("minivlm.lab.train.instruct.drawn.__defaults__", (1,))
    answer, calls = Contest.answer, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > limit:
            raise KeyboardInterrupt
        return answer(*args)
    monkeypatch.setattr(Contest, "answer", interrupted)
    limit = 0
    argv = ["ablate", "--out", tmp_path / "a", "--count", "1", "--rows", "none,adaptive"]
    status, _, err = done(capsys, *argv)
    assert status == 130 and err.endswith("run.py: interrupted; nothing was kept\n") and list(tmp_path.iterdir()) == []
    limit = 2
    status, _, err = done(capsys, *argv)
    assert status == 130 and err.endswith(f"what is done is in {tmp_path / 'a'}: the same command goes on from there\n")
    assert len((tmp_path / "a" / "none" / "answers.jsonl").read_text().splitlines()) == 2


# --- the module that is left -----------------------------------------------------------------------------------------

def renamed(tensors, metadata):
    tensors["1000000000.linear.weight"] = tensors.pop("1.linear.weight")


@pytest.mark.parametrize("change, words", [
    (header(options="[1]"), "holds no module"), (header(options="[" * 100000), "holds no module"),
    (header(options="{"), "holds no module"),
    (header(options=None), "holds no module"), (header(activation="tanh"), "activation is one of"),
    (lambda tensors, metadata: (tensors, None), "holds no module"),
    (renamed, "holds no module"), (spare, "holds no module"), (tensor("0.linear.weight", lambda x: x.flatten()),
    "holds no module"),
    (tensor("0.linear.weight", lambda x: None), "holds no module"), (tensor("1.linear_r.bias", lambda x: x.repeat(2)),
    "holds no module"),
    (tensor("1.linear.weight", first(float("nan"))), "1.linear.weight holds what is no finite number")])
def test_a_tampered_module(out, change, words):
    """A number of 10^9 layers would be built before it is compared."""
    tampered(out / "atp.safetensors", change)
    with pytest.raises(UserError, match=words) as error:
        modules.read(out)
    assert "\n" not in str(error.value) and "atp.safetensors" in str(error.value)
