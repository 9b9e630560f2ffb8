"""Speed, measured: encode, the method's own time, prefill, decoding, end to end and peak memory, beside what counted FLOPs predict.

The contestants (the unpruned model, each method at each budget, transformers on the same weights) take turns, so that a
noisy machine is noisy for all of them; medians are compared. Weights are random where no checkpoint is given: speed does
not depend on their values.
"""

from statistics import median, quantiles

import torch
from tqdm import tqdm

from minivlm import kernels
from minivlm.clip import ClipVision
from minivlm.lab.check import hf
from minivlm.lab.cli.options import check
from minivlm.lab.cli.parallel import gathered
from minivlm.lab.compare.report import size
from minivlm.lab.cost.count import PromptDecides, count, on_meta, weight_bytes
from minivlm.lab.cost.flops import average
from minivlm.lab.speed.clock import Clock, Memory, Timed, available
from minivlm.lab.speed.machine import limits
from pruning.base import UserError
from weights import device_of, load

STAGES = ("encode", "method", "prefill", "decode", "total")


def measure(shape, pruners, checkpoint=None, text=64, steps=20, repeat=5, dtype=torch.float32, device="cpu", against=(), rank=0, size=1):
    """Everything that was measured and predicted, as plain data: see `lines`. `against`: "sdpa", "eager" of transformers.

    Of `size` processes each runs its part of the rounds, number `rank` of them this one, and all get the whole result.
    """
    device = device_of(device)
    counts = {name: _count(shape, pruner, text, dtype) for name, pruner in {"unpruned": None, **pruners}.items()}
    model = model_of(shape, checkpoint, dtype, device)
    pruners = {name: check(pruner, model) for name, pruner in pruners.items()}
    races, clock = {}, Clock(device)
    ids, pixels = _prompt(shape, text, dtype, device)
    for name, pruner in {"unpruned": None, **pruners}.items():
        races[name] = lambda pruner=pruner: ours(model, ids, pixels, pruner, steps, clock)
    for attention in against:
        races[f"transformers {attention}"] = _theirs(model, ids, pixels, attention, steps, clock)
    measured = _race(races, repeat, rank, size)
    return dict(shape=shape.name, layers=shape.layers, image_tokens=shape.n, text_tokens=text, steps=steps, repeat=repeat,
                dtype=str(dtype).removeprefix("torch."), device=_named(device), torch=torch.__version__, threads=torch.get_num_threads(), processes=size,
                machine=limits(dtype, device), kernels=kernels.choices(),
                read_a_token=sum(weight_bytes(shape, dtype)[part] for part in ("decoder", "head")),
                rows=[dict(method=name, **counts.get(name, {}), **seen) for name, seen in measured.items()])


def _count(shape, pruner, text, dtype):
    """The counted FLOPs of the stages, where they are known beforehand, the average of image tokens, and the cache."""
    try:
        held = count(shape, pruner, text, dtype)
    except PromptDecides:
        return {}
    return dict(flops=dict(encode=held.encode, prefill=held.prefill), average=average(held.visual), kv_bytes=held.kv_bytes)


def model_of(shape, checkpoint, dtype, device):
    """The checkpoint, or random weights of the shape, with as many decoder layers as the shape has."""
    model = load(checkpoint, dtype, device) if checkpoint else random(shape, dtype, device)
    model.language_model.layers = model.language_model.layers[:shape.layers]
    return model


@torch.no_grad()
def random(shape, dtype, device):
    """A model of that shape with random weights. UserError where they do not fit into memory."""
    need, free = sum(weight_bytes(shape, dtype).values()), available(device)
    if free is not None and need > free:
        raise UserError(f"{shape.name} has {size(need)} of weights in {str(dtype).removeprefix('torch.')} and {size(free)} of memory are "
                        f"free on {device}: measure a slice with --layers, or another --dtype")
    model = on_meta(shape, dtype).to_empty(device=device)
    for p in model.parameters():
        p.fill_(1) if p.dim() == 1 else p.normal_(std=.02)
    return model.requires_grad_(False)


def _prompt(shape, text, dtype, device):
    """Half of the text, the image's mark, the other half; and pixels."""
    torch.manual_seed(0)
    c, mark = shape.config.vision, shape.config.image_token_index
    pixels = torch.randn(shape.tiles, c.num_channels, c.image_size, c.image_size, dtype=dtype, device=device)
    return [1] * (text // 2) + [mark] + [1] * (text - text // 2), pixels


@torch.inference_mode()
def ours(model, ids, pixels, pruner, steps, clock):
    """{stage: seconds} and the peak of memory of one prompt and `steps` tokens after it."""
    method, memory = pruner and Timed(pruner, clock), Memory(clock.device)
    start = clock.mark()
    tokens = model.embed(ids, [pixels], method)
    embedded, early = clock.mark(), clock.worked()
    cache = model.prefill(tokens, method)[1]
    filled, late = clock.mark(), clock.worked()
    for _ in range(steps):
        model.step([5], cache, method)
    end = clock.mark()
    decode = clock.seconds(filled, end) - clock.worked()
    encode, prefill = clock.seconds(start, embedded) - early, clock.seconds(embedded, filled) - late
    return dict(encode=encode, method=early + late, prefill=prefill, decode=decode / steps, total=clock.seconds(start, end), peak=memory.peak())


def _theirs(model, ids, pixels, attention, steps, clock):
    """The same of transformers, without the projector. UserError for a model that it is not asked to build here."""
    if not isinstance(model.vision_tower, ClipVision) or model.config.text.qkv_bias:
        raise UserError("bench --against hf runs LLaMA decoders with a CLIP tower, which this model has not: leave --against out")
    twins = hf.Twins(model.language_model, model.lm_head, model.vision_tower, attention)
    hidden = model.embed(ids, [pixels]).hidden

    @torch.inference_mode()
    def run():
        memory, start = Memory(clock.device), clock.mark()
        twins.vision(pixels)
        embedded = clock.mark()
        held = twins.prefill(hidden)
        filled = clock.mark()
        for _ in range(steps):
            twins.step(held)
        end = clock.mark()
        return dict(encode=clock.seconds(start, embedded), method=0.0, prefill=clock.seconds(embedded, filled),
                    decode=clock.seconds(filled, end) / steps, total=clock.seconds(start, end), peak=memory.peak())
    return run


def _race(races, repeat, rank, size):
    """{contestant: median, spread and every value of each stage, and the peak}; each process's first round is not counted."""
    seen = {name: [] for name in races}
    for turn in tqdm(range(len(range(rank, repeat, size)) + 1), desc="bench", leave=False, disable=rank > 0):
        for name, run in races.items():
            told = run()
            seen[name] += [told] if turn else []
    seen = {name: gathered(told) for name, told in seen.items()}
    return {name: dict(median={s: median(t[s] for t in told) for s in STAGES}, spread={s: _spread([t[s] for t in told]) for s in STAGES},
                       peak=_most([t["peak"] for t in told]), times=told) for name, told in seen.items()}


def _spread(values):
    """Half of what lies between the quartiles."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, method="inclusive")
    return (high - low) / 2


def _most(values):
    return None if None in values else max(values)


def _named(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
