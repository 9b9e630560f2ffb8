"""Fit a method to a model on a few questions: FitPrune's table, or VTW's layer.

It needs a questions file, one {"image": .., "text": ..} per line, and reads its first --count questions.
`--method FILE` then uses what it wrote, in every command that takes a method.

examples:
  python run.py fit fitprune --model DIR --questions q.jsonl --ratio 0.6 --out fitted.json
  python run.py fit vtw --model DIR --questions q.jsonl --eta 0.003 --out fitted.json
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from minivlm.io.data import check_pictures, check_row, read_lines
from minivlm.io.image import open_image
from minivlm.io.text.tokenizer import prompt
from minivlm.lab.cli import output, session
from minivlm.lab.cli.arguments import Number, add_model, new_name, within
from minivlm.trace import Trace
from pruning import fitprune, vtw
from pruning.base import UserError
from pruning.fields import NotNegative, Share

FITTED = ("fitprune", "vtw")


def add_arguments(parser):
    """The method, the questions, and the rest."""
    parser.add_argument("fitted", choices=FITTED, metavar="METHOD", help=" or ".join(FITTED))
    parser.add_argument("--questions", required=True, metavar="JSONL", help='one {"image": .., "text": ..} per line')
    parser.add_argument("--images", metavar="DIR", help="the folder of its pictures (default: the file's)")
    parser.add_argument("--count", type=within(Number), default=64, help="read the first COUNT of them (default: 64)")
    parser.add_argument("--ratio", type=within(Share), default=0.6,
                        help="fitprune: share of the FLOPs to save (default: 0.6)")
    parser.add_argument("--eta", type=within(NotNegative), default=0.003,
                        help="vtw: the divergence allowed (default: 0.003)")
    parser.add_argument("--out", type=new_name, required=True, metavar="JSON", help="the file that --method reads")
    add_model(parser)


def main(args):
    """Fit, print the method, write it."""
    output.writable(args.out, ".json")
    model = session.opened(args)
    template = session.template(args, model)
    prompts = samples(model, args.questions, args.images, args.count, template)
    pruner = fit(model, args.fitted, prompts, args.ratio, args.eta)
    print(pruner)
    output.save(args.out, lambda path: Path(path).write_text(saved(args.fitted, pruner)))


def samples(model, questions, images=None, count=None, template="llava-hf"):
    """The first `count` prompts of a questions file, embedded: [Tokens]. One JSON object a line: {"image", "text"}.

    `images` is the folder of the pictures; by default the one that the file is in.
    """
    folder, prompts = Path(images or Path(questions).parent), []
    for picture, question in tqdm(questions_of(questions, folder)[:count], desc="reading", leave=False):
        text = prompt([(question, None)], 1, template)
        prompts.append(model.embed(model.tokenizer.encode(text), [model.processor.pixels(open_image(picture))]))
    return prompts


def questions_of(path, folder):
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
