"""Many questions about one picture in one row of text, and what may be asked of it once patches are hidden.

    <s> user : [picture] | is there a red circle ? assistant : yes | what color is the ring ? assistant : red | ...

Every question ("block") stands at the positions that it would have alone.
"""

import numpy as np
import torch

from minivlm.toy import questions
from minivlm.toy.questions import FAMILIES, ID, TEMPLATES
from minivlm.toy.scenes import GRID

MIX = ("exist", "exist", "color", "shape", "count", "count", "count", "count", "relpos", "relpos", "relpos", "read", "read",
       "scene", "abspos", "abspos")                # what is learned late is asked most
PREFIX = [ID["<s>"], ID["user"], ID[":"]]


def _slot(family):
    """Tokens of a packed question: its words, "assistant :" and the answer."""
    return len(TEMPLATES[family].split()) + 3


def layout(device):
    """(T,) each: the number of the block, from 1, and the offset in it, of every packed token."""
    sizes = [_slot(family) for family in MIX]
    block = torch.repeat_interleave(torch.arange(1, len(MIX) + 1), torch.tensor(sizes))
    return block.to(device), torch.cat([torch.arange(n) for n in sizes]).to(device)


def _order(rng, B, blocks):
    """(B, N) the patches of each picture, the first to hide first: in any order, or by blocks.

    Blocks: one to four places anywhere; what is near to one of them is hidden first, or last, by turns, behind an edge that is
    sharp in one picture and ragged in the next. So what is left holds many objects and little background, or the reverse.
    """
    if not blocks:
        return rng.random((B, GRID ** 2)).argsort(axis=1)
    patch, places = np.indices((GRID, GRID)).reshape(2, -1), rng.uniform(-0.5, GRID - 0.5, (B, 4, 2, 1))
    away = abs(patch - places).max(axis=2)                                                           # (B, 4, N)
    away[np.arange(4) >= rng.integers(1, 5, (B, 1))] = np.inf
    ragged = rng.uniform(0, GRID / 2, (B, 1)) * rng.random((B, GRID ** 2))
    return (away.min(axis=1) * rng.choice((-1, 1), (B, 1)) + ragged).argsort(axis=1)


def pack(rng, worlds, hidden, mix=MIX, blocks=False):
    """Text (B, T), labels (B, T) (the id that comes next; -1 where nothing is asked) and patches shown (B, k).

    `hidden`: how many of the patches are hidden. A question is not asked where what is left does not tell its answer.
    """
    B = len(worlds.scene)
    shown = np.sort(_order(rng, B, blocks)[:, hidden:], axis=1)                                       # (B, k)
    bright = np.zeros((B, GRID ** 2), bool)
    bright[np.arange(B)[:, None], shown] = True
    sure, perhaps = questions.visible(worlds, bright)
    text, labels = [], []
    for family in mix:
        asked = questions.ask(rng, family, worlds)
        right = questions.answer(family, asked, worlds, sure)
        right = np.where(right == questions.answer(family, asked, worlds, perhaps), right, -1)
        rows, label = np.full((B, _slot(family)), ID["<pad>"]), np.full((B, _slot(family)), -1)
        for row, out, question, word in zip(rows, label, asked.tolist(), right):
            words = questions.ids(questions.text(family, question) + ["assistant", ":"])
            row[:len(words)], row[len(words)] = words, max(word, 0)
            if word >= 0:
                out[len(words) - 1], out[len(words)] = word, ID["</s>"]
        text.append(rows), labels.append(label)
    return *(torch.from_numpy(np.concatenate(x, axis=1)) for x in (text, labels)), torch.from_numpy(shown)


def score(logits, labels, asked):
    """(2, 8): right answers, and answers asked, of each family."""
    family = torch.tensor([FAMILIES.index(f) for f in MIX], device=labels.device)[layout(labels.device)[0] - 1]
    right = asked & (logits.argmax(dim=-1) == labels)
    count = torch.zeros(2, len(FAMILIES), device=labels.device)
    return count.index_add(1, family, torch.stack([right.sum(dim=0), asked.sum(dim=0)]).float())
