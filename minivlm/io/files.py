"""The files of a checkpoint: its folder or hub id, and what is read whole, within limits: JSON and texts."""

import json
import math
import os
import re
import stat
from pathlib import Path

from pruning.base import UserError

FETCHED = ["*.safetensors", "*.json", "tokenizer.model", "merges.txt", "chat_template.jinja"]      # of a hub repository
MODEL = "model.safetensors"
INDEX = "model.safetensors.index.json"             # of a model in several files
LIMIT = 2 ** 24                                    # bytes of a file that is read whole, but for ...
LIMITS = {"tokenizer.json": 2 ** 26}
DEPTH = 100                                        # of lists and objects in each other
DIGITS = 100                                       # of a whole number


# --- the folder -------------------------------------------------------------------------------------------------------

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
    has_model = any(os.path.lexists(folder / name) for name in (MODEL, INDEX))
    if has_model or not os.path.isfile(adapter):
        return folder
    base = read_json(adapter).get("base_model_name_or_path") or "another model"
    raise UserError(f"{folder} holds an adapter of {base}, and no model: merge it into that model first (peft's "
                    "merge_and_unload, or LLaVA's scripts/merge_lora_weights.py), and give the merged folder")


def fetch(name):
    """The folder of a hub id: from the cache if it is whole there, so that no network is needed; else downloaded."""
    import huggingface_hub                         # slow to import, and not needed for a local folder
    for cached in (True, False):
        try:
            folder = huggingface_hub.snapshot_download(name, allow_patterns=FETCHED, local_files_only=cached)
        except Exception as error:                 # which classes there are depends on its version
            if not cached:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(f"{name}: there is no such folder, and the hub does not give it: {reason}") from None
        else:
            folder = Path(folder)
            if not cached or _is_whole(folder):
                return folder


def _is_whole(folder):
    """Whether a download came to its end; an interrupted one leaves a folder too."""
    try:
        weight_map(folder)
    except UserError:
        return False
    return all(any(folder.glob(name)) for name in ("config.json", "tokenizer*"))


def weight_map(folder):
    """{key: file name} of the tensors of a sharded checkpoint; {None: file name} of a single file. Each file is
    there."""
    if os.path.lexists(folder / MODEL):
        return {None: MODEL}
    index = folder / INDEX
    if not os.path.lexists(index):
        raise UserError(_no_weights(folder))
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index} has no weight_map: fetch it again")
    for key, name in names.items():
        if not isinstance(name, str) or Path(name).name != name:       # no resolve(): the hub's cache has links
            raise UserError(f"{index}: the weight_map points outside the folder, for {key} to {name!r}")
        if not os.path.exists(folder / name):
            raise UserError(f"{folder / name} is missing: the index names it, fetch it too")
    return names


def _no_weights(folder):
    """What to do about a folder without weights."""
    if any(folder.glob("*.safetensors")):
        return f"{folder}: neither {MODEL} nor {INDEX} is there: fetch the one it had"
    pickles = [path.name for path in folder.glob("*") if ".bin" in path.name or path.suffix in (".pt", ".pth")]
    what = f"no {MODEL}"
    if pickles:
        what = f"only {min(pickles)}, and pickles are not read since they can run code"
    remedy = "convert the weights to safetensors (huggingface.co/spaces/safetensors/convert)"
    names = {part.rpartition("--")[2] for part in folder.absolute().parts}     # the cache has models--owner--name
    for size in ("7b", "13b"):
        if f"llava-v1.5-{size}" in names:
            remedy += f" or use llava-hf/llava-1.5-{size}-hf, the same weights"
    return f"{folder}: {what}: {remedy}"


def tower_folder(folder, name):
    """Where a named CLIP tower lies: at that path, in the checkpoint's folder or beside it; None if nowhere."""
    folder = Path(os.path.abspath(folder))
    for place in (folder, folder.parent, Path()):
        for part in (name, Path(name).name):
            if os.path.isdir(place / part):
                return place / part
    return None


# --- JSON -------------------------------------------------------------------------------------------------------------

def read_json(path):
    """The object in a JSON file. Raises UserError if the file is not there or holds none."""
    try:
        raw = parse_json(read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there: a checkpoint folder has one; was the download complete?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({reason_of(error)}): fetch it again") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds a {type(raw).__name__} where an object is expected")
    return raw


def parse_json(text):
    """The value of a JSON text.

    Raises ValueError for a text that means nothing, or not the same to everybody: NaN and Infinity, numbers too large
    for a float, a key with two values, and what is nested more than DEPTH deep.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_float)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if _is_deeper(value, DEPTH):
        raise ValueError(f"it is nested more than {DEPTH} deep")
    return value


def _object(pairs):
    whole = {}
    for key, value in pairs:
        if whole.setdefault(key, value) != value:
            raise ValueError(f"it gives two values for {key!r}")
    return whole


def _float(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no number that can be used")
    return number


def _int(text):
    if len(text) > DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _is_deeper(value, depth):
    """Whether lists and objects lie in each other more than `depth` deep."""
    level = [value]
    for _ in range(depth + 1):
        inner = []
        for part in level:
            if isinstance(part, dict):
                inner.extend(part.values())
            elif isinstance(part, list):
                inner.extend(part)
        level = inner
    return bool(level)


# --- bytes ------------------------------------------------------------------------------------------------------------

def read_bytes(path, limit=None):
    """The bytes of a file. OSError if it is no regular file, or has more than `limit` bytes (None: as LIMITS says)."""
    limit = limit or LIMITS.get(Path(path).name, LIMIT)
    with open_file(path, limit) as file:
        data = file.read(limit + 1)
    if len(data) > limit:                          # the size that the system gives may be 0
        raise OSError(_too_large(limit))
    return data


def open_file(path, limit):
    """The file at a path, opened, once `check_file` let it pass."""
    check_file(path, limit)
    return open(path, "rb")


def check_file(path, limit):
    """Open nothing, and raise OSError for a pipe or a device, which may never end, and for more than `limit` bytes."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):      # a folder cannot be opened anyway
        raise OSError("it is a pipe or a device, and no regular file")
    if status.st_size > limit:
        raise OSError(_too_large(limit))


def _too_large(limit):
    return f"it is larger than {limit >> 20} MiB, too large for its kind"


def reason_of(error):
    """What an error says: the system's word for it, without number and path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
