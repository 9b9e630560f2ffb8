"""The READMEs as the tests read them, and how a Python block of theirs is run."""

import re
import runpy

from paths import ROOT, working_in

FRONT = (ROOT / "README.md").read_text()
CARDS = (ROOT / "pruning" / "README.md").read_text()
LAB = (ROOT / "minivlm" / "lab" / "README.md").read_text()
TOY = (ROOT / "minivlm" / "toy" / "README.md").read_text()
COURSE = (ROOT / "minivlm" / "course" / "README.md").read_text()
PAGES = {
    "README.md": FRONT,
    "pruning/README.md": CARDS,
    "minivlm/lab/README.md": LAB,
    "minivlm/toy/README.md": TOY,
    "minivlm/course/README.md": COURSE,
}


def blocks_of(page):
    """Its blocks of Python."""
    return re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)


def table(page, heads):
    """The rows of the table whose line of heads begins so, each a list of cells."""
    text = page[page.index(f"\n{heads}"):].strip().split("\n\n")[0]
    rows = []
    for line in text.splitlines()[2:]:                     # after the heads and the line below them
        cells = line.strip("|").split("|")
        rows.append([cell.strip() for cell in cells])
    return rows


def shown_by(block):
    """What the comments next to a block's prints say that they print, up to a bracket and a colon."""
    return re.findall(r"^print\(.*\) +# (.+?[\])])(?:: .*)?$", block, re.M)


def check_block(block, capsys, tmp_path):
    """The block runs in an empty folder, on the repository's files, and prints what its comments say."""
    program = block.replace('"minivlm/', f'"{ROOT}/minivlm/')
    (tmp_path / "block.py").write_text(program)
    with working_in(tmp_path):
        runpy.run_path("block.py")
    printed = capsys.readouterr().out.splitlines()
    assert printed == shown_by(block), (printed, shown_by(block))
