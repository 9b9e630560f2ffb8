"""The blind baseline: how many questions are answered without the image?

What a model says without an image shows what the questions give away: how often `yes` is right, which number is common.
Next to it is the commonest answer of each family, counted on other questions.
"""

from collections import Counter

from minivlm.course.labs.drawing import in_percent, intervals
from minivlm.course.labs.exam import Exam
from minivlm.course.labs.form import Lab, percent, points, shares, sign
from minivlm.lab.score.accuracy import against
from minivlm.toy import benchmark
from pruning.controls import Blind

OTHERS = 100                           # questions of each family on which answers are counted
NAMES = {"blind": "without the image", "commonest": "always the commonest answer", "full": "with the image"}
BOUNDS = (0.1, 0.35)                   # between the choices

LAB = Lab(
    question="The shipped model is asked without an image. How many of its answers are right?",
    choices=(
        "hardly any: less than a tenth",
        "a tenth to a third: what guessing gives",
        "more than a third: the questions give most answers away",
    ),
    count=40,
    units="questions of each family",
    seconds=10,
    read_on=(
        "Are We Solving the Right Problem?, arXiv:2502.11501; `blind` and the other controls: pruning/controls.py",
        "`python run.py eval --method blind,fastv`: every command takes the control as a method",
    ),
)


def measure(count, seed):
    """{"questions", "all": {name: numbers}, "families": {family: {name: numbers}}, "against": blind minus commonest}"""
    exam = Exam(count, seed)
    logits = exam.answers(lambda i: {"blind": Blind(), "full": None})
    commonest = commonest_answers(seed)
    right = {name: exam.right(own) for name, own in logits.items()}
    right["commonest"] = [float(commonest[item.family] == item.answer) for item in exam.items]
    every = range(len(exam.items))
    families = {family: shares(right, questions) for family, questions in exam.families.items()}
    compared = against(right["blind"], right["commonest"])
    return dict(questions=len(every), all=shares(right, every), families=families, against=compared)


def commonest_answers(seed):
    """{family: its commonest answer} on validation pictures."""
    counts = {}
    for item in benchmark.items("validation", OTHERS, seed):
        counts.setdefault(item.family, Counter())[item.answer] += 1
    return {family: count.most_common(1)[0][0] for family, count in counts.items()}


def groups(numbers):
    """(name, its parts) of each family, and of all."""
    return [*numbers["families"].items(), ("all", numbers["all"])]


def table(numbers):
    """A line for each family, then all."""
    yield f"{numbers['questions']} questions: % right, 95 % intervals"
    yield ""
    yield f"{'':8}" + "".join(f"{name:30}" for name in NAMES.values()).rstrip()
    for group, own in groups(numbers):
        cells = [percent(own[name]) for name in NAMES]
        yield f"{group:8}" + "".join(f"{cell:30}" for cell in cells).rstrip()


def right(numbers):
    """How many, if the interval lies between two bounds."""
    low, high = numbers["all"]["blind"]["interval"]
    few, many = BOUNDS
    if high <= few:
        return 0
    if few <= low and high <= many:
        return 1
    return 2 if many <= low else None


def sentences(numbers):
    """The floor, its family, and whether the blind model knows more than the commonest answers."""
    blind = numbers["all"]["blind"]
    of_family = {family: own["blind"] for family, own in numbers["families"].items()}
    family = max(of_family, key=lambda name: of_family[name]["share"])
    best = of_family[family]
    yield (f"Without the image {percent(blind)} are right, and of the family `{family}` "
           f"{percent(best)}. An accuracy counts from there, not from 0 %.")
    compared = numbers["against"]
    known = {1: "More is right than", -1: "Less is right than", 0: "No difference can be told to"}
    yield f"{known[sign(compared)]} always giving the commonest answer of the family: {points(compared)}."


def picture(numbers):
    """The blind model's intervals, of each family and of all, and those of the commonest answer."""
    bars = []
    for group, own in groups(numbers):
        for name in ("blind", "commonest"):
            bars.append(in_percent(f"{group}: {NAMES[name]}", own[name], name))
    note = f"{numbers['questions']} questions; 95 % intervals (Wilson)"
    return intervals("Right answers without the image", bars, note)
