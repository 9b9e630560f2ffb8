"""FastV equals its released codes: the same tokens, the same hidden states, in the prefill and while decoding."""

import json

import pytest
import torch

from build import close
from golden import golden, prompt, run, tiny_decoder
from paths import GOLDENS
from pruning.base import LayerView
from pruning.budget import tokens_to_keep
from pruning.fastv import FastV
from pruning.readings import FastVRerank
from released import FastVRounded

SELECT, SELECT_FACTS = golden("fastv_select")
E2E, E2E_FACTS = golden("tiny_llama_e2e")
RUNS = [name for name in E2E_FACTS["runs"] if name.startswith(("baseline", "fastv"))]
SYSTEM, TEXT = 35, 12                          # rows before and after the 24 x 24 visual ones


@pytest.mark.parametrize("case", SELECT_FACTS["cases"])
def test_selection(case):
    """The kept rows of the whole sequence, from recorded attention rows: system, survivors, text."""
    facts = SELECT_FACTS["cases"][case]
    last_row = SELECT[f"{case}.attn_last_row"][:, None]                            # (H, 1, T)
    hidden = torch.arange(last_row.shape[-1]).float()[:, None]                     # each token carries its own index
    tokens = prompt(hidden, facts["sys_len"], (1, facts["n_visual"]), before=LayerView.of(attention=last_row))
    r = pruner_of(case, facts, layer=2).reduce(tokens)
    assert len(r.keep) == facts["n_keep"]
    assert tokens.reduced(r).hidden[:, 0].long().tolist() == SELECT[f"{case}.kept_global"].tolist()


@pytest.mark.parametrize("name", RUNS)
def test_end_to_end(name):
    """Text rows after the prefill, three decode steps and the cache lengths, on the recorded 6-layer decoder."""
    facts = E2E_FACTS["runs"][name]
    decodes = f"{name}.decode_hidden" in E2E
    steps = E2E["decode_embeds"] if decodes else E2E["decode_embeds"][:1]
    tokens = prompt(E2E["inputs_embeds"][0], SYSTEM, (24, 24))
    pruner = None if name == "baseline" else pruner_of(name, facts, facts["K"])
    prefill, decoded, trace, after = run(tiny_decoder(), tokens, pruner, steps)
    close(prefill[-TEXT:], E2E[f"{name}.text_hidden"])
    if decodes:
        close(decoded, E2E[f"{name}.decode_hidden"])
    if f"{name}.kept" in E2E:
        visual = trace.steps[-1].kept + SYSTEM
        assert [*range(SYSTEM), *visual.tolist(), *range(611, 623)] == E2E[f"{name}.kept"].tolist()
    for t, (lengths, masked) in enumerate(after):
        if "kv_decode" in facts:
            assert lengths == held_once(facts, t)
        if f"{name}.decode_kept_{t}" in E2E:
            readable = (~masked[-1]).nonzero().squeeze(1)
            assert readable.tolist() == E2E[f"{name}.decode_kept_{t}"].tolist()


def pruner_of(name, facts, layer):
    """The method that a recording was made with."""
    if "rank" in facts:                        # the in-place code takes a number; its token-mask variant ranks again
        return FastVRerank(layer, facts["rank"]) if "mask" in name else FastV(layer, facts["rank"])
    if "keep_ratio" in facts:                  # the lmms-eval code
        return FastV(layer, facts["keep_ratio"])
    return FastVRounded(layer, 1 - facts["R"])             # the llava-hf code


def held_once(facts, t):
    """Tokens that each layer holds after step t. The lmms-eval code holds layer K-1's twice, without effect."""
    lengths = list(facts["kv_decode"][t])
    if "kv_note" in facts:
        lengths[facts["K"] - 1] //= 2
    return lengths


def test_budgets():
    """The recorded rounding table: floor (lmms-eval), half to even of n * (1 - R) (llava-hf), ceil."""
    for row in json.loads((GOLDENS / "budgets.json").read_text())["rows"]:
        n = row["n"]
        keep = row["keep_ratio"]
        assert tokens_to_keep(keep, n, "floor") == max(1, row["lmms_int"])
        assert tokens_to_keep(1 - (1 - keep), n, "round") == max(1, row["hf_round"])
        assert tokens_to_keep(keep, n, "ceil") == row["ceil"]
