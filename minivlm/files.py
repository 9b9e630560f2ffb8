"""The files of a checkpoint: a folder or hub id, its JSON, and the headers of its safetensors files.

A checkpoint is one model.safetensors, or several files that model.safetensors.index.json lists in its weight_map.
"""

import json
import re
from pathlib import Path
from typing import Callable, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from pruning.base import UserError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FETCHED = ["*.safetensors", "*.json", "tokenizer.model"]                 # of a hub repository
SAME_WEIGHTS = {f"llava-v1.5-{size}": f"llava-hf/llava-1.5-{size}-hf" for size in ("7b", "13b")}
# Constants that old versions stored, and CLIP's text half.
IGNORED = re.compile(r"rotary_emb\.inv_freq$|position_ids$|^text_model\.|^(visual|text)_projection\.|^logit_scale$")


def folder_of(source):
    """The folder that a path or hub id means."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path} is a file: give the folder of the checkpoint")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise UserError(f"{source}: there is no such folder, and it is no hub id (owner/name) either")
    return fetch(str(source))


def fetch(name):
    """The folder of a hub id: out of the cache where it is whole, so that no network is needed; else downloaded."""
    import huggingface_hub                         # takes long, and who has a folder does not need it
    for cached in (True, False):
        try:
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=FETCHED, local_files_only=cached))
        except Exception as error:                 # which classes there are depends on its version
            if not cached:
                told = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(f"{name}: there is no such folder, and the hub does not give it: {told}") from None
        else:
            if not cached or _whole(folder):
                return folder


def _whole(folder):
    """Whether a download came to its end; an interrupted one leaves a folder too."""
    try:
        return bool(_weight_map(folder)) and all(any(folder.glob(name)) for name in ("config.json", "tokenizer*"))
    except UserError:
        return False


def read_json(path):
    """The object in a JSON file; UserError if the file is not there or holds no object."""
    try:
        raw = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there: a checkpoint folder has one; was the download complete?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): fetch it again") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds a {type(raw).__name__} where an object is expected")
    return raw


class Stored(NamedTuple):
    """Where one tensor lies, from the header of its file."""

    file: Path
    key: str
    shape: tuple
    dtype: torch.dtype
    cut: Callable | None = None        # of a tensor that holds several parameters: tensor -> the part of this shape


def stored(folder):
    """{key: Stored} of all tensors in a folder, without the ignored ones. Only headers are read."""
    weight_map, tensors = _weight_map(folder), {}
    for name in sorted(set(weight_map.values())):
        for key, tensor in _header(folder / name).items():
            if key in tensors:
                raise UserError(f"{folder}: {key} is in two files, {tensors[key].file.name} and {name}")
            tensors[key] = tensor
    for key, name in weight_map.items():
        if key is not None and (key not in tensors or tensors[key].file.name != name):
            raise UserError(f"{folder / name}: {key} is not in it, although the index says so: fetch both again")
    return {key: tensor for key, tensor in tensors.items() if not IGNORED.search(key)}


def _weight_map(folder):
    """{key: file name} of a sharded checkpoint; {None: file name} of a single file."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return {None: "model.safetensors"}
    if not index.is_file():
        raise UserError(_no_weights(folder))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map: fetch it again")
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:       # resolve() would not do: the hub's cache has links
            raise UserError(f"{index}: the weight_map points outside the folder, for {key} to {name!r}")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: the index names it, fetch it too")
    return weight_map


def _no_weights(folder):
    if any(folder.glob("*.safetensors")):
        return f"{folder}: neither model.safetensors nor model.safetensors.index.json is there: fetch the one it had"
    names = {part.rpartition("--")[2] for part in folder.absolute().parts}     # the cache has models--owner--name
    same = "".join(f" or use {hub}, the same weights" for name, hub in SAME_WEIGHTS.items() if name in names)
    pickles = [path.name for path in folder.glob("*") if ".bin" in path.name or path.suffix in (".pt", ".pth")]
    found = f"only {min(pickles)}, and pickles are not read since they can run code" if pickles else "no model.safetensors"
    return f"{folder}: {found}: convert the weights to safetensors (huggingface.co/spaces/safetensors/convert){same}"


def _header(file):
    """{key: Stored} of one file."""
    try:
        with safe_open(file, "pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}
            kinds = {key: (tuple(s.get_shape()), s.get_dtype()) for key, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is truncated or no safetensors file ({error}): fetch it again") from None
    for key, (_, dtype) in kinds.items():
        if dtype not in DTYPES and not IGNORED.search(key):
            raise UserError(f"{file}: {key} is stored as {dtype}, and only {', '.join(DTYPES)} are supported")
    return {key: Stored(file, key, shape, DTYPES.get(dtype)) for key, (shape, dtype) in kinds.items()}
