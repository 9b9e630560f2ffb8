"""Recorded inputs and outputs of the released codes, and the tiny decoder that they were recorded on.

They lie in tests/goldens, or where the environment variable MINIVLM_GOLDENS says: another recording with the same keys
is checked by the same tests. Each X.safetensors has a X.json beside it that explains its keys.
"""

import json

import torch
from safetensors.torch import load_file

from minivlm.cache import Cache
from minivlm.llama import Decoder
from minivlm.parts.config import TextConfig
from minivlm.trace import Trace
from paths import GOLDENS
from pruning.base import Tokens


def golden(name):
    """(tensors, facts) of one recording."""
    tensors = load_file(GOLDENS / f"{name}.safetensors")
    facts = json.loads((GOLDENS / f"{name}.json").read_text())
    return tensors, facts


def of_case(tensors, case):
    """The tensors of one case: those under "case.key", as {key: tensor}."""
    prefix = f"{case}."
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def tiny_decoder():
    """The 6-layer random LLaMA of tiny_llama_e2e."""
    config = TextConfig(vocab_size=1, hidden_size=32, intermediate_size=64, num_hidden_layers=6,
                        num_attention_heads=4, num_key_value_heads=4, head_dim=8, rms_norm_eps=1e-5)
    decoder = Decoder(config)
    weights = load_file(GOLDENS / "tiny_llama_weights.safetensors")
    missing, spare = decoder.load_state_dict(weights, strict=False)
    assert missing == ["embed_tokens.weight"] and not spare
    return decoder


def prompt(hidden, system, grid, **views):
    """Tokens for `hidden` (T, D): `system` text rows, a grid (rows, columns) of visual rows, text to the end."""
    rows, columns = grid
    visual = torch.arange(rows * columns) + system
    return Tokens.start(hidden, visual, grid, **views)


def run(decoder, tokens, pruner, steps):
    """Prefill, then teacher-forced steps (m, D) -> normed hidden states of both, the trace, the cache after each step.

    Of the cache: the tokens held by each layer, and which of them are masked.
    """
    cache = Cache.empty(len(decoder.layers))
    trace = Trace(grid=tokens.grid)
    prefill = decoder.prefill(tokens, cache, pruner, trace, last=False)
    decoded = []
    after = []
    for hidden in steps:
        decoded.append(decoder.step(hidden[None], cache, pruner))
        after.append((cache.lengths, [layer.hidden_keys() for layer in cache.layers]))
    return prefill, torch.cat(decoded), trace, after
