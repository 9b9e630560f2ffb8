"""Scoring a task: intervals against worked and published figures, contestants and their controls,
resumed and shared runs, bad input."""

import json
import os
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from PIL import Image

from command import done
from minivlm.generate import Conversation
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import parallel
from minivlm.lab.draw.chart import BOTTOM, COLORS, LEFT, RIGHT, TOP, WIDTH
from minivlm.lab.score.accuracy import against, facts, lines, paired, wilson
from minivlm.lab.score.answers import Contest, Remembering
from minivlm.lab.score.contestants import CONTROLS, Contestant, contestants
from minivlm.lab.score.curves import ASIDE, curves
from minivlm.lab.score.log import Log
from minivlm.lab.score.unsolved import lines as unsolved_lines, unsolved
from minivlm.llava import Llava
from minivlm.toy import benchmark, folder
from minivlm.toy.benchmark import Item
from minivlm.toy.student import config
from paths import MODEL, PARITY, ROOT
from pruning import METHODS
from pruning.base import Tokens, whole_grid, UserError
from pruning.compose import Both, Schedule
from pruning.controls import Random
from weights import load


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of the shipped model's shape, with random weights so large that answers differ."""
    torch.manual_seed(0)
    llava, path = Llava(config()), tmp_path_factory.mktemp("model")
    for p in llava.parameters():
        p.normal_(std=.3) if p.dim() > 1 else p
    folder.save(llava, path)
    return load(path, "float32")


@pytest.fixture(scope="module")
def data(model, tmp_path_factory):
    """Two questions a family, whose right answers are the model's own first words."""
    path = tmp_path_factory.mktemp("data")
    benchmark.write(path, count=2)
    rows = [json.loads(line) for line in (path / "questions.jsonl").read_text().splitlines()]
    contest = Contest(model, benchmark.read(path), [Contestant("none")], "llava-hf", max_new_tokens=1)
    results = contest.run(Log(None, {}))
    lines = [json.dumps(row | dict(answer=result["answers"][0])) for row, result in zip(rows, results)]
    (path / "questions.jsonl").write_text("\n".join(lines))
    return path


def command(model, data, *more):
    """One word an answer, FastV at a tenth."""
    words = ["eval", "--model", model.folder, "--data", data, "--method", "fastv", "--keep", "0.1",
             "--max-new-tokens", 1, "--processes", 1, *more]
    return [str(word) for word in words]


# --- intervals --------------------------------------------------------------------------------------------------------

def test_wilson_by_hand():
    """All of n: from n / (n + z^2), with z^2 = 3.8415; half of ten:
    .5 -+ sqrt(.025 z^2 + z^4 / 400) / (1 + z^2 / 10)."""
    assert wilson(1, 10) == (pytest.approx(10 / 13.8415, abs=1e-5), pytest.approx(1))
    assert wilson(0, 10) == (0, pytest.approx(3.8415 / 13.8415, abs=1e-5))
    assert wilson(.5, 10) == pytest.approx((.5 - .36460 / 1.38415, .5 + .36460 / 1.38415), abs=1e-4)


def test_paired_as_published():
    """The example of ci.prop.ps in R's statpsych: 26 won and 4 lost of 48 is .2548067 to .6251933."""
    assert paired([1] * 26 + [-1] * 4 + [0] * 18) == pytest.approx((.2548067, .6251933), abs=1e-6)


def test_paired_by_hand():
    """Ten questions alike: 0 -+ z sqrt(2 / 12 / 12). Thirds, 2/3 and -1/3:
    1/3 in the middle of four, squares 5/9 + 2."""
    assert paired([0] * 10) == pytest.approx((-1.959964 * (1 / 72) ** .5, 1.959964 * (1 / 72) ** .5))
    half = 1.959964 * ((23 / 9 / 4 - (1 / 12) ** 2) / 4) ** .5
    assert paired([2 / 3, -1 / 3]) == pytest.approx((1 / 12 - half, 1 / 12 + half))
    assert paired([1] * 3)[1] == 1 and paired([-1] * 3)[0] == -1, "no difference is larger than one"


def test_a_difference_is_ours_less_theirs():
    """Two lost, one won, of four; a third of a question lost where one of three draws was wrong."""
    result = against([0, 0, 1, 1], [1, 1, 0, 1])
    assert (result["difference"], result["won"], result["lost"]) == (-.25, 1, 2) and sum(result["interval"]) < 0
    assert against([2 / 3], [1])["lost"] == pytest.approx(1 / 3)


# --- results ----------------------------------------------------------------------------------------------------------

KEPT = dict(kept=["3"], statistics=dict(cosine=.5, distance=1.0, rank=2.0))


def typed_rows(fastv=lambda i: i % 10 == 0, n=40):
    """No pruning is always right, random tokens half of the time, FastV as `fastv` says; ATP does not run."""
    items = [Item(i, None, "ab"[i % 2], "?", "yes", ()) for i in range(n)]
    entered = [
        Contestant("none"),
        *(Contestant(name, "0.1", METHODS[name](keep=0.1)) for name in ("random", "fastv")),
        Contestant("atp", why_not="no module"),
    ]
    row = lambda label, i, right: dict(
        contestant=label, question=i, right=float(right), visual=[14.0, 6.0], evidence=0.5 if i % 2 else None, **KEPT
    )
    right = {"none": lambda i: 1, "random 0.1": lambda i: .5, "fastv 0.1": fastv}
    return items, entered, [row(label, i, of(i)) for label, of in right.items() for i in range(n)]


def report_of(items, entered, rows):
    recipe = dict(model="M", task="scenes", data=None, split=None, dtype="float32")
    return dict(recipe=recipe, questions=len(items), contestants=facts(items, entered, rows))


def test_numbers_of_a_contestant():
    """FastV is right if i is 0, 10, 20 or 30, which are even: four of the twenty of family a, and none of b.
    Evidence is known for b."""
    none, random, fastv, atp = facts(*typed_rows())
    assert fastv["all"]["accuracy"] == .1
    assert [fastv["families"][family]["accuracy"] for family in "ab"] == [.2, 0]
    assert fastv["families"]["b"]["evidence"] == .5
    assert fastv["families"]["a"]["evidence"] is None
    assert fastv["tokens"] == 10
    assert fastv["all"]["interval"] == wilson(.1, 40) and fastv["families"]["b"]["interval"] == wilson(0, 20)
    against = fastv["all"]["against"]
    assert against["none"]["difference"] == -.9 and against["random 0.1"]["difference"] == pytest.approx(-.4)
    assert set(random["all"]["against"]) == {"none"} and not none["all"]["against"] and atp["why_not"] == "no module"


def test_worse_than_random_is_said():
    """At one in ten against a half; not at four in ten, which may be chance."""
    text = "\n".join(lines(report_of(*typed_rows())))
    assert "fastv 0.1 is worse than random" in text and "atp" in text and "does not run here: no module" in text
    assert "worse" not in "\n".join(lines(report_of(*typed_rows(lambda i: i % 5 < 2))))


def test_a_contestant_that_fails_on_one_question_does_not_run():
    items, entered, rows = typed_rows()
    rows[50] = dict(contestant="random 0.1", question=10, why_not="too few tokens")
    report = facts(items, entered, rows)
    assert report[1] == dict(contestant="random 0.1", method="random", budget="0.1", why_not="too few tokens")
    assert set(report[2]["all"]["against"]) == {"none"}
    rows[3] = dict(contestant="none", question=3, why_not="too long")
    with pytest.raises(UserError, match="too long"):
        facts(items, entered, rows)


def small_picture(right, keep="0.1"):
    """The made-up rows, and those of downsample_image."""
    items, entered, rows = typed_rows()
    entered.append(Contestant("downsample_image", keep, METHODS["downsample_image"](.1)))
    label = f"downsample_image {keep}"
    rows += [dict(contestant=label, question=i, right=float(right(i)), visual=[9.], evidence=None, **KEPT) for i in range(len(items))]
    return items, entered, rows


def test_questions_that_a_smaller_picture_does_not_solve():
    """It is right from question 10 on; of 0 to 9 FastV answers 0, one of ten, where it is 4 of 40 over all. No pruning is
    wrong on 0 to 4, which are not difficult: of 5 to 9 FastV answers none, random tokens a half."""
    items, entered, rows = small_picture(lambda i: i >= 10)
    for row in rows:
        if row["contestant"] == "none" and row["question"] < 5:
            row["right"] = 0.
    (group,) = unsolved(items, entered, rows)
    assert (group["budget"], group["questions"], group["share"], group["difficult"]) == ("0.1", 10, .25, 5)
    assert group["interval"] == wilson(.25, 40)
    of = {row["contestant"]: row for row in group["contestants"]}
    assert list(of) == ["none", "random 0.1", "fastv 0.1", "downsample_image 0.1"]
    assert [of[name]["unsolved"]["accuracy"] for name in of] == [.5, .5, .1, 0]
    assert [of[name]["difficult"]["accuracy"] for name in of] == [1, .5, 0, 0]
    assert of["fastv 0.1"]["unsolved"]["interval"] == wilson(.1, 10)
    text = "\n".join(unsolved_lines([group]))
    assert "does not solve 10 questions, 25.0 % (14.2-40.2); no pruning solves 5 of these" in text
    assert " ".join(text.splitlines()[5].split()) == "fastv 0.1 10.0 1.8-40.4 0.0 0.0-43.4"


def test_without_the_smaller_picture_there_is_no_such_table():
    assert unsolved(*typed_rows()) == [] and list(unsolved_lines([])) == []


def test_each_budget_has_questions_of_its_own():
    """A contestant at another budget is not compared; a picture that solves all leaves nothing to compare on."""
    (group,) = unsolved(*small_picture(lambda i: True, keep="0.5"))
    assert [row["contestant"] for row in group["contestants"]] == ["none", "downsample_image 0.5"]
    assert group["questions"] == 0 and group["contestants"][0]["unsolved"] is None
    assert "does not solve 0 questions" in "\n".join(unsolved_lines([group]))


@pytest.mark.internal
def test_picture():
    """FastV's dot stands at 10 of 10 tokens, half a step aside, and 10 %;
    each name of the legend has a line of its own."""
    page = curves(report_of(*typed_rows()))
    x, y = WIDTH - RIGHT - ASIDE // 2, round(TOP + (page.height - TOP - BOTTOM) * .9)
    assert [i for i in range(WIDTH - RIGHT + 20) if page.getpixel((i, y)) == COLORS[0]] == list(range(x - 5, x + 6))
    assert page.getpixel((LEFT + 50, TOP + 1)) == (20, 20, 20), "no pruning lies on top, at 100 %"
    right = page.crop((WIDTH - RIGHT + 45, TOP, WIDTH, TOP + 120)).convert("L")
    inked = [min(right.crop((0, y, right.width, y + 1)).tobytes()) < 200 for y in range(right.height)]
    assert [any(inked[30 * i:30 * i + 24]) for i in range(4)] == [True, True, True, False]
    assert not any(inked[y] for y in (25, 55, 85))


# --- contestants ------------------------------------------------------------------------------------------------------

def entered(model, names, keeps="0.1", settings=()):
    return contestants(model, torch.zeros(1, 3, 96, 96), names, keeps, settings)


def test_controls_are_always_there(model):
    """At the site of each method and at each budget, once, whatever --method names.
    The rival of a method is random at its site."""
    assert [entrant.label for entrant in entered(model, "fastv")] == ["none", "random 0.1", "uniform 0.1", "fastv 0.1"]
    assert [entrant.label for entrant in entered(model, "none")] == ["none", "random 0.1", "uniform 0.1"]
    entrants = {entrant.label: entrant for entrant in entered(model, "vispruner,fastv,random", "0.5,9")}
    assert set(entrants) == {
        "none",
        *(f"{name}{site} {keep}" for name in CONTROLS for site in ("", " embed") for keep in ("0.5", "9")),
        "vispruner 0.5", "vispruner 9", "fastv 0.5", "fastv 9",
    }
    assert entrants["fastv 9"].rival == "random 9" and entrants["vispruner 0.5"].rival == "random embed 0.5"
    assert entrants["random embed 9"].pruner == Random(keep=9, site="embed")
    assert entrants["random 0.5"].pruner == Random(keep=.5)


def test_controls_act_at_the_layer_of_each_method(model):
    """FastV moved to layer 3, ASAP at 2, DivPrune before layer 0:
    a control at each, the rival of the one that acts there."""
    entrants = {entrant.label: entrant for entrant in entered(model, "fastv,asap,divprune", settings=["fastv.layer=3"])}
    assert list(entrants) == [
        "none", "random 0.1", "uniform 0.1", "random@3 0.1", "uniform@3 0.1", "random embed 0.1",
        "uniform embed 0.1", "fastv 0.1", "asap 0.1", "divprune 0.1",
    ]
    assert [entrants[f"{name} 0.1"].rival for name in ("fastv", "asap", "divprune")] == [
        "random@3 0.1", "random 0.1", "random embed 0.1"
    ]
    assert entrants["random@3 0.1"].pruner == Random(keep=.1, layer=3) and entrants["uniform@3 0.1"].pruner.layer == 3
    assert [entrant.label for entrant in entered(model, "fastv", settings=["layer=3"])] == [
        "none", "random@3 0.1", "uniform@3 0.1", "fastv 0.1"
    ]
    assert [entrant.label for entrant in entered(model, "fastv", settings=["layer=99"])] == [
        "none", "random 0.1", "uniform 0.1", "fastv 0.1"
    ]


def test_a_method_of_several_cuts_has_controls_of_its_own(model):
    """PyramidDrop before layers 2, 4 and 6 of 8 leaves 72, 36 and 18 of 144 tokens,
    and so do random and uniform ones."""
    entrants = {entrant.label: entrant for entrant in entered(model, "pyramiddrop", settings=["layers=2,4,6"])}
    assert list(entrants) == [
        "none", "random 0.1", "uniform 0.1", "random as pyramiddrop", "uniform as pyramiddrop", "pyramiddrop"
    ]
    counts = [144, 144, 72, 72, 36, 36, 18, 18]
    assert entrants["pyramiddrop"].pruner.schedule(144, 8) == counts
    assert entrants["pyramiddrop"].rival == "random as pyramiddrop"
    assert [entrants[f"{name} as pyramiddrop"].pruner.schedule(144, 8) for name in CONTROLS] == [counts, counts]


def test_controls_of_a_plus_b(model):
    """64 of 144 tokens before the decoder, 16 of them before layer 3; a setting of A or of B needs no other name."""
    for setting in ("fastv.layer=3", "vispruner+fastv.fastv.layer=3"):
        entrants = {
            entrant.label: entrant for entrant in entered(model, "vispruner+fastv", "64+16", settings=[setting])
        }
        assert list(entrants) == [
            "none", "random as vispruner+fastv 64+16", "uniform as vispruner+fastv 64+16",
            "vispruner+fastv 64+16",
        ]
        counts = [64] * 3 + [16] * 5
        assert entrants["vispruner+fastv 64+16"].pruner.schedule(144, 8) == counts
        rival = entrants[entrants["vispruner+fastv 64+16"].rival].pruner
        assert rival.schedule(144, 8) == counts and {type(method) for method in rival.methods} == {Random, Schedule}


def test_controls_of_what_leaves_no_choice(model):
    """VTW leaves no token and the prompt decides for PruMerge: no random tokens can be compared with them."""
    labels = [entrant.label for entrant in entered(model, "vtw,prumerge", settings=["vtw.layer=7"])]
    assert labels == ["none", "random embed 0.1", "uniform embed 0.1", "vtw", "prumerge 0.1"]


def test_settings(model, tmp_path):
    """Those of --set go to a method or a control. A method without any takes those of the model's methods.json."""
    pruners = {
        entrant.label: entrant.pruner for entrant in entered(model, "fastv", settings=["layer=3", "random.layer=3"])
    }
    assert pruners["fastv 0.1"].layer == pruners["random@3 0.1"].layer == 3
    (model.folder / "methods.json").write_text(json.dumps({"fastv": ["layer=4"], "pyramiddrop": ["layers=2,4,6"]}))
    pruners = {entrant.label: entrant.pruner for entrant in entered(model, "fastv,pyramiddrop")}
    (model.folder / "methods.json").unlink()
    assert pruners["fastv 0.1"].layer == 4 and pruners["pyramiddrop"].layers == (2, 4, 6)


def test_variants_of_a_method(model):
    """One table holds a method with kept and with new position ids, each with settings of its own."""
    found = entered(model, "divprune,divprune@positions=keep")
    variants = {c.label: c.pruner for c in found if c.method.startswith("divprune")}
    assert {label: (pruner.positions, pruner.keep) for label, pruner in variants.items()} == {
        "divprune 0.1": ("renumber", .1), "divprune@positions=keep 0.1": ("keep", .1)}
    assert {c.rival for c in found if c.label in variants} == {"random embed 0.1"}
    with pytest.raises(UserError, match="positions is one of keep, renumber"):
        entered(model, "divprune@positions=lost")


def test_controls_go_where_a_variant_drops(model, data):
    """An average of 72 of 144 tokens in 8 layers: FastV keeps 48 before layer 2, (2 * 144 + 6 * 48) / 8, and 29 before
    layer 3. Random and uniform tokens keep as many, at each place."""
    entrants = contestants(model, torch.zeros(1, 3, 96, 96), "fastv,fastv@layer=3,divprune", settings=[], average="72")
    labels = [entrant.label for entrant in entrants]
    assert labels == [
        "none", "random average 72", "uniform average 72", "random@3 average 72", "uniform@3 average 72",
        "random embed average 72", "uniform embed average 72",
        "fastv average 72", "fastv@layer=3 average 72", "divprune average 72",
    ]
    assert [entrant.rival for entrant in entrants[-3:]] == [labels[1], labels[3], labels[5]]
    contest = Contest(model, benchmark.read(data)[:1], entrants, "llava-hf", draws=1, max_new_tokens=1)
    visual = {row["contestant"]: row["visual"] for row in contest.run(Log(None, {}))}
    assert visual["fastv average 72"] == [144] * 2 + [48] * 6
    assert visual["fastv@layer=3 average 72"] == [144] * 3 + [29] * 5
    assert visual["divprune average 72"] == [72] * 8
    for entrant in entrants[-3:]:
        assert visual[entrant.rival] == visual[entrant.label] == visual[entrant.rival.replace("random", "uniform")]


def test_an_average_is_solved_for_on_each_picture():
    """A flat picture has fewer tokens than a square one: 50 on average are other shares of them."""
    tiles = load(PARITY / "next_vicuna")
    pictures = [Image.new("RGB", size) for size in ((96, 96), (96, 40))]
    pixels = [tiles.processor.pixels(picture) for picture in pictures]
    counts = [tiles.visual_tokens(each) for each in pixels]
    assert counts[0] != counts[1]
    items = [Item(i, picture, "a", "What?", "", ()) for i, picture in enumerate(pictures)]
    entrants = contestants(tiles, pixels[0], "fastv@layer=1", settings=[], average="50")
    rows = Contest(tiles, items, entrants, "llava-hf", draws=1, max_new_tokens=1).run(Log(None, {}))
    for row in rows:
        if row["contestant"] != "none":
            average = sum(row["visual"]) / len(row["visual"])
            assert 50 <= average < 51 and row["visual"][0] == counts[row["question"]]


def test_a_schedule_for_each_method(model):
    """Before layers 2 and 4; the controls leave as many."""
    labels = {c.label: c for c in contestants(model, torch.zeros(1, 3, 96, 96), "fastv", schedule="2:72,4:9")}
    assert list(labels) == ["none", *(f"{name}fastv 2:72,4:9" for name in ("random as ", "uniform as ", ""))]
    for label in list(labels)[1:]:
        assert labels[label].pruner.schedule(144, 8) == [144] * 2 + [72] * 2 + [9] * 4


def test_all_methods_with_reasons(model):
    """Each is there, with a budget where it has one; those that cannot run say why, also if they were named."""
    entrants = {entrant.method: entrant for entrant in entered(model, "all")}
    assert {*METHODS} <= set(entrants) and not entrants["fastv"].why_not and entrants["vtw"].budget is None
    assert "run.py train atp" in entrants["atp"].why_not and "layer 16" in entrants["sparsevlm"].why_not
    assert "run.py train atp" in entered(model, "atp")[-1].why_not
    tiles = load(PARITY / "next_vicuna")
    pixels = tiles.processor.pixels(Image.new("RGB", (96, 96)))
    reasons = {entrant.method: entrant.why_not for entrant in contestants(tiles, pixels, "all", "4", [])}
    # 4 of all tokens are possible, but not 4 shared evenly by five tiles
    assert not reasons["divprune"] and "keep 4 is out of range" in reasons["vispruner"]
    with pytest.raises(UserError, match="keep 4 is out of range"):
        contestants(tiles, pixels, "vispruner", "4", [])


# --- asking -----------------------------------------------------------------------------------------------------------

def test_random_methods_are_drawn_anew_for_each_question(model):
    """Three seeds a question, no two the same; what has no seed of its own, once."""
    contest = Contest(model, [], [], "llava-hf")
    seeds = [pruner.seed for i in range(5) for pruner in contest.drawn(Random(seed=7), i)]
    assert len(set(seeds)) == 15
    assert contest.drawn(None, 3) == [None]
    assert contest.drawn(METHODS["sparsevlm"](), 0) == [METHODS["sparsevlm"]()]


def test_what_is_random_in_a_schedule_or_composition_is_drawn_anew(model):
    """In A+B both draws; in what is not random, nothing."""
    contest = Contest(model, [], [], "llava-hf")
    both = Both((Random(keep=64, site="embed"), Schedule(Random(seed=5), (2, 4), (16, 8))))
    drawn = contest.drawn(both, 1)
    assert [(pruner.methods[0].seed, pruner.methods[1].method.seed) for pruner in drawn] == [(3, 8), (4, 9), (5, 10)]
    assert [pruner.method.seed for pruner in contest.drawn(both.methods[1], 1)] == [8, 9, 10]
    fixed = Schedule(METHODS["fastv"](), (2, 4), (16, 8))
    assert contest.drawn(fixed, 1) == [fixed]


def test_controls_of_a_schedule_leave_as_many(model, data):
    """In every layer, as it runs: PyramidDrop, and random and uniform tokens in its place."""
    several = entered(model, "pyramiddrop", settings=["layers=2,4,6"])[3:]
    rows = Contest(model, benchmark.read(data)[:1], several, "llava-hf", max_new_tokens=1).run(Log(None, {}))
    assert [row["contestant"] for row in rows] == ["random as pyramiddrop", "uniform as pyramiddrop", "pyramiddrop"]
    assert [row["visual"] for row in rows] == [[144, 144, 72, 72, 36, 36, 18, 18]] * 3


def test_oracles_know_where_the_things_are(model):
    """14 of 144 tokens: of 20 patches of things 14 or none, of 5 all and 9 others. Drawn anew for each question."""
    many, few = range(40, 60), (3, 4, 5, 77, 143)
    items = [Item(0, None, "scene", "", "", (), tuple(many)), Item(1, None, "scene", "", "", (), few)]
    entered = contestants(model, torch.zeros(1, 3, 96, 96), "divprune", "0.1", [], oracles=True)
    contest = Contest(model, items, entered, "llava-hf")
    tokens = Tokens.start(torch.zeros(150, 4), torch.arange(3, 147), whole_grid(12, 12))
    first, last = (
        next(entrant.pruner for entrant in entered if entrant.label == f"{name} embed 0.1")
        for name in ("things", "background")
    )
    kept = [
        [set(p.reduce(tokens).keep.tolist()) for p in contest.drawn(pruner, i)]
        for pruner in (first, last)
        for i in (0, 1)
    ]
    assert all(keep == set(many[:14]) for keep in kept[0]) and kept[2][0] != kept[2][1]
    assert all(keep > set(few) and len(keep) == 14 for keep in kept[1])
    assert not any(keep & set(many) for keep in kept[2]) and not any(keep & set(few) for keep in kept[3])


def test_random_counts_by_its_share_of_right_draws(model, data):
    """Before layer 0, where draws differ: of some question one or two of three are right."""
    items = benchmark.read(data)
    entered = [Contestant("random embed", "0.5", Random(keep=.5, site="embed"))]
    rows = Contest(model, items, entered, "llava-hf", max_new_tokens=1).run(Log(None, {}))
    for row in rows:
        right = [answer == items[row["question"]].answer for answer in row["answers"]]
        assert len(right) == 3
        assert row["right"] == sum(right) / 3
    assert any(0 < row["right"] < 1 for row in rows) and all(row["visual"] == [72] * 8 for row in rows)


@pytest.mark.internal
def test_pictures_are_encoded_once(model, data, monkeypatch):
    """Once for all contestants, VisPruner too, and once at each size for downsample_image; and the answers are those of a conversation of its own."""
    items, calls = benchmark.read(data)[2:8], Counter()
    entered = contestants(model, torch.zeros(1, 3, 96, 96), "vispruner,downsample_image,fastv", "0.5,0.1", [])
    forward = type(model.vision_tower).forward
    monkeypatch.setattr(
        type(model.vision_tower), "forward", lambda self, *args: calls.update([args[1]]) or forward(self, *args)
    )
    rows = Contest(model, items, entered, "llava-hf", draws=1, max_new_tokens=2).run(Log(None, {}))
    pictures = Counter(item.image for item in items)
    assert list(pictures.values()) == [4, 2] and list(calls.values()) == [3 * 2]
    assert not isinstance(model.vision_tower, Remembering)
    for row in rows[::7]:
        pruner = next(entrant.pruner for entrant in entered if entrant.label == row["contestant"])
        drawn, = Contest(model, [], [], "", draws=1).drawn(pruner, row["question"])
        talk = Conversation(model, drawn)
        item = items[row["question"]]
        talk.read(model.tokenizer.encode(prompt([(item.question, None)], 1)), [model.processor.pixels(item.picture)])
        assert row["answers"] == (model.tokenizer.decode(list(talk.generate(2))).strip(),), row


# --- the command ------------------------------------------------------------------------------------------------------

def test_the_command(capsys, model, data, tmp_path):
    """No pruning gives its own answers, always; FastV keeps 14 of 144 from layer 2 of 8 on;
    table, JSON and picture agree."""
    status, out, err = done(capsys, *command(model, data, "--out", tmp_path / "a.json"))
    assert status == 0, err
    report = json.loads((tmp_path / "a.json").read_text())
    none, random, uniform, fastv = report["contestants"]
    assert report["questions"] == 16
    assert none["all"]["accuracy"] == 1
    assert none["all"]["evidence"] == 1
    assert none["tokens"] == 144
    assert fastv["tokens"] == (2 * 144 + 6 * 14) / 8
    assert 0 < fastv["all"]["evidence"] < .5
    assert len(fastv["families"]) == 8
    assert fastv["all"]["against"]["none"]["difference"] == fastv["all"]["accuracy"] - 1 < 0
    assert report["recipe"]["fastv 0.1"].startswith("FastV(layer=2, keep=0.1")
    fastv_line = next(line for line in out.splitlines() if line.startswith("fastv 0.1"))
    assert f"{100 * fastv['all']['accuracy']:.1f} " in fastv_line
    assert Image.open(tmp_path / "a.png").width == WIDTH
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1 + 4 * 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.jsonl", "a.png"]


def test_questions_drawn_here_are_those_of_a_folder(capsys, model, tmp_path):
    """Drawn by its seed, or written by `scenes` and read, the set is the same. --count 1 takes a folder's first
    question of each family."""
    options = [
        "--max-new-tokens", 1, "--processes", 1, "--method", "none", "--draws", 1, "--model", model.folder,
        "--keep", "9",
    ]
    benchmark.write(tmp_path / "scenes", "pairs", 2, seed=5)
    for out, more in (
        ("drawn", ["--split", "pairs", "--seed", 5, "--count", 2]),
        ("read", ["--data", tmp_path / "scenes"]),
        ("less", ["--data", tmp_path / "scenes", "--count", 1]),
    ):
        assert done(capsys, "eval", *options, *more, "--out", tmp_path / f"{out}.json")[0] == 0
    drawn, read, less = (json.loads((tmp_path / f"{out}.json").read_text()) for out in ("drawn", "read", "less"))
    assert drawn["contestants"] == read["contestants"] and less["questions"] == 8


def interrupted(monkeypatch, after):
    """Ctrl-C in the answer after so many."""
    answer, calls = Contest.answer, []

    def stopped(*args):
        calls.append(args)
        if len(calls) > after:
            raise KeyboardInterrupt
        return answer(*args)
    monkeypatch.setattr(Contest, "answer", stopped)
    return calls, answer


def test_interrupted_and_gone_on_with(capsys, model, data, tmp_path, monkeypatch):
    """After 20 answers three questions are done, six answers each, and the fourth has only that of `none`.
    The rest is asked, and no question twice."""
    assert done(capsys, *command(model, data, "--count", 1, "--out", tmp_path / "whole.json"))[0] == 0
    again = command(model, data, "--count", 1, "--out", tmp_path / "part.json")
    _, answer = interrupted(monkeypatch, 20)
    assert done(capsys, *again)[0] == 130
    lines = (tmp_path / "part.jsonl").read_text().splitlines()
    assert len(lines) == 1 + 3 * 4 + 1 and not (tmp_path / "part.json").exists()
    # the last line is cut short: its question is asked again
    (tmp_path / "part.jsonl").write_text("\n".join(lines)[:-9])
    monkeypatch.setattr(Contest, "answer", answer)
    calls, _ = interrupted(monkeypatch, 1000)
    assert done(capsys, *again)[0] == 0 and len(calls) == 8 * 6 - 3 * 6
    assert (tmp_path / "part.json").read_text() == (tmp_path / "whole.json").read_text()
    calls.clear()
    assert done(capsys, *again)[0] == 0 and not calls


def test_another_recipe_is_refused(capsys, model, data, tmp_path):
    """Other options, or other questions or weights under the same names. A file of another kind is not touched."""
    again = command(model, data, "--count", 1, "--out", tmp_path / "a.json")
    assert done(capsys, *again)[0] == 0
    for words, message in (
        (["--draws", 2], "draws 3"),
        (["--keep", "0.2"], "random 0.1"),
        (["--set", "fastv.layer=3"], "random 0.1"),
        (["--method", "fastv,fastv@layer=3"], "random@3 0.1"),
        (["--method", "fastv@keep=0.1"], "fastv 0.1"),
        (["--set", "fastv.layer=2,1"], "fastv 0.1"),
        (["--count", 2], "count 1"),
    ):
        status, out, err = done(capsys, *again, *words)
        assert status == 2 and message in err and len(err.splitlines()) == 1 and not out
    rows = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(rows.replace('"version": 2, ', "", 1))
    assert "is of a run with version None, and this one has 2" in done(capsys, *again)[2], "its rows have other columns"
    (tmp_path / "a.jsonl").write_text(rows)
    lines = (data / "questions.jsonl").read_text()
    (data / "questions.jsonl").write_text(lines.replace("is there", "is here", 1))
    assert "run with questions" in done(capsys, *again)[2]
    (data / "questions.jsonl").write_text(lines)
    (tmp_path / "b.jsonl").write_text('{"image": "mine.png"}\n')
    status, _, err = done(capsys, *command(model, data, "--out", tmp_path / "b.json"))
    assert status == 2 and "something else" in err and (tmp_path / "b.jsonl").read_text() == '{"image": "mine.png"}\n'


def test_weights_are_part_of_the_recipe(model):
    """One value of one matrix is enough."""
    before = Contest(model, [], [Contestant("none")], "").recipe()
    weight = model.language_model.layers[5].mlp.up_proj.weight
    weight[0, 3] += 1
    after = Contest(model, [], [Contestant("none")], "").recipe()
    weight[0, 3] -= 1
    assert before["weights"] != after["weights"] and before | dict(weights=0) == after | dict(weights=0)


@pytest.mark.parametrize("words, message", [
    (["--task", "popes"], "invalid choice"),
    (["--data", "nowhere"], "nowhere/questions.jsonl"),
    (["--split", "pairs"], "--split and --seed"),
    (["--seed", "1"], "--split and --seed"),
    (["--count", "0"], "--count 0"),
    (["--draws", "0"], "--draws 0"),
    (["--processes", "-1"], "--processes -1"),
    (["--max-new-tokens", "0"], "--max-new-tokens 0"),
    (["--method", "slowv"], "slowv"),
    (["--keep", "1.5"], "keep 1.5"),
    (["--keep", "145"], "keep 145"),
    (["--keep", "few"], "few"),
    (["--keep", "0.1,"], "keep"),
    (["--method", "fastv,asap", "--set", "layer=3"], "METHOD.OPTION"),
    (["--set", "asap.layer=3"], "asap.layer=3"),
    (["--out", "a.png"], "*.json"),
    (["--out", "/no/such/folder/a.json"], "/no/such/folder"),
    (["--model", "nowhere"], "nowhere"),
])
def test_bad_input_is_one_line(capsys, model, data, words, message):
    status, out, err = done(capsys, *command(model, data), *words)
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not out


@pytest.mark.parametrize("words, message", [(["--split", "test"], "set 'test'"), (["--seed", "-1"], "seed -1")])
def test_bad_sets_are_one_line(capsys, model, words, message):
    status, out, err = done(capsys, "eval", "--model", model.folder, *words)
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not out


GOOD = dict(image="00000.png", family="exist", question="is it ?", answer="yes", evidence=[3])


@pytest.mark.parametrize("line, message", [
    ("{", "line 2: no question in JSON"),
    ("[1]", "line 2: no question in JSON"),
    ("5", "line 2"),
    (json.dumps({name: x for name, x in GOOD.items() if name != "answer"}), "line 2: there is no 'answer'"),
    (json.dumps(GOOD | dict(image="none.png")), "none.png"),
    (json.dumps(GOOD | dict(image="questions.jsonl")), "no picture"),
    (json.dumps(GOOD | dict(answer=3)), "line 2: image, family, question and answer are words"),
    (json.dumps(GOOD | dict(evidence=[144])), "below 144"),
    (json.dumps(GOOD | dict(evidence=3)), "line 2"),
])
def test_bad_folders_are_one_line(capsys, model, tmp_path, line, message):
    Image.new("RGB", (96, 96)).save(tmp_path / "00000.png")
    (tmp_path / "questions.jsonl").write_text(json.dumps(GOOD) + "\n" + line)
    status, out, err = done(capsys, *command(model, tmp_path))
    assert status == 2 and message in err and len(err.splitlines()) == 1 and not out
    (tmp_path / "questions.jsonl").write_text("\n")
    assert "no question in it" in done(capsys, *command(model, tmp_path))[2]


def test_a_model_that_cuts_pictures_into_tiles(capsys, data, tmp_path):
    """Where its tokens lie in the drawn picture is not known, nor which are evidence; all else is."""
    tiles = load(PARITY / "next_vicuna")
    status, _, err = done(
        capsys, *command(tiles, data, "--count", 1, "--set", "fastv.layer=1", "--out", tmp_path / "a.json")
    )
    assert status == 0, err
    fastv = json.loads((tmp_path / "a.json").read_text())["contestants"][-1]
    assert fastv["method"] == "fastv" and fastv["all"]["evidence"] is None and fastv["tokens"] > 16


# --- several processes ------------------------------------------------------------------------------------------------

def started(*argv, env=None):
    """A process of its own that has ended well."""
    ended = subprocess.run(
        [sys.executable, *map(str, argv)],
        cwd=ROOT,
        env=os.environ | dict(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def sleeps_or_fails():
    """The first process has work for ten minutes, the second is refused."""
    if os.environ["RANK"] == "0":
        time.sleep(600)
    return 3


def test_processes_end_with_the_first_that_fails():
    """As under torchrun: the others would wait for its rows for ever."""
    start = time.monotonic()
    assert parallel.spread(sleeps_or_fails, 2) == 3
    assert time.monotonic() - start < 300


class Ended:
    """A process that has failed, of which the system does not know the status at once."""

    def __init__(self):
        self.sentinel, _ = os.pipe()
        self.statuses = [None, 3, 3]

    @property
    def exitcode(self):
        return self.statuses.pop(0)

    def terminate(self):
        os.close(self.sentinel)


@pytest.mark.internal
def test_a_status_that_comes_late_is_still_a_failure(monkeypatch):
    """It was overlooked between two looks at it, and the other processes were waited for as long as they slept."""
    monkeypatch.setattr(parallel, "wait", lambda sentinels: sentinels)
    assert parallel._status([Ended()]) == 3


@pytest.mark.parametrize("start, processes", [
    pytest.param(None, 2, id="this process"),
    pytest.param(["run.py"], 2, id="run.py", marks=pytest.mark.slow),
    pytest.param([*TORCHRUN, "run.py"], 1, id="torchrun", marks=pytest.mark.slow),
])
def test_two_processes_give_what_one_gives(capfd, model, data, tmp_path, start, processes):
    """Started by this one, by run.py or by torchrun: the same JSON to the byte, printed and written once. Each question
    is asked once."""
    assert done(capfd, *command(model, data, "--draws", 1, "--out", tmp_path / "one.json"))[0] == 0
    words = command(model, data, "--draws", 1, "--processes", processes, "--out", tmp_path / "two.json")
    if start:
        printed = started(*start, *words)
    else:
        status, printed, err = done(capfd, *words)
        assert status == 0, err
    assert printed.count("fastv 0.1 ") == 1 and printed.count("wrote ") == 2
    assert (tmp_path / "two.json").read_text() == (tmp_path / "one.json").read_text()
    rows = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    asked = Counter((row["contestant"], row["question"]) for row in rows if "contestant" in row)
    assert len(asked) == 4 * 16 and set(asked.values()) == {1}


@pytest.mark.slow
def test_two_processes_divide_the_rounds_of_a_benchmark(tmp_path):
    """Three rounds on two processes are three rounds, in one table."""
    printed = started(
        *TORCHRUN, "run.py", "bench", "--model", MODEL, "--method", "fastv", "--keep", "4", "--repeat", "3",
        "--steps", "1", "--threads", "1", "--json", tmp_path / "a.json",
    )
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["processes"] == 2 and [len(row["times"]) for row in report["rows"]] == [3, 3]
    assert printed.count("2 processes at once") == 1 and printed.count("wrote ") == 1
