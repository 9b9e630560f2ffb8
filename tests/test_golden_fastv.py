"""FastV equals its released codes: the same tokens, the same hidden states, in the prefill and while decoding."""

import json

import pytest
import torch

from golden import FOLDER, golden, prompt, run, tiny_decoder
from pruning.base import Tokens, tokens_to_keep
from pruning.fastv import FastV

SELECT, SELECT_FACTS = golden("fastv_select")
E2E, E2E_FACTS = golden("tiny_llama_e2e")
RUNS = [name for name in E2E_FACTS["runs"] if name.startswith(("baseline", "fastv"))]


@pytest.mark.parametrize("case", SELECT_FACTS["cases"])
def test_selection(case):
    """The kept rows of the whole sequence, from recorded attention rows: system, survivors, text."""
    facts = SELECT_FACTS["cases"][case]
    attn, a, n = SELECT[f"{case}.attn_last_row"][:, None], facts["sys_len"], facts["n_visual"]
    share, rounding = (facts["keep_ratio"], "floor") if "keep_ratio" in facts else (1 - facts["R"], "round")
    hidden = torch.arange(attn.shape[-1]).float()[:, None]                         # each token carries its own index
    tokens = Tokens(hidden, torch.arange(len(hidden)), torch.arange(a, a + n), torch.zeros(n, 3), torch.arange(n), len(hidden),
                    attn=attn)
    r = FastV(keep=share, rounding=rounding).reduce(tokens)
    assert len(r.keep) == facts["n_keep"]
    assert tokens.reduced(r).hidden[:, 0].long().tolist() == SELECT[f"{case}.kept_global"].tolist()


@pytest.mark.parametrize("name", RUNS)
def test_end_to_end(name):
    """Text rows after the prefill, three decode steps and the cache lengths, on the recorded 6-layer decoder."""
    facts, steps = E2E_FACTS["runs"][name], E2E["decode_embeds"]
    tokens = prompt(E2E["inputs_embeds"][0], 35, (24, 24))
    steps = steps if f"{name}.decode_hidden" in E2E else steps[:1]
    prefill, decoded, trace, after = run(tiny_decoder(), tokens, pruner(name, facts), steps)
    torch.testing.assert_close(prefill[-12:], E2E[f"{name}.text_hidden"], atol=1e-5, rtol=0)
    if f"{name}.decode_hidden" in E2E:
        torch.testing.assert_close(decoded, E2E[f"{name}.decode_hidden"], atol=1e-5, rtol=0)
    if f"{name}.kept" in E2E:
        kept = set(range(35)) | {35 + i for i in trace.steps[-1].kept.tolist()} | set(range(611, 623))
        assert sorted(kept) == E2E[f"{name}.kept"].tolist()
    for t, (lengths, dead) in enumerate(after):
        if "kv_decode" in facts:                       # the lmms-eval code holds the keys of layer K-1 twice
            once = list(facts["kv_decode"][t])
            if "kv_note" in facts:
                once[facts["K"] - 1] //= 2
            assert lengths == once
        if f"{name}.decode_kept_{t}" in E2E:
            assert (~dead[-1]).nonzero().squeeze(1).tolist() == E2E[f"{name}.decode_kept_{t}"].tolist()


def pruner(name, facts):
    """The dataclass that a recorded run stands for."""
    if name == "baseline":
        return None
    if "rank" in facts:
        masked = "mask" in name
        return FastV(facts["K"], facts["rank"], mode="mask" if masked else "drop", rerank_decode=masked)
    if "keep_ratio" in facts:
        return FastV(facts["K"], facts["keep_ratio"])
    return FastV(facts["K"], 1 - facts["R"], rounding="round")


def test_budgets():
    """The recorded rounding table: floor (lmms-eval), half to even of n * (1 - R) (llava-hf), ceil."""
    for row in json.loads((FOLDER / "budgets.json").read_text())["rows"]:
        n, keep = row["n"], row["keep_ratio"]
        assert tokens_to_keep(keep, n, "floor") == max(1, row["lmms_int"])
        assert tokens_to_keep(1 - (1 - keep), n, "round") == max(1, row["hf_round"])
        assert tokens_to_keep(keep, n, "ceil") == row["ceil"]
