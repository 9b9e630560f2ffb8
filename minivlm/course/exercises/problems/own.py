"""The exercise without a solution: a method of one's own, which is held to the laws that it names."""

from minivlm.course.exercises.grading.drawn import Prompt, prompts
from minivlm.course.exercises.grading.judge import Through, expect, keeps_law, shown
from minivlm.course.exercises.problem import OWN, SAMPLE, Check, Problem
from minivlm.course.exercises.problems.sources import own
from pruning import DivPrune, FastV
from pruning.laws import LAWS

PROMPTS = prompts(kinds=("even", "copies"))
TRIED = 40                             # prompts on which it may differ from known methods
FEWEST = 3                             # laws


def mine(side, case):
    """A student's method as a pruner, with the laws that it names."""
    made = side.make("Mine", keep=case.keep)
    method = Through(own.Mine(keep=case.keep), made)
    method.laws = named_laws(made)
    return method


def named_laws(made):
    """The laws that the class names. Wrong if these are none."""
    laws = made.get("laws")
    is_set = isinstance(laws, (frozenset, set, tuple, list)) and all(isinstance(name, str) for name in laws)
    expect(is_set, f"`laws` is {shown(laws)}, and should be a frozenset of names")
    unknown = sorted(set(laws) - set(LAWS))
    expect(not unknown, f"`laws` names {unknown[:1]}, and the laws are {', '.join(LAWS)}")
    return frozenset(laws)


def can_be_applied(side, case):
    """reduce gives a Reduction that a model can apply; Through says what is wrong."""
    mine(side, case).reduce(case.tokens())


def meets_the_budget(side, case):
    rows = len(mine(side, case).reduce(case.tokens()).keep)
    expect(rows == case.keep, f"{rows} rows are left")


def keeps_what_it_names(side, case):
    method = mine(side, case)
    for name in sorted(method.laws):
        if LAWS[name].holds is not None:
            keeps_law(name, method, case.tokens())


def names_enough(side):
    can_be_applied(side, example(0))
    laws = named_laws(side.make("Mine"))
    shown_here = sorted(name for name in laws if LAWS[name].holds is not None)
    expect(len(shown_here) >= FEWEST, f"it names {', '.join(shown_here) or 'none'}")


def reads_visual_rows(side, case):
    keeps_law("shift", mine(side, case), case.tokens())


def answers_alike(side, case):
    """The same prompt twice, with another one in between."""
    tokens = case.tokens()
    method = mine(side, case)
    first = method.reduce(tokens)
    again = method.reduce(tokens)
    expect(first.keep.equal(again.keep), f"it keeps {first.keep.tolist()}, then {again.keep.tolist()}")


def is_its_own(side):
    """On some prompt it keeps what neither FastV nor DivPrune keeps, and not just the first or the last tokens."""
    same_as = {"FastV": True, "DivPrune": True, "the first tokens": True, "the last tokens": True}
    for seed in range(TRIED):
        case = example(seed)
        tokens = case.tokens()
        kept = mine(side, case).reduce(tokens).keep.tolist()
        others = {
            "FastV": FastV(keep=case.keep).reduce(tokens).keep.tolist(),
            "DivPrune": DivPrune(keep=case.keep).reduce(tokens).keep.tolist(),
            "the first tokens": list(range(case.keep)),
            "the last tokens": list(range(case.n - case.keep, case.n)),
        }
        same_as = {name: alike and kept == others[name] for name, alike in same_as.items()}
        if not any(same_as.values()):
            return
    known = next(name for name, alike in same_as.items() if alike)
    expect(False, f"on {TRIED} drawn prompts it keeps what {known} would be")


def example(seed):
    """A prompt of 4 x 4 tokens, of which 5 are kept."""
    return Prompt(images=((4, 4),), before=2, after=2, keep=5, seed=seed)


METHOD = Problem(
    name="own",
    title="A method of one's own",
    paper="yours",
    section="pruning/README.md, Write your own",
    formula="""
score_j = ?        or a `reduce` of your own: keep (k,), and merge (k, n) if it merges
""",
    task="""
Write a method that no other exercise has, and name the laws that it keeps. The stub has a `score`; a method
that merges or chooses otherwise derives from `Pruner` and writes `reduce`. It must hold for prompts with one or
two images.
""",
    look="""
Whether it beats its controls, random and evenly spaced tokens at the same place and budget: laws, cost and
accuracy.
""",
    commands=(
        "python run.py check hw/own.py:Mine",
        f"python run.py compare {SAMPLE} --method hw/own.py:Mine,fastv,random --keep 0.1 --out own.png",
    ),
    minutes=120,
    level=3,
    file=OWN / "own.py",
    regions=("Mine.score",),
    checks=(
        Check("form", 2, "reduce gives what a model can apply", can_be_applied, PROMPTS),
        Check("budget", 2, "as many rows are left as `keep` says", meets_the_budget, PROMPTS),
        Check("names", 1, f"the class names at least {FEWEST} laws, causal not among them", names_enough),
        Check("laws", 4, "it keeps the laws that it names", keeps_what_it_names, PROMPTS),
        Check("shift", 2, "text put before the image changes no choice", reads_visual_rows, PROMPTS),
        Check("pure", 1, "the same prompt gives the same answer", answers_alike, PROMPTS),
        Check("own", 3, "it keeps neither what FastV or DivPrune keeps, nor always the first or last tokens",
              is_its_own),
    ),
)

PROBLEMS = (METHOD,)
