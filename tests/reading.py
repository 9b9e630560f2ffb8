"""How the code reads, in figures: python tests/reading.py prints them; test_reading.py holds the limits.

Code lines are neither blank, comment nor docstring; density is AST nodes per code line.
"""

import ast
import sys
from dataclasses import fields

from paths import ROOT

sys.path.insert(0, str(ROOT))
PATH = [ROOT / name for name in (
    "pruning/base.py",
    "pruning/ranked.py",
    "pruning/fastv.py",
    "minivlm/attention.py",
    "minivlm/llama.py",
    "minivlm/clip.py",
    "minivlm/llava.py",
)]
METHOD_FILES = sorted((ROOT / "pruning").rglob("*.py"))


def code_lines(text, tree):
    """The numbers of the lines that hold code."""
    documentation = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documentation.update(range(node.lineno, node.end_lineno + 1))
    numbered = enumerate(text.splitlines(), 1)
    return [i for i, line in numbered if line.strip() and not line.strip().startswith("#") and i not in documentation]


def is_table(node):
    """Whether a statement is NAME = (..) or {..}, a table with a line per row."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, (ast.Dict, ast.Tuple, ast.List)):
        return False
    is_constant = all(isinstance(target, ast.Name) and target.id.isupper() for target in node.targets)
    return is_constant and node.end_lineno > node.lineno


def figures(file):
    """{name: number} of one file."""
    text = file.read_text()
    tree = ast.parse(text)
    code = code_lines(text, tree)
    statements = [sum(1 for _ in ast.walk(node)) for node in ast.walk(tree)
                  if isinstance(node, ast.stmt) and not hasattr(node, "body") and not is_table(node)]
    return dict(lines=text.count("\n"), density=sum(1 for _ in ast.walk(tree)) / max(1, len(code)),
                longest_statement=max(statements, default=0),
                wide_lines=sum(len(line) > 120 for line in text.splitlines()))


def options():
    """{name: number of options} of every method and reading."""
    from pruning import METHODS, READINGS
    return {name: len(fields(method)) for name, method in {**METHODS, **READINGS}.items()}


def main():
    """Print a row per file, and the sums."""
    for file in dict.fromkeys([*PATH, *METHOD_FILES]):
        row = figures(file)
        print(f"{str(file.relative_to(ROOT)):28} {row['lines']:4} lines  {row['density']:5.1f} nodes per code line  "
              f"longest statement {row['longest_statement']:3}  {row['wide_lines']} lines above 120")
    counts = options()
    print(f"reading path: {len(PATH)} files, {sum(figures(file)['lines'] for file in PATH)} lines")
    most = max(counts, key=counts.get)
    print(f"options: mean {sum(counts.values()) / len(counts):.1f}, most {counts[most]} ({most})")


if __name__ == "__main__":
    main()
