"""The papers' figures of cost and averages of accuracy, recomputed: what reproduces, what does not, and why; the
formulas by hand."""

import json

import pytest

from command import done
from minivlm.lab.cost.flops import (
    Formula, agrees, asap_eta, asap_omega, atp_fewer_flops, atp_layer_flops, fits, flops, one_cut)
from minivlm.lab.studies.published import INTERN, NEXT, SEVEN
from minivlm.lab.studies.recomputed import entries, parse


def verdicts(paper, table):
    """{(row, unit, printed): verdict} of one table."""
    return {(e.row, e.unit, e.printed): e.verdict for e in entries([paper]) if e.table == table and e.schedule}


def unlike(paper, unit):
    """{row: what is printed} of the averages and percentages of accuracy that do not reproduce."""
    return {e.row: e.printed for e in entries([paper]) if e.unit == unit and not e.verdict}


def saved(formula, whole, cut, shape):
    """Percent of the FLOPs that a schedule saves."""
    cost, cost_whole = (formula.flops(entering, shape.width, shape.intermediate) for entering in (cut, whole))
    return 100 - 100 * cost / cost_whole


# --- by hand ----------------------------------------------------------------------------------------------------------

def test_printed_figures():
    """1.2577 prints as 1.258 or, cut off, as 1.257; whole numbers have no point."""
    assert agrees("1.258", 1.2577) == "rounded"
    assert agrees("1.257", 1.2577) == "truncated"
    assert agrees("1.256", 1.2577) == ""
    assert agrees("82", 81.84) == "rounded"
    assert agrees("81", 81.84) == "truncated"
    assert agrees("81", 82.01) == ""


def test_half_may_be_rounded_either_way():
    """64.8 - 64.375 is 0.425, in binary a little less."""
    assert agrees("0.43", 64.8 - 64.375) == agrees("0.42", 64.8 - 64.375) == "rounded"
    assert agrees("0.44", 64.8 - 64.375) == ""


def test_variants():
    """Width 2, MLP 5, v tokens: 16 v + 4 v^2 + 10 c v. Of 3 and 1 tokens with c = 2: 144 + 40, with c = 3 another 30
    + 10.

    With 2 text tokens, 5 and 3: 80 + 100 + 100 + 144.
    """
    assert Formula(2).flops([3, 1], 2, 5) == 184
    assert Formula(3).flops([3, 1], 2, 5) == 184 + 40
    assert Formula(2, text=2).flops([3, 1], 2, 5) == 280 + 144
    assert str(Formula(2, 7, "after")) == "c=2, image and 7 text tokens, after the cut"


def test_asap_equations():
    """Eq. 7 and 8 with d = m = 1: 7 v + 2 v^2 a layer. Of 11 tokens, then ceil(.3 x 11) = 4 twice: 319 + 2 x 60."""
    stages = [(1, 1), (2, 0.3)]
    assert asap_omega(stages, 11, 1, 1) == 319 + 120
    assert asap_eta(stages, 11, 1, 1) == (319 + 120) / (3 * 319)
    assert asap_omega([(1, 0.07)], 100, 1, 1) == 7 * 7 + 2 * 7 ** 2


def test_atp_equations():
    """Eq. 15 with d = m = 1: 6 L + 2 L^2. Of 10 tokens 4 enter layers 1 and 2, and 2 layer 3: 2 (260 - 56) + 260 - 20.

    It is what the unpruned layers cost more than the pruned ones.
    """
    assert atp_layer_flops(10, 1, 1) == 260
    assert atp_fewer_flops((1, 3), (4, 2), 4, 10, 1, 1) == 2 * 204 + 240
    assert atp_fewer_flops((1, 3), (4, 2), 4, 10, 1, 1) == flops([10] * 4, 1, 1, 2) - flops([10, 4, 4, 2], 1, 1, 2)


def test_after_the_cut():
    """What leaves a layer enters the next; the last layer cuts nothing. So 4, 3, 1 entering are 3, 1, 1 leaving.

    With c = 2 one token costs 40 and three cost 144: 144 + 40 + 40. A last layer counted with 3 or 4 would give more,
    a last layer left out less.
    """
    assert Formula(2, cut="after").flops([4, 3, 1], 2, 5) == 224
    assert Formula(2, cut="after").flops([3], 2, 5) == 144


def test_fits_finds_every_single_cut():
    """Of 4 tokens in 3 layers, a sum of 6 is 2 + 2 + 2 or 4 + 1 + 1; for a sum of 7 each cut would need part of a
    token."""
    assert fits("7", 4, 3, sum, cuts=(0, 1, 2)) == []
    assert fits("6", 4, 3, sum) == [(0, 2), (1, 1)]


def test_fits_of_a_printed_figure():
    """1.259 T FLOPs: the search finds the cuts that trying all of them finds."""
    def tera(entering):
        return Formula().flops(entering, SEVEN.width, SEVEN.intermediate) / 1e12

    assert fits("0.797", 576, 32, tera) == []
    assert (2, 166) in fits("1.253", 576, 32, tera)
    tried = [(l, k) for l in range(9) for k in range(576) if agrees("1.259", tera(one_cut(576, 32, l, k)))]
    assert fits("1.259", 576, 32, tera, range(9)) == tried == [(0, 193), (2, 167), (6, 103)]


def test_parse():
    """"2x576 1x167" is three layers; the published schedules have as many layers as their models."""
    assert parse("2x576 1x167") == [576, 576, 167]
    assert all(len(parse(e.schedule)) in (32, 40) for e in entries() if e.schedule)


# --- the papers -------------------------------------------------------------------------------------------------------

def test_asap():
    """Which figures of its four tables reproduce."""
    first = verdicts("asap", "ASAP Table 1")
    fourth = verdicts("asap", "ASAP Table 4")
    assert first["FastV 192", "T FLOPs", "1.259"] == "rounded"
    assert first["FastV 128", "% of the FLOPs", "21.898"] == "truncated"
    assert first["LLaVA-1.5-13B", "T FLOPs", "3.817"] == ""
    assert first["ASAP 192", "% of the FLOPs", "31.88"] == ""
    assert first["ASAP 128, and C.1", "T FLOPs", "0.797"] == ""
    for table in ("ASAP Table 2", "ASAP Table 3"):
        assert all(verdict for (_, unit, _), verdict in verdicts("asap", table).items() if "FLOPs" in unit)
    assert fourth["FastV 128", "MiB", "97.33"]
    assert fourth["ASAP 128", "MiB", "82.14"] == ""


def test_atp():
    """Its averages are right, its FLOPs are not: an average of 144 tokens saves at most 1 - f(144) / f(576) = 75.5 %,
    f convex."""
    assert all(verdicts("atp", "ATP Table 2").values())
    for (_, unit, _), verdict in verdicts("atp", "ATP Table 6").items():
        assert bool(verdict) == ("FLOPs" not in unit)
    assert round(saved(Formula(2), [576] * 32, [144] * 32, SEVEN), 1) == 75.5


def test_adaptprune_fits_one_boundary_only_with_text():
    """84.7 % at K = 2 is not 81; K = 1 with 45 text tokens gives 81, 87 and, of 20 tiles, 88."""
    figures = [e for e in entries(["adaptprune"]) if e.schedule]
    read = [(e.printed, e.schedule.split("x")[0], bool(e.verdict)) for e in figures]
    reproduced = [(printed, K) for printed, K, verdict in read if verdict]
    assert reproduced == [("81", "3"), ("81", "1"), ("87", "1"), ("88", "1")]


@pytest.mark.parametrize("shape, printed", [(SEVEN, 81), (NEXT, 87), (INTERN._replace(tokens=5120), 88)],
                         ids=["7B", "NeXT", "InternVL"])
def test_adaptprune_text(shape, printed):
    """K = 1 with 42, 45 and 50 text tokens: 45 gives each figure, and only the 7B's, which is 82 with 42, depends on
    it."""
    whole = [shape.tokens] * 32
    cut = one_cut(shape.tokens, 32, 1, shape.tokens // 10)
    fewer = [round(saved(Formula(text=text), whole, cut, shape)) for text in (42, 45, 50)]
    assert fewer[1] == printed
    assert shape == SEVEN or len(set(fewer)) == 1


def test_ceiling_of_eq_7():
    """FastV's two figures of ASAP's Table 1: the ceiling gives that of 128, and of 192 the nearest number does."""
    printed = {e.row: (round(e.value, 3), bool(e.verdict)) for e in entries(["asap"]) if e.row.endswith("Eq. 7")}
    assert printed == {"FastV 192, Eq. 7": (1.265, False), "FastV 128, Eq. 7": (0.836, True)}
    assert verdicts("asap", "ASAP Table 1")["FastV 192", "T FLOPs", "1.259"]


def test_averages_of_accuracy():
    """Those that their own rows do not give; ASAP's at 192 would be the largest of its table."""
    averages = {e.row: e.value for e in entries(["asap"]) if e.table == "ASAP Table 1" and e.unit == "% of the scores"}
    assert unlike("asap", "% of the scores") == {
        "PruMerge+ 192": "95.94", "ASAP 192": "98.68", "SparseVLM 128": "95.55", "ASAP 128": "97.10"}
    assert len(averages) == 10 and round(averages["ASAP 192"], 2) == 100.09
    assert unlike("atp", "% of the score") == {
        "FastV 192, GQA": "83.8", "SparseVLM 128, POPE": "96.3", "ATP-LLaVA 88, VQAv2": "91.8"}
    assert unlike("atp", "% of the scores") == {"ATP-LLaVA 144": "98.1"}


def test_differences_of_accuracy():
    """ATP's text: three of eight differences are not those of its tables. 1.05 is the drop of the row without PP."""
    assert unlike("atp", "points") == {
        "VQAv2, above the best fixed ratio": "1.6", "drop without RP": "1.05", "gain of PP with SP": "0.9"}
    gain, = (e.value for e in entries(["atp"]) if e.row == "gain of PP with SP")
    assert agrees("1.05", gain)


def test_latency():
    """27 minutes and a half for 9000 questions are 0.1833 s each."""
    assert unlike("adaptprune", "s a question") == {"FastV": "0.182"}


# --- the command ------------------------------------------------------------------------------------------------------

def test_the_command(capsys):
    """All papers as text."""
    status, out, _ = done(capsys, "tables")
    assert status == 0
    assert "ASAP Table 1\n" in out
    assert "does not reproduce" in out
    assert out.splitlines()[-1].endswith("figures reproduce.")


def test_the_command_as_data(capsys):
    """ATP's upper bound with three matrices in the MLP is ASAP's."""
    status, out, _ = done(capsys, "tables", "atp", "--ffn", "3", "--json")
    upper = next(e for e in json.loads(out) if e["unit"] == "T FLOPs")
    assert status == 0
    assert round(upper["value"], 3) == 3.817
    assert upper["formula"].startswith("c=3")


@pytest.mark.parametrize("words, named", [(["fastv"], "adaptprune"), (["--ffn", "4"], "--ffn"),
                                          (["--text", "-1"], "--text")])
def test_bad_input(capsys, words, named):
    """One line that names the option, or the papers that there are."""
    status, out, err = done(capsys, "tables", *words)
    assert status == 2
    assert named in err
    assert len(err.splitlines()) == 1
    assert out == ""
