"""run.py new: a file to start from, which runs and keeps its promises."""

from pathlib import Path

import pytest

from build import tokens
from command import done
from minivlm.course.new import LIKE
from minivlm.lab.named.kind import kind_of
from paths import ROOT
from pruning.laws import broken

SCENE = str(ROOT / "minivlm" / "toy" / "samples" / "00003.png")


@pytest.mark.parametrize("like", LIKE)
def test_a_start_runs(capsys, monkeypatch, tmp_path, like):
    """Written under the name given, with that name in its examples; it answers, and breaks no law that it declares."""
    monkeypatch.chdir(tmp_path)
    status, out, _ = done(capsys, "new", "own.py", "--like", like)
    assert status == 0 and "python run.py check own.py:Mine" in out
    text = Path("own.py").read_text()
    assert "check own.py:Mine" in text and "mine.py" not in text
    status, out, _ = done(capsys, "compare", SCENE, "what shape is the red object ?", "--method", f"{like},own.py:Mine",
                          "--keep", "0.25")
    assert status == 0 and "own.py:Mine" in out
    pruner = kind_of("own.py:Mine")(keep=1)
    example = tokens("tvvvt", [[.1, .2, .5, .1, .1]], hidden=[[0., 0.], [1., 0.], [1., .1], [0., 1.], [0., 0.]])
    assert pruner.laws and not list(broken(pruner, example))


def test_a_name_with_spaces_is_quoted(capsys, monkeypatch, tmp_path):
    """So that what is printed, and what the file says of itself, can be pasted."""
    monkeypatch.chdir(tmp_path)
    _, out, _ = done(capsys, "new", "my own.py")
    assert "check 'my own.py':Mine" in out and "check 'my own.py':Mine" in Path("my own.py").read_text()


def test_like_fastv_is_fastv(capsys, monkeypatch, tmp_path):
    """The start keeps what the method keeps; the second best of three in the last row goes with the first."""
    monkeypatch.chdir(tmp_path)
    done(capsys, "new", "own.py")
    assert kind_of("own.py:Mine")(keep=2).reduce(tokens("vvvt", [[.2, .1, .3, .4]])).keep.tolist() == [0, 2]


@pytest.mark.parametrize("name, message", [
    ("there.py", "there.py exists: name a new file"),
    ("own.txt", "own.txt: what is written is PY, so name it *.py"),
    ("gone/own.py", "name a file in a folder that exists"),
    ("a,b.py", "take a name of letters"),
    ("a+b.py", "take a name of letters"),
    ('own"""own.py', "take a name of letters"),
    ("own.PY", "take a name of letters"),
    ("own\n.py", "take a name of letters"),
])
def test_bad_input(capsys, monkeypatch, tmp_path, name, message):
    monkeypatch.chdir(tmp_path)
    Path("there.py").write_text("x = 1\n")
    status, out, err = done(capsys, "new", name)
    assert status == 2 and out == "" and message in err and len(err.splitlines()) == 1
    assert Path("there.py").read_text() == "x = 1\n" and sorted(Path().iterdir()) == [Path("there.py")]
