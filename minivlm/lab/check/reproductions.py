"""For each reading of a paper, a few lines of Python that show how it differs from the method of its card.

An entry is (lines that set up, an expression in which EVERY[name] is the method). `program` makes a program of it that
prints the expression for the reading and for the method. `printed` runs the program.
"""

import contextlib
import io
import re

import torch

from minivlm.lab.cli.options import read_from
from pruning.base import UserError

# --- what several programs share --------------------------------------------------------------------------------------

# the decoder: three visual tokens and one of text after them, with typed attention
ATTENTION = "attention = [[1., 0., 0., 0.], [.5, .5, 0., 0.], [.3, .1, .6, 0.], [.2, .1, .5, .2]]"
VIEWED = "tokens = Tokens.start([[0.]] * 4, [0, 1, 2], before=view)"
RANKED = (ATTENTION, "view = LayerView.of(attention=attention)", VIEWED)
# position ids of what remains if the last of three visual tokens is kept
THREE = "tokens = Tokens.start([[0.]] * 5, [1, 2, 3])"
POSITIONS = "tokens.reduced(Reduction(torch.tensor([2])), EVERY[name].positions).position.tolist()"
# ASAP: keys are single numbers, so that s_j is 4, 3, 2 and 1 times the same; states are vectors of two numbers
SALIENT = "query=[[1.]] * 5, key=[[4.], [3.], [2.], [1.], [0.]]"
# the shipped model: which tokens are kept of its sample pictures, or how many
MODEL = "model = shipped()"
ASKED = (MODEL, 'asked = {"00001.png": "is there a cyan square ?", "00003.png": "how many diamonds are there ?"}')
KEPT = "[prune(model, SAMPLES / image, text, EVERY[name]()).kept.tolist() for image, text in asked.items()]"
RED = (MODEL, 'question = "what shape is the red object ?"')
RATED = 'prune(model, SAMPLES / "00003.png", question, EVERY[name](layers=(1, 3, 5))).kept.tolist()'
BLUE = (MODEL, 'question = "what shape is the blue object ?"')
TURNED = 'prune(model, SAMPLES / "00002.png", question, EVERY[name](layers=(2, 3, 4), since=1)).kept.tolist()'
FIXED = 'len(prune(model, SAMPLES / "00003.png", question, EVERY[name](layers=(1, 3, 6))).kept)'
SAMPLED = "EVERY[name](strides=(2, 4)).spatial_pruning_score(whole_grid(4, 4)).tolist()"
# the tower: row 0 is the class token, rows 1 to 4 are patches. Its attention to them, and that of all rows
SEEN = "cls_attention=[.4, .3, .2, .1]"
PAID = "attention=[[.1, .1, .1, .6, .1]] * 5"
KEYS = "key = [[0., 0.], [1., 0.], [1., .1], [0., 1.], [.1, 1.]]"
TOWER = "states = [[0.] * 4, [1., 0., 0., 0.], [0., 1., 0., 0.], [0., 0., 1., 0.], [0., 0., 0., 1.]]"
VIEW = "view = LayerView.of({})"
PATCHES = "tokens = Tokens.start(states, [1, 2, 3, 4], (2, 2), before=view)"
BOTH = "tokens = Tokens.start(states, [1, 2, 3, 4], (2, 2), before=view, here=view)"
# HiRED: three tiles of four patches, and five of sixteen; the first shows the whole picture
TILES = "grid = torch.cat([whole_grid(2, 2, tile) for tile in range(3)])"
HIRED = (TILES, "first = LayerView.of(cls_attention=[.9, .1, .2, .3] + [0.] * 8)",
         "view = LayerView.of(cls_attention=[.1, .2, .3, .4] * 3, blocks={0: first})",
         "tokens = Tokens.start([[0.]] * 12, list(range(12)), grid, before=view)")
REGIONS = ("grid = torch.cat([whole_grid(4, 4, tile) for tile in range(5)])",
           "left = LayerView.of(cls_attention=[.125, .125, 0., 0.] * 4 + [0.] * 64)",
           "view = LayerView.of(cls_attention=torch.ones(80), blocks={0: left})",
           "tokens = Tokens.start([[0.]] * 80, list(range(80)), grid, before=view)")

# --- the readings -----------------------------------------------------------------------------------------------------

REPRODUCTIONS = {
    "fastv_all": (RANKED, "EVERY[name](keep=1).reduce(tokens)"),
    "fastv_mask": (RANKED, "tokens.reduced(EVERY[name](keep=1).reduce(tokens))"),
    "fastv_rerank": (RANKED, "EVERY[name](keep=1).rerank_each_step"),
    "fastv_unrotated": (
        (ATTENTION, "key = [[0.], [2.], [1.], [0.]]",
         "view = LayerView.of(attention=attention, unrotated_query=[[1.]] * 4, unrotated_key=key)", VIEWED),
        "EVERY[name](keep=1).reduce(tokens)"),
    "fastv_bimask_last": (RANKED, "(EVERY[name](keep=1).mask_at(4), EVERY[name](keep=1).reduce(tokens))"),
    "asap_mask_last": (
        RANKED, "(EVERY[name]().mask_at(4), EVERY[name](keep=1, consolidate=False).reduce(tokens))"),
    "asap_mask_last_similar": (
        RANKED, "(EVERY[name]().mask_at(4), EVERY[name](keep=1, consolidate=False).reduce(tokens))"),
    "asap_saliency_rank": (
        (f"view = LayerView.of(attention=[.1, .2, .3, .2, .2], {SALIENT})",
         "tokens = Tokens.start(torch.eye(5), [0, 1, 2, 3], before=view)"),
        "EVERY[name](keep=1).reduce(tokens)"),
    "asap_uniform_mask": (("s_hat = torch.tensor([0., .5, 1.])",), "EVERY[name](lambda_max=0.5).discount(s_hat)"),
    "asap_mean_merge": (
        (f"view = LayerView.of(attention=[.4, .3, .1, .1, .1], {SALIENT})",
         "states = [[1., 0.], [1., .1], [0., 1.], [0., -1.], [0., 0.]]",
         "tokens = Tokens.start(states, [0, 1, 2, 3], before=view)"),
        "EVERY[name](keep=2).reduce(tokens).merge"),
    "asap_similar_route": (
        (f"view = LayerView.of(attention=[.3, .3, .2, .1, .1], {SALIENT})",
         "states = [[1., 0.], [.64, .77], [.87, .5], [0., -1.], [0., 0.]]",
         "tokens = Tokens.start(states, [0, 1, 2, 3], before=view)"),
        "EVERY[name](keep=3, threshold=0.8, salvage=False).reduce(tokens).merge"),
    "asap_dedup": (
        (f"view = LayerView.of(attention=[.4, .3, .1, .1, .1], {SALIENT})",
         "states = [[1., 0.], [1., .1], [1., .2], [0., 1.], [0., 0.]]",
         "tokens = Tokens.start(states, [0, 1, 2, 3], before=view)"),
        "EVERY[name](keep=2).reduce(tokens)"),
    "asap_prune_past": ((), 'count(SHAPES["small"], EVERY[name]()).kv_bytes'),
    "asap_renumbered": ((THREE,), POSITIONS),
    "adaptprune_normed_keys": (
        ("before = LayerView.of(attention=[.4, .35, .25, 0.])",
         "raw, normed = [[1., 0.], [1., 0.], [0., 1.], [0., 0.]], [[1., 0.], [0., 1.], [1., 0.], [0., 0.]]",
         "here = LayerView.of(stream_key=raw, projected_key=normed)",
         "tokens = Tokens.start([[0.]] * 4, [0, 1, 2], before=before, here=here)"),
        "EVERY[name](keep=2, correction=False, sigma_d=9.).reduce(tokens)"),
    "adaptprune_newlines": (
        ("grid = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, -1]])     # tile, row, column; the last is a newline",
         "tokens = Tokens.start([[0.]] * 4, [0, 1, 2], grid, before=LayerView.of(attention=[.5, .3, .1, .1]))"),
        "EVERY[name](keep=1, similarity=False).reduce(tokens)"),
    "atp_given": (ASKED, KEPT),
    "atp_probs": (ASKED, KEPT),
    "atp_raw_scores": (ASKED, KEPT),
    "atp_unnormalised": (ASKED, KEPT),
    "atp_softmax_scores": (ASKED, KEPT),
    "atp_ranked_scores": (ASKED, KEPT),
    "atp_pooled": (("scores = torch.ones(2, 9)                     # of 9 tokens, for a module trained on 4",),
                   "EVERY[name]().at_length(scores, 4).shape"),
    "atp_detached": (
        ("module = torch.nn.ModuleList([Thresholds(3)]).requires_grad_(False)",
         "scores = torch.rand(2, 3, requires_grad=True)", THREE),
        "EVERY[name](layers=(1,), module=module).thresholds(0, scores, tokens)[0].requires_grad"),
    "atp_masked_self": (("mask = torch.tensor([1., .5])                 # how much of each token is left",),
                        "EVERY[name]().softmax_mask(torch.zeros(2, 2), torch.tensor([0, 1]), mask)"),
    "atp_more_rates": ((), SAMPLED),
    "atp_centres": ((), SAMPLED),
    "atp_fixed_ratio": (RED, FIXED),
    "atp_fixed_ratio_max": (RED, FIXED),
    "atp_fixed_ratio_redundant": (RED, FIXED),
    "atp_renumbered": ((THREE,), POSITIONS),
    "atp_2d": (("tokens = Tokens.start([[0.]] * 6, [1, 2, 3, 4], (2, 2))",),
               "EVERY[name]().with_positions(tokens).position.tolist()"),
    "feather_row": (
        ("query = [[[1.]] * 4] * 2                      # two heads; the first looks at the text",
         "key = [[[2.], [0.], [0.], [9.]], [[0.], [1.], [0.], [0.]]]",
         "view = LayerView.of(unrotated_query=query, unrotated_key=key)",
         "tokens = Tokens.start([[0.]] * 4, [0, 1, 2], before=view, layer=16)"),
        "EVERY[name](keep=1).reduce(tokens)"),
    "dart_released": (
        ("states = [[1., 0.], [.9, .1], [.8, .2], [.1, .9], [0., 1.], [1., 1.], [1., 0.]]",
         "key = [[9.], [1.], [2.], [3.], [4.], [5.], [6.]]",
         "before, here = LayerView.of(key=key), LayerView.of(final_normed=states)",
         "tokens = Tokens.start(states, [0, 1, 2, 3, 4, 5], before=before, here=here)"),
        "EVERY[name](keep=4, image_pivots=1, text_pivots=1).reduce(tokens)"),
    "transprune_released": (BLUE, TURNED),
    "transprune_ttv": (BLUE, TURNED),
    "cdpruner_unconditioned": (
        ("tokens = Tokens.start([[1., 0.], [.6, .8], [.2, 1.], [0., 1.]], [0, 1, 2])",),
        "EVERY[name](keep=1).reduce(tokens)"),
    "cdpruner_tiles": (
        ("grid = torch.cat([whole_grid(1, 2, tile) for tile in range(2)])",
         "tokens = Tokens.start([[1., 0.], [.8, .6], [-1., .1], [-1., 0.], [1., 0.]], [0, 1, 2, 3], grid)"),
        "EVERY[name](keep=2).reduce(tokens)"),
    "cdpruner_theta": (
        ("tokens = Tokens.start([[1., 0.], [.9, .44], [0., 1.], [1., 0.]], [0, 1, 2])",),
        "EVERY[name](keep=2).reduce(tokens)"),
    "fastervlm": (
        ("states = [[0., 0.], [1., 0.], [1., .1], [1., .2], [0., 1.]]",
         f"view = LayerView.of({SEEN})", "tokens = Tokens.start(states, [1, 2, 3, 4], before=view)"),
        "EVERY[name](keep=2).reduce(tokens)"),
    "vispruner_received": (
        (TOWER, VIEW.format(f"{SEEN}, {PAID}"), PATCHES),
        "EVERY[name](keep=1, important=1.).reduce(tokens)"),
    "holov_released": (
        (TOWER, VIEW.format("cls_attention=[.4, .4, .1, .1]"), PATCHES),
        "EVERY[name](keep=3, crops=2).reduce(tokens)"),
    "holov_received": ((TOWER, VIEW.format(f"{SEEN}, {PAID}"), PATCHES), "EVERY[name](keep=1, crops=1).reduce(tokens)"),
    "prumerge_average": (
        (TOWER, KEYS, "view = LayerView.of(query=[[1., 0.]] * 5, key=key)", BOTH),
        "EVERY[name](keep=2, neighbours=1).reduce(tokens).merge"),
    "prumerge_paper": (
        (TOWER, KEYS, f"view = LayerView.of({SEEN}, query=[[0., 1.]] * 5, key=key)", BOTH),
        "EVERY[name](keep=2, neighbours=1).reduce(tokens).merge"),
    "prumerge_plus_released": (
        (TOWER, "view = LayerView.of(query=[[1.]] * 5, key=[[0.], [1.], [2.], [3.], [0.]])", BOTH),
        "EVERY[name](keep=3, neighbours=0).reduce(tokens).keep.tolist()"),
    "prumerge_received": (
        (TOWER, KEYS, f"view = LayerView.of({PAID}, query=[[1., 0.]] * 5, key=key)", BOTH),
        "EVERY[name](keep=2, neighbours=1).reduce(tokens)"),
    "prumerge_plus_received": (
        (TOWER, KEYS, f"view = LayerView.of({PAID}, query=[[1., 0.]] * 5, key=key)", BOTH),
        "EVERY[name](keep=2, neighbours=1).reduce(tokens)"),
    "hired_sum": (HIRED, "EVERY[name](keep=8).reduce(tokens)"),
    "hired_grid": (REGIONS, "EVERY[name](keep=16).reduce(tokens)"),
    "hired_received": (
        (TOWER, f"block = LayerView.of({SEEN}, {PAID})", VIEW.format(f"{SEEN}, {PAID}, blocks={{0: block}}"), PATCHES),
        "EVERY[name](keep=1).reduce(tokens)"),
    "visionzip_average": (
        (TOWER, KEYS, VIEW.format(f"{SEEN}, key=key"), PATCHES),
        "EVERY[name](keep=2, contextual=1, cls=False).reduce(tokens).merge"),
    "visionzip_received": (
        (TOWER, KEYS, VIEW.format(f"{SEEN}, {PAID}, key=key"), PATCHES),
        "EVERY[name](keep=2, contextual=1, cls=False).reduce(tokens)"),
    "pyramiddrop_kept": ((THREE,), POSITIONS),
    "fitprune_single_mean": (
        ("head_1 = [[1., 0., 0., 0.], [.5, .5, 0., 0.], [.2, .2, .6, 0.], [0., .8, .2, 0.]]",
         "head_2 = [[1., 0., 0., 0.], [.5, .5, 0., 0.], [.2, .2, .6, 0.], [0., 0., .8, .2]]",
         "tokens = Tokens.start([[0.]] * 4, [0, 1, 2], before=LayerView.of(attention=[head_1, head_2]))"),
        "EVERY[name](keep=1).reduce(tokens)"),
    "vtw_renumbered": ((THREE,), POSITIONS),
    "vtw_random": ((THREE,), "EVERY[name]().reduce(tokens)"),
    "sparsevlm_rank": (RED, RATED),
    "sparsevlm_paper": (RED, RATED),
    "sparsevlm_plus": (RED, RATED),
}
# {module: names}: what a program imports from it, if the name occurs
IMPORTS = {
    "minivlm": ("prune", "shipped"),
    "minivlm.lab.cli.shipped": ("SAMPLES",),
    "minivlm.lab.cost.count": ("count",),
    "minivlm.lab.cost.shapes": ("SHAPES",),
    "pruning": ("EVERY", "LayerView", "Reduction", "Tokens"),
    "pruning.atp": ("Thresholds",),
    "pruning.base": ("whole_grid",),
}


def program(reading):
    """The lines of a program that prints the expression for the reading, then for the method that it changes."""
    setup, shown = REPRODUCTIONS[reading]
    lines = [*setup, f'for name in ("{reading}", "{read_from(reading)}"):', f"    print(name, {shown})"]
    return [*imports(lines), *lines]


def imports(lines):
    """The import statements that these lines need."""
    words = set(re.findall(r"\w+", "\n".join(lines)))
    if "torch" in words:
        yield "import torch"
    for module, names in IMPORTS.items():
        used = [name for name in names if name in words]
        if used:
            yield f"from {module} import {', '.join(used)}"


def printed(reading):
    """The lines that the program prints. If the method refuses its input, the last line is the UserError."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), torch.enable_grad():
        try:
            exec("\n".join(program(reading)), {})         # lines of this file only, never a user's text
        except UserError as error:             # the reading, which comes first, has run
            print(f"{read_from(reading)} UserError: {error}")
    return out.getvalue().splitlines()
