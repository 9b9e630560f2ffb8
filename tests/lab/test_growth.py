"""Growth with the prompt, the answer and the number of prompts:
parts against their laws, and memory that does not creep."""

import json

import pytest
import torch

from command import done
from minivlm.lab.speed import measure
from minivlm.lab.speed.clock import Memory
from minivlm.lab.studies import scaling
from minivlm.llava import Llava
from paths import MODEL
from tiny import SHAPE

FIGURES = dict(
    shape="typed", layers=2, dtype="float32", device="cpu", threads=1, torch="2", repeat=1, prompts=50,
    held=2_000_000,
    rows=[
        dict(tokens=100, prefill=0.5, attention=0.1, token=0.01, peak=1000),
        dict(tokens=200, prefill=1.4, attention=0.4, token=0.01, peak=3000),
    ],
    decode=[dict(first=1, last=10, seconds=0.01, bytes=100), dict(first=91, last=100, seconds=0.012, bytes=110)],
)


def model():
    return measure.model_of(SHAPE, None, torch.float32, torch.device("cpu"))


def test_laws_by_hand():
    """Twice the tokens: attention four times 0.1 s is its law; the rest, 0.4 s, grows to 1 s, 1.25 x; memory 1.5 x."""
    row = next(line for line in scaling.lines(FIGURES) if line.split()[:1] == ["200"])
    assert row.split() == ["200", "1400.0ms", "400.0ms", "1.00", "1000.0ms", "1.25", "3", "kB", "1.50", "10.0ms"]
    text = "\n".join(scaling.lines(FIGURES))
    assert "tokens 1 to 10 take 10.00 ms each, 91 to 100 12.00 ms: 1.20 x, and the bytes read grow 1.10 x" in text
    assert "+2.0 MB" in text
    blind = dict(FIGURES, held=None, rows=[dict(row, peak=None) for row in FIGURES["rows"]])
    assert "does not say" in "\n".join(scaling.lines(blind))


def test_what_is_measured():
    figures = scaling.measure(model(), [8, 16], decode=20, prompts=6, repeat=1)
    assert [row["tokens"] for row in figures["rows"]] == [8, 16]
    assert all(0 < row["attention"] and 0 < row["token"] for row in figures["rows"])
    early, late = figures["decode"]
    c, layers = SHAPE.config.text, SHAPE.layers
    assert (early["first"], early["last"], late["first"], late["last"]) == (1, 2, 19, 20)
    assert late["bytes"] - early["bytes"] == 18 * 2 * layers * c.num_key_value_heads * c.head_dim * 4


def test_memory_does_not_creep():
    """Fifty prompts hold no more than five; 2 MB more a prompt, kept on purpose, would show."""
    if Memory(torch.device("cpu")).before is None:
        pytest.skip("this system does not tell a process's memory")
    small, kept = model(), []
    assert scaling.measure(small, [64], decode=1, prompts=50, repeat=1)["held"] < 10e6

    class Keeps(Llava):
        def prefill(self, *args):
            kept.append(torch.ones(2 ** 19))
            return super().prefill(*args)
    small.__class__ = Keeps
    assert scaling.measure(small, [64], decode=1, prompts=50, repeat=1)["held"] > 80e6


def test_the_command(capsys, tmp_path):
    status, out, err = done(
        capsys, "growth", "--model", MODEL, "--tokens", "8,16", "--decode", "10", "--prompts", "6",
        "--repeat", "1", "--threads", "1", "--json", tmp_path / "a.json",
    )
    assert status == 0, err
    assert "the bytes read grow" in out and json.loads((tmp_path / "a.json").read_text())["rows"][1]["tokens"] == 16


@pytest.mark.parametrize("words, message", [
    (["--tokens", "8,x"], "8,x"),
    (["--tokens", "1"], "from 2 to a million"),
    (["--decode", "0"], "--decode 0"),
    (["--tokens", "9999999"], "from 2 to a million"),
    (["--tokens", "999999"], "context"),
    (["--json", "/no/such/folder/a.json"], "/no/such/folder"),
])
def test_bad_input_is_one_line(capsys, words, message):
    status, out, err = done(capsys, "growth", "--model", MODEL, "--threads", "1", *words)
    assert status == 2 and message in err and not out
