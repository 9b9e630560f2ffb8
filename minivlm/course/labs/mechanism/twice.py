"""The layer that ranks runs twice, on one cache: once for its attention, once in its place, as in a released code.

FastV's released code for a cache calls layer K-1 for the attention that ranks, with the cache, and then the loop over
the layers calls it again. AdaptPrune's copies the pattern. Here the shipped model does the same.
"""

import torch
from torch import nn

from minivlm.attention import causal_mask
from minivlm.course.labs.drawing import Dot, lines
from minivlm.course.labs.exam import Exam
from minivlm.course.labs.form import Lab
from minivlm.course.labs.mechanism.fixed import Fixed
from pruning.fastv import FastV

K = FastV.layer
KEEP = 0.25
STEPS = 6                              # further tokens
SAME = 1e-4                            # logits that differ by less are the same but for rounding
CASES = {"once": None, "twice": True, "twice, in the prompt only": False}

LAB = Lab(
    question="A released code runs the layer that ranks twice, with the same cache. What does that change?",
    choices=(
        "the answers: this layer counts every token twice",
        "nothing: the second run overwrites what the first one stored",
        "the cache: this layer holds twice as many tokens, but no output changes",
    ),
    count=4,
    units="questions of each family",
    seconds=5,
    read_on=(
        "minivlm/cache.py, whose lengths tests/model/test_cache.py checks against the tokens that entered each layer",
        "minivlm/parts/views.py: here a method recomputes the rows that it reads, and no layer runs twice",
    ),
)


class Twice(nn.Module):
    """A layer whose every call is made twice with the same cache; or only that of the prompt."""

    def __init__(self, layer, at_steps):
        super().__init__()
        self.layer = layer
        self.at_steps = at_steps

    def streams(self, x, rope, cache, mask, last):
        """The prompt: the first run is for the attention, and its result is thrown away."""
        T = x.shape[1]
        self.layer.streams(x, rope, cache, mask, last)
        causal = causal_mask(torch.arange(T), T)
        both = causal.repeat(1, 2)                         # (T, 2T): each token sees both copies of those before it
        return self.layer.streams(x, rope, cache, both, last)

    def forward(self, x, rope, cache, mask):
        """A further token, which sees everything."""
        if self.at_steps:
            self.layer(x, rope, cache, mask)
        return self.layer(x, rope, cache, mask)


@torch.inference_mode()
def measure(count, seed):
    """{"questions", "rows": of each case the cache's lengths and bytes, and how far its logits are from "once"}"""
    exam = Exam(count, seed)
    layers = exam.model.language_model.layers
    layer = layers[K - 1]
    runs = {name: [] for name in CASES}
    for _, _, ids, pixels in exam.prompts():
        for name, at_steps in CASES.items():
            layers[K - 1] = layer if at_steps is None else Twice(layer, at_steps)
            runs[name].append(run(exam.model, ids, pixels))
    layers[K - 1] = layer
    once = torch.stack([logits for logits, *_ in runs["once"]])                    # (Q, 1+STEPS, V)
    rows = []
    for name, results in runs.items():
        logits = torch.stack([logits for logits, *_ in results])
        _, lengths, size = results[0]
        rows.append(dict(name=name, lengths=lengths, bytes=size, **differences(logits, once)))
    return dict(questions=len(once), rows=rows)


def run(model, ids, pixels):
    """(1+STEPS, V) logits after the prompt and after each further token; lengths and bytes of the cache in the end."""
    tokens = model.embed(ids, [pixels])
    pruner = Fixed.random(tokens.n, KEEP, layer=K)
    logits, cache = model.prefill(tokens, pruner)
    rows = [logits]
    for id in ids[-STEPS:]:                                # any words do: those of the question again
        rows.append(model.step([id], cache))
    return torch.stack(rows), cache.lengths, cache.bytes


def differences(logits, once):
    """The largest difference of two sets of logits (Q, 1+STEPS, V), after the prompt and later, and of the words."""
    far = (logits - once).abs()
    is_other = logits.argmax(dim=2) != once.argmax(dim=2)                          # (Q, 1+STEPS)
    changed = is_other[:, 1:].double().mean()
    return dict(prompt=float(far[:, 0].max()), later=float(far[:, 1:].max()), changed=float(changed))


def table(numbers):
    """A line for each case."""
    yield f"{numbers['questions']} questions, then {STEPS} further tokens; the largest difference of a logit to once"
    yield ""
    head = f"layer {K - 1} runs"
    yield f"{head:26}after the prompt     later   other word   tokens in each layer's cache, in the end"
    for row in numbers["rows"]:
        cells = f"{row['prompt']:16.1e}  {row['later']:8.1e}  {row['changed']:11.1%}"
        yield f"{row['name']:26}{cells}   {row['lengths']}"


def right(numbers):
    """What running twice each time does."""
    once, twice, _ = numbers["rows"]
    if max(twice["prompt"], twice["later"]) > SAME:
        return 0
    return 2 if twice["bytes"] > once["bytes"] else 1


def sentences(numbers):
    """What it costs, whether it shows, and what half of the mistake would do."""
    once, twice, half = numbers["rows"]
    more = twice["bytes"] / once["bytes"] - 1
    held, usual = (row["lengths"][K - 1] for row in (twice, once))
    yield f"Run twice each time, layer {K - 1} holds {held} tokens, and else {usual}: {more:.0%} more bytes in all."
    far = max(twice["prompt"], twice["later"])
    if far > SAME:
        yield f"The logits change, by up to {far:.2g}."
    else:
        yield (f"The logits are the same to {far:.0e}: every key is there twice, and two copies share the weight of "
               "one. A test of outputs cannot find this; a test of the cache's lengths does.")
    if half["later"] > SAME:
        yield (f"Run twice in the prompt only, the logits of later tokens change by up to {half['later']:.2g}, and "
               f"{half['changed']:.1%} of the likeliest words: the prompt counts twice, and later tokens once.")
    else:
        yield "Run twice in the prompt only, later tokens do not differ either."


def picture(numbers):
    """The cache's length in each layer, in the end."""
    once, twice, _ = numbers["rows"]
    series = {}
    for row in (twice, once):
        series[f"layer {K - 1} runs {row['name']}"] = [Dot(*dot) for dot in enumerate(row["lengths"])]
    return lines("Tokens in the cache of each layer", series, range(len(once["lengths"])), "tokens", "layer")
