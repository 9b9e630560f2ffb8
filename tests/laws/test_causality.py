"""The law causal, for every method of the registry in a model: text stays causal whatever is masked, merged or
dropped."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from build import close
from pruning.adaptprune import AdaptPrune
from pruning.asap import ASAP
from pruning.atp import ATP
from pruning.compose import Schedule
from pruning.fastv import FastV
from tiny import MARK, REDUCING, SETTINGS, Around, built, ids, llava, picture, prefill, thresholds

BEFORE, N, AFTER = 3, 16, 5
FEW = settings(SETTINGS, max_examples=4)           # each runs a model twice

every_method = pytest.mark.parametrize("name", REDUCING)


def states(method, words, image):
    """Hidden states as they enter the first layer before which the method drops, and the normed ones of what is left at
    the end."""
    model = llava()
    entering = []

    def spy(tokens):
        entering.append(tokens.hidden)
        return method.reduce(tokens)

    at_the_end, _, _ = prefill(model, words, [picture(model, image)], Around(method, spy), last=False)
    return entering[0], at_the_end


def causal_for_text(method, seed, place, step):
    """Whether a changed text token after the image changes no row before it: all of them, as long as all tokens are
    there; and of those before the image, the last states."""
    words = ids(BEFORE, MARK, AFTER, seed=seed)
    changed = list(words)
    changed[BEFORE + 1 + place] = 3 + (words[BEFORE + 1 + place] - 3 + step) % 95
    row = BEFORE + N + place
    (a, end), (b, changed_end) = (states(method, w, seed) for w in (words, changed))
    early = method.site != "decoder" or a[:row].equal(b[:row]) and not torch.allclose(a[row], b[row], atol=1e-4)
    return early and torch.allclose(end[:BEFORE], changed_end[:BEFORE], atol=1e-5)


@every_method
@FEW
@given(seed=st.integers(0, 99), place=st.integers(0, AFTER - 1), step=st.integers(1, 90))
def test_a_later_text_token_changes_no_row_before_it(name, seed, place, step):
    assert causal_for_text(built(name), seed, place, step)


@every_method
@FEW
@given(seed=st.integers(0, 99), other=st.integers(100, 199))
def test_an_image_changes_no_row_before_it(name, seed, other):
    words = ids(BEFORE, MARK, AFTER, seed=seed)
    (a, end), (b, other_end) = (states(built(name), words, image) for image in (seed, other))
    if built(name).site == "decoder":
        assert a[:BEFORE].equal(b[:BEFORE]) and not torch.allclose(a[BEFORE], b[BEFORE], atol=1e-4)
    close(end[:BEFORE], other_end[:BEFORE])


@dataclass(frozen=True)
class SeesAll(FastV):
    """Breaks the law: in layer 0 every row sees every other one."""

    def mask_at(self, layers):
        return (0,)

    def mask(self, tokens):
        return torch.zeros_like(tokens.here.mask())


def test_a_mask_that_looks_ahead_breaks_it():
    assert causal_for_text(FastV(keep=4), 0, 2, 1) and not causal_for_text(SeesAll(keep=4), 0, 2, 1)


@pytest.mark.parametrize("method, cuts", [
    (Schedule(ASAP(), (2, 4), (8, 3)), 2),
    (Schedule(AdaptPrune(), (2, 4), (8, 3)), 2),
    (ATP((2, 4, 5), module=thresholds()), 3),
], ids=["asap", "adaptprune", "atp"])
@FEW
@given(seed=st.integers(0, 999))
def test_survivors_are_nested(method, cuts, seed):
    """What one cut leaves is among what the one before has left, in the order of the image."""
    model = llava(layers=6)
    _, _, trace = prefill(model, ids(BEFORE, MARK, AFTER, seed=seed), [picture(model, seed)], method)
    kept = [range(N), *(step.kept.tolist() for step in trace.steps)]
    assert len(trace.steps) == cuts
    assert all(set(later) <= set(earlier) and later == sorted(later) for earlier, later in zip(kept, kept[1:]))
