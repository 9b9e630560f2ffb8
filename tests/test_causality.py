"""ASAP, AdaptPrune and ATP in a model: text stays causal whatever is masked, merged or dropped, and what is gone stays gone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.adaptprune import AdaptPrune
from pruning.asap import ASAP
from pruning.atp import ATP
from pruning.bimask import FastVBiMask
from pruning.compose import Schedule
from tiny import MARK, SETTINGS, Around, ids, llava, picture, prefill, thresholds

BEFORE, N, AFTER = 3, 16, 5
FEW = settings(SETTINGS, max_examples=8)           # each runs a model twice
METHODS = {"asap": lambda seed: ASAP(stages=((2, .5), (4, 3)), bidir_layers=(0, 1, 3)),
           "fastv_bimask": lambda seed: FastVBiMask(keep=6),
           "adaptprune": lambda seed: Schedule(AdaptPrune(), (2, 4), (8, 3)),
           "atp": lambda seed: ATP(thresholds(seed=seed), (2, 4, 5))}

every_method = pytest.mark.parametrize("name", METHODS)


def seen(method, words, image):
    """Hidden states as they enter layer 2, where the first tokens go, and the normed ones of what is left in the end; the trace."""
    model, told = llava(layers=6), []

    def spy(tokens):
        told.append(tokens.hidden)
        return method.reduce(tokens)

    hidden, _, trace = prefill(model, words, [picture(model, image)], Around(method, spy), last=False)
    return told[0], hidden, trace


@every_method
@FEW
@given(seed=st.integers(0, 99), place=st.integers(0, AFTER - 1), step=st.integers(1, 90))
def test_a_later_text_token_changes_no_row_before_it(name, seed, place, step):
    """In the layers that have all tokens; from then on other visual tokens may be left, but what is before the image sees none."""
    words = ids(BEFORE, MARK, AFTER, seed=seed)
    other, at, row = list(words), BEFORE + 1 + place, BEFORE + N + place
    other[at] = 3 + (words[at] - 3 + step) % 95
    (a, end, _), (b, other_end, _) = (seen(METHODS[name](seed), w, seed) for w in (words, other))
    assert a[:row].equal(b[:row]) and not torch.allclose(a[row], b[row], atol=1e-4)
    torch.testing.assert_close(end[:BEFORE], other_end[:BEFORE], atol=1e-5, rtol=0)


@every_method
@FEW
@given(seed=st.integers(0, 99), other=st.integers(100, 199))
def test_an_image_changes_no_row_before_it(name, seed, other):
    words = ids(BEFORE, MARK, AFTER, seed=seed)
    (a, end, _), (b, other_end, _) = (seen(METHODS[name](seed), words, image) for image in (seed, other))
    assert a[:BEFORE].equal(b[:BEFORE]) and not torch.allclose(a[BEFORE], b[BEFORE], atol=1e-4)
    torch.testing.assert_close(end[:BEFORE], other_end[:BEFORE], atol=1e-5, rtol=0)


@every_method
@FEW
@given(seed=st.integers(0, 999))
def test_survivors_are_nested(name, seed):
    """What a boundary leaves is among what the one before has left, in the order of the image."""
    *_, trace = seen(METHODS[name](seed), ids(BEFORE, MARK, AFTER, seed=seed), seed)
    kept = [range(N), *(step.kept.tolist() for step in trace.steps)]
    assert len(trace.steps) == (1 if name == "fastv_bimask" else 3 if name == "atp" else 2)
    assert all(set(later) <= set(earlier) and later == sorted(later) for earlier, later in zip(kept, kept[1:]))
