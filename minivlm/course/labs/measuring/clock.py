"""FLOPs against time: what dropped tokens save, predicted and measured, for the prompt and for a new token.

A model with random weights: time does not depend on their values. Tokens are dropped before layer 0, so that the whole
decoder runs on what is kept.
"""

from dataclasses import replace
from statistics import median

import torch

from minivlm.course.labs.drawing import Dot, lines, marks
from minivlm.course.labs.form import Lab
from minivlm.lab.cost.shapes import SHAPES, Shape
from minivlm.lab.speed.measure import measure as timed
from minivlm.lab.speed.verdict import predicted
from minivlm.parts.config import VisionConfig
from pruning.controls import Random

KEEPS = (0.5, 0.25, 0.1)
TEXT = 64                              # tokens
STEPS = 8                              # new tokens in a round
PREDICTED = {"prompt": "flops", "token": "read"}       # what is measured, and what predicts it
WORDS = {"flops": "FLOPs", "read": "bytes read"}

LAB = Lab(
    question="A tenth of the visual tokens is kept, which leaves less than a fifth of the prompt's FLOPs, and of the "
             "cache's bytes. What becomes faster?",
    choices=(
        "both: the prompt, and each new token",
        "the prompt, but hardly a new token",
        "neither, not by half of what the numbers promise",
    ),
    count=4,
    units="rounds",
    seconds=10,
    read_on=(
        "minivlm/lab/README.md, `If you see no speed-up`; on a GPU, and with the 7B, the numbers are there, too",
        "`python run.py cost`, `python run.py bench --shape llava-1.5-7b --layers 4 --dtype bfloat16`",
    ),
)


def decoder_only():
    """The shape `small` with four layers, and a tower that takes no time worth speaking of."""
    whole = SHAPES["small"].config
    vision = VisionConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    text = replace(whole.text, num_hidden_layers=4)
    return Shape("4 layers of small", replace(whole, vision=vision, text=text))


def measure(count, seed):
    """{"shape", "rounds", "rows": of each budget the ratios to no pruning, predicted and in each round}"""
    shape = decoder_only()
    pruners = {f"{keep:.0%}": Random(keep=keep, site="embed", seed=seed) for keep in KEEPS}
    result = timed(shape, pruners, text=TEXT, steps=STEPS, repeat=count, dtype=torch.float32)
    unpruned, *others = result["rows"]
    rows = [compared(row, unpruned, result["read_a_token"]) for row in others]
    return dict(shape=shape.name, rounds=count, threads=result["threads"], rows=rows)


def compared(row, unpruned, weights):
    """What a budget gains, predicted and measured. weights: bytes that each new token reads besides the cache."""
    before = unpruned["kv_bytes"]
    after = row["kv_bytes"]
    prompt = ratios(unpruned, row, "prefill", "method")
    token = ratios(unpruned, row, "decode")
    flops = predicted(row, unpruned)
    read = (weights + before) / (weights + after)
    return dict(tokens=row["average"], flops=flops, prompt=prompt, cache=before / after, read=read, token=token)


def ratios(unpruned, row, *stages):
    """How many times as fast as unpruned, over all rounds: (median, least, most)"""
    values = []
    for times, own in zip(unpruned["times"], row["times"]):
        before = sum(times[stage] for stage in stages)
        after = sum(own[stage] for stage in stages)
        values.append(before / after)
    return median(values), min(values), max(values)


def table(numbers):
    """A line for each budget."""
    yield f"{numbers['shape']}, {TEXT} text tokens, float32, {numbers['threads']} threads, {numbers['rounds']} rounds"
    yield "times as fast as unpruned, median (least to most)"
    yield ""
    yield "visual          the prompt                        a new token"
    yield "tokens   FLOPs say  measured              cache smaller   bytes say  measured"
    for row in numbers["rows"]:
        prompt = f"{row['flops']:9.2f}  {spread(row['prompt']):22}"
        token = f"{row['cache']:13.2f}  {row['read']:10.2f}  {spread(row['token'])}"
        yield f"{row['tokens']:6.0f}   {prompt}{token}"


def spread(ratio):
    value, low, high = ratio
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def realised(ratio, expected):
    """The share of an expected gain, of (median, least, most): 2 x in place of 3 x is a half."""
    return [(value - 1) / (expected - 1) for value in ratio]


def follows(ratio, expected):
    """Whether at least half of the gain is there: True or False if all rounds agree, else None."""
    _, least, most = realised(ratio, expected)
    if least >= 0.5:
        return True
    return False if most < 0.5 else None


def right(numbers):
    """Whether prompt and token gain what FLOPs and cache promise, if all rounds agree."""
    last = numbers["rows"][-1]
    prompt = follows(last["prompt"], last["flops"])
    token = follows(last["token"], last["cache"])
    choices = [(True, True), (True, False), (False, False)]
    return choices.index((prompt, token)) if (prompt, token) in choices else None


def sentences(numbers):
    """The largest cut: what the prompt gets of its FLOPs, and a token of its cache."""
    last = numbers["rows"][-1]
    gained, *_ = realised(last["prompt"], last["flops"])
    yield (f"With {last['tokens']:.0f} visual tokens the prompt needs 1/{last['flops']:.1f} of the FLOPs and is "
           f"{spread(last['prompt'])} times as fast: {gained:.0%} of the gain that FLOPs promise.")
    _, low, high = last["token"]
    gain = f"is {spread(last['token'])} times as fast"
    if low <= 1 <= high:
        gain = f"is not faster in every round: {spread(last['token'])}"
    yield f"The cache has 1/{last['cache']:.1f} of the bytes. A new token {gain}."
    yield f"It reads all weights, too: by all that it reads, it could be {last['read']:.2f} times as fast."
    if None in (follows(last["prompt"], last["flops"]), follows(last["token"], last["cache"])):
        yield "The rounds disagree: something else ran on this machine. Try again when it is quiet."


def picture(numbers):
    """Full dots: measured, with all rounds; hollow: predicted by FLOPs, or by the bytes read."""
    series = {}
    for stage, expected in PREDICTED.items():
        measured = [Dot(row["tokens"], row[stage][0], row[stage][1:]) for row in numbers["rows"]]
        promised = [Dot(row["tokens"], row[expected], hollow=True) for row in numbers["rows"]]
        series[f"a {stage}, measured"] = measured
        series[f"a {stage}, by the {WORDS[expected]}"] = promised
    across = marks(max(row["tokens"] for row in numbers["rows"]))
    return lines("Times as fast as unpruned", series, across, "x", "visual tokens kept")
