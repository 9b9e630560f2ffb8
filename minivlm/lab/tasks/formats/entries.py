"""What the readers share: the files that a path means, and their entries, each with a name for messages."""

from pathlib import Path

from minivlm.io.data import LARGE, check_row, read_json
from pruning.base import UserError

ID = int | str


def files(path, *patterns):
    """[the path itself], or the files of a folder that match the first of the patterns that any do.

    UserError if there are none.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    for pattern in patterns:
        found = sorted(path.glob(pattern))
        if found:
            return found
    raise UserError(f"{path}: there is no {' and no '.join(patterns)} in this folder: name the file")


def beside(path, *names):
    """The first of these files that lies in the file's folder. UserError if none does."""
    folder = Path(path).parent
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{path} needs {names[0]} in the same folder")


def entries(path, what, key=None):
    """[("path, entry 1", entry), ..] of a list in a JSON file, which is the value of `key` if one is given."""
    value = read_json(path, what, LARGE)
    if key is not None:
        if not isinstance(value, dict) or not isinstance(value.get(key), list):
            raise UserError(f"{path}: no {what}: there is no list {key!r} in it")
        value = value[key]
    if not isinstance(value, list) or not value:
        raise UserError(f"{path}: no {what}: there is no list with entries in it")
    return [(f"{path}, entry {number}", entry) for number, entry in enumerate(value, 1)]


def table(path, what):
    """[("path, ID", id, entry), ..] of a JSON object of objects."""
    value = read_json(path, what, LARGE)
    if not isinstance(value, dict) or not value:
        raise UserError(f"{path}: no {what}: write {{id: {{..}}}}")
    return [(f"{path}, {id}", id, entry) for id, entry in value.items()]


def checked(rows, what, **annotations):
    """The rows, if the fields of each are as annotated."""
    for where, row in rows:
        check_row(row, where, what, **annotations)
    return rows


def one_of(where, field, value, allowed):
    """The value; UserError unless it is one of these words."""
    if value not in allowed:
        raise UserError(f"{where}: {field} must be one of {', '.join(allowed)}, and is {value!r}")
    return value
