"""The trained modules of ATP in a file: atp.safetensors holds their weights and, in its header, the options of the method."""

import json
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from minivlm.atomic import save_tensors
from pruning.atp import ATP, Thresholds
from pruning.base import UserError
from pruning.fields import shown

NAME = "atp.safetensors"


def save(atp, folder):
    """Write the modules and options of an ATP to folder/atp.safetensors."""
    options = {f.name: getattr(atp, f.name) for f in fields(atp) if f.name != "module"}
    told = dict(method="atp", options=json.dumps(options), activation=atp.module[0].activation if atp.module else "none")
    tensors = atp.module.state_dict() if atp.module else {}
    tensors = {name: x.detach().float() for name, x in tensors.items()}
    save_tensors(tensors, Path(folder) / NAME, told)


def read(source, **settings):
    """The ATP of a folder, or file, with its own options but for `settings`. UserError names what is wrong with the file."""
    path = _file(source)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        options = json.loads(metadata["options"])
        module = _modules(tensors, metadata["activation"]) if tensors else None
        return ATP(**options | settings, module=module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:     # RecursionError is one, too
        raise UserError(f"{path} holds no module that `run.py train atp` wrote ({str(error).splitlines()[0]})") from None


def _file(source):
    """The file that a folder, or the file's own name, means. UserError where none is; a pipe would wait for ever."""
    try:
        path = Path(source).expanduser()
        path = path / NAME if path.is_dir() else path
        if path.is_file():
            return path
    except (OSError, RuntimeError) as error:       # a name that is too long; ~nobody
        raise UserError(f"{shown(source)} holds no module that `run.py train atp` wrote ({error})") from None
    raise UserError(f"{path} holds no module that `run.py train atp` wrote: there is no such file")


def _modules(tensors, activation):
    """A ModuleList of Thresholds with these weights; strict both ways."""
    other = [name for name, tensor in tensors.items() if not tensor.isfinite().all() or not tensor.is_floating_point()]
    if other:
        raise UserError(f"{other[0]} holds what is no finite number: train the module again")
    sizes = [tensors[f"{i}.linear.weight"].shape for i in range(sum(name.endswith(".linear.weight") for name in tensors))]
    modules = nn.ModuleList(Thresholds(length // 2, width, activation) for width, length in sizes)
    modules.load_state_dict(tensors)
    return modules.eval().requires_grad_(False)


def found(atp, model):
    """The ATP with its module: its own, or that in the model's folder. UserError where there is none, or none for this model."""
    if atp.module is None and (model.folder / NAME).is_file():
        told = {f.name: getattr(atp, f.name) for f in fields(atp)}
        atp = read(model.folder, **{name: x for name, x in told.items() if x != getattr(ATP(), name)})
    if atp.counts:
        return atp
    if atp.module is None:
        raise UserError("ATP needs a module trained for the model: make one with `python run.py train atp`, then give its folder "
                        "as --set module=DIR")
    depth, N = len(model.language_model.layers), model.visual_tokens(torch.empty(1))
    if atp.depth not in (None, depth):
        raise UserError(f"this ATP module was trained for {atp.depth} decoder layers and the model has {depth}: train one for "
                        "it")
    if atp.fit == "exact" and atp.module[0].N != N and not cuts_tiles(model):
        raise UserError(f"this ATP module was trained on {atp.module[0].N} visual tokens and an image of this model has {N}: "
                        "train one for it, or --set fit=pool")
    return replace(atp, module=atp.module.to(model.device))


def cuts_tiles(model):
    """Whether the number of visual tokens depends on the picture, as in LLaVA-NeXT and InternVL."""
    return bool(model.config.image_grid_pinpoints or getattr(model.config, "max_tiles", None))
