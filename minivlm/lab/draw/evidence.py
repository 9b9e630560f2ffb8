"""Evidence: the visual tokens that show what a question asks about, and how much of it reaches each decoder layer.

A token reaches a layer as itself or merged, with a weight above 0, into one that enters it. Random tokens bring as
large a share of the evidence as of all tokens, on average; a method that sees the question brings more.
"""

from dataclasses import replace

import torch

from minivlm.toy.benchmark import on_patches


def entering(trace, patches):
    """[how many evidence tokens enter each decoder layer], from the patches of a drawn picture that hold the answer.

    VTW that withdraws 144 tokens before layer 3 of 4, 8 of them on the patches: [8, 8, 8, 0]. [] if where the tokens
    lie is not known (tiles), or without patches.
    """
    tokens = on_patches(trace.grid, patches)
    if not len(tokens):
        return []
    counts = []
    for layer in range(len(trace.visual)):
        steps = [step for step in trace.steps if step.site != "decoder" or step.layer <= layer]
        is_new = layer == 0 or any(step.layer == layer for step in steps)
        if is_new:
            left = carried(replace(trace, steps=steps), tokens)                    # (E,)
            count = int(left.sum())
        counts.append(count)
    return counts


def share(trace, patches):
    """The share of the evidence that enters a decoder layer, on average over layers; None if it is not known."""
    counts = entering(trace, patches)
    if not counts:
        return None
    whole = len(on_patches(trace.grid, patches))
    return sum(counts) / len(counts) / whole


def carried(trace, tokens):
    """Which of these original tokens (E,) the steps of the trace leave, as themselves or merged. (E,) bool"""
    if not trace.steps:
        return torch.ones(len(tokens), dtype=torch.bool)
    weights = trace.sources()[:, tokens]                                           # (k, E)
    return (weights > 0).any(dim=0)
