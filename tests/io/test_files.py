"""Files that are no files, too large, or no JSON that means the same to everybody: each is refused in one line."""

import json
import os
import struct

import pytest

from minivlm.io import files
from minivlm.io.files import folder_of, parse_json, read_bytes, read_json
from minivlm.io.tensors import stored
from pruning.errors import UserError, one_line


@pytest.mark.parametrize("text, words", [
    ("[" * 100_000, "nested too deep"), ('{"a":' * 100_000, "nested too deep"),
    ("[" * 200 + "1" + "]" * 200, "more than 100 deep"),
    ('{"a": 1, "b": {"c": 1, "c": 2}}', "two values for 'c'"), ('{"a": NaN}', "NaN is no number"),
    ("[Infinity]", "no number"),
    ("-Infinity", "no number"), ("1e999", "1e999 is no number"), ("1" * 2000, "2000 digits"),
    ("", "Expecting value"), ("{]", "Expecting")])
def test_json_that_is_refused(text, words):
    """By the plain ValueError of a parser, whatever the json module would make of it."""
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_json_that_is_read():
    """A key that comes twice with the same value is harmless; ninety lists in each other are not many."""
    assert parse_json('{"a": [1, 2.5, null], "a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    assert parse_json("[" * 90 + "]" * 90)
    assert parse_json("1000000000000000019884624838656") == 1000000000000000019884624838656


@pytest.mark.parametrize("content, words", [
    (b"\xff\xfe", "utf-8"), (b"[1]", "holds a list where an object is expected"), (b"null", "holds a NoneType"),
    (b'{"a": NaN}', "NaN is no number"),
    (b'{"a": 1, "a": 2}', "two values for 'a'"), (b"[" * 100_000, "nested too deep")], ids=range(6))
def test_a_bad_json_file_is_one_line_that_names_it(tmp_path, content, words):
    (tmp_path / "some.json").write_bytes(content)
    with pytest.raises(UserError, match=f"some.json .*{words}") as error:
        read_json(tmp_path / "some.json")
    assert "\n" not in str(error.value)


def no_file(path, kind):
    """Make at the path what is no file that ends."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path)
    else:                                          # only its size is given, and no byte is stored
        with open(path, "wb") as file:
            file.truncate(2 ** 40)


KINDS = {"pipe": "a pipe or a device", "device": "a pipe or a device", "large": "larger than 16 MiB",
         "link": "symbolic links"}


@pytest.fixture
def closed(monkeypatch):
    """Nothing may be opened: a pipe that nobody writes to would be waited for, for ever."""
    monkeypatch.setattr(files, "open", lambda *_: pytest.fail("it was opened"), raising=False)


pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


@pipes
@pytest.mark.parametrize("kind", ["pipe", "device", "large", "link"])
def test_what_is_no_file_is_refused_unopened(tmp_path, closed, kind):
    no_file(tmp_path / "some.json", kind)
    with pytest.raises(UserError, match=f"some.json cannot be read as JSON .*{KINDS[kind]}"):
        read_json(tmp_path / "some.json")


@pipes
@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_weights_that_are_no_file_are_refused_unopened(tmp_path, closed, kind):
    no_file(tmp_path / "model.safetensors", kind)
    with pytest.raises(UserError, match=f"model.safetensors is truncated or no safetensors file .*{KINDS[kind]}"):
        stored(tmp_path)


def test_a_folder_is_no_file(tmp_path):
    no_file(tmp_path / "some.json", "folder")
    with pytest.raises(UserError, match="some.json cannot be read as JSON"):
        read_json(tmp_path / "some.json")
    no_file(tmp_path / "model.safetensors", "folder")
    with pytest.raises(UserError, match="model.safetensors is truncated or no safetensors file"):
        stored(tmp_path)


@pytest.mark.internal
def test_a_file_that_tells_no_size_is_still_read_up_to_the_limit(tmp_path, monkeypatch):
    """As those of /proc: only reading shows how long they are."""
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    monkeypatch.setattr(files, "open_file", lambda path, limit: open(path, "rb"))
    with pytest.raises(OSError, match="too large for its kind"):
        read_bytes(tmp_path / "file", 4)


@pytest.mark.internal
def test_a_file_without_permission_is_one_line(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied", "some.json")
    monkeypatch.setattr(files, "open", refused, raising=False)
    (tmp_path / "some.json").write_text("{}")
    with pytest.raises(UserError, match=r"some.json cannot be read as JSON \(Permission denied\)"):
        read_json(tmp_path / "some.json")


def test_a_key_twice_in_a_header_is_refused(tmp_path):
    """The library takes the last one in silence."""
    entry = '"%s": {"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'
    header = "{" + ", ".join([entry % ("a", 0, 4), entry % ("b", 0, 4), entry % ("b", 4, 8)]) + "}"
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    with pytest.raises(UserError, match="two values for 'b'"):
        stored(tmp_path)


@pytest.mark.parametrize("head", [
    b"", b"\x01", struct.pack("<Q", 2 ** 63) + b"{}", struct.pack("<Q", 10 ** 5) + b"[" * 10 ** 5])
def test_a_header_that_is_none(tmp_path, head):
    (tmp_path / "model.safetensors").write_bytes(head)
    with pytest.raises(UserError, match="model.safetensors is truncated or no safetensors file"):
        stored(tmp_path)


@pytest.mark.parametrize("config, base", [
    ({"base_model_name_or_path": "liuhaotian/llava-v1.5-7b"}, "liuhaotian/llava-v1.5-7b"),
    ({}, "another model"), ({"base_model_name_or_path": None}, "another model")])
def test_an_adapter_is_no_model(tmp_path, config, base):
    """A LoRA folder, with and without its config.json; merged, it is a model like any other."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"holds an adapter of {base}, and no model: merge it"):
        folder_of(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter"):
        folder_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert folder_of(tmp_path) == tmp_path


@pytest.mark.parametrize("name", [
    "a\0b", "a\nb", "\udcff", "x" * 5000, "x/" * 2500, "~nobody-of-this-name/x", "", "a/" + "b" * 5000,
    f"{__file__}/below"],
    ids=range(9))
def test_names_that_no_folder_can_have(name, tmp_path, monkeypatch):
    """And every other place where a name is tried."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such folder") as error:
        folder_of(name)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


@pytest.mark.parametrize("text, shown", [
    ("plain größe", "plain größe"), ("a\nb\0", r"a\nb\x00"), ("\udcff\u202e", r"\udcff\u202e"),
    ("x" * 5000 + " is bad", "x" * 97 + " ... " + "x" * 97 + " is bad"),
    ("ab " * 300, "ab " * 79 + " ... " + "ab " * 79)])
def test_messages_are_one_line_that_ends(text, shown):
    """What cannot be printed is escaped; of a long word and of a long line the middle is cut out."""
    assert one_line(text) == str(UserError(text)) == shown
