"""The command line: each command does its job on a tiny checkpoint, and bad input is one line and exit status 2."""

import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import run
from command import done
from minivlm.generate import Conversation, Sampling
from minivlm.io.text.tokenizer import Tokenizer
from minivlm.lab.cli import ending
from minivlm.lab.studies import tables
from minivlm.llava import Llava
from paths import IMAGES, MODEL, PARITY, PICTURE, ROOT
from pruning.base import UserError
from weights import load

ASK = ["ask", PICTURE, "What is shown?", "--model", MODEL, "--max-new-tokens", "6"]


@pytest.mark.parametrize("name", run.COMMANDS)
def test_a_command_is_a_module(capsys, name):
    """It has add_arguments and main, each with a docstring. Its docstring begins with its line in the list."""
    module, line = run.COMMANDS[name]
    command = importlib.import_module(f"minivlm.{module}")
    assert command.__doc__.splitlines()[0] == line
    assert f"python run.py {name}" in command.__doc__
    assert command.add_arguments.__doc__ and command.main.__doc__
    status, out, _ = done(capsys, *name.split(), "--help")
    assert status == 0 and out.startswith(f"usage: run.py {name} ") and command.__doc__.strip() in out


def test_every_room_has_at_most_ten_files():
    rooms = [path for path in (ROOT / "minivlm").rglob("*") if path.is_dir() and path.name != "__pycache__"]
    assert len(rooms) > 30
    for room in rooms:
        files = [path for path in room.glob("*") if path.is_file()]
        assert len(files) <= 10, room


@pytest.mark.parametrize("words, names", [
    (["--help"], list(run.COMMANDS)), (["-h"], list(run.COMMANDS)), (["train", "--help"], ["train toy", "train atp"])])
def test_the_list_of_commands_needs_no_imports(words, names):
    """Neither torch nor minivlm is imported, so that it is printed at once."""
    code = f"import sys, run; assert run.main({words}) == 0; print(sorted(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    *lines, modules = printed.splitlines()
    assert [line[2:13].strip() for line in lines if line[2:13].strip() in run.COMMANDS] == names
    assert "'run'" in modules and "'torch" not in modules and "'minivlm" not in modules


def test_what_is_imported():
    """`import minivlm` does not load torch, and files of the package are imported as ever. Of the commands `methods`
    needs no other."""
    code = ("import sys, minivlm; assert 'torch' not in sys.modules; from minivlm import trace; assert trace.Trace; "
            "import run; assert run.main(['methods', 'fastv']) == 0; print(*sys.modules)")
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    others = [module for module, _ in run.COMMANDS.values() if module != "lab.check.methods"]
    assert not {f"minivlm.{module}" for module in others} & set(modules.split())


def test_ask_prints_answer_layers_and_bytes(capsys):
    """Three layers of width 48: 31 - 16 + 4 tokens in the last one; 2 * 48 * 4 bytes a token and layer."""
    status, out, _ = done(capsys, *ASK, "--method", "fastv", "--keep", "4")
    assert status == 0
    tokens = int(out.split("layers 0-1: ")[1].split()[0])
    assert f"layers 0-1: {tokens} tokens, 16 of them visual" in out
    assert f"layer 2: {tokens - 12} tokens, 4 of them visual" in out
    assert "KV cache: " in out and "without reduction" in out


def test_ask_writes_picture_and_json(capsys, tmp_path):
    status, out, _ = done(
        capsys, *ASK, "--method", "fastv", "--keep", "0.25", "--set", "layer=1", "--out", tmp_path / "a.png",
        "--json", tmp_path / "a.json",
    )
    assert status == 0, out
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["options"]["layer"] == 1
    assert report["reductions"][0]["of"] == 16
    assert len(report["reductions"][0]["kept"]) == 4
    assert report["answer"] and report["answer"] in out
    assert Image.open(tmp_path / "a.png").width > 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.png"]


def test_ask_draws_maps(capsys, tmp_path):
    """PruMerge ranks and merges: three rows instead of one."""
    for name, words in (("a.png", []), ("b.png", ["--maps"])):
        assert done(capsys, *ASK, "--method", "prumerge", "--keep", "5", "--out", tmp_path / name, *words)[0] == 0
    plain, maps = (Image.open(tmp_path / name).height for name in ("a.png", "b.png"))
    assert maps > 2.5 * plain


def test_ask_without_picture_and_with_two(capsys):
    assert done(capsys, "ask", "Who are you?", "--model", MODEL, "--max-new-tokens", "3", "--method", "fastv")[0] == 0
    status, out, _ = done(
        capsys, "ask", PICTURE, PICTURE, "<image> or <image>?", "--model", MODEL, "--max-new-tokens", "3"
    )
    assert status == 0 and "32 of them visual" in out


def test_the_same_seed_gives_the_same_answer(capsys):
    hot = [*ASK, "--temperature", "5", "--seed"]
    first, again, other = (done(capsys, *hot, seed)[1].splitlines()[0] for seed in (1, 1, 2))
    assert first == again != other


def test_chat_goes_on_from_the_pruned_cache(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is shown?\nAnd now?\n\n"))
    status, out, err = done(
        capsys, "chat", PICTURE, "--model", MODEL, "--max-new-tokens", "4", "--method", "fastv", "--keep", "4"
    )
    assert status == 0 and out.count("\n") == 2 and "4 of them visual" in err


LLAMA3 = ("{% for m in messages %}{{ '<' + m['role'] + '>' }}"
          "{% for c in m['content'] %}{{ '<image>\n' if c['type'] == 'image' else c['text'] }}"
          "{% endfor %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}")


def own(folder, template=LLAMA3):
    """The checkpoint with a chat template of its own."""
    shutil.copytree(MODEL, folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_chat_in_the_checkpoints_own_template(capsys, monkeypatch, tmp_path):
    """The texts that are read: those of the rendered conversation, with the answers as they came."""
    read = []
    encode = Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer, "encode", lambda self, text, bos=True, after="": read.append(text) or encode(self, text, bos, after)
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("What is shown?\nAnd now?\nSure?\n\n"))
    numbering = "m['role'] + (loop.index | string if m['role'] == 'user' else '') +"
    numbered = own(tmp_path / "m", LLAMA3.replace("m['role'] +", numbering))
    status, out, err = done(
        capsys, "chat", PICTURE, "--model", numbered, "--max-new-tokens", "4", "--system", "Be brief."
    )
    assert status == 0, err
    assert read == [
        "<system>Be brief.</s><user2><image>\nWhat is shown?</s><assistant>",
        "</s><user4>And now?</s><assistant>", "</s><user6>Sure?</s><assistant>",
    ]


def test_the_end_of_an_answer_is_read_once(capsys, monkeypatch, tmp_path):
    """The model ends its answer itself, with the token that the template writes there too."""
    ids = []
    step = Llava.step
    monkeypatch.setattr(Llava, "step", lambda self, new, *rest: ids.extend(new) or step(self, new, *rest))
    monkeypatch.setattr(Sampling, "choose", lambda self, logits, unused=None: 2)   # </s>, at once
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\nOld?\n\n"))
    for template, count in (("llava_v1", 1), ("mistral", 1), ("llava-hf", 0)):
        ids.clear()
        assert done(capsys, "chat", PICTURE, "--model", MODEL, "--template", template)[0] == 0
        assert ids.count(2) == count and len(ids) > 5
        monkeypatch.setattr("sys.stdin", io.StringIO("What?\nOld?\n\n"))


def test_raw_and_a_template_that_is_a_file(capsys, tmp_path):
    """The same prompt in three ways: the same answer."""
    (tmp_path / "t.jinja").write_text(LLAMA3)
    raw = "<user><image>\nWhat is shown?</s><assistant>"
    ways = (
        ["What is shown?", "--model", own(tmp_path / "m")],
        ["What is shown?", "--model", MODEL, "--template", tmp_path / "t.jinja"],
        [raw, "--model", MODEL, "--raw"],
    )
    answers = {done(capsys, "ask", PICTURE, *way, "--max-new-tokens", "6")[:2] for way in ways}
    assert len(answers) == 1 and answers.pop()[0] == 0


def test_eval_notes_the_template(capsys, tmp_path):
    out = tmp_path / "e.json"
    status, _, err = done(
        capsys, "eval", "--count", "1", "--method", "fastv", "--keep", "0.5", "--out", out, "--draws", "1",
        "--max-new-tokens", "1", "--processes", "1", "--template", "vicuna_v1", "--system", "Be brief.",
    )
    assert status == 0, err
    assert json.loads(out.read_text())["recipe"]["template"] == "vicuna_v1 with the system message 'Be brief.'"


@pytest.mark.parametrize("words", ["What does <pad> mean?", "<pad>"])
def test_a_token_without_a_row_is_one_line(capsys, tmp_path, words):
    """config.json and the embedding end before an id that the tokenizer has; in a first prompt and in a later turn."""
    folder = own(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = 501
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    for key, value in state.items():
        if value.shape[:1] == (512,):
            state[key] = value[:501].clone()
    save_file(state, folder / "model.safetensors")
    status, _, err = done(capsys, "ask", PICTURE, words, "--model", folder, "--max-new-tokens", "1")
    assert status == 2
    assert "the token <pad> has the id 501, and the model's embedding has 501 rows" in err
    assert err.count("\n") == 1
    talk = Conversation(load(folder))
    talk.read([1, 300])
    with pytest.raises(UserError, match="the token <pad> has the id 501"):
        talk.read([300, 501])


def test_without_a_tokenizer(capsys, tmp_path):
    """verify and inspect need none; ask says which files it lacks."""
    folder = own(tmp_path / "m")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    status, out, err = done(capsys, "verify", folder, "--images", IMAGES)
    assert status == 0 and "logits" in out and "FAIL" not in out, err
    status, out, _ = done(capsys, "inspect", folder)
    assert status == 0 and "has no tokenizer.json" in out
    status, _, err = done(capsys, "ask", PICTURE, "What?", "--model", folder)
    assert status == 2 and "has no tokenizer.json, no tokenizer.model, no vocab.json" in err


def chatted(monkeypatch, capsys, *lines):
    """Status, what was printed and what was complained of a chat of these lines (bytes)."""
    stdin = io.TextIOWrapper(io.BytesIO(b"".join(line + b"\n" for line in lines)), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    return done(capsys, "chat", PICTURE, "--model", MODEL, "--max-new-tokens", "2", "--method", "fastv", "--keep", "4")


BAD_LINES = [
    (b"and <image>?", "1 <image> marks for 0"),
    (b"a " * 5000, "context"),
    ("gr\u00f6\u00dfer?".encode("latin-1"), "not valid Unicode"),
]


@pytest.mark.parametrize("bad, message", BAD_LINES)
def test_a_line_that_cannot_be_read_does_not_end_a_chat(capsys, monkeypatch, bad, message):
    """It is answered by a sentence, and the next line as if it had not been there."""
    plain = chatted(monkeypatch, capsys, b"What is shown?", b"So?")
    status, out, err = chatted(monkeypatch, capsys, b"What is shown?", bad, b"So?")
    assert status == 0 and out == plain[1] and len(out.splitlines()) == 2
    assert message in err and len(err.splitlines()) == 1 + len(plain[2].splitlines())


@pytest.mark.parametrize("bad, message", [(b"<image> and <image>?", "2 <image> marks for 1"), *BAD_LINES[1:]])
def test_the_first_line_of_a_chat_may_be_the_bad_one(capsys, monkeypatch, bad, message):
    """Nothing of it is kept; where no line could be answered the exit status is 2."""
    plain = chatted(monkeypatch, capsys, b"What is shown?", b"So?")
    status, out, err = chatted(monkeypatch, capsys, bad, b"What is shown?", b"So?")
    assert status == 0 and out == plain[1] and message in err and err.endswith(plain[2])
    status, out, err = chatted(monkeypatch, capsys, bad)
    assert status == 2 and not out and message in err and len(err.splitlines()) == 1


def test_what_was_said_before_an_overflow_stays(capsys, monkeypatch):
    """The second token cannot be chosen: the first stays, on its own line, and the sentence follows."""
    chosen = []

    def choose(self, logits, unused=None):
        chosen.append(int(logits.argmax()))
        if len(chosen) == 2:
            raise UserError("overflowed")
        return chosen[-1]
    monkeypatch.setattr("minivlm.generate.Sampling.choose", choose)
    status, out, err = chatted(monkeypatch, capsys, b"What is shown?", b"So?")
    assert status == 0 and "overflowed" in err and len(out.splitlines()) == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("words", [
    ["ask", PICTURE, "What?"],
    ["compare", PICTURE, "Was \u263a?", "--method", "last", "--keep", "4"],
    ["methods", "fastv"],
])
def test_a_terminal_that_lacks_a_character(monkeypatch, words, encoding):
    """A substitute is printed in its place, by every command."""
    page = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(page, encoding=encoding))
    monkeypatch.setattr("minivlm.io.text.tokenizer.Stream.push", lambda stream, id: "\u263a")
    more = ["--model", MODEL, "--max-new-tokens", "2"] if words[0] != "methods" else []
    assert run.main([str(word) for word in (*words, *more)]) == 0
    sys.stdout.flush()
    text = page.getvalue().decode(encoding)
    assert words[0] == "methods" or ("\u263a" if encoding == "utf-8" else "?") in text


def test_scenes_are_a_folder_of_questions(capsys, tmp_path):
    """Two questions of each of eight families; the folder is not written over, and not left half-written."""
    status, out, _ = done(capsys, "scenes", "--out", tmp_path / "s", "--count", "2")
    rows = [json.loads(line) for line in (tmp_path / "s" / "questions.jsonl").read_text().splitlines()]
    assert status == 0 and len(rows) == 16 and all((tmp_path / "s" / row["image"]).is_file() for row in rows)
    assert set(rows[0]) >= {"image", "family", "question", "answer", "evidence"}
    for words, message in (
        (["--out", tmp_path / "s"], "already"),
        (["--out", tmp_path / "t", "--count", "0"], "--count"),
    ):
        status, _, err = done(capsys, "scenes", *words)
        assert status == 2 and message in err and [path.name for path in tmp_path.iterdir()] == ["s"]


def test_training_of_the_shipped_model_stops_and_goes_on(capsys, tmp_path):
    """No minute at all: a state to go on from; without --resume it is not written over."""
    words = ["train", "toy", "--out", tmp_path / "run", "--minutes", "0"]
    for _ in range(2):
        status, out, err = done(capsys, *words)
        assert status == 0 and "step 0 of" in out, err
        words += [] if "--resume" in words else ["--resume"]
    status, _, err = done(capsys, *words[:-1])
    assert status == 2 and "--resume" in err and (tmp_path / "run" / "state.safetensors").is_file()


def test_inspect(capsys):
    status, out, _ = done(capsys, "inspect", MODEL)
    assert status == 0 and "language_model.layers.*.self_attn.q_proj.weight" in out
    status, out, _ = done(capsys, "inspect", MODEL, "--json")
    report = json.loads(out)
    size = sum(group["bytes"] for group in report["groups"])
    assert 0 < (MODEL / "model.safetensors").stat().st_size - size < 20000              # all but the header


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_model_as_the_first_word_or_by_its_option(capsys, command):
    status, first, _ = done(capsys, command, MODEL)
    assert status == 0 and first
    assert done(capsys, command, "--model", MODEL) == (0, first, "")


def test_verify_passes_and_a_changed_recording_fails(capsys, tmp_path):
    status, out, _ = done(capsys, "verify", MODEL)
    assert status == 0 and "FAIL" not in out and "PASS  logits" in out
    for name in ("expected.json", "expected.safetensors"):
        shutil.copyfile(MODEL / name, tmp_path / name)
    recording = json.loads((tmp_path / "expected.json").read_text())
    recording["prompts"][0]["generated"][0][0] += 1
    (tmp_path / "expected.json").write_text(json.dumps(recording))
    status, out, _ = done(
        capsys, "verify", MODEL, "--expected", tmp_path / "expected.json", "--images", IMAGES, "--json"
    )
    rows = {row["stage"]: row["passed"] for row in json.loads(out)}
    assert status == 1 and not rows.pop("greedy ids") and all(rows.values())


@pytest.mark.parametrize("argv, message", [
    (["ask", PICTURE, "What?", "--model", "no/such/dir"], "no/such/dir"),
    (["ask", PICTURE, "What?", "--model", PARITY], "config.json"),
    (["ask", PICTURE, "What?", "--model", PICTURE], "is a file"),
    (["ask", "nothing.png", "What?", "--model", MODEL], "nothing.png"),
    (["ask", "https://llava-vl.github.io/view.jpg", "What?", "--model", MODEL], "addresses are not read: download"),
    (["compare", "HTTP://a.b/view.jpg", "What?", "--model", MODEL], "addresses are not read: download"),
    (["chat", "data:image/png;base64," + "A" * 9999, "--model", MODEL], "AAA...: addresses are not read: download"),
    (["ask", "", "What?", "--model", MODEL], "name of a picture is empty"),
    (["ask", PARITY, "What?", "--model", MODEL], "Is a directory"),
    (["ask", "walk.MP4", "What?", "--model", MODEL], "is a video: give one of its frames"),
    (["ask", PICTURE, "--model", MODEL], "no question"),
    (["ask", PICTURE, "<image> and <image>?", "--model", MODEL], "2 <image> marks for 1"),
    (["ask", "What is in <image>?", "--model", MODEL], "1 <image> marks for 0"),
    ([*ASK, "--method", "slowv"], "fastv"),
    ([*ASK, "--keep", "4"], "--method"),
    ([*ASK, "--method", "fastv", "--keep", "0"], "keep 0"),
    ([*ASK, "--method", "fastv", "--keep", "17"], "keep 17"),
    ([*ASK, "--method", "fastv", "--keep", "1.5"], "keep 1.5"),
    ([*ASK, "--method", "fastv", "--keep", "many"], "keep"),
    ([*ASK, "--method", "fastv", "--set", "depth=3"], "its options are layer, keep"),
    ([*ASK, "--method", "fastv", "--set", "layer=9"], "layer 9"),
    ([*ASK, "--method", "fastv", "--set", "layer=0"], "layer"),
    ([*ASK, "--method", "fastv", "--set", "layer"], "OPTION=VALUE"),
    ([*ASK, "--method", "adaptprune", "--set", "correction=first"], "correction is true or false"),
    ([*ASK, "--device", "cuda:99"], "cuda:99"),
    ([*ASK, "--dtype", "int4"], "int4"),
    ([*ASK, "--template", "alpaca"], "vicuna_v1"),
    ([*ASK, "--temperature", "-1"], "temperature"),
    ([*ASK, "--top-p", "0"], "top-p"),
    ([*ASK, "--max-new-tokens", "0"], "--max-new-tokens"),
    ([*ASK, "--out", "/no/such/folder/a.png"], "/no/such/folder"),
    ([*ASK, "--out", "a.jpg"], "PNG"),
    (["ask", "word " * 5000, "--model", MODEL], "context"),
    (["verify", MODEL, "--expected", "none.json"], "none.json"),
    (["inspect", "/"], "config.json"),
    (["bench", "--method", "slowv"], "slowv"),
    (["ask", PICTURE, "Describe it."], "does not know"),
    (["dance"], "'dance' is no command: use one of ask, "),
    (["train"], "'train' is no command: use one of train toy, train atp"),
    (["train", "dance"], "'train dance' is no command: use one of train toy, train atp"),
    (["verify"], "minivlm/toy/model/expected.json is not there: record it, or use --live"),
    (["verify", MODEL, "--model", MODEL], "two models are named"),
    (["inspect", MODEL, "--model", MODEL], "two models are named"),
    (["scenes", "--out", "none", "--count", "10001"], "--count 10001: must be at most 10000"),
])
def test_bad_input_is_one_line_and_status_2(capsys, argv, message):
    status, out, err = done(capsys, *argv)
    assert status == 2 and message in err and "Traceback" not in err
    assert len(err.splitlines()) == 1 and not out


NUMBERS = {
    "ask": ["temperature", "top-p", "seed", "max-new-tokens", "average"],
    "compare": ["average", "max-new-tokens"],
    "fit": ["count", "ratio", "eta"],
    "eval": ["count", "seed", "draws", "processes", "max-new-tokens", "average"],
    "scenes": ["count", "seed"],
    "train toy": ["seed", "minutes"],
    "train atp": [
        "target-tokens", "steps", "batch", "accumulate", "lr", "lr-module", "lambda-atp", "lambda-target",
        "warmup", "theta-r", "theta-s", "width", "seed", "save-every",
    ],
    "ablate": ["steps", "batch", "lr", "lr-module", "count", "seed"],
    "cost": ["text", "layers", "average"],
    "bench": ["average", "text", "repeat", "steps", "threads", "layers"],
    "growth": ["tokens", "decode", "prompts", "repeat", "threads"],
    "tables": ["text"],
}
WORDS = {
    "ask": [PICTURE, "What?", "--method", "fastv"],
    "compare": [PICTURE, "What?"],
    "fit": ["vtw", "--questions", "none", "--out", "OUT.json"],
    "scenes": ["--out", "OUT"],
    "train toy": ["--out", "OUT"],
    "ablate": ["--out", "OUT"],
    "cost": ["--method", "fastv"],
    "train atp": ["--data", "toy", "--out", "OUT", "--target-tokens", "36"],
}


@pytest.mark.parametrize("command, option", [(command, option) for command in NUMBERS for option in NUMBERS[command]])
def test_numbers_that_are_none(capsys, tmp_path, monkeypatch, command, option):
    """NaN, infinity, a number far too large or below zero, a word: one line names the option; nothing is written."""
    monkeypatch.chdir(tmp_path)
    for text in ("nan", "inf", "1e999", "9" * 5000, "word", "-99999999999999999999"):
        status, out, err = done(capsys, *command.split(), *WORDS.get(command, []), f"--{option}={text}")
        assert status == 2 and option in err and len(err.splitlines()) == 1 and len(err) < 700 and not out, (text, err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "a\0", "\udcff", "x" * 300])
@pytest.mark.parametrize("command", ["ask", "fit", "eval", "scenes", "train toy", "train atp", "ablate", "bench"])
def test_a_name_that_no_result_can_have(capsys, tmp_path, monkeypatch, command, name):
    """Some wrote into the folder they were run in for an empty name; NUL was a traceback, the others a line after the work."""
    monkeypatch.chdir(tmp_path)
    status, out, err = done(capsys, *command.split(), *WORDS.get(command, []), "--out", name)
    assert status == 2 and "can name no file" in err and len(err.splitlines()) == 1 and len(err) < 700 and not out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["meta", "mps", "fpga", "mkldnn", "", "cpu:-1", "a\nb"])
@pytest.mark.parametrize("words", [ASK, ["bench"], ["train", "toy", "--out", "run"], ["verify", MODEL]])
def test_a_device_that_cannot_compute(capsys, tmp_path, monkeypatch, device, words):
    """Said before any work, and in one line although torch warns as well."""
    monkeypatch.chdir(tmp_path)
    status, out, err = done(capsys, *words, "--device", device)
    assert status == 2 and "device" in err and "try cpu" in err and len(err.splitlines()) == 1 and not out
    assert not list(tmp_path.iterdir())


def broken(error):
    """A command that fails."""
    def command(args):
        warnings.warn("a library's remark")
        raise error
    return command


@pytest.mark.parametrize("error, status, message", [
    (ZeroDivisionError("a\nb"), 70, r"this is a bug: ZeroDivisionError: a\nb; please report it"),
    (RecursionError("deep"), 70, "this is a bug: RecursionError"),
    (KeyError("x"), 70, "this is a bug: KeyError: 'x'"),
    (OSError(28, "No space left on device", "a.json"), 2, "a.json cannot be read or written (No space left on device)"),
    (PermissionError(13, "Permission denied", "a"), 2, "a cannot be read or written"),
    (MemoryError(), 2, "the memory is full"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "the memory is full"),
    (UserError("so"), 2, "run.py: so"),
])
def test_an_exception_that_nobody_foresaw(capsys, monkeypatch, error, status, message):
    """The last net: one line without the warnings before it; with --debug, and in these tests, a bug is a traceback."""
    monkeypatch.setattr(tables, "main", broken(error))
    if status == 70:
        for words in (["tables"], ["tables", "--debug"]):
            with pytest.raises(type(error), match=re.escape(str(error))):
                run.main(words)
            monkeypatch.delenv("MINIVLM_DEBUG", raising=False)
    got, out, err = done(capsys, "tables")
    assert got == status and message in err and len(err.splitlines()) == 1 and not out


def test_ctrl_c_while_torch_is_imported(capsys, monkeypatch):
    """It was a traceback."""
    class Importing:
        def __getattr__(self, name):
            raise KeyboardInterrupt
    monkeypatch.setitem(sys.modules, "minivlm.lab.cli.ending", Importing())
    assert done(capsys, "methods") == (130, "", "")


def test_a_warning_is_shown_where_the_command_succeeds(monkeypatch):
    monkeypatch.setattr(tables, "main", lambda args: warnings.warn("a library's remark"))
    with pytest.warns(UserWarning, match="a library's remark"):
        assert run.main(["tables"]) == 0


def test_a_refusal_is_printed_by_the_first_process(capsys, monkeypatch):
    """The other processes of torchrun wait, to be ended. One that nobody ends prints the refusal after a while. So it is
    with what the system refuses.
    """
    def full(args):
        raise OSError(28, "No space left on device", "scores.json")
    waited = []
    monkeypatch.setattr(ending.time, "sleep", waited.append)
    for rank, seconds in (("0", []), ("1", [ending.PATIENCE])):
        monkeypatch.setenv("LOCAL_RANK", rank)
        waited.clear()
        status, out, err = done(capsys, "tables", "none")
        assert status == 2 and waited == seconds and err.count("no paper 'none'") == 1 and not out
        waited.clear()
        with monkeypatch.context() as patch:
            patch.setattr(tables, "main", full)
            status, _, err = done(capsys, "tables")
        assert status == 2 and waited == seconds and err.count("No space left on device") == 1


@pytest.mark.parametrize("command", ["methods --json", "methods fastv"])
def test_a_reader_that_has_enough_ends_it_quietly(command):
    """`run.py .. | true`, which reads nothing: no traceback, whether the output is more than a pipe holds or less."""
    words = f"{sys.executable} run.py {command} | true"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(words, shell=True, capture_output=True, text=True, cwd=ROOT, env=env)
    assert ended.stderr == ""
