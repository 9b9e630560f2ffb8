"""Exercises on diversity: DivPrune, and AdaptPrune's correction and Algorithm 1."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from minivlm.course.exercises.grading.drawn import SEEDS, Vectors, prompts, typed
from minivlm.course.exercises.grading.judge import Through, expect, keeps_law, same, shown, tensor
from minivlm.course.exercises.grading.sides import Ours
from minivlm.course.exercises.problem import ROOT, SAMPLE, SQUARE, Check, Problem
from pruning import AdaptPrune, adaptprune, divprune
from pruning.grid import whole_grid
from pruning.ranked import cosines



def plane(*degrees):
    """(n, 2) vectors of these angles."""
    radians = torch.tensor(degrees).float().deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


# --- DivPrune ---------------------------------------------------------------------------------------------------------

search = Ours(divprune)


def picked(side, distance, k):
    """(order as a list, score) of a student's search, checked for their shapes."""
    got = side.call("max_min", distance, k)
    expect(isinstance(got, (tuple, list)) and len(got) == 2, f"max_min gives {shown(got)}, not an order and a score")
    order, score = got
    return tensor(order, "the order", (k,)).tolist(), tensor(score, "the score", (len(distance),))


def order_by_hand(side):
    """To the nearest other: 10 10 80 25 25, so 90 is first; then 205, 0, 180 and 10."""
    order, _ = picked(side, 1 - cosines(plane(0, 10, 90, 180, 205)), 5)
    same(order, [2, 4, 0, 3, 1], "the order at angles 0 10 90 180 205")


def first_is_the_loneliest(side):
    """To the nearest other: .2 .2 .4 .2 .2, so the middle one is first, and then of two equals the first."""
    features = torch.tensor([[1.0, 0], [0.8, 0.6], [0, 1], [-0.8, 0.6], [-1, 0]])
    order, _ = picked(side, 1 - cosines(features), 2)
    same(order, [2, 0], "the order")


def copies_by_hand(side):
    """a a b b with k = 3: a, then b; everything else is 0 away, and each is picked once."""
    features = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    order, _ = picked(side, 1 - cosines(features), 3)
    same(sorted(order), [0, 1, 2], "what is picked of a a b b, three times,")


@dataclass(frozen=True)
class Picks(Vectors):
    """Vectors, and how many are picked."""

    k: int = 1

    def __str__(self):
        return f"{super().__str__()}, k = {self.k}"

    def distance(self):
        """(n, n)"""
        return 1 - cosines(self.tensor())


@st.composite
def picks(draw):
    count = draw(st.integers(2, 10))                       # a single one has no nearest other
    return Picks(count, draw(st.sampled_from([2, 4])), draw(SEEDS), draw(st.integers(1, count)))


def each_is_the_farthest(side, case):
    """After the first: no other token is farther from those that are picked already."""
    distance = case.distance()
    order, _ = picked(side, distance, case.k)
    expect(len(set(order)) == case.k, f"it picks {order}, one of them twice")
    for i in range(1, case.k):
        nearest = distance[order[:i]].min(dim=0).values                            # (n,)
        nearest[order[:i]] = -1
        gain = float(nearest[order[i]])
        expect(gain >= float(nearest.max()) - 1e-6, f"of {order}, pick {i} is {gain:.4f} from those before it, and "
                                                    f"token {int(nearest.argmax())} is {float(nearest.max()):.4f}")


def begins_alike(side, case):
    whole, _ = picked(side, case.distance(), case.count)
    order, _ = picked(side, case.distance(), case.k)
    same(order, whole[:case.k], f"the order of {case.k}, next to that of all")


def scores_by_hand(side):
    """Degrees by which each one was picked: 90, 10, 80, 25, 115 (see the order by hand)."""
    _, score = picked(side, 1 - cosines(plane(0, 10, 90, 180, 205)), 5)
    degrees = torch.tensor([90.0, 10, 80, 25, 115])
    same(score, 1 - degrees.deg2rad().cos(), "the score at angles 0 10 90 180 205", 1e-3)


def search_agrees(side, case):
    order, score = picked(side, case.distance(), case.k)
    expected, expected_score = picked(search, case.distance(), case.k)
    same(order, expected, "the order")
    same(score, expected_score, "the score")


DIVPRUNE = Problem(
    name="divprune",
    title="DivPrune",
    paper="Alvar et al., DivPrune, arXiv:2503.02175",
    section="3",
    formula="""
first pick:  argmax over i of min over j != i of d(i, j)
next picks:  argmax over i not picked of min over picked j of d(i, j)        d = 1 - cosine
""",
    task="""
Write `max_min`, the greedy search: the order of picking, and by how much each token was picked. Of equals, the
first is picked; none is picked twice, even if only copies of picked tokens are left.
""",
    look="""
What it keeps of a picture with a large background, next to FastV. Which of the two keeps what the question is
about, and why does DivPrune not know?
""",
    commands=(f"python run.py compare {SQUARE} --method hw/divprune.py:DivPrune,fastv --keep 0.1 --out div.png",),
    minutes=45,
    level=2,
    file=ROOT / "pruning" / "divprune.py",
    regions=("max_min",),
    checks=(
        Check("by hand", 3, "angles of 0 10 90 180 205 are picked in the order 2 4 0 3 1", order_by_hand),
        Check("first pick", 2, "the first pick is the token whose nearest other is farthest", first_is_the_loneliest),
        Check("copies", 2, "no token is picked twice, even among copies", copies_by_hand),
        Check("farthest", 3, "each pick is the farthest from those before it", each_is_the_farthest, picks()),
        Check("beginning", 1, "a smaller k gives the beginning of the same order", begins_alike, picks()),
        Check("score", 2, "a token's score is its distance to the nearest token picked before it", scores_by_hand),
        Check("reference", 2, "order and score are those of the reference", search_agrees, picks()),
    ),
)


# --- AdaptPrune -------------------------------------------------------------------------------------------------------

nms = Ours(adaptprune)
PROMPTS = prompts(kinds=("even", "copies"))


def row_of_patches(attention, columns=None, key=None):
    """An image in one row, with this attention from the last token; all keys are equal unless they are given."""
    n = len(attention)
    key = torch.ones(n, 1) if key is None else torch.tensor(key)
    stream_key = torch.cat([key, torch.zeros(1, key.shape[1])])
    rows = 1 if columns is None else n // columns
    return typed("v" * n + "t", [*attention, 0.0], grid=(rows, columns or n), here=dict(stream_key=stream_key))


def correction_by_hand(side):
    """Coordinates -2 -2/3 2/3 2, sigma 2: the outer patches weigh exp(-4/9) = .641 of the inner ones."""
    got = side.call("gaussian", whole_grid(1, 4))
    same(got, torch.tensor([0.6412, 1, 1, 0.6412]), "the weights of a row of 4 patches", 1e-3)


@dataclass(frozen=True)
class Tiles:
    """Tiles of some patches each."""

    sizes: tuple                       # (rows, columns) of each

    def __str__(self):
        return "tiles of " + " and ".join(f"{rows} x {columns}" for rows, columns in self.sizes)

    def grid(self):
        """(n, 3)"""
        return torch.cat([whole_grid(rows, columns, tile) for tile, (rows, columns) in enumerate(self.sizes)])


SIDES = st.integers(1, 6)
TILES = st.builds(Tiles, st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=2).map(tuple))


def weights_agree(side, case):
    got = tensor(side.call("gaussian", case.grid()), "the weights", (len(case.grid()),))
    same(got, adaptprune.gaussian(case.grid()), "the weights")


def suppression_by_hand(side):
    """Keys e1 e2 e1 e1 in a row, sigma_d 1.5: 1, 0, exp(-4 / 4.5), exp(-9 / 4.5)."""
    tokens = row_of_patches([0.3, 0.2, 0.1, 0.1], key=[[1.0, 0], [0, 1], [1, 0], [1, 0]])
    got = tensor(side.make("AdaptPrune").suppression(tokens), "the suppression", (4, 4))
    same(got[0], torch.tensor([1, 0, 0.4111, 0.1353]), "what token 0 does to the four", 1e-3)


def neighbours_by_hand(side):
    """(3, 4) is 5 away and a neighbour of the corner, (4, 4) is not. All keys are equal; without distance."""
    tokens = row_of_patches([1 / 49] * 49, columns=7)
    got = side.make("AdaptPrune", distance=False).suppression(tokens)
    corner = tensor(got, "the suppression", (49, 49))[0].view(7, 7)
    same(corner[3, 4], torch.tensor(1.0), "the suppression of a patch 3 down and 4 right")
    same(corner[4, 4], torch.tensor(0.0), "the suppression of a patch 4 down and 4 right")


def order_of(side, score, suppression, k):
    """A student's Algorithm 1, as a list."""
    got = side.make("AdaptPrune").adaptive_nms(torch.tensor(score), torch.tensor(suppression), k)
    return tensor(got, "the order", (k,)).tolist()


def adds_up_by_hand(side):
    """0 is picked: 1 keeps .4 of .5 = .2, 2 keeps .5 of .9 = .45. 2 is picked: 1 keeps .2 of .2 = .04; 3 has .1."""
    suppression = [[1.0, 0.6, 0.5, 0.0], [0.6, 1.0, 0.8, 0.0], [0.5, 0.8, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    same(order_of(side, [1.0, 0.5, 0.9, 0.1], suppression, 4), [0, 2, 3, 1], "the order")


def picks_once(side):
    """All scores are 0 after the first pick: of equals the first that is left."""
    same(order_of(side, [0.0, 0.5, 0.0], [[1.0] * 3] * 3, 3), [1, 0, 2], "the order of 0, .5 and 0, all neighbours,")


def nms_law(name):
    """The test of a law of laws.py."""
    def test(side, case):
        ours = AdaptPrune(keep=case.keep)
        keeps_law(name, Through(ours, side.make("AdaptPrune", keep=case.keep)), case.tokens())
    return test


def nms_agrees(side, case):
    tokens = case.tokens()
    ours = AdaptPrune(keep=case.keep)
    same(side.make("AdaptPrune").suppression(tokens), ours.suppression(tokens), "the suppression")
    got = Through(ours, side.make("AdaptPrune", keep=case.keep)).reduce(tokens)
    same(got.keep.tolist(), ours.reduce(tokens).keep.tolist(), "what is kept")


ADAPTPRUNE = Problem(
    name="adaptprune",
    title="AdaptPrune: correction and Algorithm 1",
    paper="Luan et al., Multi-Cue Adaptive Visual Token Pruning, arXiv:2503.08019",
    section="4.1 to 4.3, Eq. 1 to 3, Algorithm 1",
    formula="""
score_j      = A[last, j] * exp(-|p_j - centre|^2 / (2 sigma^2))                       4.1
D_spatial    = exp(-d(i, j)^2 / (2 sigma_d^2))                                         Eq. 1
D_similarity = exp(-(1 - cos(key_i, key_j))^2 / (2 sigma_s^2))                         Eq. 2
k times: pick the highest score, i; for each of its neighbours j:                      Alg. 1
    score_j  = score_j * (1 - D_spatial * D_similarity)                                Eq. 3
""",
    task="""
Write `gaussian`, `suppression` and `adaptive_nms`. As in the released code, the coordinates of a side of length
L are equally spaced from floor(-L/2) to floor(L/2), sigma is half of the longer side, and the weights are
divided by the largest. `decay`, `patch_distance` and `cosines` are there to be used; `suppression` looks at the
switches `distance` and `similarity`.
""",
    look="""
Which clusters FastV keeps, and what becomes of them. Then `adaptprune@similarity=false`: the ladder of the
paper's Table 4.
""",
    commands=(
        f"python run.py compare {SAMPLE} --method fastv,hw/adaptprune.py:AdaptPrune --keep 0.1 --out nms.png",
    ),
    minutes=75,
    level=2,
    file=ROOT / "pruning" / "adaptprune.py",
    regions=("AdaptPrune.suppression", "AdaptPrune.adaptive_nms", "gaussian"),
    checks=(
        Check("correction by hand", 2, "the outer of 4 patches in a row weigh exp(-4/9) of the inner ones",
              correction_by_hand),
        Check("tiles", 2, "each tile has its own centre, where the weight is 1", weights_agree, TILES),
        Check("suppression by hand", 2, "Eq. 1 times Eq. 2 for a neighbour, with keys that are equal or orthogonal",
              suppression_by_hand),
        Check("neighbours", 1, "patches up to 5 away are neighbours, and none that is farther", neighbours_by_hand),
        Check("adds up", 2, "a token is lowered by each pick near it", adds_up_by_hand),
        Check("once", 2, "no token is picked twice, even when all scores are 0", picks_once),
        Check("scale", 1, "attention times a positive constant selects the same", nms_law("scale"), PROMPTS),
        Check("shift", 1, "text put before the image changes no choice", nms_law("shift"), PROMPTS),
        Check("reference", 2, "suppression and choice are those of the reference", nms_agrees, PROMPTS),
    ),
)

PROBLEMS = (DIVPRUNE, ADAPTPRUNE)
