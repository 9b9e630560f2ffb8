"""Exercises on attention as a score: FastV, and why late tokens win."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from minivlm.course.exercises.grading.drawn import SEEDS, noise, prompts, typed
from minivlm.course.exercises.grading.judge import Through, expect, keeps_law, same, shown, tensor
from minivlm.course.exercises.grading.sides import Ours
from minivlm.course.exercises.problem import OWN, ROOT, SQUARE, Check, Problem
from minivlm.course.exercises.problems.sources import late
from pruning import FastV



# --- FastV ------------------------------------------------------------------------------------------------------------

def fastv_through(side, keep):
    """FastV with a student's score."""
    return Through(FastV(keep=keep), side.make("FastV", keep=keep))


def kept(side, tokens, keep):
    """Indices that a student's FastV keeps."""
    return fastv_through(side, keep).reduce(tokens).keep.tolist()


def fastv_by_hand(side):
    """The last row gives the three visual tokens .1 .6 .1, and the mean of all rows prefers the first."""
    rows = [[1.0, 0.0, 0.0, 0.0, 0.0],
            [0.2, 0.8, 0.0, 0.0, 0.0],
            [0.1, 0.5, 0.4, 0.0, 0.0],
            [0.2, 0.5, 0.2, 0.1, 0.0],
            [0.1, 0.1, 0.6, 0.1, 0.1]]
    tokens = typed("tvvvt", rows)
    same(side.make("FastV").score(tokens), torch.tensor([0.1, 0.6, 0.1]), "the score")
    same(kept(side, tokens, 1), [1], "what is kept")


def heads_are_averaged(side):
    """One head gives .6 .4 .0, the other .0 .4 .5: the means are .3 .4 .25."""
    heads = torch.zeros(2, 4, 4)
    heads[:, -1] = torch.tensor([[0.6, 0.4, 0.0, 0.0], [0.0, 0.4, 0.5, 0.1]])
    tokens = typed("vvvt", heads.tolist())
    same(side.make("FastV").score(tokens), torch.tensor([0.3, 0.4, 0.25]), "the score")


def second_image(side):
    """Nearly all attention is on row 6, the second token of the second image: visual token 3."""
    tokens = typed("tvvttvvvt", [0.004, 0.001, 0.001, 0.001, 0.001, 0.001, 0.99, 0.0005, 0.0005])
    same(kept(side, tokens, 1), [3], "what is kept")


def law(name):
    """The test of a law of laws.py."""
    def test(side, case):
        keeps_law(name, fastv_through(side, case.keep), case.tokens())
    return test


def fastv_agrees(side, case):
    tokens = case.tokens()
    same(side.make("FastV").score(tokens), FastV().score(tokens), "the score")


FASTV = Problem(
    name="fastv",
    title="FastV",
    paper="Chen et al., An Image is Worth 1/2 Tokens After Layer 2, arXiv:2403.06764",
    section="4, the formula is the released code's",
    formula="""
score_j = mean over heads of A[last, j]        A: attention of layer K-1, j a visual token
""",
    task="""
Write `score`. `Ranked` keeps the k best. What the last prompt token attends to is read from `tokens.before`;
the rows of the visual tokens are `tokens.visual`, and they need not be the first.
""",
    look="""
Which patches your own file keeps, next to random ones at the same place and budget.
""",
    commands=(f"python run.py compare {SQUARE} --method hw/fastv.py:FastV,random --keep 0.1 --out fastv.png",),
    minutes=20,
    level=1,
    file=ROOT / "pruning" / "fastv.py",
    regions=("FastV.score",),
    checks=(
        Check("by hand", 3, "of three visual tokens that get .1, .6 and .1 from the last row, one stays: the second",
              fastv_by_hand),
        Check("heads", 2, "the heads are averaged", heads_are_averaged),
        Check("two images", 2, "the token with nearly all the attention, in the second image, is kept", second_image),
        Check("needle", 3, "a token that gets nearly all the attention is kept", law("needle"), prompts()),
        Check("shift", 2, "text put before the image changes no choice", law("shift"), prompts()),
        Check("scale", 1, "attention times a positive constant selects the same", law("scale"), prompts()),
        Check("reference", 2, "the scores are those of the reference", fastv_agrees, prompts()),
    ),
)


# --- why late tokens win ----------------------------------------------------------------------------------------------

ours = Ours(late)


@dataclass(frozen=True)
class Layout:
    """Text, an image of n tokens, text; and random queries and keys, which have a cosine of `similarity`."""

    before: int
    n: int
    after: int
    seed: int
    similarity: float = 0.5
    heads: int = 4

    def __str__(self):
        return f"{self.n} image tokens after {self.before} and before {self.after} of text, drawn with {self.seed}"

    @property
    def T(self):
        """Tokens of the prompt."""
        return self.before + self.n + self.after

    def visual(self):
        """(n,)"""
        return torch.arange(self.before, self.before + self.n)

    def vectors(self, Dh=16):
        """query (H, Dh) and key (H, n, Dh)"""
        normal = noise(self.seed)
        common = normal(self.heads, 1, Dh)
        own = normal(self.heads, 1 + self.n, Dh)
        mixed = self.similarity ** 0.5 * common + (1 - self.similarity) ** 0.5 * own
        return mixed[:, 0], mixed[:, 1:]


LAYOUTS = st.builds(Layout, before=st.integers(0, 5), n=st.integers(2, 12), after=st.integers(1, 4), seed=SEEDS)


def ids_by_hand(side):
    visual = torch.tensor([1, 2, 3])
    for kind, expected in (("usual", [0, 1, 2, 3, 4]), ("reversed", [0, 3, 2, 1, 4]), ("equal", [0, 1, 1, 1, 4])):
        got = side.call("position_ids", 5, visual, kind)
        same(got, torch.tensor(expected), f"the ids of 5 tokens, 1 to 3 of the image, {kind},")


def correlation_by_hand(side):
    for row, expected in (([0.1, 0.3, 0.5], 1.0), ([0.2, 0.2, 0.2], 0.0), ([0.3, 0.1, 0.2], -0.5)):
        same(side.call("index_correlation", torch.tensor(row)), expected, f"the correlation of {row}", 1e-3)


def row_of(side, case, kind, key):
    """The last row under a kind of ids, which our own function makes."""
    query, _ = case.vectors()
    position = ours.call("position_ids", case.T, case.visual(), kind)
    row = side.call("last_row", query, key, position, case.visual())
    return tensor(row, "the last row", (case.n,))


def equal_keys(case):
    """(H, n, Dh): all tokens of the image show the same."""
    _, key = case.vectors()
    return key[:, :1].expand(-1, case.n, -1)


def flat_without_positions(side, case):
    row = row_of(side, case, "equal", equal_keys(case))
    same(row, torch.full((case.n,), 1 / case.n), "the row of equal keys with equal ids")


def turns_over(side, case):
    usual = row_of(side, case, "usual", equal_keys(case))
    same(row_of(side, case, "reversed", equal_keys(case)), usual.flip(0), "the row of equal keys with reversed ids")


def experiment(side):
    """64 heads with a common direction, 100 image tokens: positive, negative, and none to speak of."""
    case = Layout(before=10, n=100, after=5, seed=0, heads=64)
    got = side.call("bias", *case.vectors(64), case.T, case.visual())
    is_table = isinstance(got, dict) and set(got) == set(late.KINDS) and all(isinstance(x, float) for x in got.values())
    expect(is_table, f"bias gives {shown(got)}, and should give a number for each of {', '.join(late.KINDS)}")
    expected = ours.call("bias", *case.vectors(64), case.T, case.visual())
    for kind in late.KINDS:
        same(got[kind], expected[kind], f"the correlation with {kind} ids", 1e-3)


def late_agrees(side, case):
    query, key = case.vectors()
    for kind in late.KINDS:
        same(row_of(side, case, kind, key), row_of(ours, case, kind, key), f"the row with {kind} ids")


LATE = Problem(
    name="late",
    title="Why late tokens win: measure it",
    paper="Pathak and Han, ASAP, arXiv:2603.14549; Luan et al., AdaptPrune, arXiv:2503.08019; Su et al., RoFormer, "
          "arXiv:2104.09864",
    section="the motivation of the first two; 3.4.3 of the third",
    formula="""
row_j = mean over heads of softmax over visual j of (R(p_last) q . R(p_j) k_j / sqrt(Dh))
r     = Pearson's correlation of row_j with j
""",
    task="""
Write the experiment: position ids of three kinds, the row of the last token under them, its correlation with
the index of the token, and `bias`, which puts the three together. `rope` and `rotate` are there to be used.
""",
    look="""
The same experiment on a trained model: which of its layers have the bias, and what becomes of it when the ids
change. On which layers does a method rest that ranks by attention?
""",
    commands=("python run.py attention --demo --out demo.png", "python run.py attention --out attention.png"),
    minutes=60,
    level=2,
    file=OWN / "late.py",
    regions=("position_ids", "last_row", "index_correlation", "bias"),
    checks=(
        Check("ids by hand", 2, "ids of the image as they are, in the opposite order, or all that of its first token",
              ids_by_hand),
        Check("correlation by hand", 2, "a rising row has the correlation 1, a flat one 0, and .3 .1 .2 has -0.5",
              correlation_by_hand),
        Check("flat", 2, "with equal keys and equal ids all tokens get the same", flat_without_positions, LAYOUTS),
        Check("turns over", 3, "with equal keys, reversed ids turn the row over", turns_over, LAYOUTS),
        Check("experiment", 3, "with a common direction late tokens get more, early ones if the ids are reversed",
              experiment),
        Check("reference", 3, "the rows are those of the reference", late_agrees, LAYOUTS),
    ),
)

PROBLEMS = (FASTV, LATE)
