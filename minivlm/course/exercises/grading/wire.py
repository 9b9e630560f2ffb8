"""What passes between the grader and the process of a student's code: plain data and tensors, but never pickle, which
could run code in the grader.

A message is JSON, then the tensors as safetensors. Both sides read this file; the student's side has a copy of it.
"""

import json
from dataclasses import dataclass, fields, replace

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from pruning.atp import Thresholds
from pruning.base import LayerView, Reduction, Tokens, UserError

LARGEST = 2 ** 26                      # bytes of a message
LENGTH = 8                             # bytes that hold a number of bytes
READS = {                              # what is sent of a view: the names of LayerView.of
    "attention": lambda view: view.attention("all"),
    "logits": lambda view: view.logits("all"),
    "query": lambda view: view.query("all"),
    "key": lambda view: view.key(),
    "projected_key": lambda view: view.projected_key(),
    "stream_key": lambda view: view.projected_key(norm=False),
}


@dataclass(frozen=True)
class Unknown:
    """Stands for a value of a kind that is not sent: only its name is."""

    kind: str


# --- values -----------------------------------------------------------------------------------------------------------

def pack(value):
    """The bytes of a message."""
    tensors = {}
    words = json.dumps(encoded(value, tensors)).encode()
    return len(words).to_bytes(LENGTH, "little") + words + save(tensors)


def unpack(data):
    """The value of a message. Any exception means that the bytes are no message."""
    end = LENGTH + int.from_bytes(data[:LENGTH], "little")
    words = json.loads(data[LENGTH:end])
    tensors = load(data[end:])
    return decoded(words, tensors)


def encoded(value, tensors):
    """The value as JSON has it; its tensors go into the dict `tensors`."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, LayerView):
        return {"view": encoded([readable(value), value.tokens.without_views()], tensors)}
    if isinstance(value, (list, tuple, set, frozenset)):
        kind = next(kind for kind in COLLECTIONS if isinstance(value, COLLECTIONS[kind]))
        return {kind: [encoded(item, tensors) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encoded(key, tensors), encoded(item, tensors)] for key, item in value.items()]}
    if isinstance(value, Tokens):
        views = dict(before=readable(value.before), here=readable(value.here))
        return {"Tokens": encoded(shallow(value) | views, tensors)}
    if isinstance(value, Reduction):
        return {"Reduction": encoded(shallow(value), tensors)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, nn.ModuleList):
        return {"modules": [encoded(parts(module), tensors) for module in value]}
    return {"unknown": type(value).__name__}


COLLECTIONS = {"list": list, "tuple": tuple, "set": (set, frozenset)}


def shallow(value):
    """{field: value} of a dataclass."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def readable(view):
    """{name: matrix} of all that a view has."""
    matrices = {}
    for name, read in READS.items():
        try:
            matrices[name] = read(view)
        except UserError:
            continue
    return matrices


def parts(module):
    """What ATP's Thresholds are made of."""
    return dict(N=module.N, activation=module.activation, state=dict(module.state_dict()))


def decoded(words, tensors):
    """The value that `encoded` was given. A view has the same matrices; a set is a frozenset."""
    if not isinstance(words, dict):
        return words
    (kind, inner), = words.items()
    if kind == "tensor":
        return tensors[inner]
    if kind in ("dtype", "unknown"):
        return DECODERS[kind](inner)
    if kind == "dict":
        return {decoded(key, tensors): decoded(item, tensors) for key, item in inner}
    if kind in ("Tokens", "Reduction", "view"):
        return DECODERS[kind](decoded(inner, tensors))
    return DECODERS[kind]([decoded(item, tensors) for item in inner])


def dtype(name):
    """torch.float32 of "float32"."""
    kind = getattr(torch, name)
    assert isinstance(kind, torch.dtype), name
    return kind


def view_of(given):
    """A view of these matrices on these tokens."""
    matrices, tokens = given
    return LayerView.of(**matrices).on(tokens)


def tokens(given):
    """Tokens of their fields, with their views bound to them."""
    matrices = {side: given.pop(side) for side in ("before", "here")}
    made = Tokens(**given)
    views = {side: LayerView.of(**own).on(made) for side, own in matrices.items() if own}
    return replace(made, **views)


def modules(given):
    """A ModuleList of Thresholds."""
    made = nn.ModuleList()
    for module in given:
        width = len(module["state"]["linear.bias"])
        thresholds = Thresholds(module["N"], width, module["activation"])
        thresholds.load_state_dict(module["state"])
        made.append(thresholds)
    return made


DECODERS = {
    "dtype": dtype,
    "unknown": Unknown,
    "Tokens": tokens,
    "Reduction": lambda given: Reduction(**given),
    "view": view_of,
    "list": list,
    "tuple": tuple,
    "set": frozenset,
    "modules": modules,
}


# --- a socket ---------------------------------------------------------------------------------------------------------

def send(connection, value):
    """Send a message."""
    send_packed(connection, pack(value))


def send_packed(connection, data):
    """Send the bytes of a message."""
    connection.sendall(len(data).to_bytes(LENGTH, "little") + data)


def receive(connection):
    """The bytes of the next message. EOFError if the other side has ended; ValueError if it is too large."""
    length = int.from_bytes(exactly(connection, LENGTH), "little")
    if length > LARGEST:
        raise ValueError(f"a message of {length} bytes")
    return exactly(connection, length)


def exactly(connection, length):
    """So many bytes."""
    data = bytearray()
    while len(data) < length:
        more = connection.recv(min(length - len(data), 2 ** 20))
        if not more:
            raise EOFError
        data += more
    return bytes(data)
