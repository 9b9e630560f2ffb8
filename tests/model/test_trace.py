"""The trace: what each survivor consists of, over several reductions, several images and all three sites."""

from dataclasses import replace

import pytest
import torch

from build import tokens
from minivlm.trace import Trace
from pruning.base import Reduction
from tiny import MARK, Chosen, ids, llava, picture, prefill


def traced(entering, *reductions):
    """A trace of these reductions, one after the other, and the tokens after the last."""
    trace = Trace(grid=entering.grid)
    for layer, r in enumerate(reductions):
        trace.reduce("decoder", layer, entering, r)
        entering = entering.reduced(r)
    return trace, entering


def test_selections():
    """4 tokens, then 1, 2, 3 of them, then of these the first and the last: tokens 1 and 3."""
    trace, _ = traced(tokens("t vvvv t"), Reduction(torch.tensor([1, 2, 3])), Reduction(torch.tensor([0, 2])))
    assert trace.sources().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert [step.kept.tolist() for step in trace.steps] == [[1, 2, 3], [1, 3]]


def test_without_a_reduction():
    trace, _ = traced(tokens("t vvv t"))
    assert trace.N == 3 and trace.sources().equal(torch.eye(3))


def test_merges():
    """First a = (t0 + t1) / 2 in the place of t1, b = t3; then their merge with weights 1/4 and 3/4:
    t0 / 8 + t1 / 8 + 3 t3 / 4."""
    first = Reduction(torch.tensor([1, 3]), torch.tensor([[.5, .5, 0, 0], [0, 0, 0, 1]]))
    trace, _ = traced(tokens("t vvvv t"), first, Reduction(torch.tensor([1]), torch.tensor([[.25, .75]])))
    assert trace.sources().tolist() == [[.125, .125, 0, .75]]


def test_masks():
    """A masked token is gone for the trace as a dropped one is."""
    r = Reduction(torch.tensor([0, 2]), drop=False)
    trace, _ = traced(tokens("t vvv t"), r, replace(r, keep=torch.tensor([1])))
    assert trace.sources().tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("kinds", ["t vvvvv t", "t vv t vvv t"])
def test_sources_times_values_are_the_survivors(kinds):
    """Whatever the order of keep, over one image or two: the matrix times the first values gives what the rows hold."""
    first = Reduction(torch.tensor([4, 1, 2]), torch.tensor([[0, 0, 0, 0, 1.], [.5, .5, 0, 0, 0], [0, 0, .25, .75, 0]]))
    start = tokens(kinds, values=[2, 3, 5, 7, 11])
    trace, after = traced(start, first, Reduction(torch.tensor([2, 0])))
    values = trace.sources() @ start.hidden[start.visual]
    held = dict(zip(after.source.tolist(), after.hidden[after.visual, 0].tolist()))
    assert dict(zip(trace.steps[-1].kept.tolist(), values[:, 0].tolist())) == held


def test_three_images_reduced_one_by_one():
    """At the vision site each image has a reduction of its own; the tokens of the others stay as they are, in their
    order. Images of tokens 0-1, 2-4 and 5: kept are 1; 2 and (3 + 4) / 2; 5. Then the decoder keeps the merged one and
    5."""
    trace = Trace(grid=torch.zeros(6, 3))
    first, second, third = tokens("vv"), tokens("vvv"), tokens("v")
    trace.reduce("vision", 23, first, Reduction(torch.tensor([1])))
    assert trace.sources().equal(torch.eye(6)[1:])
    trace.reduce("vision", 23, replace(second, source=second.source + 2),
                 Reduction(torch.tensor([0, 2]), torch.tensor([[1., 0, 0], [0, .5, .5]])))
    trace.reduce("vision", 23, replace(third, source=third.source + 5), Reduction(torch.tensor([0])))
    assert trace.sources().tolist() == [[0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0.5, 0.5, 0],
                                        [0, 0, 0, 0, 0, 1]]
    left = replace(tokens("vvvv"), source=torch.tensor([1, 2, 4, 5]))
    trace.reduce("decoder", 2, left, Reduction(torch.tensor([2, 3])))
    assert trace.sources().tolist() == [[0, 0, 0, .5, .5, 0], [0, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("site, steps", [
    ("vision", [("vision", 23, range(16), [3, 7]), ("vision", 23, range(16, 32), [19, 23])]),
    ("embed", [("embed", 0, range(32), [3, 7])]),
    ("decoder", [("decoder", 2, range(32), [3, 7])])])
def test_of_a_prompt_with_two_images(site, steps):
    """Each site tells where it acted, of which of the 32 tokens, and what it kept; cells count both images' tiles."""
    model = llava()
    pruner = Chosen({2: [3, 7]} if site == "decoder" else [3, 7], site)
    _, _, trace = prefill(model, ids(2, MARK, 3, MARK, 4), [picture(model), picture(model, 1)], pruner)
    for step, (site, layer, source, kept) in zip(trace.steps, steps, strict=True):
        assert (step.site, step.layer, step.kept.tolist()) == (site, layer, kept)
        assert range(int(step.source[0]), int(step.source[-1]) + 1) == source
    assert trace.images == [range(16), range(16, 32)] and trace.N == 32
    assert trace.grid.tolist() == [
        [image, row, column] for image in range(2) for row in range(4) for column in range(4)
    ]
    kept = sum((list(s[3]) for s in steps), [])
    assert trace.sources().equal(torch.eye(32)[kept])
    before = {"decoder": [32] * 2, "embed": [], "vision": []}[site]
    assert trace.visual == before + [len(kept)] * (32 - len(before)) and trace.tokens == [9 + n for n in trace.visual]
