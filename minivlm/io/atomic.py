"""Results that are whole or not there: written under a hidden name in the same folder, then renamed into it.

    with written("table.json") as beside:
        beside.write_text(text)

A reader never sees half a file. If the block fails, the hidden file is removed. If the process is killed, it stays, and
the next `written` of the same name clears it.
"""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file

from minivlm.io.files import reason_of
from pruning.base import UserError


@contextmanager
def written(path):
    """The hidden path at which to make the file, or the folder, that `path` will be."""
    beside = hidden(path)
    remove(beside)                     # what a run that was killed has left
    try:
        yield beside
        os.replace(beside, path)
    except BaseException:              # Ctrl-C too
        remove(beside)
        raise


def hidden(path):
    """table.json -> .table.json: in the same folder, so that a rename is enough, and with the same suffix."""
    path = Path(path)
    return path.with_name("." + path.name)


def remove(path):
    """Remove a file, a link or a folder with all that is in it; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def written_folder(path):
    """Where to make the files of a folder: under its hidden name if it is new, else in itself, each by `written`."""
    path = Path(path)
    if path.exists():
        yield path
        return
    with filled(path.parent), written(path) as beside:
        beside.mkdir()
        yield beside


@contextmanager
def filled(path):
    """A folder for the results of a run: created if missing, removed again if the run fails while it is empty.

    UserError if it cannot be created or written to.
    """
    path = Path(path)
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be created ({reason_of(error)}): name another folder") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written to: name another folder, or change its permissions")
    try:
        yield path
    except BaseException:
        remove_empty(missing)
        raise


def remove_empty(folders):
    """Remove these folders, the innermost first, up to one that holds something."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def write_text(path, text):
    """Write a text file."""
    with written(path) as beside:
        beside.write_text(text, encoding="utf-8")


def save_tensors(tensors, path, metadata):
    """Write a safetensors file. The same tensors and metadata give the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written(path) as beside:
        save_file(tensors, beside, metadata=metadata)
        _sort_metadata(beside)


def _sort_metadata(path):
    """safetensors writes the metadata in an order that differs from run to run."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        assert len(text) == length, "the sorted header has another length"
        file.seek(8)
        file.write(text)
