"""Instructions to learn from: pictures with questions and answers, from LLaVA's json or from the drawn world, as batches.

LLaVA's format is one list: [{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, {"from": "gpt",
"value": "A cat."}, ..]}, ..]. As there, the picture stands before the first question, wherever the mark is; what has no
picture is left out, since nothing can be pruned from it.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minivlm.io.data import LARGE, check_pictures, check_row, read_json
from minivlm.io.image import open_image
from minivlm.io.text.tokenizer import ENDS, IMAGE, named
from pruning.base import UserError
from pruning.fields import shown


@dataclass
class Batch:
    """B conversations side by side, filled up on the right. All tensors on the model's device."""

    ids: Tensor                        # (B, T)    the mark of the picture repeated N times
    answer: Tensor                     # (B, T)    True: a token to be learnt
    is_text: Tensor                    # (B, T)    1: text after the picture and before the first answer, the first question
    visual: Tensor                     # (B, N)    rows of the visual tokens
    pixels: Tensor                     # (B, 3, size, size)


class Instructions:
    """The samples of `data`, "toy" or a json file: [i] is (picture, [(question, answer), ..])."""

    def __init__(self, data, images=None):
        self.images = Path(images or Path(data).parent)
        self.rows = drawn() if str(data) == "toy" else _read(data, self.images)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        picture, turns = self.rows[i]
        return (open_image(self.images / picture) if isinstance(picture, str) else picture), turns

    def checksum(self):
        """A number that other conversations do not have. Pictures count by their names."""
        said = [(picture if isinstance(picture, str) else "", turns) for picture, turns in self.rows]
        return zlib.crc32(repr(said).encode("utf-8", "surrogatepass"))

    def order(self, seed):
        """Indices without an end: each epoch another permutation, the same for the same seed."""
        for epoch in range(2 ** 31):
            yield from torch.randperm(len(self), generator=torch.Generator().manual_seed(seed * 1000003 + epoch)).tolist()


def drawn(count=2000):
    """So many questions of each family about the drawn world, as rows: the training set, the same at every call."""
    from minivlm.toy.benchmark import items
    return [(item.picture, [(item.question, item.answer)]) for item in items("train", count)]


def _read(path, images):
    """[(picture, turns), ..] of the conversations that have a picture. Every one, and its file, is looked at first."""
    rows = read_json(path, "instructions", LARGE)
    if not isinstance(rows, list):
        raise UserError(f'{path}: no instructions: give "toy", or a json list of {{"image", "conversations"}} as LLaVA\'s')
    samples, pictures = [], []
    for n, row in enumerate(rows):
        where = f"{path}, conversation {n}"
        check_row(row, where, "instructions", image=str | None)
        if row.get("image"):
            samples.append((row["image"], _turns(row, where)))
            pictures.append((where, images / row["image"]))
    if not samples:
        raise UserError(f"{path}: none of its {len(rows)} conversations has an image, so there is nothing to prune")
    check_pictures(pictures)
    return samples


def _turns(row, where):
    """[(question, answer), ..] of one conversation, without the mark of the picture."""
    check_row(row, where, "instructions", conversations=tuple)
    for turn in row["conversations"]:
        check_row(turn, where, "turn", value=str, **{"from": str})
    speakers = [turn["from"] for turn in row["conversations"]]
    if speakers != ["human", "gpt"] * (len(speakers) // 2) or not speakers:
        raise UserError(f"{where}: it goes human, gpt, human, gpt, ..; got {shown(speakers)}")
    words = [turn["value"].replace(IMAGE, "").strip() for turn in row["conversations"]]
    return list(zip(words[::2], words[1::2]))


def tokenised(tokenizer, turns, template):
    """Ids of a conversation about one picture, and which of them are answers (their </s> too)."""
    asked, *rest = named(template).around(turns)
    texts = [asked]                                # a question, its answer, the next question, ..
    for (_, answer), after in zip(turns, rest):
        close, question = _closed(after, tokenizer)
        texts += [answer + close, question]
    ids = tokenizer.encode("".join(texts))
    learnt = [False] * len(ids)
    for i in range(1, len(texts), 2):
        before = tokenizer.encode("".join(texts[:i]))
        start = next((at for at, (a, b) in enumerate(zip(ids, before)) if a != b), len(before))
        end = len(tokenizer.encode("".join(texts[:i + 1])))
        learnt[start:end] = [True] * (end - start)
    return ids, learnt


def _closed(after, tokenizer):
    """What follows an answer, in two: the token that ends it, and the next question. Templates may not write the first: it is learnt."""
    if match := ENDS.match(after):
        return match.group(), after[match.end():]
    end = "" if tokenizer.eos is None else tokenizer.fast.id_to_token(tokenizer.eos)
    return end, after.lstrip(" ")


def batch(model, samples, template):
    """A Batch of (picture, turns). What does not fit into the model's context is cut off."""
    pixels = torch.cat([model.processor.pixels(picture) for picture, _ in samples])
    N, mark, context = model.visual_tokens(pixels[:1]), model.config.image_token_index, model.config.text.max_position_embeddings
    rows, flags, first = [], [], []
    for _, turns in samples:
        ids, answer = tokenised(model.tokenizer, turns, template)
        at = ids.index(mark)
        if at + N >= context:
            raise UserError(f"a picture's {N} visual tokens do not fit into the model's context of {context}: use another model")
        first.append(at)
        rows.append((ids[:at] + [mark] * N + ids[at + 1:])[:context])
        flags.append((answer[:at] + [False] * N + answer[at + 1:])[:len(rows[-1])])
    T = max(map(len, rows))
    ids = torch.tensor([row + [0] * (T - len(row)) for row in rows])
    answer = torch.tensor([row + [False] * (T - len(row)) for row in flags])
    visual = torch.tensor(first)[:, None] + torch.arange(N)                        # (B, N)
    is_text = (torch.arange(T) > visual[:, -1:]) & (answer.cumsum(dim=1) == 0)     # every row that ends early has an answer
    return Batch(*(x.to(model.device) for x in (ids, answer, is_text.float(), visual, pixels)))
