"""The files of a checkpoint: a folder or hub id, its JSON, and the headers of its safetensors files.

A checkpoint is one model.safetensors, or several files that model.safetensors.index.json lists in its weight_map.
"""

import json
import math
import os
import re
import stat
import sys
from pathlib import Path
from typing import Callable, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from pruning.base import UserError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FETCHED = ["*.safetensors", "*.json", "tokenizer.model", "merges.txt", "chat_template.jinja"]           # of a hub repository
SAME_WEIGHTS = {f"llava-v1.5-{size}": f"llava-hf/llava-1.5-{size}-hf" for size in ("7b", "13b")}
LIMIT = 2 ** 24                                    # bytes of a file that is read whole, but for ...
LIMITS = {"tokenizer.json": 2 ** 26}
HEADER = 10 ** 8                                   # bytes of the header of a safetensors file; its own library's limit
DEPTH = 100                                        # of lists and objects in each other
DIGITS = 100                                       # of a whole number
# Constants that old versions stored, and CLIP's text half.
IGNORED = re.compile(r"rotary_emb\.inv_freq$|position_ids$|^text_model\.|^(visual|text)_projection\.|^logit_scale$")


def folder_of(source):
    """The folder that a path or hub id means."""
    path = os.path.expanduser(source)
    if os.path.isdir(path):                        # of os.path: Path's may raise, for a name that is too long
        return _model_folder(Path(path))
    if os.path.exists(path):
        raise UserError(f"{path} is a file: give the folder of the checkpoint")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        raise UserError(f"{source or repr('')}: there is no such folder, and it is no hub id (owner/name) either")
    return _model_folder(fetch(str(source)))


def _model_folder(folder):
    """The folder itself; UserError if it has an adapter (LoRA) and no model."""
    adapter = folder / "adapter_config.json"
    names = ("model.safetensors", "model.safetensors.index.json")
    if not os.path.isfile(adapter) or any(os.path.lexists(folder / name) for name in names):
        return folder
    base = read_json(adapter).get("base_model_name_or_path") or "another model"
    raise UserError(f"{folder} holds an adapter of {base}, and no model: merge it into that model first (peft's "
                    "merge_and_unload, or LLaVA's scripts/merge_lora_weights.py), and give the merged folder")


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
    """The object in a JSON file. Raises UserError if the file is not there or holds none."""
    try:
        raw = parse_json(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there: a checkpoint folder has one; was the download complete?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({_reason(error)}): fetch it again") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds a {type(raw).__name__} where an object is expected")
    return raw


def parse_json(text):
    """The value of a JSON text.

    Raises ValueError where the text means nothing, or not the same to everybody: NaN and Infinity, numbers too large
    for a float, a key with two values, and what is nested more than DEPTH deep.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_float)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if _deeper(value, DEPTH):
        raise ValueError(f"it is nested more than {DEPTH} deep")
    return value


def _object(pairs):
    value = {}
    for key, held in pairs:
        if value.setdefault(key, held) != held:
            raise ValueError(f"it gives two values for {key!r}")
    return value


def _float(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no number that can be used")
    return number


def _int(text):
    if len(text) > DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _deeper(value, depth):
    """Whether lists and objects lie in each other more than `depth` deep."""
    level = [value]
    for _ in range(depth + 1):
        parts = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))]
        level = [held for part in parts for held in part]
    return bool(level)


def read_bytes(path, limit=None):
    """The bytes of a file. OSError if it is no regular file, or has more than `limit` bytes (None: as LIMITS says)."""
    limit = limit or LIMITS.get(Path(path).name, LIMIT)
    with open_file(path, limit) as file:
        data = file.read(limit + 1)
    if len(data) > limit:                          # the size that the system tells may be 0
        raise OSError(_too_large(limit))
    return data


def open_file(path, limit):
    """The file at a path, opened, once `check_file` let it pass."""
    check_file(path, limit)
    return open(path, "rb")


def check_file(path, limit):
    """Open nothing, and raise OSError for a pipe or a device, which may never end, and for more than `limit` bytes."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):      # a folder is refused by who opens it
        raise OSError("it is a pipe or a device, and no regular file")
    if status.st_size > limit:
        raise OSError(_too_large(limit))


def _too_large(limit):
    return f"it is larger than {limit >> 20} MiB, too large for its kind"


def _reason(error):
    """What an error says: the system's word for it, without number and path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


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
    if os.path.lexists(folder / "model.safetensors"):
        return {None: "model.safetensors"}
    if not os.path.lexists(index):
        raise UserError(_no_weights(folder))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map: fetch it again")
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:       # resolve() would not do: the hub's cache has links
            raise UserError(f"{index}: the weight_map points outside the folder, for {key} to {name!r}")
        if not os.path.exists(folder / name):
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
        _check_keys(file)
        with safe_open(file, "pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}
            kinds = {key: (tuple(s.get_shape()), s.get_dtype()) for key, s in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is truncated or no safetensors file ({_reason(error)}): fetch it again") from None
    for key, (_, dtype) in kinds.items():
        if dtype not in DTYPES and not IGNORED.search(key):
            raise UserError(f"{file}: {key} is stored as {dtype}, and only {', '.join(DTYPES)} are supported")
    return {key: Stored(file, key, shape, DTYPES.get(dtype)) for key, (shape, dtype) in kinds.items()}


def _check_keys(file):
    """ValueError if the header is no JSON or names a tensor twice: the library would take the last one."""
    with open_file(file, sys.maxsize) as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > HEADER:
            raise ValueError(f"its header would have {size} bytes")
        parse_json(opened.read(size).decode("utf-8"))
