"""The trained modules of ATP in a file: atp.safetensors holds their weights; its header, the method and its options."""

import json
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from minivlm.families.internvl import InternVL
from minivlm.io.atomic import save_tensors
from pruning import EVERY
from pruning.atp import ATP, UNTRAINED, Thresholds
from pruning.base import UserError
from pruning.fields import shown

NAME = "atp.safetensors"
READINGS = {name: method for name, method in EVERY.items() if issubclass(method, ATP)}     # ATP among them


def save(atp, folder):
    """Write the modules, name and options of an ATP to folder/atp.safetensors."""
    activation = atp.module[0].activation if atp.module else "none"
    header = dict(method=name_of(type(atp)), options=json.dumps(options_of(atp)), activation=activation)
    tensors = atp.module.state_dict() if atp.module else {}
    tensors = {name: x.detach().float() for name, x in tensors.items()}
    save_tensors(tensors, Path(folder) / NAME, header)


def name_of(method):
    """What the registry calls ATP, or another reading of it."""
    for name, known in READINGS.items():
        if known is method:
            return name
    raise UserError(f"{method.__name__} is no reading of ATP that a file can name: use one of {', '.join(READINGS)}")


def options_of(atp):
    """{name: value} of all options but the modules themselves."""
    return {f.name: getattr(atp, f.name) for f in fields(atp) if f.name != "module"}


def read(source, method=None, **settings):
    """The ATP of a folder or file, with its own options but for `settings`. UserError says what is wrong with the file.

    method: a class to read it as, ATP or one of its readings; by default the one that was trained.
    """
    path = _file(source)
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        method = _as(method, header["method"])
        options = json.loads(header["options"])
        _check(options, method)
        module = _modules(tensors, header["activation"]) if tensors else None
        return method(**options | settings, module=module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:     # and RecursionError
        why = str(error).splitlines()[0]
        raise UserError(f"{path} holds no module that `run.py train atp` wrote ({why})") from None


def _as(method, stored):
    """The class to read a file as: `method`, if it is the one that the header names (`stored`) or a reading of it."""
    trained = READINGS[stored]
    if method is None:
        return trained
    if issubclass(method, trained):
        return method
    raise UserError(f"it was trained as {stored}: use --method {stored}")


def _check(options, method):
    """UserError for an option that the method does not have: the file is of another version or program."""
    if not isinstance(options, dict):
        raise TypeError("its options are no table of names and values")
    known = [f.name for f in fields(method) if f.name != "module"]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise UserError(f"it has an option {shown(unknown[0])}, and the options of {name_of(method)} are "
                        f"{', '.join(known)}")


def _file(source):
    """The file that a folder, or the file's own name, means. UserError if there is none; a pipe would wait for ever."""
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
    for name, tensor in tensors.items():
        is_finite = tensor.is_floating_point() and tensor.isfinite().all()
        if not is_finite:
            raise UserError(f"{name} holds what is no finite number: train the module again")
    count = sum(name.endswith(".linear.weight") for name in tensors)
    sizes = [tensors[f"{i}.linear.weight"].shape for i in range(count)]
    modules = nn.ModuleList(Thresholds(length // 2, width, activation) for width, length in sizes)
    modules.load_state_dict(tensors)
    return modules.eval().requires_grad_(False)


def with_module(atp, model):
    """The ATP with its own module, or with that in the model's folder. UserError if there is none for this model."""
    if atp.module is None and _has_module_for(atp, model.folder):
        default = options_of(type(atp)())
        changed = {name: x for name, x in options_of(atp).items() if x != default[name]}
        atp = read(model.folder, type(atp), **changed)
    if "training" not in atp.preconditions:
        return atp
    if atp.module is None:
        raise UserError(UNTRAINED)
    depth = len(model.language_model.layers)
    if atp.depth not in (None, depth):
        raise UserError(f"this ATP module was trained for {atp.depth} decoder layers and the model has {depth}: "
                        "train one for it")
    if not cuts_tiles(model):          # else each prompt says how many tokens it has
        N = model.visual_tokens(torch.empty(1))
        atp.at_length(torch.empty(2, N), atp.module[0].N)
    return replace(atp, module=atp.module.to(model.device))


def _has_module_for(atp, folder):
    """Whether the folder has a file of modules for it; one that needs no training takes only a file of its own."""
    path = folder / NAME
    if not path.is_file():
        return False
    return "training" in atp.preconditions or type(read(path)) is type(atp)


def cuts_tiles(model):
    """Whether the number of visual tokens depends on the picture, as in LLaVA-NeXT, InternVL and SmolVLM."""
    return bool(model.config.image_grid_pinpoints) or isinstance(model, InternVL)
