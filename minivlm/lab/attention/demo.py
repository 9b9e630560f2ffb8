"""Why rotary positions can favour late tokens: random queries and keys, without a model and without content.

All keys and the query share a common direction, as those of trained models do: any two have the cosine SIMILARITY. In
the logits the common part is a constant without rotation. With it, coordinate pair i contributes cos(angle_i *
distance), and the sum over the pairs decays with the distance. So tokens near the query, the late ones, get more.
The control has no common direction.
"""

import torch

from minivlm.attention import rope
from minivlm.lab.attention.figures import by_row, index_correlations, is_late, verdict
from minivlm.lab.attention.maps import LEGEND, row_of_maps
from minivlm.lab.attention.tables import with_interval
from minivlm.lab.attention.watch import IDS, changed, rotated_logits
from minivlm.lab.cli import output
from minivlm.lab.draw.sheet import sheet

SIDE = 24                              # 576 image tokens, as in LLaVA-1.5
BEFORE = 35                            # tokens of text before the image, the system prompt
AFTER = 20                             # and after it; the last of them is the query
HEAD_DIM = 128                         # of the 7B
THETA = 10000.0
DRAWS = 256                            # heads
SIMILARITY = 0.5
KEYS = {"common direction": SIMILARITY, "control: none": 0.0}


def attention(similarity, seed=0, draws=DRAWS):
    """(draws, ids, n) what the last token gives each image token, softmax over the image, for all of IDS"""
    generator = torch.Generator().manual_seed(seed)
    n = SIDE ** 2
    T = BEFORE + n + AFTER
    visual = torch.arange(BEFORE, BEFORE + n)
    # a common direction of each head, and noise: coordinates have variance 1
    common = torch.randn(draws, 1, HEAD_DIM, generator=generator)
    query = mixed(similarity, common, torch.randn(draws, 1, HEAD_DIM, generator=generator))
    key = mixed(similarity, common, torch.randn(draws, n, HEAD_DIM, generator=generator))
    by_ids = []
    for ids in IDS:
        position = changed(torch.arange(T), visual, ids)
        cos, sin = rope(position, HEAD_DIM, THETA, torch.float32)                  # (T, Dh) each
        of_last = (cos[-1:], sin[-1:])
        of_image = (cos[visual], sin[visual])
        logits = rotated_logits(query, key, of_last, of_image)                     # (draws, 1, n)
        by_ids.append(logits[:, 0].softmax(dim=-1))
    return torch.stack(by_ids, dim=1)


def mixed(similarity, common, noise):
    """Vectors of which two have this cosine, on average"""
    return similarity ** 0.5 * common + (1 - similarity) ** 0.5 * noise


# --- what is shown ----------------------------------------------------------------------------------------------------

def show(out=None, json=None):
    """Print the correlations with the token's index; write the picture and the numbers."""
    result = {name: measured(similarity) for name, similarity in KEYS.items()}
    print("\n".join(lines(result)))
    if out:
        output.save(out, page(result).save)
    output.save_json(json, result)


def measured(similarity):
    """{ids: {"value", "interval", "difference", "difference_interval", "verdict", "attention"}}; see figures.py."""
    drawn = attention(similarity, draws=DRAWS)                                     # (DRAWS, ids, n)
    mean = drawn.mean(dim=0)                                                       # (ids, n)
    rows = index_correlations(drawn, range(DRAWS))
    by_ids = {}
    for ids, row, by_token in zip(IDS, rows, mean):
        by_ids[ids] = dict(row, verdict=verdict(rows[0], row), attention=by_token.tolist())
    return by_ids


def lines(result):
    """The table and the sentences."""
    yield (f"{DRAWS} random heads of width {HEAD_DIM}; {BEFORE} tokens of text, {SIDE ** 2} of an image, {AFTER} of "
           "text, the last of which looks back")
    yield "index r: correlation of a head's attention row with the index of the image token, mean and 95 % interval"
    yield ""
    yield f"{'':17}" + "".join(f"{ids:24}" for ids in IDS).rstrip()
    for name, by_ids in result.items():
        cells = "".join(f"{with_interval(row):24}" for row in by_ids.values())
        yield f"{name:17}{cells}".rstrip()
    yield ""
    for name, by_ids in result.items():
        yield sentence(name, by_ids)


def sentence(name, by_ids):
    """What the ids do to the bias."""
    usual, *others = by_ids.values()
    if not is_late(usual):
        return f"{name}: late tokens do not get more, with rotation or without."
    first, *_, last = by_row(torch.tensor(usual["attention"]), SIDE)
    ended = [f"{row['verdict']} ({ids})" for ids, row in zip(IDS[1:], others)]
    more = f"the last row of patches gets {last / first:.1f} x the first"
    return f"{name}: {more}; with other ids this {', '.join(ended)}."


def page(result):
    """A row of maps for each kind of keys."""
    rows = []
    for name, by_ids in result.items():
        rows.append(row_of_maps(name, [row["attention"] for row in by_ids.values()], SIDE, IDS))
    header = "Random queries and keys: what the last token attends to"
    return sheet(rows, header, legend=LEGEND)
