"""A planted mistake in place: its file's text, and our modules imported once more with that text.

Nothing is written and no other process runs: inside `in_place` the imports of this repository's modules begin anew, and
one of them gets the broken text. What was imported before stays as it is and comes back at the end.
"""

import sys
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("pruning", "minivlm")


def source(bug):
    """The text of our file."""
    return (ROOT / bug.file).read_text(encoding="utf-8")


def variant(bug):
    """The same text with the mistake."""
    text = source(bug)
    assert text.count(bug.old) == 1, f"{bug.file} has changed: {bug.title} finds its place {text.count(bug.old)} times"
    return text.replace(bug.old, bug.new)


def lines(bug):
    """The numbers of the lines of the variant that are not ours."""
    before, _, _ = source(bug).partition(bug.old)
    first = before.count("\n") + 1
    return range(first, first + bug.new.count("\n"))


@contextmanager
def in_place(bug):
    """Inside, modules of this repository are imported anew, one of them with the mistake."""
    finder = Finder(bug)
    ours = forgotten()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        forgotten()
        sys.modules.update(ours)


def forgotten():
    """{name: module} of this repository's packages, which are no longer known as imported."""
    names = [name for name in sys.modules if name.split(".")[0] in PACKAGES]
    return {name: sys.modules.pop(name) for name in names}


class Finder(MetaPathFinder):
    """Finds the broken module, and leaves all others to Python."""

    def __init__(self, bug):
        self.name = bug.file.removesuffix(".py").replace("/", ".")
        self.file = str(ROOT / bug.file)
        self.text = variant(bug)

    def find_spec(self, name, path=None, target=None):
        """The module's specification, or None."""
        if name != self.name:
            return None
        return spec_from_file_location(name, self.file, loader=Loader(name, self.file, self.text))


class Loader(SourceFileLoader):
    """Loads a text in the place of what the file holds, and neither reads nor writes a compiled copy."""

    def __init__(self, name, file, text):
        super().__init__(name, file)
        self.text = text

    def get_code(self, fullname):
        """The compiled text."""
        return self.source_to_code(self.text.encode(), self.path)
