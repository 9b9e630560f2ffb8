"""Exercises on the second part of ASAP: consolidation and budget reallocation."""

import torch

from minivlm.course.exercises.grading.drawn import prompts, typed
from minivlm.course.exercises.grading.judge import expect, keeps_law, same, tensor
from minivlm.course.exercises.problem import SAMPLE, Check, Problem
from minivlm.course.exercises.problems.bimask import FILE, PAPER
from pruning import ASAP

PROMPTS = prompts(kinds=("even", "copies"), largest=4)


# --- consolidation ----------------------------------------------------------------------------------------------------

def with_consolidation(side, **options):
    """Our ASAP with a student's routing and consolidation."""
    made = side.make("ASAP", **options)

    class Mixed(ASAP):
        """Two of its steps are a student's."""

        def routing(self, tokens, s_hat, kept):
            return indices(made.routing(tokens, s_hat, kept), tokens.n)

        def consolidation(self, keep, absorbs, s_hat):
            return tensor(made.consolidation(keep, absorbs, s_hat), "the weights", absorbs.shape)

    return Mixed(**options)


def indices(got, n):
    """Where n tokens go, checked."""
    tensor(got, "what routing gives", (n,))
    expect(got.dtype == torch.long, f"routing gives {got.dtype}, and should give indices of int64")
    expect(bool(((got >= 0) & (got < n)).all()), f"routing gives indices outside of 0 to {n - 1}")
    return got


def angles(*degrees):
    """(n, 2) unit vectors: their cosines are those of the differences."""
    radians = torch.tensor(degrees).float().deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def routed(side, hidden, s_hat):
    """Where tokens with these states and saliencies go, all of which are kept."""
    tokens = typed("v" * len(s_hat), hidden=hidden)
    got = side.make("ASAP").routing(tokens, torch.tensor(s_hat), torch.arange(len(s_hat)))
    return indices(got, len(s_hat)).tolist()


def mean_by_hand(side):
    """Saliencies 1 and .5: weights 2/3 and 1/3. The plain mean has 1/2."""
    absorbs = torch.tensor([[True, True, False], [False, False, True]])
    got = side.make("ASAP").consolidation(torch.tensor([0, 2]), absorbs, torch.tensor([1, 0.5, 0.2]))
    same(got, torch.tensor([[2 / 3, 1 / 3, 0], [0, 0, 1]]), "the weights")


def nothing_salient(side):
    """All that a token absorbs has saliency 0: it stays itself."""
    absorbs = torch.tensor([[True, True]])
    got = side.make("ASAP").consolidation(torch.tensor([1]), absorbs, torch.zeros(2))
    same(got, torch.tensor([[0.0, 1]]), "the weights of a token that absorbs saliencies 0")


def flows_to_the_salient(side):
    same(routed(side, angles(0, 0), [0.2, 0.8]), [1, 1], "where two equal tokens go, the later more salient,")
    same(routed(side, angles(0, 0), [0.5, 0.5]), [0, 0], "where two equal tokens go, equally salient,")


def chain_by_hand(side):
    """0, 20, 40 degrees; t = .9 is 25.8 degrees. b goes to a, and can absorb nothing: c stays."""
    same(routed(side, angles(0, 20, 40), [1, 0.6, 0.4]), [0, 0, 2], "where tokens at 0, 20 and 40 degrees go")


def most_salient_anchor(side):
    """c at 22 degrees is near a at 0 (saliency 1) and nearer b at 40 (.8). The more salient absorbs it."""
    same(routed(side, angles(0, 40, 22), [1, 0.8, 0.2]), [0, 1, 0], "where tokens at 0, 40 and 22 degrees go")


def merges_keep(law):
    """The test of a law, for ASAP without salvaging."""
    def test(side, case):
        keeps_law(law, with_consolidation(side, keep=case.keep, salvage=False), case.tokens())
    return test


def consolidation_agrees(side, case):
    tokens = case.tokens()
    options = dict(keep=case.keep, salvage=False)
    expected = ASAP(**options).reduce(tokens)
    got = with_consolidation(side, **options).reduce(tokens)
    same(got.keep.tolist(), expected.keep.tolist(), "the rows that are left")
    same(got.merge, expected.merge, "the weights")


CONSOLIDATION = Problem(
    name="consolidation",
    title="Saliency-weighted consolidation",
    paper=PAPER,
    section="4.2, Eq. 6",
    formula="""
i absorbs j if cos(h_i, h_j) > t and s_hat_i >= s_hat_j         (i, j in I_keep)
h_i = (s_hat_i h_i + sum of s_hat_j h_j) / (s_hat_i + sum of s_hat_j)                  Eq. 6
""",
    task="""
Write `routing` (where each token goes), `consolidation` (Eq. 6 as a matrix of weights) and `by_anchors` (the
source sets are disjoint: what is absorbed absorbs nothing). A redundant token goes to the most salient anchor;
equally salient, to the first. `similarity` and `route` are there to be used.
""",
    look="""
Which tokens absorb others, and how the answers change without it.
""",
    commands=(
        f"python run.py compare {SAMPLE} --method asap,asap@consolidate=false --keep 0.25 --maps --out merged.png",
    ),
    minutes=75,
    level=3,
    file=FILE,
    regions=("ASAP.routing", "ASAP.consolidation", "by_anchors"),
    checks=(
        Check("Eq. 6 by hand", 2, "of saliencies 1 and .5 the weights are 2/3 and 1/3", mean_by_hand),
        Check("nothing salient", 1, "a token stays itself if all that it absorbs has saliency 0", nothing_salient),
        Check("flow", 2, "the more salient of two equal tokens absorbs the other, of equally salient ones the first",
              flows_to_the_salient),
        Check("chain", 2, "what is absorbed absorbs nothing", chain_by_hand),
        Check("route", 1, "of two anchors the more salient absorbs a token, not the more similar", most_salient_anchor),
        Check("convex", 3, "merged tokens are weighted means", merges_keep("convex"), PROMPTS),
        Check("disjoint", 2, "no token is merged into two", merges_keep("disjoint"), PROMPTS),
        Check("reference", 2, "rows and weights are those of the reference", consolidation_agrees, PROMPTS),
    ),
)


# --- budget reallocation ----------------------------------------------------------------------------------------------

HALF = prompts(kinds=("copies",), largest=4, share=0.5)


def salvaged(side, tokens, s, kept, anchors, **options):
    """The tokens that take the free places, as a list."""
    given = tokens, torch.tensor(s), torch.tensor(kept), torch.tensor(anchors)
    got = side.make("ASAP", **options).reallocation(*given)
    return places(got, len(s)).tolist()


def places(got, n):
    """What reallocation gives, checked: indices of some of n tokens."""
    tensor(got, "what reallocation gives")
    is_list = got.ndim == 1 and got.dtype == torch.long
    expect(is_list, f"reallocation gives {got.dtype} {tuple(got.shape)}, and should give indices (a,) of int64")
    expect(bool(((got >= 0) & (got < n)).all()), f"reallocation gives indices outside of 0 to {n - 1}")
    return got


def reallocation_by_hand(side):
    """0 1 2 of six are kept, 1 is absorbed: one place. Masses of the pool 3 4 5 are 1 3 2."""
    got = salvaged(side, typed("v" * 6), [9.0, 8, 7, 1, 3, 2], [0, 1, 2], [0, 2])
    same(got, [4], "what takes the place")


def nothing_to_salvage(side):
    got = salvaged(side, typed("v" * 4), [4.0, 3, 2, 1], [0, 1], [0], salvage=False)
    same(got, [], "what takes the place without salvage")


def small_pool(side):
    """Of five tokens four are kept and three absorbed: three places, and a pool of one."""
    got = salvaged(side, typed("v" * 5), [5.0, 4, 3, 2, 1], [0, 1, 2, 3], [0])
    same(got, [4], "what takes three places from a pool of one")


def with_reallocation(side, **options):
    """(our ASAP with a student's reallocation, a list that gets what each call was given and gave)."""
    made = side.make("ASAP", **options)
    seen = []

    class Mixed(ASAP):
        """One of its steps is a student's."""

        def reallocation(self, tokens, s, kept, anchors):
            got = places(made.reallocation(tokens, s, kept, anchors), tokens.n)
            seen.append((s, kept, anchors, got))
            return got

    return Mixed(**options), seen


def conserves_the_budget(side, case):
    """As many rows as were kept before the consolidation."""
    method, _ = with_reallocation(side, keep=case.keep)
    rows = len(method.reduce(case.tokens()).keep)
    expect(rows == case.keep, f"{rows} rows are left")


def takes_what_is_new(side, case):
    method, seen = with_reallocation(side, keep=case.keep)
    method.reduce(case.tokens())
    _, kept, _, got = seen[0]
    again = [i for i in got.tolist() if i in kept.tolist()]
    expect(not again, f"it salvages {again}, of I_keep")
    expect(len(set(got.tolist())) == len(got), f"it salvages {got.tolist()}, one of them twice")


def takes_the_best(side, case):
    method, seen = with_reallocation(side, keep=case.keep)
    method.reduce(case.tokens())
    s, kept, _, got = seen[0]
    left = [i for i in range(len(s)) if i not in kept.tolist() and i not in got.tolist()]
    if len(got) and left:
        worst = float(s[got].min())
        best = float(s[left].max())
        expect(worst >= best, f"it salvages a token with mass {worst:.3g} and leaves one with {best:.3g}")


def reallocation_agrees(side, case):
    method, _ = with_reallocation(side, keep=case.keep)
    tokens = case.tokens()
    expected = ASAP(keep=case.keep).reduce(tokens)
    same(method.reduce(tokens).keep.tolist(), expected.keep.tolist(), "the rows that are left")


REALLOCATION = Problem(
    name="reallocation",
    title="Budget reallocation",
    paper=PAPER,
    section="4.2",
    formula="""
a        = |I_keep| - |anchors|                        the places that consolidation has made free
salvaged = the a tokens outside of I_keep with the largest mass s_j
""",
    task="""
Write `pruned_pool`, the dropped tokens from the largest mass to the smallest, and `reallocation`, which gives
as many of them as there are free places, or none without `salvage`.
""",
    look="""
Your own file in the model: which places were salvaged, and whether it answers more than FastV.
""",
    commands=(
        f"python run.py compare {SAMPLE} --method fastv,hw/reallocation.py:ASAP --keep 0.25 --maps --out asap.png",
    ),
    minutes=30,
    level=2,
    file=FILE,
    regions=("ASAP.reallocation", "ASAP.pruned_pool"),
    checks=(
        Check("by hand", 3, "the token of the pool with the largest mass takes the one free place",
              reallocation_by_hand),
        Check("off", 1, "without salvage nothing takes a place", nothing_to_salvage),
        Check("small pool", 2, "if the pool has fewer tokens than there are places, all of it is taken", small_pool),
        Check("conservation", 4, "as many rows are left as were kept before the consolidation",
              conserves_the_budget, HALF),
        Check("new", 1, "what is salvaged was not in I_keep", takes_what_is_new, HALF),
        Check("best", 2, "no token that is left has a larger mass than one that is salvaged", takes_the_best, HALF),
        Check("reference", 2, "the rows are those of the reference", reallocation_agrees, HALF),
    ),
)

PROBLEMS = (CONSOLIDATION, REALLOCATION)
