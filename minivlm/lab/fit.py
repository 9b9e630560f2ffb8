"""Methods that are fitted once on a few samples: the samples from a questions file, the fit, and the file it is kept in."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from minivlm.image import open_image
from minivlm.text import prompt
from minivlm.trace import Trace
from pruning import fitprune, vtw
from pruning.base import UserError

FITTED = ("fitprune", "vtw")


def samples(model, questions, images=None, count=None, template="llava-hf"):
    """The first `count` prompts of a questions file, embedded: [Tokens]. One JSON object a line: {"image", "text"}.

    `images` is the folder of the pictures; by default the one that the file is in.
    """
    rows, made = _rows(questions)[:count], []
    for row in tqdm(rows, desc="reading", leave=False):
        pixels = model.processor.pixels(open_image(Path(images or Path(questions).parent) / row["image"]))
        text = prompt([(row.get("text", row.get("question")), None)], 1, template)
        made.append(model.embed(model.tokenizer.encode(text), [pixels]))
    return made


def _rows(path):
    try:
        rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no questions file, one JSON object a line ({error})") from None
    bad = [i for i, row in enumerate(rows) if not isinstance(row, dict) or "image" not in row or not {"text", "question"} & {*row}]
    if bad or not rows:
        raise UserError(f'{path}: ' + (f'line {bad[0] + 1} lacks "image" or "text"' if bad else "there is no question in it"))
    return rows


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
