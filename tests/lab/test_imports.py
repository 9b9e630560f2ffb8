"""Who may import whom: the walls between the rooms, read from the source."""

import ast

import pytest

from reading import ROOT

# Each room of the lab may import those before it.
LAB = ["named", "cli", "lineup", "draw", "cost", "check", "tasks", "score", "attention", "speed", "page", "compare",
       "own", "train", "studies", "claims"]
BELOW_LAB = {"pruning/", "network", "minivlm/io/", "minivlm/families/", "minivlm/toy/", "weights.py"}
# A room, and the rooms that its files may import. A file belongs to the first room that its path begins with.
ROOMS = {
    "pruning/": set(),
    "minivlm/__init__.py": set(),
    "minivlm/api.py": BELOW_LAB | {"minivlm/lab/cli/", "minivlm/lab/draw/"},
    "minivlm/io/": {"pruning/", "network"},
    "minivlm/families/": {"pruning/", "network", "minivlm/io/"},
    "minivlm/toy/": {"pruning/", "network", "minivlm/io/"},
    **{
        f"minivlm/lab/{room}/": BELOW_LAB | {f"minivlm/lab/{lower}/" for lower in LAB[:height]}
        for height, room in enumerate(LAB)
    },
    "minivlm/lab/": set(),
    "minivlm/course/": BELOW_LAB | {f"minivlm/lab/{room}/" for room in LAB},
    "minivlm/": {"pruning/"},  # the network: what lies in minivlm itself, and parts/
    "weights.py": {"pruning/", "network", "minivlm/io/", "minivlm/families/"},
    "run.py": {"minivlm/lab/cli/"},  # a command's module is imported by its name in the table
}
FILES = [
    ROOT / "weights.py",
    ROOT / "run.py",
    *sorted((ROOT / "pruning").rglob("*.py")),
    *sorted((ROOT / "minivlm").rglob("*.py")),
]


def path_of(file):
    """The file's path inside the repository."""
    return file.relative_to(ROOT).as_posix()


def room_of(path):
    """The room that a file lies in."""
    room = next(room for room in ROOMS if path.startswith(room))
    return "network" if room == "minivlm/" else room


def module_file(name):
    """The path of the file of a module in this repository; None of a library's."""
    path = name.replace(".", "/")
    for file in (f"{path}.py", f"{path}/__init__.py"):
        if (ROOT / file).is_file() and room_exists(file):
            return file
    return None


def room_exists(path):
    return any(path.startswith(room) for room in ROOMS)


def imports(file, nodes=None):
    """(path of the file that is imported, the name that is imported from it or None) of each import."""
    for node in nodes or ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield module_file(alias.name), None
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = module_file(f"{node.module}.{alias.name}")         # from minivlm import kernels
                yield whole or module_file(node.module), None if whole else alias.name


@pytest.mark.parametrize("file", FILES, ids=path_of)
def test_imports_run_one_way(file):
    """Methods know of no model, the network of no file format, family or tool, and no private name is imported."""
    path = path_of(file)
    room = room_of(path)
    allowed = ROOMS["minivlm/" if room == "network" else room] | {room}
    for imported, name in imports(file):
        if imported is None:
            continue
        assert room_of(imported) in allowed, f"{path} imports {imported}"
        assert not (name or "").startswith("_"), f"{path} imports {name} of {imported}"


def test_no_circle():
    """Each file can be imported first: none needs itself on the way."""
    needs = {path_of(file): {imported for imported, _ in imports(file, ast.parse(file.read_text()).body) if imported}
             for file in FILES}
    done = set()

    def visit(path, way):
        assert path not in way, " -> ".join([*way, path])
        if path not in done:
            for imported in needs[path]:
                visit(imported, [*way, path])
            done.add(path)

    for path in needs:
        visit(path, [])
