"""ATP trains with soft masks and runs with hard cuts. How far apart are the two?

In training a token's mask is sigmoid(T (score - threshold)) and multiplies its attention, Eq. 9 to 11; nothing is
dropped. In use, a token below both thresholds is dropped. The larger T, the nearer the mask is to 0 or 1.
"""

from dataclasses import replace
from math import log10

import torch

from minivlm.course.labs.drawing import Dot, lines
from minivlm.course.labs.exam import Exam
from minivlm.course.labs.form import Lab, percent, shares
from minivlm.lab.score.accuracy import mean
from minivlm.lab.train.atp_student import Student
from minivlm.lab.train.instruct import batch
from minivlm.lab.train.train_atp import Recipe
from minivlm.trace import Trace
from pruning.atp import ATP
from pruning.vtw import divergence

TEMPERATURES = (1, 10, 100, 1000, 10000)           # T; training uses ATP.temperature
TRAINED = TEMPERATURES.index(ATP.temperature)
APART = 0.01                                       # nats: from here on two next words are not the same
AT_ONCE = 8                                        # questions

LAB = Lab(
    question="ATP's thresholds are trained under soft masks, sigmoid(T (score - threshold)), and used for hard cuts. "
             "Do both give the same next word?",
    choices=(
        "yes, whatever T is: the thresholds are the same",
        "only if T is large: then a mask is nearly 0 or 1",
        "never, however large T is: a small mask is not a dropped token",
    ),
    count=12,
    units="questions of each family",
    seconds=15,
    read_on=(
        "ATP-LLaVA, arXiv:2412.00447, 3.3.2, Eq. 9 to 11; pruning/atp.py, `soft_masks` and `reduce`",
        "minivlm/lab/train/atp_student.py: the network that it is trained in",
    ),
)


def measure(count, seed):
    """{"questions", "hard": tokens kept, "rows": of each T the share apart, nats, other words, the masks' sums}"""
    exam = Exam(count, seed)
    atp = exam.trained(ATP())
    hard, kept = cut(exam, atp)
    rows = []
    for T in TEMPERATURES:
        soft, sums = masked(exam, replace(atp, temperature=float(T)))
        nats = divergence(soft, hard)                                              # (Q,)
        is_apart = (nats > APART).tolist()
        other = (soft.argmax(dim=1) != hard.argmax(dim=1)).tolist()
        apart = shares(dict(apart=is_apart))["apart"]
        rows.append(dict(apart, temperature=T, nats=float(nats.mean()), other=mean(other), tokens=sums))
    return dict(questions=len(hard), hard=kept, rows=rows)


@torch.inference_mode()
def cut(exam, atp):
    """Logits (Q, V) under the hard rule, and the tokens left after each module, on average."""
    rows = []
    kept = []
    for _, _, ids, pixels in exam.prompts():
        trace = Trace()
        logits, _ = exam.model.prefill(exam.model.embed(ids, [pixels]), atp, trace)
        rows.append(logits)
        kept.append([trace.visual[layer] for layer in atp.layers])
    return torch.stack(rows), [mean(own) for own in zip(*kept)]


@torch.no_grad()
def masked(exam, atp):
    """The same under the soft masks of training: logits (Q, V), and the sums of the masks after each module."""
    student = Student(exam.model, atp, Recipe(target=36.0, freeze_lm=True))
    samples = [(item.picture, [(item.question, item.answer)]) for item in exam.items]
    rows = []
    sums = []
    for start in range(0, len(samples), AT_ONCE):
        b = batch(exam.model, samples[start:start + AT_ONCE], exam.model.config.template)
        hidden, masks = student.hidden(b)                                          # (B, T, D), (modules, B, N)
        before_answer = b.answer.int().argmax(dim=1) - 1                           # (B,)
        last = hidden[torch.arange(len(hidden)), before_answer]                    # (B, D)
        rows.append(exam.model.lm_head(last))
        sums.append(masks.sum(dim=2))                                              # (modules, B)
    return torch.cat(rows), torch.cat(sums, dim=1).mean(dim=1).tolist()


def table(numbers):
    """A line for each T, then the hard cut."""
    yield f"{numbers['questions']} questions; the next word under soft masks against that under the hard cut"
    yield f"apart: by more than {APART} nats (KL divergence)"
    yield ""
    yield "       T  apart                 nats, mean   other word   tokens left after each module"
    for row in numbers["rows"]:
        cells = f"{percent(row):20}{abs(row['nats']):12.4f}{row['other']:13.1%}"
        yield f"{row['temperature']:8}  {cells}   {left(row['tokens'])}"
    yield f"hard cut  {'':45}   {left(numbers['hard'])}"


def left(tokens):
    """Numbers of tokens in columns."""
    return "  ".join(f"{number:5.1f}" for number in tokens)


def right(numbers):
    """Whether no question is apart at the first T, only at the last one, or at neither."""
    first, *_, last = numbers["rows"]
    if first["share"] == 0:
        return 0
    return 1 if last["share"] == 0 else 2


def sentences(numbers):
    """The gap at the T of training, at the ends, and what it means."""
    first, *_, last = numbers["rows"]
    trained = numbers["rows"][TRAINED]
    yield (f"At the T of training, {trained['temperature']}, the two are apart on {percent(trained)} of the questions, "
           f"and {trained['other']:.1%} of the likeliest words differ.")
    ends = f"from {percent(first)} at T = {first['temperature']} to {percent(last)} at T = {last['temperature']}"
    if first["interval"][0] > last["interval"][1]:
        yield f"That falls {ends}: {'the two meet' if last['share'] == 0 else 'they come nearer, but do not meet'}."
    else:
        yield f"No fall can be told: {ends}."
    more = trained["tokens"][-1] - numbers["hard"][-1]
    yield f"The sum of the last masks, which the loss controls, is {more:+.1f} tokens from the number that is left."


def picture(numbers):
    """The share that is apart, against T."""
    dots = []
    for row in numbers["rows"]:
        ends = [100 * end for end in row["interval"]]
        dots.append(Dot(log10(row["temperature"]), 100 * row["share"], ends))
    across = [round(log10(T)) for T in TEMPERATURES]
    series = {f"apart by {APART} nats": dots}
    return lines("Questions on which soft masks and hard cut differ", series, across, "%", "log10 of T")
