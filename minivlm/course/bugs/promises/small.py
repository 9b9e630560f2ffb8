"""A small random model, its prompt, and a method that repeats decisions: for the promises of the model."""

from dataclasses import replace
from functools import cache

import torch

from minivlm.cache import Cache
from minivlm.llava import Llava
from minivlm.parts.config import LlavaConfig, TextConfig, VisionConfig
from minivlm.trace import Trace
from pruning.base import Pruner

MARK = 31                              # id of <image>
BEFORE = [3, 4]                        # ids of the words of the prompt
AFTER = [5, 6, 7, 8, 9]
PROMPT = [*BEFORE, MARK, *AFTER]
LATER = ([10, 11], [12])               # words that come one after the other from the cache
N = 16                                 # visual tokens
T = len(PROMPT) - 1 + N                # tokens of the prompt
CUT = 2                                # the layer before which the decoder methods of planted.py cut
VISION = VisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16,
                      patch_size=4)
TEXT = TextConfig(vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=5, num_attention_heads=4,
                  num_key_value_heads=2)


@cache
@torch.no_grad()
def model():
    """A Llava of five layers, whose attention is sharp enough that each token counts."""
    small = Llava(LlavaConfig(VISION, TEXT, image_token_index=MARK)).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for name, p in small.named_parameters():
        if "norm" in name:
            continue                   # ones and zeros
        gain = 2 if "q_proj" in name or "k_proj" in name else 1
        width = p.shape[-1]
        noise = torch.randn(p.shape, generator=random)
        p.copy_(gain * noise / width ** 0.5)
    return small


def entered(words, pruner, trace):
    """The Tokens of a prompt with the picture, as they enter the decoder."""
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return model().embed(words, [pixels], pruner, trace)


def prefilled(words, pruner):
    """The logits of the next token, the cache, and the trace of a prompt."""
    trace = Trace()
    tokens = entered(words, pruner, trace)
    logits, cache = model().prefill(tokens, pruner, trace)
    return logits, cache, trace


def last_states(words, pruner):
    """Normed hidden states of all tokens that are left at the end. (T', D)"""
    tokens = entered(words, pruner, Trace())
    decoder = model().language_model
    return decoder.prefill(tokens, Cache.empty(TEXT.num_hidden_layers), pruner, last=False)


def continued(pruner):
    """The logits after the prompt, and after each of LATER."""
    logits, cache, _ = prefilled(PROMPT, pruner)
    every = [logits]
    for words in LATER:
        every.append(model().step(words, cache, pruner))
    return torch.stack(every)                                                      # (3, V)


class Repeated(Pruner):
    """The decisions that another method took in an earlier run, whatever there is to see now."""

    laws = frozenset()

    def __init__(self, pruner, trace, **changed):
        self.pruner = pruner
        self.decisions = {step.layer: replace(step.reduction, **changed) for step in trace.steps}
        self.site = pruner.site
        self.positions = pruner.positions
        self.cls = pruner.cls

    def reduce_at(self, layers):
        return self.pruner.reduce_at(layers)

    def mask_at(self, layers):
        return self.pruner.mask_at(layers)

    def mask(self, tokens):
        return self.pruner.mask(tokens)

    def reduce(self, tokens):
        return self.decisions[tokens.layer]
