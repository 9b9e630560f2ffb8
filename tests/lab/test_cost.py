"""What schedules cost, and methods that solve for an average: published figures, and by hand."""

import pytest

from minivlm.lab.cost.flops import average, flops, kv_bytes
from pruning import METHODS
from pruning.base import UserError
from pruning.budget import staged
from pruning.fastv import FastV

SEVEN = 4096, 11008                    # width and MLP of LLaMA-7B
COARSE = {"vtw": 18, "fitprune": 50, "downsample": 25, "avgpool": 25, "downsample_image": 29}  # largest steps of an average


def tera(entering, **options):
    """T FLOPs of the 7B, three decimals."""
    return round(flops(entering, *SEVEN, **options) / 1e12, 3)


def test_published_figures():
    """ASAP's tables: 3.817 T for 576 tokens in 32 layers, 20.825 T for 2880, 1.259 T for FastV (2 x 576, 30 x 167).

    A token's keys and values take 32 layers * 2 * 4096 values * 2 bytes = 2^19 bytes in float16.
    """
    assert tera([576] * 32) == 3.817
    assert tera([2880] * 32) == 20.825
    assert tera([576] * 2 + [167] * 30) == 1.259
    assert tera([576] * 32, ffn=2) == 2.986
    assert kv_bytes([576] * 32, 32, 128) == 576 * 2 ** 19


def test_by_hand():
    """One layer, 3 tokens, width 2, MLP 5: 4 * 3 * 4 + 2 * 9 * 2 + 3 * 3 * 2 * 5 = 48 + 36 + 90."""
    assert flops([3], 2, 5) == 174
    assert flops([3, 3], 2, 5, ffn=2) == 2 * 144
    assert average([4, 2]) == 3
    assert kv_bytes([4, 2], 1, 8, 4) == 6 * 2 * 8 * 4


def test_staged():
    """Shares are of what entered layer 0, and what is gone does not come back."""
    assert staged([(2, .5), (3, .25)], 576, 4) == [576, 576, 288, 144]
    assert staged([(1, 8), (2, 12)], 16, 4) == [16, 8, 8, 8]


def test_fastv_solves_for_an_average():
    """(2 * 576 + 30 * 166) / 32 = 191.6 is below 192, with 167 it is 192.6."""
    assert FastV().with_average(192, 576, 32) == FastV(keep=167)
    assert FastV().schedule(576, 32) == [576] * 2 + [288] * 30
    for wanted in (30, 577):
        with pytest.raises(UserError, match="out of reach"):
            FastV().with_average(wanted, 576, 32)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_solves_or_says_why_not(name):
    """Whoever solves has a schedule whose average is at least the wanted one, and not by more than a step.

    The steps of VTW are layers, 18 tokens each; those of FitPrune are its eleven tables; maps are of whole rows and
    columns.
    """
    try:
        method = METHODS[name]().with_average(200, 576, 32)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        return
    entering = method.schedule(576, 32)
    assert len(entering) == 32
    assert sorted(entering, reverse=True) == entering
    assert 200 <= average(entering) < 200 + COARSE.get(name, 2)
