"""Exercises on the network: rotary embedding, attention and its mask."""

import math
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from minivlm import attention as reference
from minivlm.course.exercises.grading.drawn import SEEDS, Vectors, noise
from minivlm.course.exercises.grading.judge import expect, same, shown, tensor
from minivlm.course.exercises.grading.sides import Ours
from minivlm.course.exercises.problem import ROOT, SAMPLE, Check, Problem
from pruning.views import for_each_head

ours = Ours(reference)
INF = float("inf")
THETA = 10000.0


# --- rotary embedding -------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Rotation:
    """A query at position i and a key at position j, both moved by `shift`."""

    i: int
    j: int
    shift: int
    half: int                          # Dh / 2
    seed: int

    def __str__(self):
        return f"positions {self.i} and {self.j}, moved by {self.shift}, Dh = {2 * self.half}, drawn with {self.seed}"

    def vectors(self):
        """(2, Dh)"""
        return noise(self.seed)(2, 2 * self.half)


ROTATIONS = st.builds(
    Rotation,
    i=st.integers(0, 300),
    j=st.integers(0, 300),
    shift=st.integers(0, 300),
    half=st.integers(1, 8),
    seed=SEEDS,
)


def rotated(side, x, position, theta=THETA):
    """x (T, Dh) at these positions."""
    turns = side.call("rope", torch.tensor(position), x.shape[-1], theta, torch.float32)
    expect(isinstance(turns, (tuple, list)) and len(turns) == 2, f"rope gives {shown(turns)}, not cos and sin")
    return tensor(side.call("rotate", x, tuple(turns)), "what rotate gives", x.shape)


def rotation_by_hand(side):
    """Dh = 4, theta = 100: pairs (0, 2) and (1, 3) turn by position and position / 10."""
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    expected = torch.tensor([[math.cos(10), math.cos(1), math.sin(10), math.sin(1)]])
    same(rotated(side, x, [10], 100.0), expected, "1 1 0 0 at position 10, with theta 100,")


def nothing_turns_at_first(side, case):
    x = case.tensor()
    same(rotated(side, x, [0] * case.count), x, "a vector at position 0")


def lengths_stay(side, case):
    x = case.vectors()
    same(rotated(side, x, [case.i, case.j]).norm(dim=1), x.norm(dim=1), "the length of a rotated vector", 1e-3)


def distance_counts(side, case):
    x = case.vectors()
    query, key = rotated(side, x, [case.i, case.j])
    moved_query, moved_key = rotated(side, x, [case.i + case.shift, case.j + case.shift])
    same(moved_query @ moved_key, query @ key, "query times key after both have moved", 5e-3)


def angles_are_exact(side):
    """bfloat16 has no 2047."""
    given = torch.tensor([2047]), 8, THETA, torch.bfloat16
    cos, sin = side.call("rope", *given)
    expected = ours.call("rope", *given)
    same([cos, sin], list(expected), "cos and sin of position 2047 in bfloat16", 1e-3)
    expect(cos.dtype == torch.bfloat16, f"cos is of {cos.dtype}, and bfloat16 was asked for")


def rotation_agrees(side, case):
    x = case.vectors()
    position = [case.i, case.j]
    same(rotated(side, x, position), rotated(ours, x, position), "the rotated vectors", 1e-3)


ROPE = Problem(
    name="rope",
    title="Rotary embedding",
    paper="Su et al., RoFormer, arXiv:2104.09864",
    section="3.2.2 and 3.4.2",
    formula="""
angle_i  = position * theta^(-2i / Dh)                     i = 0 .. Dh/2 - 1
x'_i     = x_i cos(angle_i) - x_(i + Dh/2) sin(angle_i)
x'_(i + Dh/2) = x_(i + Dh/2) cos(angle_i) + x_i sin(angle_i)
""",
    task="""
Write `rope`, which gives cos and sin of all angles, twice side by side, and `rotate`, which turns vectors by
them. The paper pairs a coordinate with its neighbour; the checkpoints of LLaMA pair i with i + Dh/2. Positions
(T,) are enough.
""",
    look="""
Query times key depends on how far apart they are, and on average it falls with the distance. Exercise `late`
shows what that does to an image.
""",
    commands=("python run.py attention --demo",),
    minutes=40,
    level=1,
    file=ROOT / "minivlm" / "attention.py",
    regions=("rope", "rotate"),
    checks=(
        Check("by hand", 3, "1 1 0 0 at position 10 becomes cos 10, cos 1, sin 10, sin 1 if theta is 100",
              rotation_by_hand),
        Check("position 0", 1, "at position 0 nothing turns", nothing_turns_at_first,
              st.builds(Vectors, st.integers(1, 4), st.sampled_from([2, 4, 8]), SEEDS)),
        Check("length", 2, "a rotated vector is as long as before", lengths_stay, ROTATIONS),
        Check("distance", 4, "query times key depends on their distance only", distance_counts, ROTATIONS),
        Check("precision", 2, "angles are computed in float32, and only cos and sin are rounded", angles_are_exact),
        Check("reference", 3, "the rotated vectors are those of the reference", rotation_agrees, ROTATIONS),
    ),
)


# --- attention --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Heads:
    """Queries, keys and values: the last T of S tokens ask."""

    T: int
    cached: int                        # tokens before them
    groups: int                        # query heads of each key head
    key_heads: int
    seed: int

    def __str__(self):
        return (f"{self.T} queries and {self.T + self.cached} keys, {self.groups * self.key_heads} query heads and "
                f"{self.key_heads} key heads, drawn with {self.seed}")

    def tensors(self):
        """(1, H, T, Dh), then (1, Hk, S, Dh) twice"""
        normal = noise(self.seed)
        S = self.T + self.cached
        H = self.groups * self.key_heads
        return normal(1, H, self.T, 4), normal(1, self.key_heads, S, 4), normal(1, self.key_heads, S, 4)

    def rows(self):
        """(T,) the queries' rows among the S tokens"""
        return torch.arange(self.cached, self.cached + self.T)

    def mask(self, side=ours):
        """(T, S) causal"""
        return side.call("causal_mask", self.rows(), self.T + self.cached)


HEADS = st.builds(
    Heads,
    T=st.integers(1, 4),
    cached=st.integers(0, 3),
    groups=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    seed=SEEDS,
)


def attended(side, query, key, value, mask):
    """What attention gives, checked for its shape."""
    out = side.call("attention_by_definition", query, key, value, mask)
    return tensor(out, "what attention gives", query.shape[:-1] + value.shape[-1:])


def attention_by_hand(side):
    """Dh = 4: logits 0, 2 ln 2, 0 over sqrt(4) give the weights 1/4, 1/2, 1/4, so that values 4, 8, 0 give 5."""
    query = torch.tensor([1.0, 0, 0, 0]).view(1, 1, 1, 4)
    key = torch.zeros(1, 1, 3, 4)
    key[0, 0, 1, 0] = 2 * math.log(2)
    value = torch.tensor([4.0, 8, 0]).view(1, 1, 3, 1)
    same(attended(side, query, key, value, torch.zeros(1, 3)).flatten(), torch.tensor([5.0]), "the value")


def mask_by_hand(side):
    expected = torch.tensor([[0, 0, -INF, -INF], [0, 0, 0, -INF]])
    got = side.call("causal_mask", torch.tensor([1, 2]), 4)
    same(got, expected, "the mask of rows 1 and 2 of 4")


def weights_sum_to_one(side, case):
    query, key, value = case.tensors()
    out = attended(side, query, key, torch.ones_like(value), case.mask())
    same(out, torch.ones_like(out), "what values of 1 give")


def nothing_from_later(side, case):
    """Other keys and values in the last place change no row but the last."""
    query, key, value = case.tensors()
    mask = tensor(case.mask(side), "the mask", (case.T, case.T + case.cached))
    first = attended(side, query, key, value, mask)[:, :, :-1]
    key[:, :, -1] += 1
    value[:, :, -1] += 1
    again = attended(side, query, key, value, mask)[:, :, :-1]
    same(again, first, "rows before the last after the last key and value have changed")


def heads_share_keys(side, case):
    query, key, value = case.tensors()
    H = query.shape[1]
    out = attended(side, query, key, value, case.mask())
    each = attended(side, query, for_each_head(key, H), for_each_head(value, H), case.mask())
    same(out, each, "what heads in groups give, next to a copy of its key head for each,")


def hidden_by_hand(side):
    """Keys 0 and 1 are hidden: rows 0 and 1 would see nothing, and see themselves."""
    hidden = torch.tensor([True, True, False])
    expected = torch.tensor([[0, -INF, -INF], [-INF, 0, -INF], [-INF, -INF, 0]])
    same(side.call("causal_mask", torch.arange(3), 3, hidden), expected, "the mask of 3 rows with keys 0 and 1 hidden")


def attention_agrees(side, case):
    query, key, value = case.tensors()
    expected = attended(ours, query, key, value, case.mask())
    same(attended(side, query, key, value, case.mask()), expected, "what attention gives")
    same(case.mask(side), case.mask(), "the mask")


ATTENTION = Problem(
    name="attention",
    title="Attention by definition, and the causal mask",
    paper="Vaswani et al., Attention Is All You Need, arXiv:1706.03762",
    section="3.2.1 and 3.2.3, Eq. 1",
    formula="""
Attention(Q, K, V) = softmax(Q K^T / sqrt(Dh) + mask) V
mask_ts            = 0 if token t may see token s, minus infinity if not
""",
    task="""
Write `attention_by_definition`, with the matrix of weights written out, and `causal_mask`, for some rows of a
sequence: these are fewer than the keys if a cache holds the others. A head of keys may serve several heads of
queries, one after the other. A row whose keys are all hidden sees itself, or its softmax would be NaN.
""",
    look="""
The kernels compute the same without writing the matrix down: see minivlm/kernels.py.
""",
    commands=(f"python run.py attention {SAMPLE} --out maps.png",),
    minutes=40,
    level=1,
    file=ROOT / "minivlm" / "attention.py",
    regions=("attention_by_definition", "causal_mask"),
    checks=(
        Check("by hand", 3, "logits of 0, 2 ln 2 and 0 with Dh = 4 give the values 4, 8 and 0 the mean 5",
              attention_by_hand),
        Check("mask by hand", 2, "row 1 of 4 sees 0 and 1, row 2 sees 0, 1 and 2", mask_by_hand),
        Check("weights", 2, "the weights of a row sum to 1", weights_sum_to_one, HEADS),
        Check("causal", 2, "a later key or value changes no earlier row", nothing_from_later, HEADS),
        Check("groups", 2, "query heads in groups share a key head", heads_share_keys, HEADS),
        Check("hidden keys", 2, "hidden keys are not seen, and a row that would see nothing sees itself",
              hidden_by_hand),
        Check("reference", 2, "attention and mask are those of the reference", attention_agrees, HEADS),
    ),
)


PROBLEMS = (ROPE, ATTENTION)
