"""Many questions about one picture in one row of text, and what may be asked of it once patches are hidden.

    <s> user : [picture] | is there a red circle ? assistant : yes | what color is the ring ? assistant : red | ...

Every question ("block") has the positions that it would have without the others.
"""

import numpy as np
import torch

from minivlm.toy import questions
from minivlm.toy.questions import FAMILIES, ID, TEMPLATES
from minivlm.toy.scenes import GRID

TIMES = dict(                                      # of each family among the questions of a picture:
    exist=2,                                       # what is learned late is asked most
    color=1,
    shape=1,
    count=4,
    relpos=3,
    read=2,
    scene=1,
    abspos=2,
)
MIX = tuple(family for family, times in TIMES.items() for _ in range(times))
PREFIX = [ID["<s>"], ID["user"], ID[":"]]
PATCHES = GRID ** 2


def _slot(family):
    """Tokens of a packed question: its words, "assistant :" and the answer."""
    words = TEMPLATES[family].split()
    return len(words) + 3


def layout(device):
    """(T,) each: the number of the block, from 1, and the offset in it, of every packed token."""
    block = []
    offset = []
    for number, family in enumerate(MIX, 1):
        size = _slot(family)
        block += [number] * size
        offset += range(size)
    block = torch.tensor(block, device=device)
    offset = torch.tensor(offset, device=device)
    return block, offset


def _hiding_order(rng, B, blocks):
    """(B, N) the patches of each picture, the first to hide first: in any order, or by blocks.

    Blocks: one to four places anywhere; what is near to one of them is hidden first, or last, by turns, behind an edge
    that is sharp in one picture and ragged in the next. So what stays holds many objects and little background, or the
    reverse.
    """
    if not blocks:
        return rng.random((B, PATCHES)).argsort(axis=1)
    # how near each patch is to one of the places
    patch = np.indices((GRID, GRID))
    patch = patch.reshape(2, -1)                                                   # (2, N)
    places = rng.uniform(-0.5, GRID - 0.5, (B, 4, 2, 1))
    distance = abs(patch - places)
    distance = distance.max(axis=2)                                                # (B, 4, N)
    count = rng.integers(1, 5, (B, 1))
    is_unused = np.arange(4) >= count                                              # (B, 4)
    distance[is_unused] = np.inf
    nearest = distance.min(axis=1)                                                 # (B, N)
    # a ragged edge
    width = rng.uniform(0, GRID / 2, (B, 1))
    ragged = width * rng.random((B, PATCHES))
    # near ones last, or first
    sign = rng.choice((-1, 1), (B, 1))
    rank = nearest * sign + ragged
    return rank.argsort(axis=1)


def pack(rng, worlds, hidden, mix=MIX, blocks=False):
    """Text (B, T), labels (B, T) (the id that comes next; -1 if nothing is asked) and patches shown (B, k).

    `hidden`: how many of the patches are hidden. A question is not asked if what stays does not decide its answer.
    """
    B = len(worlds.scene)
    order = _hiding_order(rng, B, blocks)
    shown = order[:, hidden:]
    shown = np.sort(shown, axis=1)                                                 # (B, k)
    is_shown = np.zeros((B, PATCHES), bool)
    rows = np.arange(B)[:, None]
    is_shown[rows, shown] = True
    surely, perhaps = questions.visible(worlds, is_shown)
    text = []
    labels = []
    for family in mix:
        question = questions.ask(rng, family, worlds)
        answer = questions.answer(family, question, worlds, surely)
        other = questions.answer(family, question, worlds, perhaps)
        answer = np.where(answer == other, answer, -1)
        family_text, family_labels = _written(family, question, answer)
        text.append(family_text)
        labels.append(family_labels)
    text = np.concatenate(text, axis=1)
    labels = np.concatenate(labels, axis=1)
    return (
        torch.from_numpy(text),
        torch.from_numpy(labels),
        torch.from_numpy(shown),
    )


def _written(family, question, answer):
    """Text and labels (B, slot) of one block: each picture's question, and its answer if it has one."""
    shape = (len(answer), _slot(family))
    text = np.full(shape, ID["<pad>"])
    labels = np.full(shape, -1)
    for row, numbers in enumerate(question.tolist()):
        words = questions.text(family, numbers)
        words = [*words, "assistant", ":"]
        end = len(words)
        own_answer = answer[row]
        text[row, :end] = questions.ids(words)
        text[row, end] = max(own_answer, 0)
        if own_answer >= 0:
            labels[row, end - 1] = own_answer
            labels[row, end] = ID["</s>"]
    return text, labels


def score(logits, labels, asked):
    """(2, 8): right answers, and answers asked, of each family."""
    device = labels.device
    block, _ = layout(device)
    numbers = [FAMILIES.index(family) for family in MIX]
    numbers = torch.tensor(numbers, device=device)                                 # (blocks,)
    family = numbers[block - 1]                                                    # (T,)
    predicted = logits.argmax(dim=-1)
    right = asked & (predicted == labels)                                          # (B, T)
    count = torch.stack([right.sum(dim=0), asked.sum(dim=0)])                      # (2, T)
    zeros = torch.zeros(2, len(FAMILIES), device=device)
    return zeros.index_add(1, family, count.float())
