"""Do late image tokens get more attention because they are late? A measurement without a model and without content.

Queries and keys are random vectors that share a direction, as those of trained models do. Rotary positions are all that
tells the tokens apart. If the positions are the reason, the map turns over when the ids are reversed, and it is flat
when all tokens of the image have one id.

Letters: H heads, T tokens of the prompt, n tokens of the image, Dh width of a head.
"""

import torch

from minivlm.attention import rope, rotate

KINDS = ("usual", "reversed", "equal")
THETA = 10000.0


def position_ids(T, visual, kind):
    """(T,) position ids 0 .. T-1, with those of the image tokens `visual` (n,) as they are ("usual"), in the opposite
    order ("reversed"), or all that of the first image token ("equal")."""
    position = torch.arange(T)
    if kind == "reversed":
        position[visual] = visual.flip(0)
    if kind == "equal":
        position[visual] = visual[0]
    return position


def last_row(query, key, position, visual):
    """(n,) the attention that the prompt's last token gives each image token: softmax over the image, mean over heads.

    query: (H, Dh) of the last token, key: (H, n, Dh) of the image tokens, both before RoPE; position: (T,).
    """
    Dh = query.shape[-1]
    cos, sin = rope(position, Dh, THETA, torch.float32)                            # (T, Dh) twice
    query = rotate(query[:, None], (cos[-1:], sin[-1:]))                           # (H, 1, Dh)
    key = rotate(key, (cos[visual], sin[visual]))                                  # (H, n, Dh)
    logits = query @ key.mT / Dh ** 0.5                                            # (H, 1, n)
    return logits.softmax(dim=-1).mean(dim=(0, 1))


def index_correlation(row):
    """Pearson's correlation of an attention row (n,) with the index of the token; 0 for a flat row. A float."""
    row = row.double()
    index = torch.arange(len(row), dtype=torch.float64)
    row = row - row.mean()
    index = index - index.mean()
    scale = row.norm() * index.norm()
    if scale < 1e-12:
        return 0.0
    return float(row @ index / scale)


def bias(query, key, T, visual):
    """{kind: index_correlation} of the last row under each kind of ids: what the experiment says."""
    correlations = {}
    for kind in KINDS:
        position = position_ids(T, visual, kind)
        row = last_row(query, key, position, visual)
        correlations[kind] = index_correlation(row)
    return correlations
