"""Counted FLOPs: against the formula where they must agree, by hand, and against a real run;
what the cost command says."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from command import done
from minivlm.lab.cost import shapes
from minivlm.lab.cost.cost import tera
from minivlm.lab.cost.count import count, on_meta, weight_bytes
from minivlm.lab.cost.flops import Formula, kv_bytes
from minivlm.lab.cost.shapes import SHAPES
from minivlm.lab.lineup.lineup import fitted, lineup
from paths import MODEL, PARITY
from pruning import METHODS
from pruning.base import UserError
from pruning.compose import Both, Schedule
from pruning.fastv import FastV
from pruning.readings import FastVMask
from pruning.tome import ToMe
from pruning.vispruner import VisPruner
from tiny import SHAPE
from weights import load

TEXT = SHAPE.config.text
D = TEXT.hidden_size                   # 8
M = TEXT.intermediate_size             # 20
L = TEXT.num_hidden_layers             # 4


@pytest.fixture(scope="module")
def unpruned():
    """The cost of the tiny shape without a method."""
    return count(SHAPE, text=10)


@pytest.mark.parametrize("shape", [SHAPE, shapes.shape_of("llava-1.5-7b", layers=2)], ids=["tiny", "7b"])
def test_counted_is_twice_the_formula(shape):
    """With a key head for each query head, three matrices, all tokens and no short cut in the last layer."""
    c, counted = shape.config.text, count(shape, text=10, last=False)
    assert counted.decoder == 2 * Formula(text=10).flops(counted.visual, c.hidden_size, c.intermediate_size)
    assert counted.head == 2 * c.hidden_size * c.vocab_size


def test_what_a_method_computes_is_not_counted():
    """FastV before layer 2: the layers on the tokens that enter them, and nothing for the row that it looks at."""
    entering, pruned = [16, 16, 4, 4], count(SHAPE, FastV(keep=4), text=10, last=False)
    assert pruned.visual == tuple(entering) and pruned.tokens == (26, 26, 14, 14)
    assert pruned.decoder == 2 * Formula(text=10).flops(entering, D, M)


def test_the_last_layer_computes_one_token(unpruned):
    """Query, output and MLP of 25 of 26 tokens are saved, and their rows of attention."""
    saved = count(SHAPE, text=10, last=False).decoder - unpruned.decoder
    assert saved == 2 * 25 * (2 * D * D + 3 * D * M + 2 * 26 * D)


def test_shared_key_heads_cost_less(unpruned):
    """One key head for four query heads of width 2: keys and values have width 2, not 8."""
    shape = replace(SHAPE, config=replace(SHAPE.config, text=replace(TEXT, num_key_value_heads=1)))
    grouped = count(shape, text=10)
    assert unpruned.decoder - grouped.decoder == 2 * 26 * D * (2 * 8 - 2 * 2) * L
    assert grouped.kv_bytes == kv_bytes([26] * L, 1, 2)
    assert unpruned.kv_bytes == kv_bytes([26] * L, 4, 2)


def test_tower_and_projector_by_hand(unpruned):
    """Two of three layers run, on 17 rows of width 6: patches of 27 numbers, 4 C^2 + 2 C I weights a row, 2 * 17 C for
    attention."""
    assert unpruned.tower == 2 * (16 * 27 * 6 + 2 * (17 * (4 * 36 + 2 * 60) + 2 * 17 * 17 * 6))
    assert unpruned.projector == 2 * 16 * (6 * D + D * D)
    assert count(SHAPE, VisPruner(keep=4)).projector == 2 * 4 * (6 * D + D * D)


def test_a_tower_in_which_tokens_are_merged(unpruned):
    """Two blocks leave 10 and 4 of 16 tokens. So one MLP has 6 rows less and the other 12, 240 FLOPs each; the second
    attention has 11 rows in place of 17, of 4 projections, and two products of 11 x 11 for 17 x 17."""
    mlp = (6 + 12) * 2 * 2 * 6 * 10
    projections = 6 * 4 * 2 * 6 * 6
    attention = 2 * 2 * (17 ** 2 - 11 ** 2) * 6
    assert unpruned.tower - count(SHAPE, ToMe(4), text=8).tower == mlp + projections + attention
    assert count(SHAPE, ToMe(4, "after"), text=8).tower == unpruned.tower


def test_masked_tokens_are_computed(unpruned):
    masked = count(SHAPE, FastVMask(keep=4), text=10)
    assert masked.tokens == (26,) * 4 and masked.decoder > .99 * unpruned.decoder


def test_composed_and_scheduled():
    schedule = Schedule(FastV(), (1, 3), (9, 2))
    assert count(SHAPE, Both((VisPruner(keep=8), FastV(keep=3)))).visual == (8, 8, 3, 3)
    assert count(SHAPE, schedule).visual == (16, 9, 9, 2)
    assert fitted(lineup("fastv", None, None, [], SHAPE, "1:9,3:2"), SHAPE) == {"fastv 1:9,3:2": schedule}


@pytest.mark.parametrize(
    "method", [None, FastV(keep=4), METHODS["random"](keep=4), METHODS["divprune"](keep=4), VisPruner(keep=4)]
)
def test_the_meta_device_counts_what_a_real_run_does(method):
    """A real prefill of a tiny checkpoint under the counter, with the plain attention: it does not know the CPU's fused
    one.

    FastV's view of layer 1 asks for one query, a product of the width with itself, and for its products with each key.
    """
    model = load(MODEL, torch.float32)
    ids = [1, 5, model.config.image_token_index, *range(6, 14)]
    side = model.config.vision.image_size
    tokens = model.embed(ids, [torch.zeros(1, 3, side, side)], method)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _, cache = model.prefill(tokens, method)
    counted = count(shapes.shape_of(model=MODEL), method, text=10, dtype=torch.float32)
    width = model.config.text.hidden_size
    own = 2 * width * width + 2 * len(tokens.hidden) * width if isinstance(method, FastV) else 0
    assert counter.get_total_flops() == counted.prefill + own and cache.bytes == counted.kv_bytes


@pytest.mark.internal
def test_units():
    assert tera(8.672e12) == "  8.672 T"
    assert tera(5e10) == "  0.050 T"
    assert tera(5e9) == "  5.000 G"
    assert tera(3e5) == "  0.300 M"


def test_weights():
    model, held = load(MODEL), weight_bytes(shapes.shape_of(model=MODEL), torch.float32)
    last_norm = 4 * model.language_model.norm.weight.numel()
    assert sum(held.values()) + last_norm == sum(4 * p.numel() for p in model.parameters())
    assert all(p.is_meta for p in on_meta(SHAPE).parameters())


def test_tiles():
    """NeXT's five tiles of 576; a whole image's 960 are 192 of each tile for a method that keeps some of each."""
    shape = SHAPES["next-7b"]
    pruners = fitted(lineup("vispruner,fastv", "960", None, [], shape), shape)
    assert shape.n == 2880 and pruners["vispruner 960"].keep == 192 and pruners["fastv 960"].keep == 960
    assert shapes.entering(pruners["vispruner 960"], shape) == [960] * 32
    pruners = fitted(lineup("vispruner,divprune", None, "640", [], shape), shape)
    assert pruners["vispruner average 640"].keep == 128 and pruners["divprune average 640"].keep == 640
    cell = shapes.prompt(shape, 4, torch.empty(2884, 8)).grid
    assert cell[577].tolist() == [1, 0, 1] and cell[-1].tolist() == [4, 23, 23]


def test_a_next_checkpoint_has_five_tiles():
    shape = shapes.shape_of(model=PARITY / "next_vicuna")
    assert shape.tiles == 5
    assert count(shape, FastV(keep=4, layer=1), text=10).visual[-1] == 4
    assert count(shape).visual[0] == shape.n == 5 * shape.grid ** 2


def test_the_command(capsys):
    """FastV's first two of eight layers keep all 576 tokens, the others (8 * 192 - 2 * 576) / 6 = 64."""
    status, out, _ = done(capsys, "cost", "--shape", "small", "--method", "fastv,divprune", "--average", "192",
                          "--layers", "8")
    assert status == 0
    assert "2x576 6x64" in out
    assert "8x192" in out
    assert "at most" in out
    assert "c=3, image tokens alone" in out
    status, out, _ = done(capsys, "cost", "--shape", "small", "--method", "fastv", "--keep", "1", "--layers", "4",
                          "--all-tokens", "--ffn", "2", "--json")
    report = json.loads(out)
    row = report["rows"][1]
    assert status == 0 and report["layers"] == 4 and report["formula"].startswith("c=2, image and 64 text tokens")
    assert 1 < row["first_token_speedup"] < row["prefill_speedup"]
    assert row["first_token_speedup"] < row["first_token_bound"] < 2
    assert done(capsys, "cost", "--model", MODEL, "--method", "fastv", "--keep", "4")[0] == 0


def test_all_methods(capsys):
    """At one budget those that have one, the others as they are, and for those that cannot be counted the reason."""
    status, out, _ = done(capsys, "cost", "--model", MODEL, "--method", "all", "--keep", "4", "--json")
    report = json.loads(out)
    rows = {row["method"]: row["image_tokens"] for row in report["rows"]}
    assert status == 0
    assert rows["fastv 4"] == [16, 16, 4]
    assert rows["vispruner 4"] == [4] * 3
    assert rows["blind"] == [0] * 3
    assert "train atp" in report["why_not"]["atp"] and "layer 8" in report["why_not"]["pyramiddrop"]
    assert len(rows) + len(report["why_not"]) == 1 + len(METHODS)


def test_why_a_method_is_not_counted(capsys, monkeypatch):
    """A registry of three, without a budget and with an average: a line for each that cannot be counted."""
    three = {name: METHODS[name] for name in ("fastv", "blind", "prumerge")}
    monkeypatch.setattr("minivlm.lab.cli.options.METHODS", three)
    status, out, _ = done(capsys, "cost", "--model", MODEL, "--method", "all")
    assert status == 0 and "prumerge does not run here: PruMerge: the prompt decides" in out
    status, out, _ = done(capsys, "cost", "--model", MODEL, "--method", "all", "--average", "12")
    assert status == 0 and "fastv average 12" in out and "blind average 12 does not run here" in out


def test_among_several_one_without_a_keep_has_its_own_schedule():
    pruners = fitted(lineup("fastv,vtw", "4,8", None, ["vtw.layer=2"], SHAPE), SHAPE)
    assert list(pruners) == ["fastv 4", "fastv 8", "vtw"] and shapes.entering(pruners["vtw"], SHAPE) == [16, 16, 0, 0]


@pytest.mark.parametrize("words, message", [
    (["--method", "prumerge", "--model", MODEL], "prompt decides"),
    (["--method", "slowv"], "slowv"),
    (["--method", "atp", "--model", MODEL], "train atp"),
    (["--keep", "4"], "--method"),
    (["--schedule", "4:9"], "--method"),
    (["--method", "divprune", "--schedule", "4:9"], "cannot be scheduled"),
    (["--method", "fastv", "--keep", "4", "--average", "9"], "not both"),
    (["--method", "fastv", "--keep", "577"], "keep 577"),
    (["--method", "fastv", "--average", "few"], "few"),
    (["--method", "fastv,divprune", "--set", "layer=1"], "METHOD.OPTION"),
    (["--method", "fastv", "--set", "layer=4", "--layers", "4"], "layer 4"),
    (["--layers", "33"], "1 to 32"),
    (["--text", "0"], "--text 0"),
    (["--shape", "giant"], "giant"),
    (["--shape", "small", "--model", MODEL], "not both"),
    (["--model", "no/such/dir"], "no/such/dir"),
])
def test_bad_input_is_one_line(capsys, words, message):
    status, out, err = done(capsys, "cost", *words)
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not out


def test_fitted_methods_are_for_their_model():
    with pytest.raises(UserError, match="32 layers"):
        count(SHAPE, METHODS["fitprune"]())


def test_a_tied_head_is_counted_once():
    """As stored: the embedding is the head, which every token reads."""
    tied = replace(SHAPE, config=replace(SHAPE.config, text=replace(TEXT, tie_word_embeddings=True)))
    apart, together = weight_bytes(SHAPE), weight_bytes(tied)
    assert together["embedding"] == 0 and together["head"] == apart["head"] > 0
