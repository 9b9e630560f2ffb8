"""Measuring: the stages add up, a method's own time is its own, memory's peak, and the verdict on typed times."""

import json
import time
from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from command import done
from live import live
from minivlm.lab.cli import precision
from minivlm.lab.draw.chart import BOTTOM, COLORS, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from minivlm.lab.speed import measure, verdict
from minivlm.lab.speed.clock import Clock, Memory, Timed
from minivlm.lab.speed.plot import plot
from paths import MODEL, PARITY
from pruning.base import UserError
from pruning.compose import Both
from pruning.fastv import FastV
from pruning.prumerge import PruMergePlus
from pruning.vispruner import VisPruner
from tiny import SHAPE

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Slow(FastV):
    """FastV that sleeps for 50 ms."""

    def reduce(self, tokens):
        time.sleep(.05)
        return super().reduce(tokens)


@pytest.fixture(scope="module")
def report():
    pruners = {"fastv 4": FastV(keep=4), "slow 4": Slow(keep=4), "prumerge_plus": PruMergePlus()}
    return measure.measure(SHAPE, pruners, text=10, steps=3, repeat=2)


def test_stages_add_up(report):
    """Encoding, the method's own time, the prefill and the tokens are the whole, in every round."""
    assert [row["method"] for row in report["rows"]] == ["unpruned", "fastv 4", "slow 4", "prumerge_plus"]
    for row in report["rows"]:
        assert len(row["times"]) == 2
        for t in row["times"]:
            assert abs(t["encode"] + t["method"] + t["prefill"] + 3 * t["decode"] - t["total"]) < 1e-6
            assert t["encode"] > 0
            assert t["decode"] > 0


def test_a_methods_own_time_is_not_the_prefills(report):
    """It sleeps for 50 ms, once: that is its time, counted once, and none of the prefill's."""
    first, fast, slow, _ = (row["median"] for row in report["rows"])
    assert first["method"] == 0 and 0 < fast["method"] < .05 <= slow["method"] < .1
    assert .05 <= slow["total"] - slow["prefill"] - slow["encode"]


def test_what_is_known_beforehand(report):
    """The counted FLOPs and the average are there but for the method whose prompt decides."""
    rows = {row["method"]: row for row in report["rows"]}
    assert rows["fastv 4"]["average"] == 10
    assert rows["fastv 4"]["flops"]["prefill"] < rows["unpruned"]["flops"]["prefill"]
    assert "flops" not in rows["prumerge_plus"] and json.dumps(report)


def test_timed_is_the_method():
    """At each site it is the method of that site, and what it is asked for is the method's own."""
    both = Timed(Both((VisPruner(keep=9), FastV(keep=4, layer=3))), Clock(CPU))
    assert both.at("embed") is None
    assert both.at("decoder").pruner == FastV(keep=4, layer=3)
    assert both.at("vision").laws == VisPruner.laws
    assert both.at("decoder").at("decoder").pruner == FastV(keep=4, layer=3) and both.at("decoder").reduce_at(4) == (3,)


def test_peak_memory():
    """64 MB that are freed again count, and are not held against what comes after."""
    memory = Memory(CPU)
    if memory.peak() is None:
        pytest.skip("this system does not tell the most memory that was resident")
    torch.ones(16 * 2 ** 20)
    assert 60e6 < memory.peak() < 100e6
    after = Memory(CPU)
    torch.ones(16)
    assert after.peak() < 20e6


def test_freed_memory_is_not_had_for_nothing():
    """The allocator keeps what small tensors held; taken again it counts all the same: 40 blocks of 1 MiB."""
    if Memory(CPU).peak() is None:
        pytest.skip("this system does not tell the most memory that was resident")
    taken = lambda: [torch.ones(2 ** 18) for _ in range(40)]
    for _ in range(3):
        blocks, pin = taken(), torch.ones(1000)
        del blocks
    memory = Memory(CPU)
    assert len(taken()) == 40 and pin.sum() == 1000 and memory.peak() > 30e6


@pytest.mark.internal
def test_spread_by_hand():
    """The quartiles of 1 2 3 4 9 are 2 and 4."""
    assert measure.spread([9, 2, 1, 4, 3]) == 1 and measure.spread([7]) == 0


def test_too_large_for_the_memory(monkeypatch):
    monkeypatch.setattr(measure, "available", lambda device: 1000)
    with pytest.raises(UserError, match="--layers"):
        measure.random(SHAPE, torch.float32, CPU)
    assert precision.available(CPU) is None or precision.available(CPU) > 2 ** 20


def typed(prefill=.5, method=0.0):
    """Unpruned 100 ms to encode, 1 s of prefill;
    a method with half the FLOPs and half of the 100 bytes of cache beside 900 of weights."""
    row = lambda name, flops, prefill, method, average, kv: dict(
        method=name, flops=dict(prefill=flops), average=average, kv_bytes=kv, peak=None,
        median=dict(encode=0.1, method=method, prefill=prefill, decode=0.01, total=1.3),
        spread=dict.fromkeys(measure.STAGES, 0.0),
    )
    return dict(
        shape="typed", dtype="float32", device="cpu", layers=2, image_tokens=100, text_tokens=1, threads=1,
        processes=1, torch="2", repeat=1, steps=20, read_a_token=900,
        rows=[row("unpruned", 8, 1.0, 0.0, 100, 100), row("fastv 50", 4, prefill, method, 50, 50)],
    )


def test_what_bounds_it_by_hand():
    """Twice as fast is all that half the FLOPs allow. With 250 ms of its own a method's prefill is 1.33 x as fast, two
    thirds of it."""
    report = typed()
    first, row = report["rows"]
    assert verdict.speedup(row, first) == verdict.predicted(row, first) == 2
    assert "gets 100% of what its FLOPs allow; encoding" in verdict.sentence(row, first, report)
    assert "the bytes read allow 1.05 x" in verdict.sentence(row, first, report)
    unpruned = verdict.sentence(first, first, report)
    assert "at most: a token reads 900 B of weights, and the cache is 10.0% of the bytes" in unpruned
    report["read_a_token"] = 9900
    unpruned = verdict.sentence(first, first, report)
    assert "decoding will not speed up: a token reads 9.9 kB of weights, and the cache is 1.0% of the bytes" in unpruned

    # the method takes 250 ms itself
    report = typed(method=.25)
    first, row = report["rows"]
    assert "gets 67% of what its FLOPs allow: its own time is 33% of it" in verdict.sentence(row, first, report)
    assert any("1.33 x     2.00 x     0.67" in line for line in verdict.lines(report))

    # a prefill of 800 ms
    report = typed(prefill=.8)
    first, row = report["rows"]
    assert "gets 62% of what its FLOPs allow: the rest is not matrix products" in verdict.sentence(row, first, report)
    row["median"]["decode"] = .2
    sentence = verdict.sentence(row, first, report)
    assert "the weights count, and to read them for one alone takes 25% as long; encoding" in sentence


@pytest.mark.internal
def test_picture():
    """x from 0 to 100 tokens, y from 0 to 1100 ms: a dot at 50 tokens and 800 ms, the line at half of both below it."""
    page = plot(typed(prefill=.8))
    x, height = LEFT + (WIDTH - LEFT - RIGHT) // 2, HEIGHT - TOP - BOTTOM
    assert page.getpixel((x, round(HEIGHT - BOTTOM - height * .8 / 1.1))) == COLORS[0]
    line = [y for y in range(HEIGHT) if page.getpixel((x + 20, y)) == COLORS[0]]
    wanted = HEIGHT - BOTTOM - height * (.5 + .5 * 20 / (WIDTH - LEFT - RIGHT) * 2) / 1.1
    assert line and all(abs(y - wanted) < 3 for y in line)


def test_the_command(capsys, tmp_path):
    status, out, err = done(
        capsys, "bench", "--model", MODEL, "--method", "fastv,vispruner", "--keep", "8,4", "--repeat", "1",
        "--steps", "2", "--threads", "1", "--json", tmp_path / "a.json", "--out", tmp_path / "a.png",
    )
    assert status == 0 and "a token reads" in out and out.count("of what its FLOPs allow") == 4
    assert len(json.loads((tmp_path / "a.json").read_text())["rows"]) == 5
    assert Image.open(tmp_path / "a.png").size == (WIDTH, HEIGHT)


def test_internvl_is_timed_but_not_against_transformers(capsys):
    model = PARITY / "internvl_internlm2"
    words = [
        "bench", "--model", model, "--method", "divprune", "--keep", "4", "--repeat", "1", "--steps", "1",
        "--threads", "1",
    ]
    status, out, _ = done(capsys, *words)
    assert status == 0 and "divprune 4" in out
    status, out, err = done(capsys, *words, "--against", "hf")
    assert status == 2 and "CLIP tower" in err and not out


@live
def test_transformers_on_the_same_weights(capsys):
    status, out, _ = done(
        capsys, "bench", "--model", MODEL, "--method", "fastv", "--keep", "4", "--repeat", "1", "--steps", "2",
        "--threads", "1", "--against", "hf",
    )
    assert status == 0
    assert "transformers sdpa" in out
    assert "transformers eager" in out
    assert out.count("ours takes of its time") == 2


@pytest.mark.parametrize("words, message", [
    (["--method", "slowv"], "slowv"),
    (["--keep", "4"], "--method"),
    (["--method", "fastv", "--keep", "577"], "keep 577"),
    (["--method", "fastv", "--set", "layer=4", "--layers", "4"], "layer 4"),
    (["--repeat", "0"], "--repeat 0"),
    (["--steps", "-1"], "--steps -1"),
    (["--shape", "small", "--model", MODEL], "not both"),
    (["--out", "a.jpg"], "PNG"),
    (["--json", "/no/such/folder/a.json"], "/no/such/folder"),
    (["--model", MODEL, "--device", "cuda:99"], "cuda:99"),
    (["--layers", "1", "--method", "divprune", "--device", "cuda:99"], "cuda:99"),
])
def test_bad_input_is_one_line(capsys, words, message):
    status, out, err = done(capsys, "bench", *words)
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not out


@live
def test_the_race_against_transformers(capsys):
    """Three layers of random weights, one round: transformers takes them as they are, and has its rows."""
    status, out, err = done(capsys, "bench", "--layers", "3", "--repeat", "1", "--steps", "1", "--against", "hf")
    assert status == 0, err
    assert "transformers sdpa" in out and "transformers eager" in out and "ours takes of its time" in out
