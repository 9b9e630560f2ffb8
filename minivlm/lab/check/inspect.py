"""Show a checkpoint: its configuration, and which stored tensor fills which module.

Only headers are read. Each group of tensors has its module, shape, dtype and size.

examples:
  python run.py inspect DIR
  python run.py inspect --model llava-hf/llava-1.5-7b-hf --json
"""

import re
from dataclasses import asdict
from math import prod

from tokenizers.models import WordLevel

from minivlm.io.files import folder_of
from minivlm.lab.cli import shipped
from minivlm.lab.cli.arguments import add_json, add_model_first, model_of
from minivlm.lab.cli.output import printed
from minivlm.lab.compare.report import size
from pruning.base import UserError
from weights import find, skeleton, tokenizer_of


def add_arguments(parser):
    """The model."""
    add_model_first(parser)
    add_json(parser)


def main(args):
    """Print what the checkpoint holds."""
    contents = inspect(shipped.model_or(model_of(args)))
    printed(contents, lines(contents), args.json)


def inspect(source):
    """{"folder", "config", "tokenizer", "words", "groups": [..]} of a checkpoint; only headers are read. Raises UserError.

    A group is the tensors whose names differ in the layer's number alone. `words` are those of a model that reads whole words.
    """
    folder = folder_of(source)
    model, groups = skeleton(folder), {}
    for name, tensor in find(model, folder).items():
        key = re.sub(r"\.\d+\.", ".*.", name)
        group = groups.setdefault(key, dict(module=key, stored=re.sub(r"\.\d+\.", ".*.", tensor.key), tensors=0,
                                            shape=list(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."), bytes=0))
        group["tensors"] += 1
        group["bytes"] += prod(tensor.shape) * tensor.dtype.itemsize
    return dict(folder=str(folder), config=asdict(model.config), **_tokenizer(folder, model.config), groups=list(groups.values()))


def _tokenizer(folder, config):
    try:
        tokenizer = tokenizer_of(folder, config)
    except UserError as error:
        return dict(tokenizer=str(error), words=[])
    told = f"{tokenizer.fast.get_vocab_size()} pieces, <image> is {tokenizer.image}, end is {tokenizer.eos}"
    vocabulary = tokenizer.fast.get_vocab(with_added_tokens=False) if isinstance(tokenizer.fast.model, WordLevel) else {}
    words = [word for word in sorted(vocabulary, key=vocabulary.get) if not word.startswith("<")]
    return dict(tokenizer=told, words=words)


def lines(told):
    """The same as text."""
    c, total = told["config"], sum(g["bytes"] for g in told["groups"])
    wide = max(len(g["module"]) for g in told["groups"])
    yield f"{told['folder']}: {size(total)} in {sum(g['tensors'] for g in told['groups'])} tensors"
    for part in ("vision", "text"):
        yield f"{part}: " + ", ".join(f"{name} {value}" for name, value in c[part].items() if value not in (None, False))
    yield "model: " + ", ".join(f"{k} {v}" for k, v in c.items() if k not in ("vision", "text") and v not in (None, False))
    yield f"tokenizer: {told['tokenizer']}"
    if told["words"]:
        yield f"words: {' '.join(told['words'])}"
    yield f"\n{'module':{wide}}  count  shape            dtype     size     stored as"
    for g in told["groups"]:
        shape = "x".join(map(str, g["shape"]))
        yield f"{g['module']:{wide}}  {g['tensors']:5}  {shape:15}  {g['dtype']:8}  {size(g['bytes']):7}  {g['stored']}"
