"""The tensors of a checkpoint: where each is stored, by the headers of its files, and the tensors themselves.

A checkpoint is one model.safetensors, or several files that model.safetensors.index.json lists in its weight_map.
"""

import re
import sys
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Callable, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from minivlm.io.files import open_file, parse_json, reason_of, weight_map
from pruning.base import UserError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HEADER = 10 ** 8                                   # bytes of the header of a safetensors file; its own library's limit
# Constants that old versions stored, and CLIP's text half.
IGNORED = re.compile(r"rotary_emb\.inv_freq$|position_ids$|^text_model\.|^(visual|text)_projection\.|^logit_scale$")


class Stored(NamedTuple):
    """Where one tensor lies, from the header of its file."""

    file: Path
    key: str
    shape: tuple
    dtype: torch.dtype
    cut: Callable | None = None        # of a tensor that holds several parameters: tensor -> the part of this shape


def stored(folder):
    """{key: Stored} of all tensors in a folder, without the ignored ones. Only headers are read."""
    names = weight_map(folder)
    tensors = {}
    for name in sorted(set(names.values())):
        for key, tensor in _header(folder / name).items():
            if key in tensors:
                raise UserError(f"{folder}: {key} is in two files, {tensors[key].file.name} and {name}")
            tensors[key] = tensor
    for key, name in names.items():
        if key is not None and (key not in tensors or tensors[key].file.name != name):
            raise UserError(f"{folder / name}: {key} is not in it, although the index says so: fetch both again")
    return {key: tensor for key, tensor in tensors.items() if not IGNORED.search(key)}


def _header(file):
    """{key: Stored} of one file."""
    tensors = {}
    try:
        _check_keys(file)
        with safe_open(file, "pt") as opened:
            for key in opened.keys():
                entry = opened.get_slice(key)
                tensors[key] = Stored(file, key, tuple(entry.get_shape()), entry.get_dtype())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is truncated or no safetensors file ({reason_of(error)}): fetch it again") from None
    for key, tensor in tensors.items():
        if tensor.dtype not in DTYPES and not IGNORED.search(key):
            raise UserError(f"{file}: {key} is stored as {tensor.dtype}, and only {', '.join(DTYPES)} are supported")
    return {key: tensor._replace(dtype=DTYPES.get(tensor.dtype)) for key, tensor in tensors.items()}


def _check_keys(file):
    """ValueError if the header is no JSON or names a tensor twice: the library would take the last one."""
    with open_file(file, sys.maxsize) as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > HEADER:
            raise ValueError(f"its header would have {size} bytes")
        parse_json(opened.read(size).decode("utf-8"))


def commonest_dtype(sources, preferred):
    """The dtype of these Stored tensors; if they have several, the preferred one if it is among them, else the
    commonest."""
    count = Counter()
    for tensor in sources:
        count[tensor.dtype] += prod(tensor.shape)
    if preferred in count:
        return preferred
    (commonest, _), = count.most_common(1)
    return commonest


def read_tensors(sources, dtype, device):
    """{name: tensor} of {name: Stored}. If dtype and device are the file's, a tensor is a view of the mapped file."""
    files = defaultdict(dict)
    for name, tensor in sources.items():
        files[tensor.file][name] = tensor
    state = {}
    for file, tensors in files.items():            # one by one: a file whose tensors were converted is unmapped again
        with safe_open(file, "pt") as opened, ThreadPoolExecutor() as pool:
            def read(tensor):
                return _tensor(opened, tensor).to(device=device, dtype=dtype)
            state |= zip(tensors, pool.map(read, tensors.values()))
    return state


def _tensor(opened, source):
    """The stored tensor, or the part of it that is meant."""
    whole = opened.get_tensor(source.key)
    return whole if source.cut is None else source.cut(whole)


def dtype_of(name):
    """The torch dtype of a name; a dtype, and None, as they are. UserError for one that is not supported."""
    known = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
    if name is not None and name not in (*known, *known.values()):
        raise UserError(f"dtype {name!r} is not supported, only {', '.join(known)}")
    return known.get(name, name)


def device_of(name):
    """The torch device of that name; UserError if it cannot be used here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")        # the sentence below says it
            probe = torch.ones(1, device=name)
            probe.item()                           # the meta device, and some that are not built in, have no values
            return probe.device
    except Exception as error:                     # each kind of device has its own
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        reason = first_line.partition(". ")[0]
        raise UserError(f"device {name!r} cannot be used here ({reason}): try cpu") from None
