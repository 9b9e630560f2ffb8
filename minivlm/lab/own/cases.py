"""What a method of your own is run on: the recordings of a method (tests/goldens), and small drawn prompts.

A case has the tokens, this repository's method, and the visual tokens that are to be kept.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from pruning import EVERY
from pruning.base import LayerView, Pruner, Tokens, UserError, whole_grid

GOLDENS = Path(__file__).parents[3] / "tests" / "goldens"
DRAWN = 12                             # prompts
LAYERS = 32


@dataclass(frozen=True)
class Case:
    """A prompt, and what is to be kept of it: by the recording, or, if it is drawn, by our method."""

    name: str
    tokens: Tokens
    pruner: Pruner                     # our method, with the options of the case
    kept: torch.Tensor                 # (k,)  visual tokens, ascending


def cases(method):
    """[Case] of a method or reading: recorded ones, then drawn ones. UserError if it needs more than a prompt."""
    recorded = list(RECORDED[method]()) if method in RECORDED else []
    return recorded + [drawn(method, seed) for seed in range(DRAWN)]


def recording(name):
    """(tensors, facts) of a recording. UserError if it is not there."""
    file = GOLDENS / f"{name}.safetensors"
    if not file.is_file():
        raise UserError(f"{file}: there is no such recording: get the repository's folder tests, too")
    facts = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    return load_file(file), facts


# --- recorded ---------------------------------------------------------------------------------------------------------

def fastv():
    """Attention of the last row. keep is a number of tokens, since the three released codes round shares otherwise."""
    tensors, facts = recording("fastv_select")
    for name, case in facts["cases"].items():
        last_row = tensors[f"{name}.attn_last_row"][:, None]                       # (H, 1, T)
        hidden = torch.zeros(last_row.shape[2], 1)
        visual = case["sys_len"] + torch.arange(case["n_visual"])
        before = LayerView.of(attention=last_row)
        tokens = Tokens.start(hidden, visual, before=before)
        kept = ascending(tensors[f"{name}.top_unsorted"])
        pruner = EVERY["fastv"](keep=len(kept))
        yield Case(name, tokens, pruner, kept)


def adaptprune():
    """The full method; cases whose Gaussian is not that of our default, half of the longer side wide, are left out."""
    tensors, facts = recording("adaptprune_select")
    for name, case in facts["cases"].items():
        H, W = case["grid"]
        if case["variant"] != "full" or case["sigma_correction"] != max(H, W) / 2:
            continue
        last_row = tensors[f"{name}.attn_last_row"][:, None]                       # (H, 1, T)
        hidden = torch.zeros(last_row.shape[2], 1)
        visual = case["sys_len"] + torch.arange(H * W)
        of_visual = tensors[f"{name}.keys"]                                        # (n, Hk*Dh)
        key = of_visual.new_zeros(len(hidden), of_visual.shape[1])                 # (T, Hk*Dh)
        key[visual] = of_visual
        before = LayerView.of(attention=last_row)
        here = LayerView.of(stream_key=key)
        tokens = Tokens.start(hidden, visual, (H, W), before, here)
        options = {option: case[option] for option in ("sigma_d", "sigma_s", "distance_limit")}
        kept = ascending(tensors[f"{name}.order"])
        pruner = EVERY["adaptprune"](keep=len(kept), **options)
        yield Case(name, tokens, pruner, kept)


def divprune():
    """Projected features, without text."""
    tensors, facts = recording("divprune_select")
    for case in facts["cases"]:
        feature = tensors[f"case{case['case']}.x"]                                 # (n, D)
        visual = torch.arange(len(feature))
        tokens = Tokens.start(feature, visual)
        for k in case["k"]:
            name = f"case{case['case']}.k{k}"
            kept = ascending(tensors[f"{name}.kept"])
            yield Case(name, tokens, EVERY["divprune"](keep=k), kept)


def vispruner():
    """Features, and attention from the class token, of one tile. Only cases in which float32 keeps what float64 does.
    """
    tensors, facts = recording("vispruner_select")
    for case in facts["cases"]:
        if case["B"] > 1 or not case["float32_agrees"]:
            continue
        k = case["visual_token_num"]
        share = case["important_ratio"]
        name = f"case{case['case']}"
        feature = tensors[f"{name}.features"][0]                                   # (n, C)
        attention = tensors[f"{name}.cls_attn"][0]                                 # (H, n)
        tokens = patches(feature, attention)
        run = f"{name}.T{k}.r{round(share * 100)}"
        pruner = EVERY["vispruner"](keep=k, important=share)
        kept = ascending(tensors[f"{run}.kept"][0])
        yield Case(run, tokens, pruner, kept)


def hired():
    """Attention from the class token, of one tile."""
    tensors, facts = recording("hired_llava15")
    attention = tensors["bottom_row"][0, :, 1:]                                    # (H, n)
    feature = torch.zeros(attention.shape[1], 1)
    tokens = patches(feature, attention)
    for name in sorted(tensors.keys() - {"bottom_row"}):
        kept = ascending(tensors[name])
        pruner = EVERY["hired"](keep=len(kept))
        yield Case(name.removesuffix(".kept"), tokens, pruner, kept)


def ascending(indices):
    """Recorded indices in the order of a Reduction's."""
    return indices.long().sort().values


def patches(feature, attention):
    """The Tokens of a tile without its class token. feature: (n, C); attention: (H, n) from the class token."""
    view = LayerView.of(cls_attention=attention)
    before = LayerView.of(cls_attention=attention, blocks={0: view})
    n = len(feature)
    side = round(n ** 0.5)
    return Tokens.start(feature, list(range(n)), (side, n // side), before=before, layer=23)


RECORDED = {"fastv": fastv, "adaptprune": adaptprune, "divprune": divprune, "vispruner": vispruner, "hired": hired}


# --- drawn ------------------------------------------------------------------------------------------------------------

def drawn(method, seed):
    """The Case of a prompt of 4 to 36 visual tokens with all that a method may read, always the same for a seed."""
    random = torch.Generator().manual_seed(seed)
    rows, columns = torch.randint(2, 7, (2,), generator=random).tolist()
    n = rows * columns
    # a half, a third or a quarter of the tokens, and one more
    k = 1 + n // (2 + seed % 3)
    pruner = sized(method, k)
    T, visual, layer = site_of(pruner, n)
    before = view(T, n, random)
    here = view(T, n, random)
    hidden = torch.randn(T, 8, generator=random)
    tokens = Tokens.start(hidden, visual, whole_grid(rows, columns), before, here, layer, watched=[before])
    if pruner.site == "decoder":
        tokens = replace(tokens, prompt=tokens)
    kept = ascending(pruner.reduce(tokens).keep)
    return Case(f"drawn {seed}", tokens, pruner, kept)


def sized(method, k):
    """Our method with this keep, or as it is by default if it has no keep."""
    kind = EVERY[method]
    takes_keep = "keep" in kind.__dataclass_fields__
    return kind(keep=k) if takes_keep else kind()


def site_of(pruner, n):
    """(T, rows of the n visual tokens, layer): in the tower after a class token, in the decoder between texts."""
    if pruner.site == "vision":
        return 1 + n, 1 + torch.arange(n), 23
    layer = next(iter(pruner.reduce_at(LAYERS)), 0)
    return 3 + n + 4, 3 + torch.arange(n), layer


def view(T, n, random):
    """The view of a layer of two heads, all of whose matrices are drawn."""
    def normal(*shape):
        return torch.randn(*shape, generator=random)

    first_block = LayerView.of(cls_attention=normal(2, n).softmax(dim=1))
    return LayerView.of(
        query=normal(2, T, 4),
        key=normal(2, T, 4),
        unrotated_query=normal(2, T, 4),
        unrotated_key=normal(2, T, 4),
        projected_key=normal(T, 8),
        stream_key=normal(T, 8),
        final_normed=normal(T, 8),
        cls_attention=normal(2, n).softmax(dim=1),
        blocks={0: first_block},
        attention_in=normal(T, 8),
        attention_out=normal(T, 8),
        mlp_in=normal(T, 8),
        mlp_out=normal(T, 8),
    )
