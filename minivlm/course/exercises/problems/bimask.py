"""The exercise on SG-BiMask, the first part of ASAP."""

import math

import torch

from minivlm.course.exercises.grading.drawn import prompts, typed
from minivlm.course.exercises.grading.judge import expect, same, tensor
from minivlm.course.exercises.problem import CIRCLE, ROOT, Check, Problem
from pruning import FastVBiMask, asap

PAPER = "Pathak and Han, ASAP, arXiv:2603.14549"
FILE = ROOT / "pruning" / "asap.py"
INF = float("inf")
PROMPTS = prompts(kinds=("even", "copies"), largest=4)

LOGITS = torch.tensor([[9.0, 0, 0, 0, 0],      # a row of text, three visual tokens a b c, a row of text
                       [9.0, 1, 0, 2, 0],      # a
                       [9.0, 0, 1, 3, 0],      # b
                       [9.0, 0, 2, 1, 0],      # c
                       [9.0, 7, 1, 1, 0]])


def with_logits(W):
    """Queries and keys of one head whose logits are W (T, T): each key is an axis."""
    T = len(W)
    return dict(query=W * T ** 0.5, key=torch.eye(T))


# --- SG-BiMask --------------------------------------------------------------------------------------------------------

def mass_by_hand(side):
    """The columns of a b c, over the rows of a b c only, sum to 1 3 6."""
    view = typed("tvvvt", before=with_logits(LOGITS)).before
    got = side.call("attention_mass", view, torch.tensor([1, 2, 3]))
    same(got, torch.tensor([1.0, 3, 6]), "the masses of a b c")


def saliency_by_hand(side):
    same(side.call("saliency", torch.tensor([1.0, 3, 6])), torch.tensor([0, 0.4, 1]), "the saliencies of masses 1 3 6")


def masked(side, tokens, **options):
    """A student's mask (T, T)."""
    T = len(tokens.hidden)
    mask = side.make("FastVBiMask", keep=1, **options).mask(tokens)
    return tensor(mask, "the mask", (T, T))


def mask_by_hand(side):
    """s_hat = 0 .4 1 and lambda_max .5: a sees b by ln .2 and c by ln .5, b sees c by ln .5."""
    expected = torch.full((5, 5), -INF).triu(1)
    expected[1, 2] = math.log(0.2)
    expected[1, 3] = expected[2, 3] = math.log(0.5)
    got = masked(side, typed("tvvvt", here=with_logits(LOGITS)), lambda_max=0.5)
    same(got[1:4], expected[1:4], "the rows of a b c with lambda_max .5")


def stays_causal(side, case):
    """Text rows, and all columns of later text, are those of the causal mask."""
    tokens = case.tokens()
    mask = masked(side, tokens)
    causal = tokens.here.mask()
    is_text = ~tokens.is_visual()
    same(mask[is_text], causal[is_text], "the rows of text in the mask")
    same(mask[:, is_text], causal[:, is_text], "the columns of text in the mask")


def images_are_apart(side, case):
    """No token sees one of a later image, and each sees all of its own."""
    tokens = case.tokens()
    mask = masked(side, tokens)[tokens.visual[:, None], tokens.visual]             # (n, n)
    tile = tokens.grid[:, 0]
    is_later_image = tile[:, None] < tile
    is_own_image = tile[:, None] == tile
    expect((mask[is_later_image] == -INF).all(), "a token sees one of a later image")
    expect((mask[is_own_image] > -INF).all(), "a token does not see one of its own image")


def most_salient_is_one(side, case):
    """Of the masses of an image the smallest has saliency 0 and the largest nearly 1."""
    tokens = case.tokens()
    s = asap.attention_mass(tokens.before, tokens.visual)
    s_hat = tensor(side.call("saliency", s), "the saliencies", s.shape)
    expect(not s_hat.isnan().any(), "a saliency is not a number: s_max = s_min here")
    expect(bool((s_hat >= 0).all() and (s_hat <= 1).all()), "a saliency is outside of [0, 1]")
    same(s_hat[s.argmin()], torch.tensor(0.0), "the saliency of the smallest mass")


def bimask_agrees(side, case):
    tokens = case.tokens()
    same(masked(side, tokens), FastVBiMask().mask(tokens), "the mask", 1e-3)


BIMASK = Problem(
    name="bimask",
    title="SG-BiMask",
    paper=PAPER,
    section="4.1, Eq. 2 to 5",
    formula="""
s_j      = sum over visual i of W_ij,   W = QK^T / sqrt(Dh), mean over heads           Eq. 2
s_hat_j  = (s_j - s_min) / (s_max - s_min + eps),   lambda_j = lambda_max s_hat_j      Eq. 3
M_ij     = 0 for i >= j,   ln max(lambda_j, eps) for i < j      (i, j visual)          Eq. 4
A        = softmax(W + M)                                                              Eq. 5
""",
    task="""
Write `attention_mass`, `saliency` and `SGBiMask.mask`. The mask only widens what a visual token sees of its own
image (`image_of` numbers the images); `tokens.here.mask()` is the causal one, (T, T), and `discount` is lambda.
`view.logits(rows)` is W of these rows, (H, R, T). `mask` returns (T, T), which the layer adds to W.
""",
    look="""
What the mask changes in FastV's choice. Then the paper's question: does it answer more than FastV?
""",
    commands=(
        f"python run.py compare {CIRCLE} --method fastv,hw/bimask.py:FastVBiMask --keep 0.1 --out bimask.png",
        "python run.py eval --method fastv,hw/bimask.py:FastVBiMask --keep 0.1",
    ),
    minutes=60,
    level=3,
    file=FILE,
    regions=("SGBiMask.mask", "attention_mass", "saliency"),
    checks=(
        Check("mass by hand", 2, "three visual tokens receive 1, 3 and 6 from each other, whatever the text gives them",
              mass_by_hand),
        Check("saliency by hand", 1, "masses of 1, 3 and 6 have the saliencies 0, .4 and 1", saliency_by_hand),
        Check("mask by hand", 3, "an earlier token sees a later one by the logarithm of its lambda", mask_by_hand),
        Check("causal", 3, "text rows see what they saw, and nobody sees later text", stays_causal, PROMPTS),
        Check("images", 3, "a token sees all of its own image, and nothing of a later one", images_are_apart, PROMPTS),
        Check("range", 1, "saliencies lie in [0, 1], and the smallest mass has 0", most_salient_is_one, PROMPTS),
        Check("reference", 2, "the mask is that of the reference", bimask_agrees, PROMPTS),
    ),
)


PROBLEMS = (BIMASK,)
