"""run.py lab: each lab runs, small; which choice is right, and every sentence, follow from the numbers, whatever these
are.
"""

import builtins
import sys
from types import SimpleNamespace

import pytest
import torch

from command import done
from minivlm.course import lab
from minivlm.course.labs import exam
from minivlm.course.labs.drawing import marks
from minivlm.course.labs.form import shares
from minivlm.course.labs.measuring import blind, budgets, clock, smaller
from minivlm.course.labs.mechanism import copies, late, positions, soft, twice, withdrawal
from minivlm.lab.attention import demo
from minivlm.lab.attention.watch import IDS
from minivlm.toy import benchmark
from pruning.fastv import FastV
from tiny import SHAPE


def said(module, numbers):
    """(the letter of the choice that is right, or None; all sentences in one line); table and picture are made, too."""
    assert list(module.table(numbers))
    assert module.picture(numbers).width > 300
    right = module.right(numbers)
    return None if right is None else module.LAB.letters[right], " ".join(module.sentences(numbers))


@pytest.fixture
def few(monkeypatch):
    """An exam of four questions."""
    def first(*words):
        return benchmark.items(*words)[:4]

    monkeypatch.setattr(exam, "benchmark", SimpleNamespace(items=first))


@pytest.mark.parametrize("name", lab.LABS)
def test_a_lab_runs(capsys, monkeypatch, tmp_path, few, name):
    """It asks first, then says which choice its numbers bear out, and draws them."""
    monkeypatch.setattr(clock, "decoder_only", lambda: SHAPE)
    monkeypatch.setattr("minivlm.lab.speed.measure.limits", lambda *of: dict(flops_per_second=1, bytes_per_second=1))
    picture = tmp_path / "lab.png"
    with torch.no_grad():
        status, out, _ = done(capsys, "lab", name, "--count", "2" if name == "late" else "1", "--predict", "a",
                              "--out", picture)
    words = lab.named(name).LAB
    assert status == 0 and picture.stat().st_size > 1000
    assert out.index(words.question) < out.index(words.choices[-1]) < out.index("The numbers ") < out.index("read on: ")
    assert "you predicted" in out or "none of the choices" in out


def test_the_list_has_every_lab_with_its_time(capsys):
    status, out, _ = done(capsys, "lab")
    assert status == 0
    for name in lab.LABS:
        words = lab.named(name).LAB
        assert f"{words.seconds} s   {words.question}" in out
        assert 2 <= len(words.choices) == len(set(words.choices)) and words.read_on


# --- the prediction ---------------------------------------------------------------------------------------------------

def answering(monkeypatch, *lines):
    """Lines that a reader types at a terminal."""
    typed = iter(lines)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda words: next(typed))


def test_a_terminal_is_asked_until_a_letter_comes(capsys, monkeypatch):
    answering(monkeypatch, "z", "B")
    status, out, _ = done(capsys, "lab", "budgets")
    assert status == 0 and "type one of a, b, c, or nothing" in out and "(as you predicted)" in out
    answering(monkeypatch, "")
    assert "predicted" not in done(capsys, "lab", "budgets")[1]


@pytest.mark.parametrize("words, message", [
    (["lab", "nothing"], "lab 'nothing' is not known: use one of late, positions"),
    (["lab", "budgets", "--predict", "d"], "--predict d: choose one of a, b, c"),
    (["lab", "budgets", "--out", "x.jpg"], "x.jpg: what is written is PNG"),
    (["lab", "--out", "x.png"], "which lab? Name one of late"),
    (["lab", "blind", "--count", "0"], "--count"),
])
def test_bad_input(capsys, words, message):
    status, out, err = done(capsys, *words)
    assert status == 2 and out == "" and message in err and len(err.splitlines()) == 1


# --- sentences from numbers -------------------------------------------------------------------------------------------

def half(low, high):
    """A row of `late` whose share of the lower half has this interval."""
    return dict(share=(low + high) / 2, interval=(low, high), map=[1.0] * demo.SIDE ** 2)


@pytest.mark.parametrize("usual, without, letter, words", [
    (half(.8, .9), half(.45, .55), "c", "The lower half has most of what is kept: 85 % (80 to 90)"),
    (half(.1, .2), half(.45, .55), "b", "The upper half has most"),
    (half(.4, .6), half(.45, .55), "a", "No bias can be told: 50 % (40 to 60)"),
    (half(.8, .9), half(.75, .85), "c", "Without rotation it stays: 80 % (75 to 85)"),
    (half(.8, .9), half(.6, .7), "c", "Without rotation it weakens: 65 % (60 to 70)"),
    (half(.8, .9), half(.1, .2), "c", "Without rotation it turns over"),
    (half(.8, .9), half(.4, .6), "c", "Without rotation it is gone"),
])
def test_late(usual, without, letter, words):
    rows = [dict(keys=keys, ids=ids, **without) for keys in demo.KEYS for ids in IDS]
    rows[0] = dict(rows[0], **usual)
    right, text = said(late, dict(heads=9, rows=rows))
    assert right == letter and words in text


def test_keys_without_a_common_direction_have_no_bias():
    """The control of the lab, and the lab's effect, on few heads."""
    rows = late.measure(16, 0)["rows"]
    assert late.side(rows[0]) == "lower"
    assert all(.4 < row["share"] < .6 for row in rows if row["keys"] == late.CONTROL)


def cached(far, length, half_far):
    """Numbers of `twice`: how far its logits are, the cache's length in the layer, and how far those of the half."""
    def row(name, length, prompt, later):
        return dict(name=name, lengths=[9, length, 5], bytes=14 + length, prompt=prompt, later=later, changed=.25)

    rows = [row("once", 9, 0., 0.), row("twice", length, far, far), row("twice, in the prompt only", 17, 0., half_far)]
    return dict(questions=8, rows=rows)


@pytest.mark.parametrize("numbers, letter, words", [
    (cached(1e-6, 18, .5), "c", "layer 1 holds 18 tokens, and else 9: 39% more bytes in all. The logits are the same"),
    (cached(1e-6, 18, .5), "c", "the logits of later tokens change by up to 0.5, and 25.0% of the likeliest words"),
    (cached(1e-6, 18, 0.), "c", "later tokens do not differ either"),
    (cached(.3, 18, .5), "a", "The logits change, by up to 0.3."),
    (cached(1e-6, 9, .5), "b", "0% more bytes"),
])
def test_twice(numbers, letter, words):
    right, text = said(twice, numbers)
    assert right == letter and words in text


def test_the_layer_that_runs_twice_holds_every_token_twice(few):
    """As in the released code; no other layer does, and nothing that is computed from it changes."""
    once, both, half_of_it = twice.measure(1, 0)["rows"]
    assert both["lengths"] == [n * (2 if layer == 1 else 1) for layer, n in enumerate(once["lengths"])]
    assert both["later"] < twice.SAME < half_of_it["later"]


def moved(most, low, high, agree=1e-5):
    """Numbers of `positions`."""
    row = dict(most=most, mean=most / 2, other=.125)
    other = dict(most=agree, mean=agree, other=0.)
    part = dict(share=.5, interval=(.4, .6))
    compared = dict(difference=(low + high) / 2, interval=(low, high))
    cases = dict(zip(positions.CASES, (row, other, other)))
    return dict(questions=8, cases=cases, right=dict(keep=part, renumber=part), against=compared)


@pytest.mark.parametrize("numbers, letter, words", [
    (moved(2., -.1, .1), "c", "neither gains nor loses, as far as can be told: +0.0 points (-10.0 to +10.0)"),
    (moved(2., -.3, -.1), "b", "renumbering loses -20.0 points (-30.0 to -10.0)"),
    (moved(2., .1, .3), "b", "renumbering gains +20.0 points"),
    (moved(2., -.1, .1), "c", "its beginning is dropped, the two agree to 1e-05"),
    (moved(2., -.1, .1, agree=.5), "c", "its end is dropped, the two differ, by up to 0.5"),
    (moved(1e-5, -.1, .1), "a", "The same tokens give the same logits"),
])
def test_positions(numbers, letter, words):
    right, text = said(positions, numbers)
    assert right == letter and words in text


def test_only_distances_of_positions_count(few):
    """All that is left moves alike, or does not move: the logits agree. Any other choice of tokens: they do not."""
    cases = positions.measure(1, 0)["cases"]
    usual, beginning, end = (cases[name]["most"] for name in positions.CASES)
    assert end == 0 and beginning < positions.SAME < usual


@pytest.mark.parametrize("share, letter, words", [
    (1., "b", "100 % (90 to 100) of the searches keep a token several times. Of the 9 places 4.0 hold an index"),
    (0., "a", "no search keeps a token twice, in 9 trials"),
])
def test_copies(share, letter, words):
    rows = [dict(distinct=distinct, search=search, share=share, interval=(share * .9, share), indices=4.)
            for distinct in copies.DISTINCT for search in copies.SEARCHES]
    right, text = said(copies, dict(trials=9, rows=rows))
    assert right == letter and words in text


def test_the_released_search_keeps_copies_twice():
    """Four different tokens among twelve: four different indices. Ours keeps nine; and so do both if all differ."""
    first, ours = copies.rows_of(copies.measure(3, 0), 4)
    assert (first["indices"], ours["indices"]) == (4, 9)
    assert all(row["share"] == 0 for row in copies.rows_of(copies.measure(3, 0), 12))


def apart(*shares):
    """Numbers of `soft` with these shares of questions apart, each known to a tenth."""
    rows = [dict(temperature=T, share=share, interval=(.9 * share, 1.1 * share), nats=share, other=.02, tokens=[9., 3.])
            for T, share in zip(soft.TEMPERATURES, shares)]
    return dict(questions=8, hard=[8., 2.], rows=rows)


@pytest.mark.parametrize("numbers, letter, words", [
    (apart(.8, .5, .1, .01, 0.), "b", "falls from 80 % (72 to 88) at T = 1 to 0 % (0 to 0) at T = 10000: the two meet"),
    (apart(.8, .5, .3, .2, .1), "c", "they come nearer, but do not meet"),
    (apart(.5, .5, .5, .5, .5), "c", "No fall can be told: from 50 % (45 to 55)"),
    (apart(0., 0., 0., 0., 0.), "a", "100, the two are apart on 0 % (0 to 0) of the questions"),
    (apart(.8, .5, .1, .01, 0.), "b", "+1.0 tokens from the number that is left"),
])
def test_soft(numbers, letter, words):
    right, text = said(soft, numbers)
    assert right == letter and words in text


def test_sharp_masks_are_the_hard_cut(few, monkeypatch):
    """After every module the masks sum to the number of tokens that the hard rule keeps; at T = 1 they do not."""
    monkeypatch.setattr(soft, "TEMPERATURES", (1, 10 ** 5))
    numbers = soft.measure(1, 0)
    first, last = (row["tokens"] for row in numbers["rows"])
    assert last == pytest.approx(numbers["hard"], abs=.1) and first != pytest.approx(numbers["hard"], abs=1)
    assert numbers["rows"][-1]["share"] == 0


def withdrawn(needed, of_others=1):
    """Numbers of `withdrawal`: before layers below `needed` answers are lost, before the others none can be told."""
    def row(K, name, lost):
        ends = (-.4, -.2) if lost else (-.1, .1)
        return dict(layer=K, method=name, gap=1 / K, interval=(.5 / K, 2 / K), right=.5,
                    against=dict(difference=sum(ends) / 2, interval=ends))

    until = (needed, of_others, of_others)
    rows = [row(K, name, K < first) for K in range(1, 8) for name, first in zip(withdrawal.METHODS, until)]
    return dict(questions=8, layers=8, unpruned=dict(share=1., interval=(.9, 1.)), rows=rows)


@pytest.mark.parametrize("needed, letter, words", [
    (4, "a", "The whole image, dropped before layer 4 or later, costs no answers that these questions show; before "
             "layer 3 it costs -30.0 points (-40.0 to -20.0)."),
    (7, "b", "The whole image, dropped before layer 7 or later"),
    (8, "c", "The whole image, dropped before layer 7, the last, costs answers: -30.0 points"),
    (4, "a", "All but random 10%, dropped before layer 1 or later, costs no answers that these questions show."),
])
def test_withdrawal(needed, letter, words):
    right, text = said(withdrawal, withdrawn(needed))
    assert right == letter and words in text


def test_budgets_are_counted_by_hand():
    """Two of 32 layers with 576 tokens and 30 with 288 are 306 on average; three and 29 are 315."""
    numbers = budgets.measure()
    right, text = said(budgets, numbers)
    assert right == "b" and "FastV, half: 306 tokens in a layer on average, or 315 if" in text
    ways = numbers["rows"][0]["ways"]
    one = 4 * 576 * 4096 ** 2 + 2 * 576 ** 2 * 4096 + 3 * 576 * 4096 * 11008
    less = 4 * 288 * 4096 ** 2 + 2 * 288 ** 2 * 4096 + 3 * 288 * 4096 * 11008
    assert ways["the usual"]["share"] == pytest.approx((2 * one + 30 * less) / (32 * one))


def test_budgets_follow_their_numbers():
    """Another way is right if it moves the share most; none is if schedules disagree."""
    numbers = budgets.measure()
    for row in numbers["rows"]:
        row["ways"]["2 matrices in the MLP, not 3"]["share"] = 1.0
    assert budgets.right(numbers) == 0
    numbers["rows"][0]["ways"]["with the text"]["share"] = 3.0
    assert budgets.right(numbers) is None


def times(prompt, token):
    """Numbers of `time`: FLOPs and cache promise five times; prompt and token get these, to a tenth of them.

    Three times, less a tenth, is less than half of the gain of four; with a tenth more it is more.
    """
    row = dict(tokens=58, flops=5., cache=5., read=1.1, prompt=(prompt, .9 * prompt, 1.1 * prompt),
               token=(token, .9 * token, 1.1 * token))
    return dict(shape="tiny", rounds=3, threads=2, rows=[row])


@pytest.mark.parametrize("prompt, token, letter, words", [
    (4., 1., "b", "is 4.00 (3.60 to 4.40) times as fast: 75% of the gain that FLOPs promise"),
    (4., 1., "b", "A new token is not faster in every round: 1.00 (0.90 to 1.10)"),
    (4., 4., "a", "A new token is 4.00 (3.60 to 4.40) times as fast"),
    (1.2, 1., "c", "5% of the gain"),
    (1.2, 4., None, "5% of the gain"),
    (3., 1., None, "The rounds disagree"),
])
def test_time(prompt, token, letter, words):
    right, text = said(clock, times(prompt, token))
    assert right == letter and words in text


@pytest.mark.parametrize("low, high, against, letter, words", [
    (.18, .28, (-.1, .1), "b", "Without the image 23 % (18 to 28) are right"),
    (.01, .09, (-.3, -.1), "a", "Less is right than always giving the commonest answer"),
    (.5, .6, (.1, .3), "c", "More is right than always giving the commonest answer"),
    (.05, .2, (-.1, .1), None, "No difference can be told to always giving the commonest answer"),
])
def test_blind(low, high, against, letter, words):
    parts = {name: dict(share=(low + high) / 2, interval=(low, high)) for name in blind.NAMES}
    compared = dict(difference=sum(against) / 2, interval=against)
    right, text = said(blind, dict(questions=8, all=parts, families=dict(exist=parts), against=compared))
    assert right == letter and words in text


@pytest.mark.parametrize("against, letter, words", [
    ((-.3, -.1), "c", "The smaller picture loses to divprune: -20.0 points (-30.0 to -10.0). "),
    ((.1, .3), "a", "The smaller picture beats divprune: +20.0 points"),
    ((-.1, .1), "b", "The smaller picture cannot be told from divprune"),
    ((-.1, .1), "b", "Families on which no loss to divprune can be told: read."),
    ((-.3, -.1), "c", "Families on which no loss to divprune can be told: none."),
])
def test_smaller(against, letter, words):
    names = (smaller.SMALLER, smaller.METHOD, smaller.RANDOM)
    parts = {name: dict(share=.5, interval=(.4, .6)) for name in names}
    compared = dict(difference=sum(against) / 2, interval=against)
    rivals = {smaller.METHOD: compared, smaller.RANDOM: compared}
    numbers = dict(questions=8, groups=dict(read=parts, all=parts), by_family=dict(read=compared), unsolved=4,
                   hard=parts, against=rivals)
    right, text = said(smaller, numbers)
    assert right == letter and words in text


def test_marks_of_an_axis_are_round():
    assert marks(9) == [0, 2, 4, 6, 8, 10] and marks(322) == [0, 100, 200, 300, 400]
    assert marks(.3) == pytest.approx([0, .1, .2, .3])


# --- the exam ---------------------------------------------------------------------------------------------------------

def test_the_exam_is_that_of_eval(capsys):
    """The next word decides as the whole answer does in `eval`: the same accuracy on the same questions."""
    asked = exam.Exam(1, 5)
    answers = asked.answers(lambda i: dict(none=None, fastv=FastV(keep=.1)))
    found = shares({name: asked.right(own) for name, own in answers.items()})
    with torch.no_grad():
        _, out, _ = done(capsys, "eval", "--method", "fastv", "--keep", "0.1", "--count", "1", "--seed", "5",
                         "--processes", "1", "--draws", "1")
    for name, label in (("none", "none "), ("fastv", "fastv 0.1")):
        line = next(line for line in out.splitlines() if line.startswith(label))
        assert f"{100 * found[name]['share']:.1f} " in line
