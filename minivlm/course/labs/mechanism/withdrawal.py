"""From which layer on does the answer need no image? VTW withdraws all visual tokens before a layer K.

Next to it are a tenth of the tokens, at random and by FastV's score, dropped before the same layer. If the premise of
withdrawal holds, all three agree with the unpruned model from some K on.
"""

from math import inf

from minivlm.course.labs.drawing import Dot, lines
from minivlm.course.labs.exam import Exam
from minivlm.course.labs.form import Lab, percent, points, shares, sign
from minivlm.lab.attention.figures import interval
from minivlm.lab.attention.horizon import first_beyond
from minivlm.lab.score.accuracy import against, mean
from pruning.controls import Random
from pruning.fastv import FastV
from pruning.vtw import VTW, divergence

KEEP = 0.1
METHODS = ("none at all", "random", "fastv")

LAB = Lab(
    question="All visual tokens are withdrawn before layer K of 8. From which K on are no answers lost?",
    choices=(
        "from layer 4 or earlier: half of the decoder is enough",
        "from layer 5, 6 or 7",
        "not even before the last layer",
    ),
    count=10,
    units="questions of each family",
    seconds=20,
    read_on=(
        "VTW, arXiv:2405.05803, and When Token Pruning is Worse than Random, arXiv:2512.07580",
        "`python run.py sensitivity`: the same for each family of questions; pruning/vtw.py, `search`",
    ),
)


def measure(count, seed):
    """{"questions", "layers", "unpruned", "rows": of each K and method the divergence and the right answers}"""
    exam = Exam(count, seed)
    layers = len(exam.model.language_model.layers)
    depths = range(1, layers)

    def methods_for(i):
        methods = {"unpruned": None}
        for K in depths:
            choices = (VTW(K), Random(K, KEEP, seed=seed + i), FastV(K, KEEP))
            methods |= {(K, name): method for name, method in zip(METHODS, choices)}
        return methods

    logits = exam.answers(methods_for)
    full = logits.pop("unpruned")
    unpruned = exam.right(full)
    rows = []
    for (K, name), own in logits.items():
        gap = divergence(own, full)                                                # (Q,)
        ends = interval(gap, exam.pictures, 0.0, inf)
        right = exam.right(own)
        row = dict(layer=K, method=name, gap=float(gap.mean()), interval=ends, right=mean(right))
        rows.append(row | dict(against=against(right, unpruned)))
    return dict(questions=len(full), layers=layers, rows=rows, **shares(dict(unpruned=unpruned)))


def of_method(numbers, name):
    """Its rows, from the first K to the last."""
    return [row for row in numbers["rows"] if row["method"] == name]


def table(numbers):
    """The divergence and the right answers of each method, a line for each K."""
    yield f"{numbers['questions']} questions; unpruned {percent(numbers['unpruned'], 1)} are right"
    yield "what is kept from layer K on; nats: KL divergence of the next word from the unpruned one"
    yield ""
    yield "     " + "".join(f"{kept(name):24}" for name in METHODS).rstrip()
    yield "K    " + "".join(f"{'  nats      right':24}" for _ in METHODS).rstrip()
    for rows in zip(*(of_method(numbers, name) for name in METHODS)):
        cells = "".join(f"{cell(row):24}" for row in rows)
        yield f"{rows[0]['layer']:<5}{cells}".rstrip()
    yield "* fewer right than unpruned: the paired 95 % interval lies below zero"


def kept(name):
    """What is kept: "random 10%"."""
    return name if name == METHODS[0] else f"{name} {KEEP:.0%}"


def cell(row):
    """The divergence, and the right answers with a star if some are lost."""
    star = "*" if sign(row["against"]) < 0 else ""
    return f"{row['gap']:6.3f}  {100 * row['right']:7.1f} %{star}"


def needed_until(numbers, name):
    """The first K from which on nothing is lost that these questions show; None if there is none."""
    rows = of_method(numbers, name)
    loses = [row["layer"] for row in rows if sign(row["against"]) < 0]
    return first_beyond([row["layer"] for row in rows], loses)


def right(numbers):
    """The half of the decoder in which the image can be withdrawn."""
    K = needed_until(numbers, METHODS[0])
    if K is None:
        return 2
    return 0 if K <= numbers["layers"] // 2 else 1


def sentences(numbers):
    """Where nothing is lost any more, for each method, and how much was lost one layer earlier."""
    for name in METHODS:
        what = "The whole image" if name == METHODS[0] else f"All but {kept(name)}"
        yield f"{what}, {cost(numbers, name)}."


def cost(numbers, name):
    """From which K on nothing is lost, and what is lost one layer before."""
    K = needed_until(numbers, name)
    lost = {row["layer"]: points(row["against"]) for row in of_method(numbers, name)}
    if K is None:
        last = max(lost)
        return f"dropped before layer {last}, the last, costs answers: {lost[last]}"
    said = f"dropped before layer {K} or later, costs no answers that these questions show"
    return f"{said}; before layer {K - 1} it costs {lost[K - 1]}" if K - 1 in lost else said


def picture(numbers):
    """The divergence against K."""
    series = {}
    for name in METHODS:
        rows = of_method(numbers, name)
        dots = [Dot(row["layer"], row["gap"], row["interval"], sign(row["against"]) >= 0) for row in rows]
        series[f"keeps {kept(name)}"] = dots
    title = "How far the next word is from the unpruned one"
    below = "K, the first layer without the dropped tokens"
    note = "hollow: no loss of right answers can be told"
    return lines(title, series, range(1, numbers["layers"]), "nats", below, note)
