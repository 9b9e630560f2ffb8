"""Files that a user brings, of a wrong kind: one line that names the file, the line and the field."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from command import done
from minivlm.io.data import read_lines, read_text
from minivlm.lab.check.recorded import read_expected
from minivlm.lab.cli import modules, shipped
from minivlm.lab.cli.options import build, own_settings
from minivlm.lab.train import fit
from minivlm.lab.train.instruct import Instructions
from minivlm.toy import benchmark
from paths import MODEL, PICTURE
from pruning.atp import Thresholds
from pruning.base import UserError

DEEP = "[" * 100_000
TEXTS = ["", "{", "null", "3", '"x"', "[1]", "[null]", "[[]]", "NaN", DEEP, '{"image": ' + DEEP, "9" * 5000]
VALUES = [None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**30, "", "word", [], [[]], [None], ["x"], [0],
          [True], {}, {"a": 1}]
QUESTION = dict(image="a.png", family="exist", question="is it ?", answer="yes", evidence=[3], things=[1])
TALK = dict(image="a.png", conversations=[{"from": "human", "value": "What?"}, {"from": "gpt", "value": "It."}])


def said(read, *words):
    """What the UserError of a call says, in one line."""
    with pytest.raises(UserError) as error:
        read(*words)
    assert str(error.value).isprintable()
    return str(error.value)


def harmless(read, *words):
    """The call succeeds or raises a UserError; anything else fails the test."""
    try:
        read(*words)
    except UserError:
        pass


def changes(good):
    """The object with one field missing, or with a value of another kind."""
    for name in good:
        yield {other: value for other, value in good.items() if other != name}
        yield from (good | {name: value} for value in VALUES)


def readers(folder):
    """(what reads, its words) of every kind of file, in a folder where each has the same text."""
    return [
        (Instructions, folder / "a.json"),
        (build, str(folder / "a.json")),
        (fit.questions_of, folder / "a.json", folder),
        (benchmark.read, folder),
        (read_expected, folder / "a.json"),
        (own_settings, folder),
        (modules.read, folder / "a.json"),
    ]


def test_what_is_no_file(tmp_path):
    """A folder, a pipe, a device, a link to one, and names that no file can have: each is refused at once."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", tmp_path / "zero", tmp_path / "none",
                 "a\0b", "x" * 5000, "\ud800"):
        assert "no question" in said(read_text, path, "question")
        for read in (Instructions, modules.read, read_expected):
            said(read, path)
        said(build, f"{path}.json")
    for name in ("questions.jsonl", "methods.json"):
        (tmp_path / name).symlink_to("/dev/zero")
    assert "no regular file" in said(benchmark.read, tmp_path) and "no regular file" in said(own_settings, tmp_path)


def test_what_is_too_large_or_no_text(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * (2 ** 20 + 1))
    assert "larger than 1 MiB" in said(read_text, tmp_path / "a", "question", 2 ** 20)
    (tmp_path / "a").write_bytes(b"\xff\xfe")
    assert "no question that can be read" in said(read_text, tmp_path / "a", "question")


def test_lines(tmp_path):
    """A mark at the beginning is no part of the JSON, one inside a text ends no line, and blank lines count."""
    (tmp_path / "a").write_bytes(b'\xef\xbb\xbf{"a": "1\xe2\x80\xa82"}\r\n\n{"a": 2}\n')
    rows = read_lines(tmp_path / "a", "question")
    assert [row for _, row in rows] == [{"a": "1\u20282"}, {"a": 2}] and rows[1][0].endswith("a, line 3")


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_files_that_hold_something_else(tmp_path, text):
    for name in ("a.json", "a.safetensors", "questions.jsonl", "methods.json"):
        (tmp_path / name).write_text(text)
    for read, *words in readers(tmp_path):
        said(read, *words)


def test_fields_of_another_kind(tmp_path):
    """Every field of a question, an instruction and a fitted method, missing or of another kind."""
    shutil.copy(PICTURE, tmp_path / "a.png")
    for row in changes(QUESTION):
        (tmp_path / "questions.jsonl").write_text(json.dumps(row))
        harmless(benchmark.read, tmp_path)
        harmless(fit.questions_of, tmp_path / "questions.jsonl", tmp_path)
    first, second = TALK["conversations"]
    talks = [TALK | dict(conversations=[turn, second]) for turn in [*changes(first), *VALUES]]
    for row in [*changes(TALK), *talks]:
        (tmp_path / "a.json").write_text(json.dumps([row]))
        harmless(Instructions, tmp_path / "a.json")
    good = dict(method="fitprune", options=dict(ratio=60, table=[1, 2, 3], visual=16))
    options = [good | dict(options=options) for options in changes(good["options"])]
    for stored in [good, *changes(good), *options]:
        (tmp_path / "a.json").write_text(json.dumps(stored))
        harmless(build, str(tmp_path / "a.json"))


@pytest.mark.parametrize("read, name, content, message", [
    (benchmark.read, "questions.jsonl", QUESTION | dict(image="none.png"), "line 1: there is no picture"),
    (benchmark.read, "questions.jsonl", QUESTION | dict(evidence=[float("inf")]),
     "line 1: no question in JSON .Infinity is no number"),
    (benchmark.read, "questions.jsonl", QUESTION | dict(evidence="12"), "numbers of patches"),
    (Instructions, "a.json", [TALK | dict(image="none.png")], "conversation 0: there is no picture"),
    (Instructions, "a.json", [TALK | dict(image=["a.png"])], "conversation 0: image is a word or none; got"),
    (Instructions, "a.json", [TALK, TALK | dict(conversations={})], "conversation 1: conversations is a list"),
    (Instructions, "a.json", [TALK | dict(conversations=["Hi"])], "no turn in JSON"),
    (own_settings, "methods.json", dict(fastv="layer=3"), "METHOD.*OPTION=VALUE"),
    (own_settings, "methods.json", dict(fastv=[3]), "METHOD.*OPTION=VALUE"),
    (own_settings, "methods.json", dict(slowv=["layer=3"]), "methods.json: .*'slowv' is not known"),
    (own_settings, "methods.json", dict(fastv=["layer=0"]), "methods.json: FastV: layer must be at least 1"),
    (build, "a.json", dict(method="fitprune", options=dict(table={})),
     "holds no method.*FitPrune: table is a list"),
    (build, "a.json", dict(method=["fitprune"], options={}), "holds no method"),
])
def test_the_line_names_what_is_wrong(tmp_path, read, name, content, message):
    """A missing picture is an error before the first step, not when its batch comes."""
    shutil.copy(PICTURE, tmp_path / "a.png")
    (tmp_path / name).write_text(json.dumps(content))
    place = tmp_path if read in (benchmark.read, own_settings) else tmp_path / name
    with pytest.raises(UserError, match=message):
        read(str(place) if read is build else place)


def test_questions_beside_a_picture_may_be_of_another_kind(tmp_path):
    """compare looks for the picture in questions.jsonl of its folder. A file of another kind is ignored."""
    file = tmp_path / "questions.jsonl"
    for row in [QUESTION, *changes(QUESTION)]:
        file.write_text(json.dumps(row))
        answer = shipped.known(tmp_path / "a.png", "Is it?")
        assert answer == row if row is QUESTION else set(answer) <= set(QUESTION) and None not in answer.values()
    for text in TEXTS:
        file.write_text(text)
        assert shipped.known(tmp_path / "a.png", "Is it?") == {}


def module(tensors=None, **metadata):
    """The tensors and the header of an ATP's file."""
    tensors = torch.nn.ModuleList([Thresholds(4, 2)]).state_dict() if tensors is None else tensors
    return tensors, dict(method="atp", options=json.dumps(dict(layers=[4])), activation="none") | metadata


def test_a_file_of_modules(tmp_path):
    """As written it is read; another header, other tensors, numbers that are none, or 10**9 modules are one line."""
    good = module()[0]
    save_file(good, tmp_path / "good.safetensors", module()[1])
    assert modules.read(tmp_path / "good.safetensors").module[0].N == 4
    bad = [
        module(options=text)
        for text in (*TEXTS, '{"layers": {}}', '{"layers": [4], "nothing": 1}', '{"module": 1}', '{"eps": NaN}')
    ]
    bad += [module(activation="tanh"), module({"999999999.linear.weight": torch.zeros(2, 8)}),
            module({"linear.weight": torch.zeros(2, 8)})]
    bad += [
        module(good | {name: value})
        for name in good
        for value in (torch.zeros(3), torch.tensor(1.0), good[name] * torch.nan, good[name].long())
    ]
    bad += [module({name: x for name, x in good.items() if name != left}) for left in good]
    for tensors, metadata in bad:
        save_file(tensors, tmp_path / "a.safetensors", metadata)
        assert "a.safetensors" in said(modules.read, tmp_path / "a.safetensors")


def test_a_recording(tmp_path):
    """verify: every field of a prompt and every tensor of another kind or shape is one line or a row that fails."""
    recording, tensors = json.loads((MODEL / "expected.json").read_text()), load_file(MODEL / "expected.safetensors")
    recording["prompts"] = recording["prompts"][-1:]                               # a batch of two
    tensors = {name.replace("p4.", "p0."): x for name, x in tensors.items() if name.startswith("p4.")}
    recording["eos_list_case"] = None
    path = tmp_path / "expected.json"

    def sampled():
        list(read_expected(path).samples())

    save_file(tensors, tmp_path / "expected.safetensors")
    path.write_text(json.dumps(recording))
    sampled()
    for prompt in changes(recording["prompts"][0]):
        path.write_text(json.dumps(recording | dict(prompts=[prompt])))
        harmless(sampled)
    for changed in changes(
        dict(prompts=recording["prompts"], eos_list_case=dict(prompt=0, eos_token_id=[2], generated=[[1]]))
    ):
        path.write_text(json.dumps(recording | changed))
        harmless(sampled)
    path.write_text(json.dumps(recording))
    for name, tensor in tensors.items():
        for other in (tensor[:1], tensor[..., :1], tensor.flatten(), tensor[:0], tensor.flatten()[0], tensor[None]):
            save_file(tensors | {name: other.contiguous()}, tmp_path / "expected.safetensors")
            harmless(sampled)


@pytest.mark.parametrize("argv, message", [
    (["fit", "vtw", "--questions", "q.jsonl", "--out", "o.json", "--model", MODEL], "line 1: there is no picture"),
    (["eval", "--data", ".", "--out", "o.json", "--model", MODEL], "there is no picture"),
    (["train", "atp", "--data", "d.json", "--target-tokens", "9", "--layers", "1", "--out", "o", "--model", MODEL],
     "there is no picture"),
    (["verify", MODEL, "--expected", "q.jsonl"], "no recording"),
])
def test_a_command_that_is_refused_leaves_nothing(capsys, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.json").write_text(json.dumps([TALK]))
    for name in ("q.jsonl", "questions.jsonl"):
        (tmp_path / name).write_text(json.dumps(QUESTION))
    before = sorted(tmp_path.iterdir())
    status, out, err = done(capsys, *argv)
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not out
    assert sorted(tmp_path.iterdir()) == before
