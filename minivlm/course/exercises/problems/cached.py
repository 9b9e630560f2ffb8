"""The exercise on the cache: what a step appends, what a reduction leaves."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from minivlm import attention as reference
from minivlm import cache
from minivlm.course.exercises.grading.drawn import SEEDS, noise
from minivlm.course.exercises.grading.judge import expect, same, shown, tensor
from minivlm.course.exercises.grading.sides import Ours
from minivlm.course.exercises.problem import ROOT, Check, Problem

ours = Ours(cache)


@dataclass(frozen=True)
class Chunks:
    """A prompt and later tokens, which enter a layer's cache chunk by chunk."""

    lengths: tuple                     # tokens of each chunk
    reserve: int
    seed: int

    def __str__(self):
        return f"chunks of {', '.join(map(str, self.lengths))} tokens, reserve {self.reserve}, drawn with {self.seed}"

    def keys(self):
        """[(1, Hk, m, Dh)] of each chunk; the values are twice as large."""
        normal = noise(self.seed)
        return [normal(1, 2, m, 4) for m in self.lengths]

    def calls(self):
        """append, for each."""
        return [("append", key, 2 * key, self.reserve) for key in self.keys()]


CHUNKS = st.builds(
    Chunks,
    lengths=st.lists(st.integers(1, 4), min_size=1, max_size=6).map(tuple),
    reserve=st.integers(1, 4),
    seed=SEEDS,
)


def cache_by_hand(side):
    """Two tokens of a prompt, 1 and 2, then 3."""
    prompt = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    later = torch.tensor([3.0]).view(1, 1, 1, 1)
    wanted = ("append", prompt, prompt), ("append", later, 10 * later), ("length",)
    _, second, length = side.in_turn("LayerCache", *wanted)
    expect(isinstance(second, (list, tuple)) and len(second) == 2, f"append gives {shown(second)}, not keys and values")
    same([x.flatten() for x in second], [torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 2, 30])], "keys and values")
    same(length, 3, "length")


def all_so_far(side, case):
    """What each append gives is everything that came by then."""
    keys = case.keys()
    for i, given in enumerate(side.in_turn("LayerCache", *case.calls())):
        so_far = torch.cat(keys[:i + 1], dim=2)
        same(given, [so_far, 2 * so_far], f"what append number {i + 1} gives")


def step_is_the_whole(side, case):
    """Attention of each chunk over what the cache gives, next to that of the whole sequence at once."""
    keys = case.keys()
    whole = torch.cat(keys, dim=2)                                                 # (1, Hk, S, Dh)
    S = whole.shape[2]
    at_once = reference.attention(whole, whole, 2 * whole)
    start = 0
    for key, given in zip(keys, side.in_turn("LayerCache", *case.calls())):
        end = start + key.shape[2]
        mask = reference.causal_mask(torch.arange(start, end), end)
        same(list(given), [whole[:, :, :end], 2 * whole[:, :, :end]], "what append gives")
        attended = reference.attention(key, *given, mask)
        same(attended, at_once[:, :, start:end], f"attention of tokens {start} to {end - 1} of {S}")
        start = end


def selected(side, case):
    """After a reduction the cache holds the chosen rows, and later tokens come after them."""
    keys = case.keys()
    rows = torch.arange(0, case.lengths[0], 2)
    wanted = [case.calls()[0], ("select", rows), ("length",), ("append", keys[-1], 2 * keys[-1], case.reserve)]
    _, _, length, given = side.in_turn("LayerCache", *wanted)
    same(length, len(rows), "length after select")
    held = torch.cat([keys[0][:, :, rows], keys[-1]], dim=2)
    same(given, [held, 2 * held], "what the next append gives")


def hidden_later(side):
    """A prompt of three tokens, of which the second is hidden; two later ones are not, nor what is new."""
    masked = torch.tensor([False, True, False])
    got = side.in_turn("LayerCache", ("hidden_keys", 1), length=5, masked=masked)[0]
    expected = torch.tensor([False, True, False, False, False, False])
    same(got, expected, "hidden_keys(1) of a cache of 5 tokens with the second of 3 hidden")
    of_none = side.in_turn("LayerCache", ("hidden_keys",), length=5)[0]
    same(of_none, None, "hidden_keys of a cache without masked tokens")


def has_room(side, case):
    """The first later token makes room for the reserve, so that the next tokens move nothing."""
    expected = ours.in_turn("LayerCache", *case.calls(), ("key",))[-1].shape[2]
    got = side.in_turn("LayerCache", *case.calls(), ("key",))[-1]
    same(tensor(got, "the attribute key").shape[2], expected, "places of the buffer")


CACHE = Problem(
    name="cache",
    title="The cache step",
    paper="Shazeer, Fast Transformer Decoding, arXiv:1911.02150",
    section="2.4",
    formula="""
K_new = concat(K_old, k)        V_new = concat(V_old, v)
y     = softmax(q K_new^T / sqrt(Dh)) V_new
""",
    task="""
Write `append`, `select` and `hidden_keys` of a layer's cache. The prompt's keys are kept as they came; the
first later token moves them to a buffer with room for more, so that a long answer copies them seldom. After a
reduction each layer has a length of its own.
""",
    look="""
The bytes of the cache fall with the tokens kept, and yet each generated token takes as long: exercise `flops`.
""",
    commands=("python run.py growth --model minivlm/toy/model --tokens 24,48 --decode 4 --prompts 2 --dtype float32",),
    minutes=45,
    level=2,
    file=ROOT / "minivlm" / "cache.py",
    regions=("LayerCache.append", "LayerCache.select", "LayerCache.hidden_keys"),
    checks=(
        Check("by hand", 2, "after keys 1 and 2 of a prompt, key 3 gives 1, 2, 3", cache_by_hand),
        Check("all so far", 3, "append gives all keys and values so far, in order", all_so_far, CHUNKS),
        Check("step", 3, "a step over the cache attends as the whole sequence does", step_is_the_whole, CHUNKS),
        Check("select", 3, "after a reduction the cache holds the chosen rows only", selected, CHUNKS),
        Check("hidden keys", 2, "masked tokens of the prompt stay hidden, and no later token is hidden", hidden_later),
        Check("room", 2, "a buffer that moves gets room for the reserve, or half as much again", has_room, CHUNKS),
    ),
)

PROBLEMS = (CACHE,)
