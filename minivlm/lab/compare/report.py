"""What one answer cost and which tokens it rests on, as text and as JSON, all from the trace and the cache."""

from dataclasses import asdict, is_dataclass
from itertools import groupby

from torch import nn


def layer_lines(trace):
    """["layers 0-1: 631 tokens, 576 of them visual", ..]: what enters each decoder layer, equal neighbours together."""
    lines, counts = [], list(zip(trace.tokens, trace.visual))
    for count, group in groupby(range(len(counts)), key=lambda l: counts[l]):
        first, *_, last = 2 * list(group)
        name = f"layer {first}" if first == last else f"layers {first}-{last}"
        lines.append(f"{name}: {count[0]} tokens, {count[1]} of them visual")
    return lines


def runs(counts):
    """runs([576, 576, 128]) -> "2x576 1x128"."""
    return " ".join(f"{len(list(group))}x{count}" for count, group in groupby(counts))


def size(count):
    """size(14_126_854_144) -> "14.1 GB": bytes, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000


def unpruned_bytes(talk):
    """Bytes that the cache would hold if no visual token had been dropped."""
    layers = [c for c in talk.cache.layers if c.length]
    a_token = sum(2 * c.key.shape[1] * c.key.shape[3] * c.key.element_size() for c in layers) // len(layers)
    text = talk.trace.tokens[0] - talk.trace.visual[0]
    return a_token * len(layers) * (text + talk.trace.unpruned + layers[0].length - talk.trace.tokens[0])


def cost_lines(talk):
    """The layers' tokens and the bytes of the cache."""
    held, whole = talk.cache.bytes, unpruned_bytes(talk)
    share = "" if held == whole else f", {held / whole:.0%} of the {size(whole)} without reduction"
    return [*layer_lines(talk.trace), f"KV cache: {size(held)}{share}"]


def refusals(why_not):
    """A line for each method of {label: why it does not run here}, after an empty one."""
    lines = [f"{label} does not run here: {reason}" for label, reason in why_not.items()]
    return ["", *lines] if lines else []


def facts(talk):
    """The same as plain data, with the kept original indices of every reduction."""
    pruner, trace = talk.pruner, talk.trace
    return {
        "method": type(pruner).__name__ if pruner else None,
        "options": asdict(pruner, dict_factory=_options) if is_dataclass(pruner) else {},
        "visual_tokens": trace.N,
        "tokens_entering_layer": trace.tokens,
        "visual_entering_layer": trace.visual,
        "kv_bytes": talk.cache.bytes,
        "kv_bytes_unpruned": unpruned_bytes(talk),
        "reductions": [{"site": s.site, "before_layer": s.layer, "of": len(s.source), "kept": s.kept.tolist()}
                       for s in trace.steps],
    }


def _options(pairs):
    return {name: x for name, x in pairs if not isinstance(x, nn.Module)}
