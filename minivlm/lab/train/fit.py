"""Methods that are fitted once on a few samples: the samples from a questions file, the fit, and the file it is kept in."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from minivlm.io.data import check_pictures, check_row, read_lines
from minivlm.io.image import open_image
from minivlm.io.text.tokenizer import prompt
from minivlm.trace import Trace
from pruning import fitprune, vtw
from pruning.base import UserError

FITTED = ("fitprune", "vtw")


def samples(model, questions, images=None, count=None, template="llava-hf"):
    """The first `count` prompts of a questions file, embedded: [Tokens]. One JSON object a line: {"image", "text"}.

    `images` is the folder of the pictures; by default the one that the file is in.
    """
    folder, prompts = Path(images or Path(questions).parent), []
    for picture, question in tqdm(asked(questions, folder)[:count], desc="reading", leave=False):
        text = prompt([(question, None)], 1, template)
        prompts.append(model.embed(model.tokenizer.encode(text), [model.processor.pixels(open_image(picture))]))
    return prompts


def asked(path, folder):
    """[(path of the picture, question), ..] of a questions file, every line and picture looked at first."""
    rows = read_lines(path, "question")
    for where, row in rows:
        check_row(row, where, "question", image=str, text=str | None, question=str | None)
        if row.get("text", row.get("question")) is None:
            raise UserError(f"{where}: there is no 'text' in it")
    check_pictures((where, folder / row["image"]) for where, row in rows)
    return [(folder / row["image"], row.get("text", row.get("question"))) for _, row in rows]


@torch.inference_mode()
def fit(model, method, prompts, ratio=0.6, eta=0.003):
    """The fitted FitPrune (saves the share `ratio` of the FLOPs) or VTW (divergence at most `eta`) of these prompts."""
    text = model.config.text
    if method == "vtw":
        def logits(tokens, pruner):
            return model.prefill(tokens, pruner)[0]
        return vtw.search(logits, prompts, text.num_hidden_layers, eta)

    def prefill(tokens, pruner):
        trace = Trace()
        model.prefill(tokens, pruner, trace)
        return trace
    return fitprune.fit(prefill, tqdm(prompts, desc="fit"), ratio, text.hidden_size, text.intermediate_size)


def saved(name, pruner):
    """The text of a file that `--method FILE.json` reads: the method and its options."""
    return json.dumps(dict(method=name, options=asdict(pruner)), indent=1)
