"""What trainings share: the bounds of a recipe, and the state of a run in a safetensors file.

A state holds tensors, and facts (JSON) in its header. It is read and checked as a whole before anything of a run is
changed: which tensors there are, their shapes and dtypes, and that every number is finite.
"""

import json
import sys
from contextlib import contextmanager

import torch
from safetensors import SafetensorError, safe_open

from minivlm.io.atomic import save_tensors
from minivlm.io.tensors import DTYPES
from pruning.base import UserError
from pruning.fields import shown

VERSION = "2"                                      # of the states that are written here
FINITE = sys.float_info.max                        # as an upper bound: any number but inf
STORED = DTYPES | {"F64": torch.float64}
ANEW = "train anew in another --out"


def check_bounds(recipe, bounds):
    """UserError if a field of the recipe is no number in its bounds: {field: (least, most)}, both whole for a
    whole number."""
    for name, (least, most) in bounds.items():
        value = getattr(recipe, name)
        if not _within(value, least, most):
            most = "" if most == FINITE else f" and at most {most}"
            raise UserError(f"{name} {shown(value)}: give a finite number, at least {least}{most}")


def _within(value, least, most):
    """NaN is in no bounds; a whole `least` asks for a whole number."""
    kind = int if isinstance(least, int) else (int, float)
    return isinstance(value, kind) and not isinstance(value, bool) and least <= value <= most


def save_state(path, tensors, facts):
    """Write a state: the same run gives the same bytes."""
    save_tensors(tensors, path, dict(version=VERSION, facts=json.dumps(facts)))


def read_facts(path):
    """The facts of a state, a dict. UserError if the file is no state, or one of another version."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    version = metadata.get("version")
    if version != VERSION:
        written = "an older one" if version is None else shown(version)
        raise UserError(f"{path} is a state of another version ({written}; this one reads {VERSION}), or none at all: "
                        f"{ANEW}")
    try:
        facts = json.loads(metadata.get("facts", ""))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict):
        raise damaged(path, "its header does not say what run it is of")
    return facts


def read_tensors(path, expected):
    """{name: tensor} of a state, on the CPU. UserError names one that differs from `expected`, {name: (shape,
    dtype)}."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        for name in sorted(slices.keys() ^ expected.keys()):
            wrong = "missing" if name in expected else "one tensor too many"
            raise damaged(path, f"{name} is {wrong}")
        for name, (shape, dtype) in expected.items():
            _check_kind(path, name, slices[name], shape, dtype)
        tensors = {name: file.get_tensor(name) for name in expected}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise damaged(path, f"{name} has numbers that are not finite")
    return tensors


def _check_kind(path, name, stored, shape, dtype):
    shape = tuple(shape)
    stored_shape = tuple(stored.get_shape())
    stored_dtype = STORED.get(stored.get_dtype(), stored.get_dtype())
    if stored_shape != shape or stored_dtype != dtype:
        raise damaged(path, f"{name} is {stored_shape}, {stored_dtype}, and should be {shape}, {dtype}")


@contextmanager
def _opened(path):
    """safe_open, whose errors are one line."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from None


def check_same(path, recorded, options_of):
    """UserError if a state is of a run with other options: {part: {option: value}} twice."""
    for part, options in options_of.items():
        others = recorded.get(part)
        if not isinstance(others, dict) or others.keys() != options.keys():
            raise damaged(path, f"its header does not say what {part} the run had")
        for name, value in options.items():
            if others[name] != value:
                raise UserError(f"{path} is of a run with {name} {shown(others[name])}, not {shown(value)}: resume "
                                "with the same options, or name another --out")


def check_number(path, facts, name, least, most):
    """The fact of this name. UserError if it is no number from `least` to `most`; a whole one if `least` is."""
    value = facts.get(name)
    if not _within(value, least, most):
        raise damaged(path, f"its {name} is {shown(value)}, and should be from {least} to {most}")
    return value


def damaged(path, what):
    """The UserError for a state that cannot be gone on with."""
    return UserError(f"{path} is damaged: {what}: {ANEW}, or put back a copy of it")
