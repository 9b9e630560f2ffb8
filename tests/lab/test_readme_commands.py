"""Every command of the READMEs runs as it is printed, on something small: a checkpoint is the shipped model or a tiny
one, a photograph is a sample, a training is a few steps. What no test can run is in NOT_RUN, with the reason.
"""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import run
from minivlm.lab.claims import claims
from pages import COURSE, FRONT, LAB, PAGES, ROOT, TOY, blocks_of
from record_picture import PICTURE, drawn

MODEL = str(ROOT / "tests" / "parity" / "llava15_mha")     # 3 layers, 16 visual tokens
SHIPPED = str(ROOT / "minivlm" / "toy" / "model")          # 8 layers, 144 visual tokens, 80 words
SAMPLES = str(ROOT / "minivlm" / "toy" / "samples")
SCENE = f"{SAMPLES}/00003.png"
QUESTION = "what shape is the red object ?"

COST = "python run.py cost --method fastv,divprune --keep 128"
NOT_RUN = {
    "python3 -m venv": "it downloads; `python run.py`, its last part, is run",
    "python -m pytest": "it is this suite",
    COST: "it is run by test_cost_prints_what_is_shown",
    "python run.py exercise grade": "fresh stubs have no points: test_exercises.py grades them and full ones",
    "python run.py bugs grade": "nothing is answered yet: test_bugs.py grades answers",
    "python run.py score all": "it takes minutes; a single method is scored",
}
WORDS = {                              # a word of a command, and the smaller thing that is run in its place
    "photo.jpg": SCENE,
    "What is on the table?": QUESTION,
    "What is this?": QUESTION,
    "DIR": SHIPPED,
    "QUESTIONS": SAMPLES,
    "val2014": SAMPLES,
    "llava-hf/llava-1.5-7b-hf": SHIPPED,
    "llava-hf/llava-interleave-qwen-0.5b-hf": SHIPPED,
    "cuda": "cpu",
    "256+64": "64+16",
    "4:136,14:68,24:34": "2:68,4:34,6:17",
}
EXTRA = {                              # options that make a command small: the last of two counts
    "ask": "--max-new-tokens 3",
    "eval": "--count 1 --draws 1 --keep 0.5 --max-new-tokens 1 --processes 1",
    "attention photo.jpg": "",
    "attention": "--count 1 --method none --positions usual",
    "sensitivity": "--count 1 --method fastv --keep 0.1 --layers 2,6 --processes 1",
    "scenes": "--count 1",
    "train toy": "--minutes 0",
    "train atp": "--steps 2 --batch 2 --layers 1,3,6 --target-tokens 36",
    "fit": "--count 2",
    "ablate": "--rows fixed-1-2 --steps 1 --batch 2 --count 1",
    "bench": "--repeat 1 --steps 1 --text 8 --threads 1 --layers 3 --dtype float32",
    "check mine.py:select --against": "",
    "check": "--quick",
    "claims": "--count 1 --processes 1",
    "readings": "hired --count 1 --processes 1",
    "lab": "--count 2",
    "score": "--count 1",
    "growth": "--repeat 1 --tokens 24,48 --decode 2 --prompts 1 --layers 3 --dtype float32",
}


def commands_of(text):
    """Blocks of adjacent commands, each a list of lines without their comments."""
    blocks = [[]]
    for line in text.splitlines():
        command = re.match(r"(?:    )?((?:python3?|torchrun) .+?)(?:  +#.*| # .*)?$", line)
        if command:
            blocks[-1].append(command[1])
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def needs_transformers(command):
    """Whether it runs transformers too."""
    return "--live" in command or "--against" in command


def blocks_to_run():
    """[commands that run one after the other in one folder]; those that need transformers are blocks of their own."""
    blocks = []
    for page in (FRONT, LAB, TOY, COURSE):                 # pruning/README.md: test_cards.py
        for block in commands_of(page):
            runs = [line for line in block if not line.startswith(tuple(NOT_RUN))]
            blocks.append([line for line in runs if not needs_transformers(line)])
            blocks += [[line] for line in runs if needs_transformers(line)]
    return [block for i, block in enumerate(blocks) if block and block not in blocks[:i]]


def small(command):
    """The words after run.py of a smaller command."""
    _, _, rest = command.partition("run.py")
    words = [smaller(word) for word in shlex.split(rest)]
    extra = next((extra for name, extra in EXTRA.items() if rest.split()[:len(name.split())] == name.split()), "")
    if "--task" in words:                                  # a benchmark, of which --count is no option
        extra = extra.replace("--count", "--limit")
    if "--average" in words:                               # in place of --keep
        extra = extra.replace("--keep 0.5", "")
    if rest.split()[:1] in (["bench"], ["growth"]):
        words = tiny(words)
    return words + extra.split()


def smaller(word):
    """What is given in the place of a word; a file of the repository is named in full."""
    return str(ROOT / word) if word.startswith("minivlm/") else WORDS.get(word, word)


def tiny(words):
    """The same with the shape of the tiny checkpoint, and budgets of its 16 tokens."""
    options = ("--shape", "--model", "--keep", "--average")
    dropped = {i + step for i, word in enumerate(words) if word in options for step in (0, 1)}
    kept = [word.replace("layer=3", "layer=1") for i, word in enumerate(words) if i not in dropped]
    if "--method" in kept:
        kept += ["--keep", "4" if "all" in kept else "8,4"]
    return [*kept, "--model", MODEL]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with what a reader would bring: questions, instructions, and lines to type."""
    monkeypatch.chdir(tmp_path)
    question = dict(image=SCENE, text=QUESTION)
    Path("questions.jsonl").write_text(json.dumps(question) + "\n" + json.dumps(question) + "\n")
    said = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "triangle"}]
    Path("instructions.json").write_text(json.dumps([dict(image=SCENE, conversations=said)] * 4))
    pope = dict(question_id=1, image=Path(SCENE).name, text="Is there a red square in the image?", label="no")
    Path("coco_pope_random.json").write_text(json.dumps(pope) + "\n")
    Path("answers.jsonl").write_text(json.dumps(dict(question_id=1, text="No")) + "\n")
    own, = [block for block in blocks_of(LAB) if "def select" in block]
    Path("mine.py").write_text(own)
    few = {paper: rows[3:6] for paper, rows in claims.PAPERS.items()}
    monkeypatch.setattr(claims, "PAPERS", few)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n\n"))
    return tmp_path


BLOCKS = blocks_to_run()


def title(block):
    """The first words of a block, for its test's name."""
    return block[0].split("run.py")[-1].strip()[:40]


@pytest.mark.parametrize("block", BLOCKS, ids=title)
def test_commands_run(block, folder, request, capsys):
    """Each ends with status 0 and writes what --out, --json and --html name."""
    if any(map(needs_transformers, block)):
        request.getfixturevalue("transformers")
    commands = [small(command) for command in block]
    for n, words in enumerate(commands):
        if words in commands[:n]:      # two that differ in their shape and budget only
            continue
        if words[0] == "new":
            Path(words[1]).unlink()    # the fixture's
        with torch.enable_grad():      # some of them train
            assert run.main(words) == 0, (words, capsys.readouterr())
        for option, name in zip(words, words[1:]):
            if option in ("--out", "--json", "--html"):
                assert (folder / name).exists(), name


@pytest.mark.parametrize("page", PAGES)
def test_no_command_is_left_out(page):
    """Every line that looks like a command is in a block that is run, in a card, or in NOT_RUN."""
    recognised = [line for block in commands_of(PAGES[page]) for line in block]
    typed = re.findall(r"^ *(?:python3?|torchrun) .*", PAGES[page], re.M)
    assert len(recognised) == len(typed)


def test_every_exception_is_needed():
    """What is not run is printed somewhere."""
    lines = [line for page in PAGES.values() for block in commands_of(page) for line in block]
    for start in NOT_RUN:
        assert any(line.startswith(start) for line in lines), start


def test_set_up_is_one_line():
    """It installs what requirements.txt has, and ends with the first command."""
    line = re.search(r"^    (python3 -m venv .+)$", FRONT, re.M)[1]
    steps = line.split(" && ")
    assert steps[1:] == [". .venv/bin/activate", "pip install -r requirements.txt", "python run.py"]
    assert (ROOT / "requirements.txt").read_text().startswith("torch==")


def printed_below(page, command):
    """The lines of the indented block below a command: what it prints."""
    text = page[page.index(command):]
    block = text[text.index("\n\n"):]
    lines = []
    for line in block.strip("\n").splitlines():
        if line and not line.startswith("    "):
            break
        lines.append(line[4:])
    return [line.rstrip() for line in lines if line.strip()]


def test_first_command_prints_what_is_shown(first_look):
    """Question, heads and five rows, to the letter."""
    out, _ = first_look
    printed = [line.rstrip() for line in out.splitlines()]
    shown = printed_below(FRONT[FRONT.index("`pruned.png`"):], "`pruned.png`")
    assert len(shown) >= 6
    assert set(shown) <= set(printed)


def test_cost_prints_what_is_shown(capsys):
    """The whole table; the explanation after it is left out."""
    assert run.main(shlex.split(COST)[2:]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    shown = printed_below(LAB, COST)
    assert len(shown) >= 6
    assert printed[:len(shown)] == shown


def test_picture_is_the_commands():
    """Small, and what the command below it draws now; another machine may round a few pixels otherwise."""
    assert PICTURE.stat().st_size < 60_000
    stored = np.asarray(Image.open(PICTURE).convert("RGB"), dtype=float)
    again = np.asarray(drawn().convert("RGB"), dtype=float)
    assert stored.shape == again.shape
    assert abs(stored - again).mean() < 1
