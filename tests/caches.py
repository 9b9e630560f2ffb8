"""Two runs of a model compared: the decisions of one taken again in the other, and the caches that they leave."""

from dataclasses import replace

import torch

from build import close
from tiny import DEEP, Around


def replay(pruner, trace, **changed):
    """A method that takes the decisions of an earlier run again, one after the other."""
    steps = iter(trace.steps)
    as_it_is = lambda grid, tile_grid: torch.arange(len(grid))  # the trace has the order in which it was sent on
    return Around(pruner, lambda tokens: replace(next(steps).reduction, **changed), output_order=as_it_is)


def held(cache):
    """Of each layer the keys and values that may be read, (2, Hk, tokens, Dh)."""
    for layer in cache.layers:
        hidden = layer.hidden_keys()
        both = torch.cat([layer.key, layer.value])[:, :, :layer.length]
        yield both if hidden is None else both[:, :, ~hidden]


def same_cache(ours, theirs):
    """The same keys (and so the same positions) and values in every layer, and the same next position."""
    for a, b in zip(held(ours), held(theirs)):
        close(a, b, DEEP)
    assert [layer.next_position for layer in ours.layers] == [layer.next_position for layer in theirs.layers]
