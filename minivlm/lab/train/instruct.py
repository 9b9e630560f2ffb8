"""Instructions to learn from: pictures with questions and answers, from LLaVA's json or the drawn world, as batches.

LLaVA's format is a list:

    [{"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat?"},
                                          {"from": "gpt", "value": "A cat."}, ..]}, ..]

As there, the picture comes before the first question, wherever the mark is. What has no picture is left out, since
nothing can be pruned from it.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minivlm.io.data import LARGE, check_pictures, check_row, read_json
from minivlm.io.image import open_image
from minivlm.io.text.tokenizer import ENDS, IMAGE, named
from minivlm.toy import benchmark
from pruning.base import UserError
from pruning.fields import shown


@dataclass
class Batch:
    """B conversations side by side, filled up on the right. All tensors on the model's device."""

    ids: Tensor                        # (B, T)    the mark of the picture repeated N times
    answer: Tensor                     # (B, T)    True: a token to be learnt
    is_text: Tensor                    # (B, T)    1: text after the picture and before the first answer
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
        if isinstance(picture, str):
            picture = open_image(self.images / picture)
        return picture, turns

    def checksum(self):
        """A number that other conversations do not have. Pictures count by their names."""
        conversations = [(picture if isinstance(picture, str) else "", turns) for picture, turns in self.rows]
        return zlib.crc32(repr(conversations).encode("utf-8", "surrogatepass"))

    def order(self, seed):
        """Indices without an end: each epoch another permutation, the same for the same seed."""
        for epoch in range(2 ** 31):
            generator = torch.Generator().manual_seed(seed * 1000003 + epoch)
            yield from torch.randperm(len(self), generator=generator).tolist()


def drawn(count=2000):
    """`count` questions of each family about the drawn world, as rows: the training set, the same at every call."""
    items = benchmark.items("train", count)
    return [(item.picture, [(item.question, item.answer)]) for item in items]


def _read(path, images):
    """[(picture, turns), ..] of the conversations that have a picture. All are checked first, and their files."""
    rows = read_json(path, "instructions", LARGE)
    if not isinstance(rows, list):
        raise UserError(f'{path}: no instructions: give "toy", or a json list of {{"image", "conversations"}} '
                        "as LLaVA's")
    samples = []
    pictures = []
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
    first, *rest = named(template).around(turns)
    texts = [first]                                # a question, its answer, the next question, ..
    for (_, answer), after in zip(turns, rest):
        close, question = _closed(after, tokenizer)
        texts += [answer + close, question]
    ids = tokenizer.encode("".join(texts))
    is_answer = [False] * len(ids)
    for i in range(1, len(texts), 2):
        before = tokenizer.encode("".join(texts[:i]))
        start = _alike(ids, before)
        end = len(tokenizer.encode("".join(texts[:i + 1])))
        is_answer[start:end] = [True] * (end - start)
    return ids, is_answer


def _alike(ids, beginning):
    """How many ids come before the first that differs from `beginning`."""
    for i, (a, b) in enumerate(zip(ids, beginning)):
        if a != b:
            return i
    return len(beginning)


def _closed(after, tokenizer):
    """What follows an answer: the token that ends it, and the next question.

    The token is learnt, so it is added if the template does not write it.
    """
    match = ENDS.match(after)
    if match:
        return match.group(), after[match.end():]
    end = "" if tokenizer.eos is None else tokenizer.fast.id_to_token(tokenizer.eos)
    return end, after.lstrip(" ")


def batch(model, samples, template):
    """A Batch of (picture, turns). What does not fit into the model's context is cut off."""
    pixels = torch.cat([model.processor.pixels(picture) for picture, _ in samples])
    N = model.visual_tokens(pixels[:1])
    mark = model.config.image_token_index
    context = model.config.text.max_position_embeddings
    rows = []
    answers = []
    starts = []                                    # of the visual tokens
    for _, turns in samples:
        ids, is_answer = tokenised(model.tokenizer, turns, template)
        start = ids.index(mark)
        if start + N >= context:
            raise UserError(f"a picture's {N} visual tokens do not fit into the model's context of {context}: "
                            "use another model")
        row = ids[:start] + [mark] * N + ids[start + 1:]
        flags = is_answer[:start] + [False] * N + is_answer[start + 1:]
        rows.append(row[:context])
        answers.append(flags[:context])
        starts.append(start)
    ids = _filled_up(rows, 0)                                                      # (B, T)
    answer = _filled_up(answers, False)                                            # (B, T)
    visual = torch.tensor(starts)[:, None] + torch.arange(N)                       # (B, N)
    # the text between picture and first answer: every row that ends early has an answer
    is_text = (torch.arange(ids.shape[1]) > visual[:, -1:]) & (answer.cumsum(dim=1) == 0)
    tensors = (ids, answer, is_text.float(), visual, pixels)
    return Batch(*(x.to(model.device) for x in tensors))


def _filled_up(rows, value):
    """The rows as a tensor, shorter ones filled up on the right."""
    T = max(map(len, rows))
    return torch.tensor([row + [value] * (T - len(row)) for row in rows])
