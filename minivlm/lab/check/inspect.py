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
from minivlm.lab.cli.output import printed, size
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
    """{"folder", "config", "tokenizer", "words", "groups": [..]} of a checkpoint. Raises UserError.

    A group is the tensors whose names differ only in the layer's number. `words` are those of a model that reads whole
    words.
    """
    folder = folder_of(source)
    model = skeleton(folder)
    groups = _groups(find(model, folder))
    return dict(folder=str(folder), config=asdict(model.config), **_tokenizer(folder, model.config), groups=groups)


def _groups(tensors):
    """[{"module", "stored", "tensors", "shape", "dtype", "bytes"}, ..] of {parameter: tensor}."""
    groups = {}
    for name, tensor in tensors.items():
        module = re.sub(r"\.\d+\.", ".*.", name)
        if module not in groups:
            stored = re.sub(r"\.\d+\.", ".*.", tensor.key)
            dtype = str(tensor.dtype).removeprefix("torch.")
            groups[module] = dict(module=module, stored=stored, tensors=0, shape=list(tensor.shape), dtype=dtype,
                                  bytes=0)
        groups[module]["tensors"] += 1
        groups[module]["bytes"] += prod(tensor.shape) * tensor.dtype.itemsize
    return list(groups.values())


def _tokenizer(folder, config):
    """A line on the tokenizer, and its words if it reads whole words."""
    try:
        tokenizer = tokenizer_of(folder, config)
    except UserError as error:
        return dict(tokenizer=str(error), words=[])
    line = f"{tokenizer.fast.get_vocab_size()} pieces, <image> is {tokenizer.image}, end is {tokenizer.eos}"
    words = []
    if isinstance(tokenizer.fast.model, WordLevel):
        vocabulary = tokenizer.fast.get_vocab(with_added_tokens=False)
        words = [word for word in sorted(vocabulary, key=vocabulary.get) if not word.startswith("<")]
    return dict(tokenizer=line, words=words)


def lines(contents):
    """The same as text."""
    config = dict(contents["config"])
    groups = contents["groups"]
    count = sum(group["tensors"] for group in groups)
    width = max(len(group["module"]) for group in groups)
    yield f"{contents['folder']}: {size(sum(group['bytes'] for group in groups))} in {count} tensors"
    yield f"vision: {_listed(config.pop('vision'))}"
    yield f"text: {_listed(config.pop('text'))}"
    yield f"model: {_listed(config)}"
    yield f"tokenizer: {contents['tokenizer']}"
    if contents["words"]:
        yield f"words: {' '.join(contents['words'])}"
    yield f"\n{'module':{width}}  count  shape            dtype     size     stored as"
    for group in groups:
        yield f"{group['module']:{width}}  {_cells(group)}"


def _listed(fields):
    """"hidden_size 1024, num_hidden_layers 24": those that are set."""
    return ", ".join(f"{name} {value}" for name, value in fields.items() if value not in (None, False))


def _cells(group):
    """The columns of a group."""
    shape = "x".join(map(str, group["shape"]))
    return f"{group['tensors']:5}  {shape:15}  {group['dtype']:8}  {size(group['bytes']):7}  {group['stored']}"
