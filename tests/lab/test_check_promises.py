"""run.py check without --against: each planted mistake gets its sentence, and a right method passes."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from command import done
from minivlm.lab.named.kind import kind_of
from minivlm.lab.own import answering, examined, worth
from minivlm.lab.own.in_model import equivalence
from minivlm.lab.own.promises.drawn import cases
from minivlm.lab.own.promises.finding import BROKEN, KEPT, SKIPPED, broken
from minivlm.lab.own.reading import facts
from pruning import METHODS
from tiny import SHAPE

MINE = '''
"""A right method, and mistakes."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.base import Pruner, Reduction
from pruning.fields import Amount, Layer
from pruning.ranked import Ranked, top


@dataclass(frozen=True)
class Right(Ranked):
    """Keep what the last row looks at."""

    layer: Layer = 2
    keep: Amount = 0.5

    def score(self, tokens):
        return tokens.before.mean_attention("last")[0, tokens.visual]


class Unsorted(Right):
    def reduce(self, tokens):
        order = self.score(tokens).argsort(descending=True, stable=True)
        return Reduction(order[:self.budget(tokens.n)])


class SequenceRows(Right):
    def reduce(self, tokens):
        return Reduction(tokens.visual[super().reduce(tokens).keep])


class AllRows(Right):
    def reduce(self, tokens):
        score = tokens.before.mean_attention("last")[0]
        return Reduction(top(score, self.budget(tokens.n)))


class FirstRows(Right):
    def score(self, tokens):
        return tokens.before.mean_attention("last")[0, :tokens.n]


class Sums(Right):
    laws = frozenset({"convex", "disjoint", "budget"})

    def reduce(self, tokens):
        keep = super().reduce(tokens).keep
        merge = F.one_hot(keep, tokens.n).float()          # (k, n)
        others = 1 - merge.sum(dim=0)                      # (n,)
        return Reduction(keep, self.weighted(merge, others))

    def weighted(self, merge, others):
        merge[0] += others
        return merge


class Shares(Sums):
    def weighted(self, merge, others):
        merge += others
        return merge / merge.sum(dim=1, keepdim=True)


class Means(Sums):
    def weighted(self, merge, others):
        merge[0] += others
        return merge / merge.sum(dim=1, keepdim=True)


class Undeclared(Sums):
    laws = frozenset({"select"})


class OneMore(Right):
    def reduce(self, tokens):
        k = min(tokens.n, self.budget(tokens.n) + 1)
        return Reduction(top(self.score(tokens), k))


class LayerK(Right):
    def score(self, tokens):
        return tokens.here.mean_attention("last")[0, tokens.visual]


class LayerBefore(Right):
    def reduce_at(self, layers):
        return (self.layer - 1,)


class InPlace(Right):
    def score(self, tokens):
        hidden = tokens.hidden
        hidden -= hidden.mean(dim=0)
        return hidden[tokens.visual].float().norm(dim=1)


class ClassToken(Right):
    def score(self, tokens):
        return tokens.before.cls_attention().mean(dim=0)


class Weights(Right):
    def score(self, tokens):
        return tokens.before.layer.self_attn.v_proj(tokens.hidden[tokens.visual]).norm(dim=1)


class Early(Right):
    site = "embed"
    positions = None


class Unseeded(Right):
    def score(self, tokens):
        return torch.rand(tokens.n)


class Threshold(Right):
    laws = frozenset({"select", "ordered", "scale"})

    def reduce(self, tokens):
        return Reduction((self.score(tokens) > 0.2).nonzero().squeeze(1))


class Fails(Right):
    def score(self, tokens):
        return tokens.before.mean_attention("first")[0]


class DividesByZero(Right):
    def score(self, tokens):
        score = super().score(tokens)
        return (score - score.min()) / (score.max() - score.min())


class Nowhere(Pruner):
    def reduce(self, tokens):
        return Reduction(torch.arange(1))


class Late(Right):
    def schedule(self, n, layers):
        return [n] * (self.layer + 1) + [self.budget(n)] * (layers - self.layer - 1)


class LooksAhead(Right):
    def mask_at(self, layers):
        return (0,)

    def mask(self, tokens):
        return torch.zeros_like(tokens.here.mask())


class Remembers(Right):
    def score(self, tokens):
        CALLS.append(1)
        return super().score(tokens) * (1 if len(CALLS) % 2 else -1)


CALLS = []


def plain(tokens):
    """The states' lengths."""
    return tokens.hidden[tokens.visual].float().norm(dim=1)
'''
# class: (promise, words of the cause)
PLANTED = {
    "Unsorted": ("ordered", "they come by rank, as topk and argsort give them: sort keep"),
    "SequenceRows": ("matrix", "return i, not tokens.visual[i]"),
    "AllRows": ("matrix", "it chooses among all rows of the sequence, text too: rank score[tokens.visual]"),
    "FirstRows": ("shift", "the first n rows are read in place of the visual ones; index with tokens.visual"),
    "Sums": ("convex", "divide each row of merge by its sum"),
    "Shares": ("disjoint", "has one destination"),
    "Undeclared": ("select", "it merges, and `laws` says that it only selects"),
    "OneMore": ("budget", "it is one too many"),
    "LayerK": ("needle", "it acts before layer 2 and reads the attention of layer 2, which is about to run"),
    "LayerBefore": ("layer", "layer 1 is the one whose attention is read, not the one before which tokens are dropped"),
    "InPlace": ("pure", "an operation in place"),
    "ClassToken": ("reads", "class tokens are read at the vision site"),
    "Weights": ("reads", "layer is no function of a LayerView"),
    "Early": ("reads", "no layer has run at the embed site"),
    "Unseeded": ("repeats", "it draws from torch's global generator"),
    "Remembers": ("repeats", "remembers something between calls"),
    "Threshold": ("scale", "a score is compared with a fixed number"),
    "Fails": ("runs", "read the line that is named"),
    "DividesByZero": ("runs", "a division by zero"),
    "Nowhere": ("acts", "reduce_at is not written"),
}
IN_MODEL = {
    "Late": ("schedule", "schedule counts the tokens that enter each layer"),
    "LooksAhead": ("causal", "let mask only widen what visual rows see of their own image"),
}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """An empty folder with mine.py."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    return tmp_path


@pytest.fixture
def no_model(monkeypatch):
    """Promises are tried on drawn prompts only."""
    monkeypatch.setattr(equivalence, "findings", lambda kind: [])


def found(name):
    """{promise: Finding} of a class in mine.py."""
    return {row.name: row for row in examined.findings(kind_of(f"mine.py:{name}"))}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_explained(mine, no_model, name):
    """Its promise is broken on a small prompt, which is told in words, and the cause is the mistake."""
    promise, words = PLANTED[name]
    result = examined.examined(kind_of(f"mine.py:{name}"), name)
    row = next(row for row in result["promises"] if row.name == promise)
    assert row.status == BROKEN and row.seen
    assert words in row.cause
    assert "tokens before layer" in row.case or "decoder" in row.case


@pytest.mark.parametrize("name", IN_MODEL)
def test_a_mistake_that_only_a_model_shows(mine, name):
    promise, words = IN_MODEL[name]
    rows = {row.name: row for row in equivalence.findings(kind_of(f"mine.py:{name}"))}
    assert rows[promise].status == BROKEN and words in rows[promise].cause


def test_what_follows_from_a_broken_contract_is_not_tried(mine):
    """One mistake is shown at a time: laws of a result that is no matrix say nothing."""
    rows = found("SequenceRows")
    assert rows["ordered"].status == rows["tiles"].status == SKIPPED
    assert rows["ordered"].seen == "not tried before matrix holds"
    rows = found("Unsorted")
    assert rows["budget"].status == KEPT and rows["cached"].status == SKIPPED


def test_counter_example_is_small(mine, no_model):
    """Two visual tokens are enough to be out of order, and the page has their attention."""
    row = found("Unsorted")["ordered"]
    assert row.case.startswith("3 tokens before layer 2, of which rows 0, 1 are visual; the last row gives them .")
    assert row.seen == "it keeps 1, 0"


def test_a_right_method(mine, capsys):
    """Every promise is kept, in the model too; it says where it acts and what it reads."""
    status, out, _ = done(capsys, "check", "mine.py:Right", "--quick")
    assert status == 0
    assert "it acts in the decoder before layer 2: layer 2 is the first on the tokens that are left" in out
    assert "it reads attention (mean over heads) of the last row in layer 1 (tokens.before)" in out
    assert "BROKEN" not in out and "promises are kept" in out
    rows = found("Right")
    assert {"causal", "drop = mask", "keep all", "cached", "several images", "tiles", "half precision"} <= rows.keys()
    assert all(row.status == KEPT for row in rows.values())
    means = examined.findings(kind_of("mine.py:Means"))
    assert not broken(means) and "convex" in {row.name for row in means}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"atp"}))
def test_ours_keep_theirs(no_model, name):
    """What the command says of our own methods: nothing is broken, and what each reads is told."""
    result = examined.examined(METHODS[name], name)
    assert not broken(result["promises"]), broken(result["promises"])
    assert name == "none" or {row.name for row in result["promises"]} >= METHODS[name]().laws


@pytest.mark.parametrize("name", ["asap", "visionzip", "divprune", "pyramiddrop"])
def test_ours_in_a_model(name):
    """A mask and merges, the tower, the prompt before the decoder, several cuts."""
    assert not broken(equivalence.findings(METHODS[name]))


def test_layer_k_is_asked_about(mine):
    """It may be meant, as PyramidDrop means it: no promise is broken by it, and a sentence asks."""
    assert any("is layer K meant" in line for line in facts(kind_of("mine.py:LayerK"))["reads"])
    assert any("is layer K meant" in line for line in facts(METHODS["pyramiddrop"])["reads"])
    assert not any("is layer K meant" in line for line in facts(METHODS["asap"])["reads"])


def test_a_function(mine, capsys):
    """It is a Ranked method; hidden states are all that it reads."""
    status, out, _ = done(capsys, "check", "mine.py:plain", "--quick")
    assert status == 0 and "it reads the hidden states" in out


def test_files_and_statuses(mine, capsys):
    """JSON and JUnit hold each promise; the status is 1 if one is broken, and an error has file and line."""
    status, out, _ = done(capsys, "check", "mine.py:Fails", "--quick", "--json", "--junit", "report.xml")
    assert status == 1
    rows = {row["name"]: row for row in json.loads(out)["promises"]}
    line = MINE.splitlines().index('        return tokens.before.mean_attention("first")[0]') + 1
    assert f"mine.py:{line}: " in rows["runs"]["seen"] and "last" in rows["runs"]["seen"]
    suite = ElementTree.parse("report.xml").getroot()
    assert int(suite.get("tests")) == len(rows) == len(suite)
    assert suite.get("failures") == "1" and int(suite.get("skipped")) > 5
    assert suite.find("testcase[@name='runs']/failure").get("message").startswith(rows["runs"]["sentence"])


@pytest.mark.parametrize("words, message", [
    ("gone.py:Right", "gone.py: there is no such file"),
    ("fastw", "'fastw' is not known"),
    ("atp", "needs a module trained for the model"),
    ("mine.py:Right --quick --junit report.txt", "name it *.xml"),
])
def test_bad_input(mine, capsys, words, message):
    status, out, err = done(capsys, "check", *words.split())
    assert status == 2 and out == "" and message in err


def test_worth(mine, capsys, monkeypatch, no_model):
    """Cost, time, picture and accuracy, on tiny shapes: each other contestant has its paired difference."""
    monkeypatch.setattr(worth, "shape_of", lambda *words, **options: SHAPE)
    status, out, _ = done(capsys, "check", "mine.py:Right", "--count", "1", "--out", "mine.png", "--json", "--keep", "0.25")
    assert status == 0 and Path("mine.png").exists()
    result = json.loads(out)
    labels = [row["contestant"] for row in result["accuracy"]["rows"]]
    assert labels == ["none", "random 0.25", "uniform 0.25", "mine.py:Right 0.25", "fastv 0.25"]
    own, fastv = result["accuracy"]["rows"][3:]
    assert "own_minus_it" not in own and fastv["own_minus_it"]["difference"] == 0
    assert [row["method"] for row in result["cost"]["rows"]] == ["unpruned", *labels[3:]]
    assert all(row["own"] >= 0 for row in result["time"]["rows"])


def test_worth_waits_for_what_it_needs(mine, capsys, no_model):
    status, out, _ = done(capsys, "check", "mine.py:Unsorted")
    assert status == 1 and "cost, time and accuracy are measured once ordered holds" in out


def test_verdict_follows_from_the_interval():
    """Of a paired difference in points."""
    assert answering.difference(dict(difference=.1, interval=(.02, .18))).endswith("better than it")
    assert answering.difference(dict(difference=-.1, interval=(-.18, -.02))).endswith("worse than it")
    assert answering.difference(dict(difference=.1, interval=(-.02, .22))).endswith("cannot be told apart")


def test_drawn_prompts_grow():
    """The smallest come first, so that the first that breaks a promise is a small one."""
    sizes = [case.tokens.n for case in cases(METHODS["fastv"]) if case.is_plain]
    assert sizes == sorted(sizes) and sizes[0] == 1
    assert torch.equal(cases(METHODS["fastv"])[5].tokens.hidden, cases(METHODS["fastv"])[5].tokens.hidden)
