"""Downsampling beats you: on benchmarks of photographs a smaller picture often does better than a method.

VTC-Bench concludes that many questions need no detail, and uses the smaller picture as a filter: only the questions
that it does not solve tell methods apart. Here all keep a quarter of the tokens before layer 0, so that all cost alike.
"""

from minivlm.course.labs.drawing import in_percent, intervals
from minivlm.course.labs.exam import Exam
from minivlm.course.labs.form import Lab, percent, points, shares, sign
from minivlm.lab.score.accuracy import against
from pruning.controls import DownSampleImage, Random
from pruning.divprune import DivPrune

KEEP = 0.25
SMALLER = "smaller picture"
METHOD = "divprune"
RANDOM = "random tokens"

LAB = Lab(
    question="The picture is made smaller, to a quarter of its patches; or DivPrune keeps a quarter of the tokens. "
             "Which is right more often, here?",
    choices=(
        "the smaller picture: it shows everything, if less sharply",
        "neither, as far as these questions can tell",
        "DivPrune: what the questions are about is small",
    ),
    count=40,
    units="questions of each family",
    seconds=10,
    read_on=(
        "VTC-Bench, arXiv:2510.07143, where photographs are asked about and the smaller picture often wins",
        "minivlm/lab/score/unsolved.py; `python run.py eval --method downsample_image,divprune --keep 0.25`",
    ),
)


def measure(count, seed):
    """{"questions", "groups" and "hard": shares; "by_family" and "against": the smaller picture minus others}"""
    exam = Exam(count, seed)
    logits = exam.answers(lambda i: {
        SMALLER: DownSampleImage(KEEP),
        METHOD: DivPrune(KEEP),
        RANDOM: Random(keep=KEEP, site="embed", seed=seed + i),
    })
    right = {name: exam.right(own) for name, own in logits.items()}
    every = range(len(exam.items))
    unsolved = [i for i in every if not right[SMALLER][i]]
    groups = {group: shares(right, questions) for group, questions in {**exam.families, "all": every}.items()}
    by_family = {family: minus(right, METHOD, questions) for family, questions in exam.families.items()}
    compared = {name: minus(right, name, every) for name in (METHOD, RANDOM)}
    return dict(questions=len(every), groups=groups, by_family=by_family, against=compared, unsolved=len(unsolved),
                hard=shares(right, unsolved) if unsolved else {})


def minus(right, name, questions):
    """The smaller picture minus another contestant, on some questions."""
    smaller, other = ([right[each][i] for i in questions] for each in (SMALLER, name))
    return against(smaller, other)


def table(numbers):
    """A line for each family, all, and the questions that the smaller picture does not solve."""
    yield f"{numbers['questions']} questions, {KEEP:.0%} of the tokens before layer 0: % right, 95 % intervals"
    yield ""
    yield f"{'':26}" + "".join(f"{name:24}" for name in (SMALLER, METHOD, RANDOM)).rstrip()
    rows = dict(numbers["groups"])
    if numbers["hard"]:
        rows[f"unsolved by it: {numbers['unsolved']}"] = numbers["hard"]
    for group, own in rows.items():
        cells = [percent(own[name]) for name in (SMALLER, METHOD, RANDOM)]
        yield f"{group:26}" + "".join(f"{cell:24}" for cell in cells).rstrip()


def right(numbers):
    """Whether the smaller picture has more, as many or fewer right answers than the method."""
    return {1: 0, 0: 1, -1: 2}[sign(numbers["against"][METHOD])]


def sentences(numbers):
    """The smaller picture against the method and random tokens; where it loses nothing; what the filter shows."""
    verbs = {1: "beats", 0: "cannot be told from", -1: "loses to"}
    for name, compared in numbers["against"].items():
        yield f"The smaller picture {verbs[sign(compared)]} {name}: {points(compared)}."
    level = [family for family, compared in numbers["by_family"].items() if sign(compared) >= 0]
    where = ", ".join(level) or "none"
    yield f"Families on which no loss to {METHOD} can be told: {where}."
    if numbers["hard"]:
        method, chance = (numbers["hard"][name] for name in (METHOD, RANDOM))
        yield (f"Of the {numbers['unsolved']} questions that it does not solve, {METHOD} has "
               f"{percent(method)} right, and random tokens "
               f"{percent(chance)}.")


def picture(numbers):
    """The smaller picture minus the method, for each family and all."""
    compared = {**numbers["by_family"], "all": numbers["against"][METHOD]}
    bars = [in_percent(name, own, name == "all") for name, own in compared.items()]
    title = f"Right answers, the smaller picture minus {METHOD}"
    note = f"{numbers['questions']} questions, {KEEP:.0%} of the tokens; paired 95 % intervals"
    return intervals(title, bars, note, "points")
