"""Memory of a pruned prefill: what is looked at is never there as a whole, and who looks at one row pays for one
row."""

from functools import cache

import pytest
import torch

from minivlm.cache import Cache
from minivlm.lab.speed.clock import Memory
from minivlm.llama import Decoder
from minivlm.parts.config import TextConfig
from pruning.adaptprune import AdaptPrune
from pruning.asap import ASAP, FastVBiMask
from pruning.base import Tokens, whole_grid
from pruning.fastv import FastV
from pruning.fitprune import SingleFitPrune
from pruning.readings import ASAPMaskLast, FastVAllRows

SIDE = 32
TEXT = 32
H = 64
n = SIDE ** 2
T = n + TEXT
MAP = 4 * H * T ** 2                           # bytes of one layer's weights, 285 MB; all else takes about 20


@cache
@torch.inference_mode()
def peak(method):
    """Bytes that a prefill of two narrow layers takes at once, above the weights."""
    torch.manual_seed(0)
    config = TextConfig(vocab_size=4, hidden_size=4 * H, intermediate_size=8 * H, num_hidden_layers=2,
                        num_attention_heads=H)
    decoder = Decoder(config)
    tokens = Tokens.start(torch.randn(T, 4 * H), torch.arange(n) + TEXT // 2, whole_grid(SIDE, SIDE))
    memory = Memory(torch.device("cpu"))
    decoder.prefill(tokens, Cache.empty(2), method)
    used = memory.peak()
    if used is None:
        pytest.skip("this system does not tell a process's memory")
    return used


@pytest.mark.parametrize("method", [ASAP(1), ASAPMaskLast(1), FastVBiMask(1), FastVAllRows(1), SingleFitPrune(1)],
                         ids=lambda method: type(method).__name__)
def test_all_rows(method):
    """Half of the map that the method looks at, and less, is there at once, in whatever form."""
    assert peak(method) < peak(None) + MAP / 2


def test_one_row():
    """It costs a row of each head: not a twentieth of the map."""
    assert peak(FastV(1)) < peak(None) + MAP / 20


def test_two_tokens_at_a_time():
    """AdaptPrune has distances and cosines of every two visual tokens, a few lists of n x n: a third of the map at
    most."""
    assert peak(AdaptPrune(1)) < peak(None) + MAP / 3
