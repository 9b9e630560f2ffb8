"""A model as a checkpoint folder again, in the layout that it was read from: what `weights.load` reads."""

import shutil
from pathlib import Path

import torch

from minivlm.io.atomic import save_tensors, written
from minivlm.io.files import tower_folder
from minivlm.io.layouts import ORIGINAL
from weights import find, skeleton

DESCRIBING = ("config.json", "generation_config.json", "*processor_config.json", "tokenizer*", "special_tokens_map.json",
              "added_tokens.json", "vocab.json", "merges.txt", "chat_template*")


def save(model, folder):
    """Write the weights, in the dtype in which they were stored, and copy the files that describe them."""
    folder, state = Path(folder), model.state_dict()
    found = find(skeleton(model.folder), model.folder)
    tensors = {}
    for name, tensor in found.items():                 # a tower that lay elsewhere comes along
        key = tensor.key if tensor.file.parent == model.folder else ORIGINAL.stored_name(name)
        part = state[name].detach().to("cpu", tensor.dtype).contiguous()
        if tensor.cut is not None:                     # some rows of a tensor that holds several parameters
            rows = sum(other.shape[0] for other in found.values() if other.key == key)
            whole = tensors.setdefault(key, part.new_empty(rows, *part.shape[1:]))
            whole[tensor.cut(torch.arange(rows))] = part
        else:
            tensors[key] = part
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    tower = model.config.vision_tower and tower_folder(model.folder, model.config.vision_tower)
    for source, target in ((model.folder, folder), *([(tower, folder / tower.name)] if tower else [])):
        target.mkdir(exist_ok=True)
        for path in (path for name in DESCRIBING for path in source.glob(name)):
            with written(target / path.name) as beside:
                shutil.copyfile(path, beside)
