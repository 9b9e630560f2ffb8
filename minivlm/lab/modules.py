"""The trained modules of ATP in a file: atp.safetensors holds their weights and, in its header, the options of the method."""

import json
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pruning.atp import ATP, Thresholds
from pruning.base import UserError

NAME = "atp.safetensors"


def save(atp, folder):
    """Write the modules and options of an ATP to folder/atp.safetensors."""
    options = {f.name: getattr(atp, f.name) for f in fields(atp) if f.name != "module"}
    told = dict(method="atp", options=json.dumps(options), activation=atp.module[0].activation if atp.module else "none")
    tensors = atp.module.state_dict() if atp.module else {}
    tensors = {name: x.detach().float().cpu().contiguous() for name, x in tensors.items()}
    beside = Path(folder) / f".{NAME}"
    save_file(tensors, beside, metadata=told)
    beside.replace(Path(folder) / NAME)


def read(source, **settings):
    """The ATP of a folder, or file, with its own options but for `settings`. UserError names what is wrong with the file."""
    path = Path(source).expanduser()
    path = path / NAME if path.is_dir() else path
    try:
        with safe_open(path, "pt") as file:
            told, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}
        options, activation = json.loads(told["options"]), told["activation"]
        options = {name: tuple(x) if isinstance(x, list) else x for name, x in options.items()}
        module = _modules(tensors, activation) if tensors else None
        return ATP(**options | settings, module=module)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise UserError(f"{path}: {error}") from None
        raise UserError(f"{path} holds no module that `run.py train atp` wrote ({str(error).splitlines()[0]})") from None


def _modules(tensors, activation):
    """A ModuleList of Thresholds with these weights; strict both ways."""
    count = 1 + max(int(name.split(".")[0]) for name in tensors)
    width, length = tensors["0.linear.weight"].shape
    modules = nn.ModuleList(Thresholds(length // 2, width, activation) for _ in range(count))
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
