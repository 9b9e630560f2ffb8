"""The cache: how long each layer's is, how it grows, what it weighs; and that nothing of size T x T comes after the
prefill."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from minivlm.cache import Cache, LayerCache
from minivlm.generate import Conversation
from pruning.base import Reduction
from pruning.fastv import FastV
from pruning.readings import FastVAllRows, FastVMask, FastVRerank
from tiny import MARK, Chosen, ids, llava, picture, prefill

PROMPT = ids(5, MARK, 7)                       # 5 + 16 + 7 = 28 tokens


def some(m, seed=0):
    """Keys or values of m tokens, (1, 2, m, 8)."""
    return torch.randn(1, 2, m, 8, generator=torch.Generator().manual_seed(seed))


# --- one layer --------------------------------------------------------------------------------------------------------

def test_append():
    """What is held is all that was given, in order, whether it fits the buffer or not."""
    cache, given = LayerCache(), [some(m, seed) for seed, m in enumerate((5, 1, 1, 3, 40, 1))]
    for count, x in enumerate(given, 1):
        key, value = cache.append(x, -x, reserve=2)
        assert key.equal(torch.cat(given[:count], dim=2)) and value.equal(-key)
        assert cache.length == key.shape[2]


@pytest.mark.internal
def test_the_prefill_is_kept_as_it_came():
    """No copy until the first later token; then a buffer with half as much room again (256 where that is more), in
    which the next tokens are written in place."""
    cache, key, value = LayerCache(), some(600), some(600, 1)
    held, _ = cache.append(key, value)
    assert held.data_ptr() == key.data_ptr() and cache.value.data_ptr() == value.data_ptr()
    sizes, places = [], []
    for m in (1, 300, 1):
        held, _ = cache.append(some(m), some(m))
        sizes.append(cache.key.shape[2])
        places.append(held.data_ptr())
    assert sizes == [601 + 300, 901, 902 + 450] and places[0] == places[1]
    short = LayerCache()
    for m in (10, 1):
        short.append(some(m), some(m))
    assert short.key.shape[2] == 11 + 256


def test_hidden_keys():
    """Keys that came after the prefill are hidden from nobody."""
    cache = LayerCache()
    cache.append(some(3), some(3))
    assert cache.hidden_keys() is None
    cache.masked = torch.tensor([False, True, False])
    cache.append(some(2), some(2))
    assert cache.hidden_keys().tolist() == [False, True, False, False, False]


def test_selected_tokens_keep_their_positions():
    """Where there is a sliding window, the position ids go with the keys."""
    cache = LayerCache(position=torch.arange(5) + 10)
    cache.append(some(5), some(5))
    cache.select(torch.tensor([0, 3]))
    assert cache.position.tolist() == [10, 13] and cache.length == cache.key.shape[2] == 2


# --- the whole --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("pruner, visual", [
    (None, [16] * 32),
    (FastV(layer=2, keep=4), [16] * 2 + [4] * 30),
    (FastV(layer=31, keep=0.5), [16] * 31 + [8]),
    (FastVMask(layer=2, keep=4), [16] * 32),
    (Chosen({3: range(8), 9: [0, 7], 20: []}), [16] * 3 + [8] * 6 + [2] * 11 + [0] * 12),
    (Chosen([3, 5, 8], site="embed"), [3] * 32),
    (Chosen([3, 5, 8], site="vision"), [3] * 32),
    (Chosen({2: Reduction(torch.tensor([0, 8]), torch.full((2, 16), 1 / 16))}), [16] * 2 + [2] * 30),
], ids=["unpruned", "layer 2", "last layer", "masked", "three layers", "embed", "vision", "merged"])
def test_a_length_per_layer(pruner, visual):
    """Layers below a reduction hold all that came, those above it what was left; each step adds one to each."""
    model = llava()
    _, cache, trace = prefill(model, PROMPT, [picture(model)], pruner)
    assert cache.lengths == trace.tokens == [12 + n for n in visual]
    for _ in range(2):
        model.step([7], cache)
    assert cache.lengths == [14 + n for n in visual]
    assert [layer.key[:, :, :layer.length].shape[2] for layer in cache.layers] == cache.lengths
    model.step([7, 8, 9], cache)
    assert cache.lengths == [17 + n for n in visual]


@pytest.mark.parametrize("kept, site, positions, expected", [
    (None, None, None, [28] * 32),
    ({2: range(4)}, "decoder", "keep", [28] * 32),
    ({2: range(8), 5: range(4)}, "decoder", "renumber", [28] * 2 + [20] * 3 + [16] * 27),
    ([1, 2], "embed", None, [14] * 32), ([1, 2], "vision", None, [14] * 32),
    ([1, 2], "embed", "keep", [28] * 32), ([1, 2], "vision", "keep", [28] * 32)])
def test_the_next_position(kept, site, positions, expected):
    """A generated token goes on from the length of the unpruned prompt in every layer, however few tokens it holds;
    only where positions are renumbered from what the layer holds, as by default before the decoder's first layer."""
    model = llava()
    _, cache, _ = prefill(model, PROMPT, [picture(model)], kept and Chosen(kept, site, positions))
    assert [layer.next_position for layer in cache.layers] == expected
    model.step([7, 8], cache)
    assert [layer.next_position for layer in cache.layers] == [n + 2 for n in expected]


@pytest.mark.parametrize("dtype, size", [(torch.float32, 4), (torch.bfloat16, 2)])
def test_bytes(dtype, size):
    """Keys and values, 2 key heads of width 8, of 28 tokens in 2 layers and 16 in 30; the reserve does not count."""
    cache = Cache.empty(32)
    assert cache.bytes == 0
    for layer, m in zip(cache.layers, [28] * 2 + [16] * 30):
        layer.append(some(m).to(dtype), some(m).to(dtype))
    assert cache.bytes == (28 * 2 + 16 * 30) * 2 * 2 * 8 * size
    for layer in cache.layers:
        layer.append(some(1).to(dtype), some(1).to(dtype))
    assert cache.bytes == (29 * 2 + 17 * 30) * 2 * 2 * 8 * size


def test_the_prefill_is_not_copied():
    """After the prefill each layer holds the tensors as they came from the projection, without a reserve; the first
    step makes room."""
    model = llava()
    _, cache, _ = prefill(model, PROMPT, [picture(model)], FastV(keep=4))
    for layer in cache.layers:
        for x in (layer.key, layer.value):
            assert x.shape[2] == layer.length and x.untyped_storage().nbytes() == layer.length * 2 * 8 * 4
    model.step([7], cache)
    assert all(layer.key.shape[2] > layer.length for layer in cache.layers)


def test_a_prompt_that_was_pruned_is_not_held():
    """What was dropped can be freed: the cache holds no tokens unless the method ranks again."""
    model = llava()
    for method in (FastVMask, FastVRerank):
        _, cache, _ = prefill(model, PROMPT, [picture(model)], method(keep=4))
        assert (cache.tokens is not None) == (method is FastVRerank)


# --- no explicit attention --------------------------------------------------------------------------------------------

class Softmaxes(TorchFunctionMode):
    """The shapes of all explicit softmaxes, which torch's fused attention is not."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in ("softmax", "_softmax", "log_softmax", "exp"):
            self.shapes.append(tuple(out.shape))
        return out


def attention_before(rows):
    """What a method that looks at these rows of the layer before calls."""
    return lambda tokens: tokens.before.attention(rows)


@pytest.mark.internal
@pytest.mark.parametrize("pruner, shapes", [
    (None, []), (FastV(keep=4), [(1, 28)] * 4), (FastVAllRows(keep=4), [(28, 28)] * 4),
    (Chosen({3: range(8), 9: [0, 7]}, look=attention_before("last")), [(4, 1, 28), (4, 1, 20)]),
    (Chosen({3: range(8)}, look=attention_before("text")), [(4, 7, 28)]), (Chosen({3: range(8)}), []),
    (Chosen([1, 2], site="vision", look=lambda tokens: tokens.before.cls_attention()), [(4, 1, 17, 1)])],
    ids=["unpruned", "last row", "all rows", "two layers", "text rows", "no attention needed", "vision"])
def test_only_what_is_asked_for_is_explicit(pruner, shapes):
    """One softmax for each layer (and head) that a method looks at, over the rows that it names; after the prefill none
    at all."""
    model, conversation = llava(), Conversation(llava(), pruner)
    with Softmaxes() as spy:
        conversation.read(PROMPT, [picture(model)])
        assert spy.shapes == shapes
        for _ in conversation.generate(3, eos=()):
            pass
        conversation.read(ids(4, seed=1))
        assert spy.shapes == shapes


@pytest.mark.internal
def test_ranking_again_looks_at_one_row():
    """FastVRerank reads the newest token's row of layer K-1 and no other, one head after the other."""
    model, pruner = llava(), FastVRerank(keep=4)
    _, cache, _ = prefill(model, PROMPT, [picture(model)], pruner)
    with Softmaxes() as spy:
        model.step([7], cache, pruner)
        model.step([7, 8], cache, pruner)
    assert spy.shapes == [(1, 29)] * 4 + [(1, 31)] * 4
