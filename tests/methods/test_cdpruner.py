"""CDPruner and its readings: by hand, equal to the released code's recordings, the greedy search, edges."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, strategies as st

from build import close, plane, tokens
from golden import golden, of_case
from pruning.base import UserError, whole_grid
from pruning.cdpruner import CDPruner, greedy_map, most_diverse
from pruning.readings import CDPrunerTheta, CDPrunerTiles, CDPrunerUnconditioned
from released import clip_relevance
from tiny import MARK, SETTINGS, ids, llava, picture, prefill

SELECT, SELECT_FACTS = golden("cdpruner_select")
EXACT, EXACT_FACTS = golden("cdpruner_recommended")
SHAPES = {case["name"]: (case["tiles"], case["n"]) for case in SELECT_FACTS["cases"]}
RELEASED = [(case["name"], result["T"]) for case in SELECT_FACTS["cases"] for result in case["results"]
            if not result["degenerate"] and (case["name"], result["T"]) != ("rank_too_small", 8)]
ORDERS = sorted(name.removesuffix(".order") for name in EXACT)
# With equal relevances all tokens are equal at first, and rounding chose the recorded pick: the others follow from it.
TIED = [label for label in ORDERS if label.startswith("flat_relevance") or label.endswith("theta0.0")]


def asked(features, question=None, grid=None, kinds=None):
    """Tokens at the embed site: text, visual tokens with these features, and text whose embeddings are `question`."""
    question = features[:1] if question is None else torch.atleast_2d(question)
    kinds = kinds or "t" + "v" * len(features) + "t" * len(question)
    before = torch.full_like(features[:1], 7)
    return tokens(kinds, hidden=torch.cat([before, features, question.to(features)]), grid=grid, layer=0)


def kept(method, features, question=None):
    """Which tokens are kept."""
    return method.reduce(asked(features, question)).keep.tolist()


# --- by hand ----------------------------------------------------------------------------------------------------------

PICTURE = plane(0, 10, 60, 90)                 # four tokens; the angle to the first is the question's in these tests


def test_diverse_and_relevant():
    """The question is at 0 degrees: relevances cos 0 10 60 90 = 1 .98 .5 0. The first token is picked. The kernel's
    diagonal is the squares, 1 .97 .25 0; each loses its share that lies along 0 degrees, cos^2, so the gains are
    r^2 sin^2 = .03 .19 0: the token at 60 degrees is next, though the one at 10 is more relevant."""
    r = CDPruner(keep=2).reduce(asked(PICTURE))
    assert r.keep.tolist() == [0, 2]
    close(r.score, torch.tensor([1, .98481, .5, 0]))
    by_relevance = r.score.argsort(descending=True)[:2].tolist()
    assert by_relevance == [0, 1]


def test_the_question_decides():
    """The same picture, asked for 90 degrees: relevances 0 .17 .87 1. Token 3 is picked; then the gains are r^2 sin^2
    of the angle to it: 0, .03 * .97 = .03, .75 * .25 = .19: token 2. Diversity only does not depend on the question:
    all gains are 1 at first, so token 0 is picked, then sin^2 of the angle to it, .03 .75 1: the other end."""
    assert kept(CDPruner(keep=2), PICTURE, plane(90)) == [2, 3]
    for question in (plane(0), plane(90)):
        assert kept(CDPrunerUnconditioned(keep=2), PICTURE, question) == [0, 3]


def test_rank():
    """Two dimensions hold two tokens: after 0 and 60 degrees the gain of all others is 0. The most relevant of them
    follow, the one at 10 degrees and then that at 90."""
    assert kept(CDPruner(keep=3), PICTURE) == [0, 1, 2]
    assert most_diverse(PICTURE, torch.tensor([1, .98, .5, 0]).double(), 4).tolist() == [0, 2, 1, 3]
    unit = PICTURE.double()
    assert len(greedy_map(unit @ unit.T, 4)) == 2


def test_the_released_example():
    """Features (1, 0) (.96, .28) (0, 1) (1, 0), relevances 1 .875 .375 0. Diagonal 1 .766 .141 0; after token 0 the
    gains are .766 - .84^2 = .060, .141 and 0: token 2; after it that of token 1 is 0."""
    features = torch.tensor([[1., 0], [.96, .28], [0, 1], [1, 0]]).double()
    r = torch.tensor([1, .875, .375, 0]).double()
    assert [most_diverse(features, r, k).tolist() for k in (1, 2, 3, 4)] == [[0], [0, 2], [0, 2, 1], [0, 2, 1, 3]]


def test_the_least_relevant_counts_as_0():
    """At 0, 30 and 60 degrees to the question the cosines are 1 .87 .5; from 0 to 1 they are 1 .73 0. The third token
    has no volume, though it is the farthest from the first: the second is next, and it is last."""
    r = CDPruner(keep=2).reduce(asked(plane(0, 30, 60)))
    close(r.score, torch.tensor([1, .73205, 0]))
    assert r.keep.tolist() == [0, 1]


def test_the_instruction_is_the_mean_of_its_words():
    """Words at 0 and 90 degrees are one at 45; a longer word counts more, and the text before the image not at all."""
    words = plane(0, 90)
    close(CDPruner().reduce(asked(PICTURE, words)).score, CDPruner().reduce(asked(PICTURE, plane(45))).score)
    longer = torch.tensor([[math.sqrt(3), 0], [0, 1]])     # the mean points to 30 degrees
    close(CDPruner().reduce(asked(PICTURE, longer)).score, CDPruner().reduce(asked(PICTURE, plane(30))).score)


def test_length_does_not_count():
    """A feature a hundred times as long, and a question, change nothing: both are cosines."""
    features = PICTURE.clone()
    features[1] *= 100
    assert kept(CDPruner(keep=2), features, plane(0, length=50.)) == kept(CDPruner(keep=2), PICTURE, plane(0)) == [0, 2]


# --- recorded ---------------------------------------------------------------------------------------------------------

def recorded(name, *kinds):
    """A method of these kinds whose relevance is the recorded one, and the recorded tokens."""
    of = of_case(SELECT, name)
    tiles, n = SHAPES[name]
    relevance = clip_relevance(of["image_embeds"], of["text_embeds"]).flatten()

    class Given(CDPruner):
        def relevances(self, tokens, feature):
            return relevance

    grid = torch.cat([whole_grid(1, n, tile) for tile in range(tiles)])
    return type("Method", (*kinds, Given), {}), asked(of["feature"].flatten(0, 1).float(), grid=grid)


def picks(method, entering):
    """(tiles, T) the picks in their order, counted in each tile."""
    feature = entering.hidden[entering.visual]
    order = method.picks(entering, feature, method.relevances(entering, feature))
    tiles = int(entering.grid[-1, 0]) + 1
    return order.view(tiles, -1) % (entering.n // tiles)


@pytest.mark.parametrize("name", SHAPES)
def test_recorded_relevance(name):
    """Of all cases but the one where all are equal, which the released code divides by zero."""
    of = of_case(SELECT, name)
    ours = clip_relevance(of["image_embeds"], of["text_embeds"])
    if name == "flat_relevance":
        assert ours.eq(1).all()
    else:
        close(ours, of["relevance"])


@pytest.mark.parametrize("name, T", RELEASED)
def test_recorded(name, T):
    """Order of picks and kept tokens of the released code, tile by tile. Where its kernel has no rank left, or no
    number, it keeps fewer or whatever NaN led it to: those are no targets."""
    tiles, n = SHAPES[name]
    method, entering = recorded(name, CDPrunerTiles)
    assert picks(method(keep=T * tiles), entering).tolist() == SELECT[f"{name}.T{T}.order"].tolist()
    is_kept = SELECT[f"{name}.T{T}.mask"].flatten()
    assert method(keep=T * tiles).reduce(entering).keep.tolist() == is_kept.nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("label", ORDERS)
def test_recorded_exact(label):
    """The order in which exactly T tokens are picked, in the degenerate cases too; with theta, as the released code has
    it in a comment."""
    name, count, *theta = label.split(".", 2)
    keep = int(count.removeprefix("T")) * SHAPES[name][0]
    if theta:
        method, entering = recorded(name, CDPrunerTheta, CDPrunerTiles)
        method = method(keep=keep, theta=float(theta[0].removeprefix("theta")))
    else:
        method, entering = recorded(name, CDPrunerTiles)
        method = method(keep=keep)
    order = EXACT[f"{label}.order"]
    if label in TIED:
        method = begun_with(order[:, 0], entering, keep)
    assert picks(method, entering).tolist() == order.tolist()


def begun_with(first, entering, keep):
    """By tile, all tokens equally relevant but for these (tiles,), by so little more that it only decides a tie."""
    relevance = torch.ones(len(first), entering.n // len(first), dtype=torch.float64)
    relevance[torch.arange(len(first)), first.long()] += 1e-12

    class Method(CDPrunerTiles):
        def relevances(self, tokens, feature):
            return relevance.flatten()

    return Method(keep=keep)


def test_theta_0_is_diversity():
    """All relevances count as 1: the choice of the method without a question."""
    _, entering = recorded("grid6")
    diverse = CDPrunerUnconditioned(keep=9).reduce(entering)
    assert CDPrunerTheta(keep=9, theta=0).reduce(entering).keep.equal(diverse.keep)


def test_tiles_are_one_set_by_default():
    """Twenty tokens of five tiles: by tile each keeps four; together, some keep more and some fewer."""
    by_tile, entering = recorded("tiles5", CDPrunerTiles)
    together, _ = recorded("tiles5")
    counts = [[int((entering.grid[method(keep=20).reduce(entering).keep, 0] == tile).sum()) for tile in range(5)]
              for method in (by_tile, together)]
    assert counts[0] == [4] * 5
    assert sum(counts[1]) == 20 and counts[1] != counts[0]


# --- the greedy search ------------------------------------------------------------------------------------------------

@st.composite
def kernels(draw):
    """A positive definite kernel (n, n) in float64, and how many to pick."""
    n = draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    feature = torch.randn(n, n + draw(st.integers(0, 4)), generator=generator).double()
    r = torch.rand(n, generator=generator).double() + .1
    unit = feature / feature.norm(dim=1, keepdim=True)
    return r[:, None] * (unit @ unit.T) * r, draw(st.integers(1, n))


def determinant(L, rows):
    """Of the kernel over these rows."""
    return float(torch.linalg.det(L[rows][:, rows]))


@SETTINGS
@given(kernels())
def test_each_pick_raises_the_determinant_most(drawn):
    """No other token in its place gives a larger determinant over those picked so far."""
    L, k = drawn
    order = greedy_map(L, k).tolist()
    for i, pick in enumerate(order):
        others = [j for j in range(len(L)) if j not in order[:i]]
        best = max(determinant(L, [*order[:i], j]) for j in others)
        assert determinant(L, [*order[:i], pick]) >= best * (1 - 1e-6)


@SETTINGS
@given(st.integers(0, 9999))
def test_better_than_random_sets(seed):
    """Of forty tokens eight are picked: their determinant is at least that of fifty random sets."""
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(40, 24, generator=generator).double()
    r = torch.rand(40, generator=generator).double()
    unit = feature / feature.norm(dim=1, keepdim=True)
    L = r[:, None] * (unit @ unit.T) * r
    ours = determinant(L, greedy_map(L, 8).tolist())
    for _ in range(50):
        assert ours >= determinant(L, torch.randperm(40, generator=generator)[:8].tolist())


def test_greedy_not_the_optimum():
    """At 0, 50 and -40 degrees with relevances 1 .9 .9: token 0 is picked first, then 1 (.81 sin^2 50 = .475; .81 sin^2
    40 = .335). Tokens 1 and 2, at right angles, would have .81 * .81 = .656."""
    unit = plane(0, 50, -40).double()
    r = torch.tensor([1, .9, .9]).double()
    L = r[:, None] * (unit @ unit.T) * r
    assert greedy_map(L, 2).tolist() == [0, 1]
    by_pair = {pair: determinant(L, list(pair)) for pair in combinations(range(3), 2)}
    close(list(by_pair.values()), [.475, .335, .656], 1e-3)


def test_copies_are_no_volume():
    """a a b b: a, then b; then the rank is used up, and equally relevant ones follow in their order."""
    copies = torch.tensor([[1., 0], [1, 0], [0, 1], [0, 1]])
    unit = copies.double()
    assert greedy_map(unit @ unit.T, 4).tolist() == [0, 2]
    assert kept(CDPrunerUnconditioned(keep=3), copies) == [0, 1, 2]


# --- laws and edges ---------------------------------------------------------------------------------------------------

def test_laws():
    """It reads no attention: neither scale nor needle. Relevance is no needle either: the second most relevant of
    PICTURE, at .98, is lost, being like the first."""
    assert CDPruner().laws == {"select", "ordered", "budget"}
    assert CDPruner.site == "embed" and CDPruner().preconditions == {"text"}
    assert CDPruner().budget(576) == 128 and CDPruner(keep=.5).budget(9) == 4
    assert 1 not in kept(CDPruner(keep=2), PICTURE)


def test_equally_relevant():
    """The question is at right angles to all tokens: they count as 1, and diversity decides."""
    features = torch.nn.functional.pad(PICTURE, (0, 1))
    r = CDPruner(keep=2).reduce(asked(features, torch.tensor([0., 0, 1])))
    assert r.score.eq(1).all()
    assert r.keep.tolist() == [0, 3]


def test_rounding_decides_no_tie():
    """Of equally relevant tokens all gains are 1, so the first is picked, not the one whose cosine with itself is
    rounded up most."""
    for seed in range(30):
        features = torch.randn(20, 7, generator=torch.Generator().manual_seed(seed))
        assert most_diverse(features, torch.ones(20).double(), 3)[0] == 0


def test_one_token_and_all_tokens():
    assert kept(CDPruner(), plane(30)) == kept(CDPruner(keep=1), plane(30)) == [0]
    for keep in (4, 1.0):
        assert kept(CDPruner(keep=keep), PICTURE) == [0, 1, 2, 3]
    assert kept(CDPruner(keep=1), PICTURE, plane(60)) == [2]               # the most relevant


def test_equal_tokens():
    """All are the same: the first ones."""
    assert kept(CDPruner(keep=3), torch.ones(600, 4)) == [0, 1, 2]


def test_zero_vectors():
    """No NaN: a zero vector is like nothing, relevant to nothing, and has no volume. Nor if all are."""
    features = torch.tensor([[0., 0], [1, 0], [.6, .8], [0, 0]])
    r = CDPruner(keep=3).reduce(asked(features, plane(0)))
    assert r.score.isfinite().all()
    assert r.keep.tolist() == [0, 1, 2]
    assert kept(CDPruner(keep=2), torch.zeros(4, 2), plane(0)) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Angles a degree apart, whose cosine is 1 in half precision: all is computed in float64."""
    features = plane(0, 1, 2, 60, 61).to(dtype)
    for k in range(1, 6):
        assert kept(CDPruner(keep=k), features, plane(0)) == kept(CDPruner(keep=k), features.float(), plane(0))
    words = plane(0, 7, 31).to(dtype)
    half = CDPruner(keep=1).reduce(asked(features, words))
    close(half.score, CDPruner(keep=1).reduce(asked(features.float(), words.float())).score, 1e-9)


def test_two_images_compete():
    """Images at 0 10 and 60 90 degrees in one prompt, the text between them and after them is the instruction, at 0
    degrees: as for one image of four tokens."""
    hidden = torch.cat([PICTURE[:1], PICTURE[:2], PICTURE[:1], PICTURE[2:], PICTURE[:1]])
    entering = tokens("t vv t vv t", hidden=hidden, layer=0)
    assert CDPruner(keep=2).reduce(entering).keep.tolist() == [0, 2]


def test_no_text():
    """Nothing is asked after the image. The reading without a question needs none."""
    entering = tokens("tvvvv", hidden=torch.cat([PICTURE[:1], PICTURE]), layer=0)
    with pytest.raises(UserError, match="CDPruner: no text follows the image") as caught:
        CDPruner(keep=2).reduce(entering)
    assert "\n" not in str(caught.value)
    assert CDPrunerUnconditioned(keep=2).reduce(entering).keep.tolist() == [0, 3]


def test_in_a_model():
    """Nine of 32 tokens of two images enter every layer; another question keeps others; without an image nothing is
    done."""
    pictures = [picture(llava(), i) for i in range(2)]
    kept_by_question = []
    for seed in range(2):
        words = ids(3, MARK, 4, MARK, 6, seed=seed)
        logits, _, trace = prefill(llava(), words, pictures, CDPruner(keep=9))
        assert trace.visual == [9] * 32
        assert logits.isfinite().all()
        kept_by_question.append(trace.steps[0].kept.tolist())
    assert kept_by_question[0] != kept_by_question[1]
    logits, _, trace = prefill(llava(), ids(9), (), CDPruner())
    assert not trace.steps and logits.equal(prefill(llava(), ids(9))[0])


def test_not_a_number():
    with pytest.raises(UserError, match="the image features contain NaN.*float32"):
        kept(CDPruner(keep=1), torch.tensor([[1., 0], [math.nan, 0]]))


@pytest.mark.parametrize("kind, options, message", [
    (CDPruner, dict(keep=0), "keep 0 is out of range"),
    (CDPruner, dict(keep=1.5), "keep 1.5 is out of range"),
    (CDPrunerTheta, dict(theta=1.0), "theta must be at most 0.99"),
    (CDPrunerTheta, dict(theta=-.1), "theta must be at least 0")])
def test_bad_options(kind, options, message):
    """One line that names the option."""
    with pytest.raises(UserError, match=message) as caught:
        kind(**options)
    assert "\n" not in str(caught.value)


def test_more_than_there_is():
    with pytest.raises(UserError, match="keep 5 is out of range.*from 1 to 4"):
        kept(CDPruner(keep=5), PICTURE)
