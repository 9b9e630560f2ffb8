"""How much of the evidence reaches each layer: 16 visual tokens on a grid of 4 x 4, the evidence is their upper row.

A drawn picture has 12 x 12 patches, 3 x 3 of which are on a token: patches 0, 3, 6 and 9 are on tokens 0 to 3.
"""

import pytest
import torch

from build import close, plane, tiles, tokens
from minivlm.lab.draw.evidence import entering, share
from minivlm.trace import Trace
from pruning.adaptprune import AdaptPrune
from pruning.base import Reduction, whole_grid
from pruning.compose import Schedule
from pruning.fastv import FastV
from pruning.prumerge import PruMergePlus
from pruning.vtw import VTW

UPPER_ROW = (0, 3, 6, 9)
PROMPT = "t" + "v" * 16 + "t"


def trace(visual, *steps):
    """A trace of layers that `visual` tokens enter, after these steps: (site, layer, tokens, reduction)."""
    result = Trace(whole_grid(4, 4), [range(16)], visual=visual)
    for step in steps:
        result.reduce(*step)
    return result


def attention(*values):
    """From the last row to the system token, 16 visual tokens and itself: these to the first visual ones."""
    row = torch.zeros(1, 18)
    row[0, 1:1 + len(values)] = torch.tensor(values)
    return row


def test_unpruned_all_enters_every_layer():
    """Four tokens, four layers."""
    unpruned = trace([16] * 4)
    assert entering(unpruned, UPPER_ROW) == [4, 4, 4, 4]
    assert share(unpruned, UPPER_ROW) == 1


def test_vtw_sees_all_until_it_withdraws():
    """All four tokens enter layers 0, 1 and 2, none enters layer 3: 12 of 16, on average 3/4."""
    withdrawn = VTW(layer=3).reduce(tokens(PROMPT, layer=3))
    after = trace([16, 16, 16, 0], ("decoder", 3, tokens(PROMPT), withdrawn))
    assert entering(after, UPPER_ROW) == [4, 4, 4, 0]
    assert share(after, UPPER_ROW) == .75


def test_adaptprune_brings_less_of_a_cluster_than_fastv():
    """Tokens 0, 1 and 2 have attention .30, .29, .28, token 15 has .20; two are kept before layer 2 of 4.

    FastV keeps 0 and 1. AdaptPrune by distance only, sigma_d 1.5, picks 0; then 1 has .29 (1 - exp(-1 / 4.5)) = .058,
    2 has .28 (1 - exp(-4 / 4.5)) = .165, and 15, which is sqrt(18) patches away, .20 (1 - exp(-18 / 4.5)) = .196.
    """
    entered = tokens(PROMPT, attention(.30, .29, .28, *[0.] * 12, .20), grid=(4, 4))
    fastv = FastV(keep=2).reduce(entered)
    adaptprune = AdaptPrune(keep=2, correction=False, similarity=False).reduce(entered)
    assert entering(trace([16, 16, 2, 2], ("decoder", 2, entered, fastv)), UPPER_ROW) == [4, 4, 2, 2]
    after = trace([16, 16, 2, 2], ("decoder", 2, entered, adaptprune))
    assert entering(after, UPPER_ROW) == [4, 4, 1, 1]
    assert share(after, UPPER_ROW) == (4 + 4 + 1 + 1) / 16


def test_a_schedule_of_two_cuts():
    """FastV keeps 0, 1, 2 and 9 before layer 1, and of these 1 and 9 before layer 3 of 5: 3 of the evidence, then 1."""
    schedule = Schedule(FastV(), layers=(1, 3), ratios=(4, 2))
    first = tokens(PROMPT, attention(.1, .2, .1, *[0.] * 6, .3), layer=1)
    cut = schedule.reduce(first)
    second = tokens("tvvvvt", torch.tensor([[0., .1, .3, .1, .3, 0.]]), layer=3, source=cut.keep, prompt=first)
    after = trace([16, 4, 4, 2, 2], ("decoder", 1, first, cut), ("decoder", 3, second, schedule.reduce(second)))
    assert entering(after, UPPER_ROW) == [4, 3, 3, 1, 1]
    assert share(after, UPPER_ROW) == pytest.approx(12 / 20)


class Typed(PruMergePlus):
    """PruMerge+ that reads what an example types as attention and keys."""

    def attention_and_keys(self, tokens):
        return tokens.before.cls_attention()[0], tokens.before.key()[0, tokens.visual]


class Unpooled(Typed):
    pooled = 0


def merged(method, attention_of_1):
    """One image, cut before the decoder: patch 0 is the strongest, and 1 has its key;
    8 is the grid's, 9 has its key."""
    attention = torch.tensor([[.2, .4, attention_of_1, *[.01] * 14]])
    degrees = [0, 0, *range(10, 70, 10), 90, 90, *range(110, 170, 10)]
    key = torch.cat([torch.zeros(1, 2), plane(*degrees)])[None]
    entered = tiles(torch.zeros(1, 17, 1), attention, key=key, grid=(4, 4))
    return trace([2] * 4, ("vision", 23, entered, method.reduce(entered)))


def test_what_prumerge_merges_counts():
    """0 and 8 are kept; 1 is merged into 0, and 9 into 8: of the evidence 0 and 1 reach the decoder.

    Merged with weight 0 does not count. The token into which all others are pooled brings 2 and 3.
    """
    assert merged(Unpooled(keep=2, neighbours=1), .1).steps[0].kept.tolist() == [0, 8]
    assert entering(merged(Unpooled(keep=2, neighbours=1), .1), UPPER_ROW) == [2, 2, 2, 2]
    assert entering(merged(Unpooled(keep=2, neighbours=1), 0.), UPPER_ROW) == [1, 1, 1, 1]
    assert entering(merged(Typed(keep=3, neighbours=1), .1), UPPER_ROW) == [4, 4, 4, 4]


def test_evidence_that_is_not_known():
    """Without patches, and for tiles, whose place in the picture is not known."""
    of_tiles = Trace(torch.cat([whole_grid(4, 4), whole_grid(4, 4, tile=1)]), visual=[32])
    assert entering(trace([16]), ()) == entering(of_tiles, UPPER_ROW) == []
    assert share(trace([16]), ()) is None
    assert share(of_tiles, UPPER_ROW) is None


def test_random_tokens_bring_their_share():
    """The mean over all pairs of the 16 tokens: 2 of 16 are an eighth, and so is the evidence that they bring."""
    pairs = torch.combinations(torch.arange(16))
    shares = [share(trace([2], ("embed", 0, tokens(PROMPT), Reduction(pair))), UPPER_ROW) for pair in pairs]
    close(torch.tensor(shares).mean(), 1 / 8)
