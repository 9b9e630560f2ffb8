"""tests/goldens/README.md: every recording, field and json key is described, and the origins are those of the files."""

import json
import re

import pytest
from safetensors import safe_open

from pages import ROOT, blocks_of, table

FOLDER = ROOT / "tests" / "goldens"
PAGE = (FOLDER / "README.md").read_text()
NAMES = sorted({path.stem for path in FOLDER.iterdir()} - {"README"})
SECTIONS = re.split(r"^### ", PAGE, flags=re.M)[1:]
ANYTHING = {"CASE": r".+", "RUN": r".+", "#": r"\d+", "*": r".*"}


def in_code_type(text):
    """The words in code type."""
    return re.findall(r"`([^`]+)`", text)


def pattern(field):
    """The regular expression of a field's name."""
    parts = re.split(r"(CASE|RUN|#|\*)", field)
    return "".join(ANYTHING.get(part, re.escape(part)) for part in parts)


def fields_of(name):
    """The patterns of a recording's fields, from the first column of the table below its heading."""
    section, = (text for text in SECTIONS if name in in_code_type(text.splitlines()[0]))
    cells = re.findall(r"^\| (`.+?) \| .+ \|$", section, re.M)
    return [pattern(field) for cell in cells for field in in_code_type(cell)]


def facts_of(name):
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_every_recording_has_a_heading():
    headings = [name for section in SECTIONS for name in in_code_type(section.splitlines()[0])]
    assert sorted(headings) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if (FOLDER / f"{name}.safetensors").exists()])
def test_every_field_is_described(name):
    """Each tensor's name fits a field, and each field fits a tensor, of one of the recordings under that heading."""
    patterns = fields_of(name)
    with safe_open(FOLDER / f"{name}.safetensors", "np") as file:
        tensors = list(file.keys())
    unknown = [tensor for tensor in tensors if not any(re.fullmatch(p, tensor) for p in patterns)]
    assert not unknown, unknown[:5]
    shared = [n for section in SECTIONS for n in in_code_type(section.splitlines()[0]) if fields_of(n) == patterns]
    if shared == [name]:
        idle = [p for p in patterns if not any(re.fullmatch(p, tensor) for tensor in tensors)]
        assert not idle, idle


def test_every_key_of_a_json_is_described():
    described = {key for row in table(PAGE, "| key of a json |") for key in in_code_type(row[0])}
    keys = {key for name in NAMES for key in facts_of(name)}
    assert described == keys


def test_origins_are_those_of_the_files():
    """Each recording is in one row; a commit is the json's, and so is a repository that the json names."""
    rows = table(PAGE, "| recordings |")
    named = [name for row in rows for name in in_code_type(row[0])]
    assert sorted(named) == NAMES
    for recordings, repository, commit in rows:
        for name in in_code_type(recordings):
            stored = facts_of(name).get("commit", "")
            if re.fullmatch(r"[0-9a-f]{40}", commit) or stored:
                owner, _, stored_commit = stored.rpartition("@")
                assert commit == stored_commit
                assert owner in repository


def test_plain_python_reads_one(capsys):
    """The block prints what it says, with the standard library only."""
    block, = blocks_of(PAGE)
    assert re.findall(r"^import (.+)$", block, re.M) == ["array, json, struct"] and "from " not in block
    program = block.replace('"tests/goldens/', f'"{FOLDER}/')
    exec(program, {})
    assert capsys.readouterr().out == "True\n"
