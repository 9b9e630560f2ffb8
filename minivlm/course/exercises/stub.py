"""Stubs, made from this repository's own files: named functions lose their bodies, and all else stays as it is.

So a stub cannot drift from the source. The tree, a copy of the repository for the student's process, is made alike.
"""

import ast
import shutil
from pathlib import Path

from minivlm.course.exercises.problem import ROOT

MARK = "# minivlm exercise "           # begins the first line of a stub, before the problem's name
STUB = "see python run.py exercise"    # in what an empty function raises; torch raises NotImplementedError, too
COPIED = ("pruning", "minivlm")
LEFT_OUT = (ROOT / "minivlm" / "lab", ROOT / "minivlm" / "course")     # they hold solutions; no method needs them


def stub(problem, problems):
    """The text of the file in which a student writes. The functions of later exercises in the same file are empty, too.
    """
    *others, last = problem.regions
    names = f"{', '.join(others)} and {last}" if others else last
    head = f"{MARK}{problem.name}: write {names}. What must hold: python run.py exercise {problem.name}\n"
    return head + blanked(problem, problems)


def problem_name(text):
    """The exercise that the first lines of a file name; "" if they name none."""
    for line in text.splitlines()[:5]:
        if line.startswith(MARK):
            return line.removeprefix(MARK).partition(":")[0].strip()
    return ""


def blanked(problem, problems):
    """The source without the bodies of this exercise, and of later ones in the same file."""
    text = problem.file.read_text(encoding="utf-8")
    names = list(problems)
    later = [problems[name] for name in names[names.index(problem.name):]]
    bodies = {}
    for other in later:
        if other.file != problem.file:
            continue
        says = "write it" if other is problem else "another exercise"
        for region in other.regions:
            message = f"{region}: {says}, {STUB} {other.name}"
            bodies[region] = f'{indent_of(text, region)}raise NotImplementedError("{message}")\n'
    return with_bodies(text, bodies)


def with_bodies(text, bodies):
    """The source with other bodies of some functions. {name: its lines}"""
    lines = text.splitlines(keepends=True)
    tree = ast.parse(text)
    places = {name: place(lines, tree, name) for name in bodies}
    for name in sorted(places, key=places.get, reverse=True):          # the last first: the others stay where they are
        first, last = places[name]
        lines[first:last] = [bodies[name]]
    return "".join(lines)


def indent_of(text, name):
    """The spaces before the body of a function."""
    body = body_of(text, name)
    return body[:len(body) - len(body.lstrip())]


def body_of(text, name):
    """The body of a function, as text: its lines after the docstring."""
    lines = text.splitlines(keepends=True)
    first, last = place(lines, ast.parse(text), name)
    return "".join(lines[first:last])


def place(lines, tree, name):
    """(first, last): a function's body is lines[first:last], without its docstring, with the comments before it."""
    function = tree
    for part in name.split("."):
        function = next(node for node in function.body if getattr(node, "name", None) == part)
    statements = function.body
    if ast.get_docstring(function) is not None:
        statements = statements[1:]
    first = statements[0].lineno - 1
    while lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return first, function.end_lineno


def write_tree(folder, problem, problems):
    """Copy what the student's process may import, without the solution."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    shutil.copy(ROOT / "weights.py", folder)
    copy = folder / problem.file.relative_to(ROOT)
    if copy.exists():                  # not a file that is only for an exercise
        copy.write_text(blanked(problem, problems), encoding="utf-8")


def left_out(parent, names):
    """Which of the names in a folder are not copied: LEFT_OUT, and all that is no Python."""
    skipped = []
    for name in names:
        path = Path(parent) / name
        is_python = path.is_dir() or path.suffix == ".py"
        is_left_out = path in LEFT_OUT or name == "__pycache__"
        if is_left_out or not is_python:
            skipped.append(name)
    return skipped
