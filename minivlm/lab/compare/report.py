"""What one answer cost and which tokens it rests on, as text and as JSON, all from the trace and the cache."""

from dataclasses import asdict, is_dataclass
from itertools import groupby

from torch import nn

from minivlm.lab.cli.output import size
from pruning.compose import Both


def layer_lines(trace):
    """["layers 0-1: 631 tokens, 576 of them visual", ..]: what enters each decoder layer, equal neighbours together."""
    lines = []
    first = 0
    for (tokens, visual), group in groupby(zip(trace.tokens, trace.visual)):
        last = first + len(list(group)) - 1
        name = f"layer {first}" if first == last else f"layers {first}-{last}"
        lines.append(f"{name}: {tokens} tokens, {visual} of them visual")
        first = last + 1
    return lines


def title(name, pruner):
    """The method as the user named it, and its budget: "fastv, keep 0.1"; "no pruning" without one."""
    if pruner is None:
        return "no pruning"
    methods = pruner.methods if isinstance(pruner, Both) else (pruner,)
    keeps = [getattr(method, "keep", None) for method in methods]
    known = [str(keep) for keep in keeps if keep is not None]
    return f"{name}, keep {'+'.join(known)}" if known else name


def unpruned_bytes(talk):
    """Bytes that the cache would hold if no visual token had been dropped."""
    layers = [layer for layer in talk.cache.layers if layer.length]
    per_token = sum(bytes_per_token(layer) for layer in layers)
    trace = talk.trace
    text = trace.tokens[0] - trace.visual[0]
    generated = layers[0].length - trace.tokens[0]
    return per_token * (text + trace.unpruned + generated)


def bytes_per_token(layer):
    """Key and value of all key heads."""
    _, heads, _, head_width = layer.key.shape
    return 2 * heads * head_width * layer.key.element_size()


def cost_lines(talk):
    """The layers' tokens and the bytes of the cache."""
    held = talk.cache.bytes
    whole = unpruned_bytes(talk)
    share = "" if held == whole else f", {held / whole:.0%} of the {size(whole)} without reduction"
    return [*layer_lines(talk.trace), f"KV cache: {size(held)}{share}"]


def facts(talk):
    """The same as plain data, with the kept original indices of every reduction."""
    pruner = talk.pruner
    trace = talk.trace
    method = {
        "method": type(pruner).__name__ if pruner else None,
        "options": asdict(pruner, dict_factory=options) if is_dataclass(pruner) else {},
    }
    tokens = {
        "visual_tokens": trace.N,
        "tokens_entering_layer": trace.tokens,
        "visual_entering_layer": trace.visual,
    }
    cache = {
        "kv_bytes": talk.cache.bytes,
        "kv_bytes_unpruned": unpruned_bytes(talk),
    }
    reductions = [reduction(step) for step in trace.steps]
    return method | tokens | cache | {"reductions": reductions}


def reduction(step):
    """Where it acted, on how many tokens, and which it kept."""
    return {
        "site": step.site,
        "before_layer": step.layer,
        "of": len(step.source),
        "kept": step.kept.tolist(),
    }


def options(pairs):
    """The fields of a method but for trained modules, which are no plain data."""
    return {name: value for name, value in pairs if not isinstance(value, nn.Module)}
