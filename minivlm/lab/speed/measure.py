"""Speed, measured: encoding, the method's own time, prefill, decoding, end to end and peak memory.

The contestants (the unpruned model, each method at each budget, transformers on the same weights) take turns, so that a
noisy machine is noisy for all of them. Medians are compared. Weights are random if no checkpoint is given: speed does
not depend on their values.
"""

from functools import partial
from statistics import median, quantiles

import torch
from tqdm import tqdm

from minivlm import kernels
from minivlm.clip import ClipVision
from minivlm.lab.cli.options import check
from minivlm.lab.cli.output import size
from minivlm.lab.cli.parallel import gathered
from minivlm.lab.cli.precision import available
from minivlm.lab.cost.count import PromptDecides, count, on_meta, weight_bytes
from minivlm.lab.cost.flops import average
from minivlm.lab.speed.clock import Clock, Memory, Timed
from minivlm.lab.speed.machine import limits
from minivlm.lab.speed.twins import Twins
from pruning.base import UserError
from weights import device_of, load

STAGES = ("encode", "method", "prefill", "decode", "total")


def measure(shape, pruners, checkpoint=None, text=64, steps=20, repeat=5, dtype=torch.float32, device="cpu", against=(),
            rank=0, size=1):
    """Everything that was measured and predicted, as plain data: see verdict.lines. `against`: "sdpa", "eager".

    Of `size` processes each runs its part of the rounds, number `rank` of them this one, and all get the whole result.
    """
    device = device_of(device)
    pruners = {"unpruned": None, **pruners}
    counts = {name: _count(shape, pruner, text, dtype) for name, pruner in pruners.items()}
    model = model_of(shape, checkpoint, dtype, device)
    clock = Clock(device)
    ids, pixels = _prompt(shape, text, dtype, device)
    contestants = {}
    for name, pruner in pruners.items():
        contestants[name] = partial(once, model, ids, pixels, check(pruner, model), steps, clock)
    for attention in against:
        contestants[f"transformers {attention}"] = _transformers(model, ids, pixels, attention, steps, clock)
    times = _rounds(contestants, repeat, rank, size)
    rows = [dict(method=name, **counts.get(name, {}), **summary(own)) for name, own in times.items()]
    weights = weight_bytes(shape, dtype)
    setting = dict(shape=shape.name, layers=shape.layers, image_tokens=shape.n, text_tokens=text, steps=steps,
                   repeat=repeat, dtype=str(dtype).removeprefix("torch."))
    machine = dict(device=_name(device), torch=torch.__version__, threads=torch.get_num_threads(), processes=size,
                   machine=limits(dtype, device), kernels=kernels.choices())
    return dict(setting, **machine, read_a_token=weights["decoder"] + weights["head"], rows=rows)


def _count(shape, pruner, text, dtype):
    """The counted FLOPs of the stages, the average of image tokens, and the cache; {} if only the prompt decides."""
    try:
        counted = count(shape, pruner, text, dtype)
    except PromptDecides:
        return {}
    flops = dict(encode=counted.encode, prefill=counted.prefill)
    return dict(flops=flops, average=average(counted.visual), kv_bytes=counted.kv_bytes)


def model_of(shape, checkpoint, dtype, device):
    """The checkpoint, or random weights of the shape, with as many decoder layers as the shape has."""
    model = load(checkpoint, dtype, device) if checkpoint else random(shape, dtype, device)
    model.language_model.layers = model.language_model.layers[:shape.layers]
    return model


@torch.no_grad()
def random(shape, dtype, device):
    """A model of that shape with random weights. UserError if they do not fit into memory."""
    need = sum(weight_bytes(shape, dtype).values())
    free = available(device)
    if free is not None and need > free:
        kind = str(dtype).removeprefix("torch.")
        raise UserError(f"{shape.name} has {size(need)} of weights in {kind} and {size(free)} of memory are free on "
                        f"{device}: measure a slice with --layers, or another --dtype")
    model = on_meta(shape, dtype).to_empty(device=device)
    for p in model.parameters():
        p.fill_(1) if p.dim() == 1 else p.normal_(std=.02)
    return model.requires_grad_(False)


def _prompt(shape, text, dtype, device):
    """Half of the text, the image's mark, the other half; and pixels."""
    torch.manual_seed(0)
    vision = shape.config.vision
    side = vision.image_size
    pixels = torch.randn(shape.tiles, vision.num_channels, side, side, dtype=dtype, device=device)
    before = [1] * (text // 2)
    after = [1] * (text - text // 2)
    return [*before, shape.config.image_token_index, *after], pixels


@torch.inference_mode()
def once(model, ids, pixels, pruner, steps, clock):
    """{stage: seconds} and the peak of memory of one prompt and `steps` tokens after it."""
    method = pruner and Timed(pruner, clock)
    memory = Memory(clock.device)
    start = clock.mark()
    tokens = model.embed(ids, [pixels], method)
    embedded = clock.mark()
    early = clock.worked()
    _, cache = model.prefill(tokens, method)
    filled = clock.mark()
    late = clock.worked()
    for _ in range(steps):
        model.step([5], cache, method)
    end = clock.mark()
    encode = clock.seconds(start, embedded) - early
    prefill = clock.seconds(embedded, filled) - late
    decode = clock.seconds(filled, end) - clock.worked()
    return dict(encode=encode, method=early + late, prefill=prefill, decode=decode / steps,
                total=clock.seconds(start, end), peak=memory.peak())


def _transformers(model, ids, pixels, attention, steps, clock):
    """The same of transformers, without the projector. UserError for a model that Twins cannot build."""
    if not isinstance(model.vision_tower, ClipVision) or model.config.text.qkv_bias:
        raise UserError("bench --against hf runs LLaMA decoders with a CLIP tower, which this model has not: "
                        "leave --against out")
    twins = Twins(model.language_model, model.lm_head, model.vision_tower, attention)
    hidden = model.embed(ids, [pixels]).hidden

    @torch.inference_mode()
    def run():
        memory = Memory(clock.device)
        start = clock.mark()
        twins.vision(pixels)
        embedded = clock.mark()
        state = twins.prefill(hidden)
        filled = clock.mark()
        for _ in range(steps):
            twins.step(state)
        end = clock.mark()
        decode = clock.seconds(filled, end) / steps
        return dict(encode=clock.seconds(start, embedded), method=0.0, prefill=clock.seconds(embedded, filled),
                    decode=decode, total=clock.seconds(start, end), peak=memory.peak())
    return run


def _rounds(contestants, repeat, rank, size):
    """{contestant: what each of its rounds gave}, of all processes. Each process's first round is not counted."""
    times = {name: [] for name in contestants}
    own = len(range(rank, repeat, size))
    for n in tqdm(range(own + 1), desc="bench", leave=False, disable=rank > 0):
        for name, run in contestants.items():
            result = run()
            if n:
                times[name].append(result)
    return {name: gathered(results) for name, results in times.items()}


def summary(times):
    """Median and spread of each stage, the peak, and every time."""
    stages = {stage: [t[stage] for t in times] for stage in STAGES}
    peaks = [t["peak"] for t in times]
    return dict(median={stage: median(values) for stage, values in stages.items()},
                spread={stage: spread(values) for stage, values in stages.items()},
                peak=None if None in peaks else max(peaks), times=times)


def spread(values):
    """Half of the distance between the quartiles."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, method="inclusive")
    return (high - low) / 2


def _name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
