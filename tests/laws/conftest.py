"""The laws give every method the same few pictures: each is run through a tower once."""

from weakref import WeakKeyDictionary

import pytest

from minivlm.clip import ClipVision

KNOWN = WeakKeyDictionary()            # {tower: {what it is given: the states it gives}}; no test changes a tower
forward = ClipVision.forward


@pytest.fixture(autouse=True)
def each_picture_once(monkeypatch):
    monkeypatch.setattr(ClipVision, "forward", remembered)


def remembered(tower, pixels, depth):
    """What the tower gives; not computed again. Pixels on the meta device, which have no values, are not known."""
    if pixels.is_meta:
        return forward(tower, pixels, depth)
    known = KNOWN.setdefault(tower, {})
    given = depth, pixels.dtype, pixels.shape, tuple(pixels.flatten().tolist())
    if given not in known:
        known[given] = forward(tower, pixels, depth)
    return known[given]
