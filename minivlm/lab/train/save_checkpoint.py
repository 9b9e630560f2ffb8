"""A model as a checkpoint folder again, in the layout that it was read from: what `weights.load` reads."""

import shutil
from pathlib import Path

import torch

from minivlm.io.atomic import save_tensors, written
from minivlm.io.files import tower_folder
from minivlm.io.layouts import ORIGINAL
from weights import find, skeleton

DESCRIBING = (
    "config.json",
    "generation_config.json",
    "*processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
)


def save(model, folder):
    """Write the weights, in the dtype in which they were stored, and copy the files that describe them."""
    folder = Path(folder)
    tensors = _tensors(model)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    _copy_description(model.folder, folder)
    if model.config.vision_tower:
        tower = tower_folder(model.folder, model.config.vision_tower)
        if tower:
            _copy_description(tower, folder / tower.name)


def _tensors(model):
    """{key: tensor} as the checkpoint stores them; a tower that comes from another folder is included."""
    state = model.state_dict()
    stored = find(skeleton(model.folder), model.folder)
    tensors = {}
    for name, tensor in stored.items():
        key = tensor.key
        if tensor.file.parent != model.folder:
            key = ORIGINAL.stored_name(name)
        part = state[name].detach()
        part = part.to("cpu", tensor.dtype).contiguous()
        if tensor.cut is None:
            tensors[key] = part
            continue
        # the parameter is some rows of a tensor that holds several
        rows = sum(other.shape[0] for other in stored.values() if other.key == key)
        if key not in tensors:
            tensors[key] = part.new_empty(rows, *part.shape[1:])
        own_rows = tensor.cut(torch.arange(rows))
        tensors[key][own_rows] = part
    return tensors


def _copy_description(source, target):
    """Copy the configuration, tokenizer and processor files."""
    target.mkdir(exist_ok=True)
    for name in DESCRIBING:
        for path in source.glob(name):
            with written(target / path.name) as beside:
                shutil.copyfile(path, beside)
