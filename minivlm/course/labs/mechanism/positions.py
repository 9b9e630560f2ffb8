"""Packed against kept positions: the same tokens are kept, and the others keep their position ids or are renumbered.

Rotary attention sees only differences of positions. So nothing changes if all that is left moves by the same amount, or
if only what was last is dropped. Two prompts that nobody asks show this: one begins with the image, one ends with it.
"""

from dataclasses import replace

import torch

from minivlm.course.labs.drawing import in_percent, intervals
from minivlm.course.labs.exam import Exam
from minivlm.course.labs.form import Lab, percent, points, shares, sign
from minivlm.course.labs.mechanism.fixed import Fixed
from minivlm.lab.score.accuracy import against

KEEP = 0.1
SAME = 1e-3                            # logits that differ by less are the same but for rounding
POSITIONS = ("keep", "renumber")
USUAL = "any tokens"
CASES = {
    USUAL: "the usual prompt, any tokens kept",
    "its beginning": "the image comes first, and its beginning is dropped",
    "its end": "the image comes last, and its end is dropped",
}

LAB = Lab(
    question="Of two runs both keep the same tokens. One lets them keep their position ids, the other counts anew. "
             "What changes?",
    choices=(
        "nothing: the tokens are the same",
        "the logits, and so many answers that one of the two is clearly worse",
        "the logits and single answers, but which of the two is better cannot be told",
    ),
    count=40,
    units="questions of each family",
    seconds=15,
    read_on=(
        "Grounding-Aware Pruning, arXiv:2506.21873: RefCOCO falls from 56.1 to 15.3 % when positions are packed",
        "pruning/apply.py, `renumbered`; pruning/README.md: which method renumbers",
    ),
)


def measure(count, seed):
    """{"questions", "cases": {name: differences}, "right": {positions: share}, "against": renumbered minus kept}"""
    exam = Exam(count, seed)
    mark = exam.model.config.image_token_index
    logits = {}
    for i, _, ids, pixels in exam.prompts():
        n = exam.model.visual_tokens(pixels)
        for name, (prompt, fixed) in cases(ids, mark, n, seed + i).items():
            for positions in POSITIONS:
                pruner = replace(fixed, positions=positions)
                own = logits.setdefault((name, positions), [])
                own.append(exam.logits(prompt, pixels, pruner))
    logits = {key: torch.stack(rows) for key, rows in logits.items()}              # (Q, V) each
    differences = {name: difference(logits[name, "keep"], logits[name, "renumber"]) for name in CASES}
    right = {positions: exam.right(logits[USUAL, positions]) for positions in POSITIONS}
    compared = against(right["renumber"], right["keep"])
    return dict(questions=len(exam.items), cases=differences, right=shares(right), against=compared)


def cases(ids, mark, n, seed):
    """{name: the ids of a prompt, and the tokens of its image to keep}"""
    text = [id for id in ids if id != mark]
    k = round(KEEP * n)
    scattered = Fixed.random(n, KEEP, seed)
    last = Fixed(tuple(range(n - k, n)))
    first = Fixed(tuple(range(k)), site="embed")           # before layer 0: its last token gives the answer
    return {
        USUAL: (ids, scattered),
        "its beginning": ([mark, *text], last),
        "its end": ([*text, mark], first),
    }


def difference(kept, packed):
    """Of two sets of logits (Q, V): the largest and the mean difference, and the share of other words."""
    far = (kept - packed).abs()
    other = kept.argmax(dim=1) != packed.argmax(dim=1)                             # (Q,)
    return dict(most=float(far.max()), mean=float(far.mean()), other=float(other.double().mean()))


def table(numbers):
    """A line for each case, then the accuracies."""
    yield f"{numbers['questions']} questions, {KEEP:.0%} kept; positions renumbered, against kept:"
    yield ""
    yield f"{'':56}largest and mean difference of a logit   other word"
    for name, row in numbers["cases"].items():
        yield f"{CASES[name]:56}{row['most']:14.1e}  {row['mean']:14.1e}  {row['other']:17.0%}"
    yield ""
    for positions, row in numbers["right"].items():
        yield f"{positions:10}{percent(row, 1)} right"


def right(numbers):
    """Whether the logits differ, and the answers."""
    if numbers["cases"][USUAL]["most"] < SAME:
        return 0
    return 1 if sign(numbers["against"]) else 2


def sentences(numbers):
    """What renumbering changes, and where it changes nothing."""
    usual, *others = numbers["cases"].items()
    _, row = usual
    if row["most"] < SAME:
        yield f"The same tokens give the same logits, whatever their positions, to {row['most']:.0e}."
    else:
        yield (f"The same tokens at other positions: logits differ by up to {row['most']:.2g}, and so do "
               f"{row['other']:.0%} of the answers.")
        compared = numbers["against"]
        effect = {1: "gains", -1: "loses", 0: "neither gains nor loses, as far as can be told:"}
        yield f"On this model renumbering {effect[sign(compared)]} {points(compared)}."
    for name, row in others:
        far = row["most"]
        agree = f"agree to {far:.0e}" if far else "agree exactly"
        yield f"If {CASES[name]}, the two {agree if far < SAME else f'differ, by up to {far:.2g}'}."


def picture(numbers):
    """The accuracies with kept and with renumbered positions, and the difference."""
    bars = [in_percent(name, row, name) for name, row in numbers["right"].items()]
    bars.append(in_percent("renumber minus keep, points", numbers["against"]))
    note = f"{numbers['questions']} questions, {KEEP:.0%} of the image kept, the same tokens; 95 % intervals"
    return intervals("Right answers in %, by position ids", bars, note, unit="")
