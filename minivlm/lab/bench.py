"""Speed, as ratios within one run: prefill, decoding and the vision tower, unpruned, pruned and against transformers.

The contestants take turns, so that a noisy machine is noisy for all of them; medians are compared. Weights are random
unless a checkpoint is named: speed does not depend on their values.
"""

import json
from dataclasses import replace
from statistics import median
from time import perf_counter

import torch
from tqdm import tqdm

from minivlm.cache import Cache
from minivlm.clip import ClipVision
from minivlm.config import LlavaConfig, TextConfig, VisionConfig
from minivlm.lab import hf
from minivlm.lab.options import build
from minivlm.llama import Decoder, Linear
from pruning.base import Tokens, UserError

SMALL = TextConfig(hidden_size=1024, intermediate_size=2752, num_hidden_layers=12, num_attention_heads=16,
                   max_position_embeddings=4096, rms_norm_eps=1e-5)
SHAPES = {
    "small": SMALL,
    "llava-1.5-7b": TextConfig(max_position_embeddings=4096, rms_norm_eps=1e-5),
    "llava-1.5-13b": TextConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40,
                                max_position_embeddings=4096, rms_norm_eps=1e-5),
}
SYSTEM, GRID, TEXT = 35, 24, 5         # tokens before the image, patches a side, tokens after it: 616 in all


def main(args):
    """Measure and print; with --json also write every time."""
    torch.set_num_threads(args.threads)
    times, shape = measure(args)
    print(f"{args.shape}: {shape.num_hidden_layers} layers of width {shape.hidden_size}, {SYSTEM + GRID ** 2 + TEXT} tokens, "
          f"{args.dtype}, {args.device}, {args.threads} threads, torch {torch.__version__}, medians of {args.repeat}")
    for line in lines(times, shape, args):
        print(line)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(dict(vars(args), function=None, times=times), file, indent=1, default=str)


@torch.inference_mode()
def measure(args):
    """{contestant: [seconds of each round]} and the shape."""
    dtype, device = getattr(torch, args.dtype), torch.device(args.device)
    shape = replace(SHAPES[args.shape], num_hidden_layers=args.layers or SHAPES[args.shape].num_hidden_layers)
    vision = VisionConfig(num_hidden_layers=min(24, shape.num_hidden_layers))
    decoder, tower, head, tokens, pixels = _inputs(shape, vision, dtype, device)
    pruners = {f"keep {keep}": build(args.method, keep, args.set) for keep in args.keep.split(",")}
    races = {"ours prefill": lambda: _prefill(decoder, head, tokens), "ours decode": None,
             "ours vision": lambda: tower(pixels, [vision.num_hidden_layers - 1])[0][0]}
    for name, pruner in pruners.items():
        races[f"{name} prefill"] = lambda pruner=pruner: _prefill(decoder, head, tokens, pruner)
    cache = _prefill(decoder, head, tokens)[1]
    races["ours decode"] = lambda: [_step(decoder, head, cache) for _ in range(args.steps)]
    if args.against:
        theirs = hf.Twins(decoder, head, tower)
        held = theirs.prefill(tokens.hidden)
        races |= {"hf prefill": lambda: theirs.prefill(tokens.hidden), "hf vision": lambda: theirs.vision(pixels),
                  "hf decode": lambda: [theirs.step(held) for _ in range(args.steps)]}
    return _race(races, args.repeat, device, args.steps), shape


def _inputs(shape, vision, dtype, device):
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with device:
        decoder, tower = Decoder(shape).eval(), ClipVision(vision).eval()
        head = Linear(shape.hidden_size, shape.vocab_size, bias=False)
        pixels, hidden = torch.randn(1, 3, 336, 336), torch.randn(SYSTEM + GRID ** 2 + TEXT, shape.hidden_size)
        index = torch.arange(GRID ** 2)
        cell = torch.stack([torch.zeros_like(index), index // GRID, index % GRID], dim=1)
        tokens = Tokens(hidden, torch.arange(len(hidden)), index + SYSTEM, cell, index, len(hidden))
    torch.set_default_dtype(torch.float32)
    return decoder, tower, head, tokens, pixels


def _prefill(decoder, head, tokens, pruner=None):
    cache = Cache.empty(len(decoder.layers))
    return head(decoder.prefill(tokens, cache, pruner)[-1]), cache


def _step(decoder, head, cache):
    hidden = decoder.embed_tokens(torch.tensor([5], device=head.weight.device))
    return head(decoder.step(hidden, cache)[-1]).argmax()


def _race(races, repeat, device, steps):
    times = {name: [] for name in races}
    for run in races.values():
        run()                                          # warm up
    for _ in tqdm(range(repeat), desc="bench", leave=False):
        for name, run in races.items():
            _wait(device)
            start = perf_counter()
            run()
            _wait(device)
            times[name].append((perf_counter() - start) / (steps if name.endswith("decode") else 1))
    return times


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def predicted(shape, entering, n=GRID ** 2, text=SYSTEM + TEXT):
    """Share of the unpruned prefill's FLOPs when so many of n visual tokens enter each layer."""
    last = shape.num_hidden_layers - 1
    flops = lambda counts: sum(_flops(shape, count + text, l == last) for l, count in enumerate(counts))
    return flops(entering) / flops([n] * (last + 1))


def _flops(shape, T, last):
    """Multiplications and additions of one layer: linear maps and causal attention; in the last one only one token asks."""
    heads, kv_heads = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    width, asking, pairs = shape.hidden_size, 1 if last else T, T if last else T * T / 2
    return 2 * width * (T * 2 * kv_heads + asking * (2 * heads + 3 * shape.intermediate_size)) + 4 * pairs * heads


def lines(times, shape, args):
    """The table: milliseconds, spread, ratios."""
    middle = {name: median(t) for name, t in times.items()}
    for name, t in times.items():
        yield f"{name:18} {middle[name] * 1e3:9.1f} ms   from {min(t) * 1e3:.1f} to {max(t) * 1e3:.1f}"
    for stage in ("prefill", "decode", "vision"):
        if f"hf {stage}" in middle:
            yield f"{stage}: {middle[f'ours {stage}'] / middle[f'hf {stage}']:.2f} of transformers' time"
    for keep in args.keep.split(","):
        pruner = build(args.method, keep, args.set)
        share = middle[f"keep {keep} prefill"] / middle["ours prefill"]
        entering, line = pruner.schedule(GRID ** 2, shape.num_hidden_layers), f"{args.method} keep {keep}: {share:.3f} of the unpruned prefill"
        if entering is not None:
            expected = predicted(shape, entering)
            line += f"; its FLOPs say {expected:.3f}: {share / expected:.2f} of that"
        yield line
