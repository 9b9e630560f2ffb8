"""Results are whole or not there: what a failed block or a killed process leaves; equal tensors are equal bytes."""

import os

import pytest
import torch
from safetensors import safe_open

from minivlm.io.atomic import filled, hidden, save_tensors, written, written_folder
from pruning.base import UserError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path):
    """While it is written the old one stays; afterwards no hidden file is left."""
    path = tmp_path / "table.json"
    path.write_text("old")
    with written(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old" and beside.suffix == ".json"
    assert path.read_text() == "new" and names(tmp_path) == ["table.json"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt("stopped")])
def test_a_block_that_fails_leaves_nothing(tmp_path, error):
    """The old file stays as it was."""
    path = tmp_path / "table.json"
    path.write_text("old")
    with pytest.raises(type(error), match=str(error)):
        with written(path) as beside:
            beside.write_text("ne")
            raise error
    assert path.read_text() == "old" and names(tmp_path) == ["table.json"]


@pytest.mark.parametrize("kind", ["file", "folder", "link", "link to a folder"])
def test_what_a_killed_run_left_is_cleared(tmp_path, kind):
    """A hidden link is removed and not followed."""
    stale = hidden(tmp_path / "a.json")
    target = tmp_path / "mine" / "mine.txt"
    target.parent.mkdir()
    target.write_text("mine")
    if kind == "file":
        stale.write_text("half")
    elif kind == "folder":
        (stale / "inside").mkdir(parents=True)
        (stale / "inside" / "half.png").write_text("half")
    else:
        stale.symlink_to(target if kind == "link" else target.parent)
    with written(tmp_path / "a.json") as beside:
        beside.write_text("new")
    assert names(tmp_path) == ["a.json", "mine"] and target.read_text() == "mine"


def test_a_new_folder_appears_when_it_is_whole(tmp_path):
    """Its parents are created too, and removed if it fails; in an existing folder each file is written by itself."""
    path = tmp_path / "a" / "b" / "c"
    with pytest.raises(ValueError, match="stopped"):
        with written_folder(path) as place:
            (place / "1.txt").write_text("1")
            raise ValueError("stopped")
    assert names(tmp_path) == []
    with written_folder(path) as place:
        (place / "1.txt").write_text("1")
        assert not path.exists()
    with written_folder(path) as place:
        assert place == path and names(path) == ["1.txt"]
    assert names(path.parent) == ["c"]


def test_a_folder_stays_if_something_is_in_it(tmp_path):
    """Only created folders are removed, and only empty ones."""
    with pytest.raises(ValueError, match="stopped"):
        with filled(tmp_path / "a" / "b"):
            raise ValueError("stopped")
    assert names(tmp_path) == []
    with pytest.raises(ValueError, match="stopped"):
        with filled(tmp_path / "a" / "b") as folder:
            (folder / "state").write_text("x")
            raise ValueError("stopped")
    assert names(tmp_path / "a" / "b") == ["state"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="stopped"):
        with filled(tmp_path / "mine"):
            raise ValueError("stopped")
    assert (tmp_path / "mine").is_dir()


@pytest.mark.parametrize("name", ["file", "file/inside", "n" * 5000, "null\0"])
def test_a_folder_that_cannot_be_made(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be created .*name another folder"):
        with filled(tmp_path / name):
            pass
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be created"):
        with filled(tmp_path / "locked" / "a"):
            pass
    with pytest.raises(UserError, match="cannot be written to"):
        with filled(tmp_path / "locked"):
            pass


def test_equal_tensors_are_equal_bytes(tmp_path):
    """safetensors orders the metadata anew at each call; what is written here is sorted, and reads the same."""
    metadata = {f"key{i}": 'words "é\\ \n' for i in range(12)}
    tensors = dict(b=torch.arange(3.), a=torch.ones(2, dtype=torch.float64), scalar=torch.tensor(2.))
    for name in ("one", "two"):
        save_tensors(tensors, tmp_path / name, metadata)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with safe_open(tmp_path / "one", "pt") as file:
        assert file.metadata() == metadata
        assert all(file.get_tensor(name).equal(tensor) for name, tensor in tensors.items())
