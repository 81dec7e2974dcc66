"""The package as a house: a folder is a subject, imports go one way, files and functions stay small."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sam_hf"
# From the bottom up: a folder imports from those before it only
ORDER = (
    *("errors", "compat", "tensors", "methods", "update", "arguments", "hub", "sharpness", "trainer"),
    *("plots", "metrics", "measurements", "command_line", "inputs", "reports", "recipes", "compare", "commands"),
)
FILES = sorted(PACKAGE.rglob("*.py"))


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(tree: ast.AST):
    """Every import that runs, also those inside functions."""
    for node in ast.iter_child_nodes(tree):
        if is_for_types(node):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        yield from imports(node)


def module_of(parts: tuple[str, ...]) -> Path | None:
    path = PACKAGE.joinpath(*parts)
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if parts and p.is_file()), None)


def imported(file: Path) -> set[Path]:
    """The files of the package that a file imports."""
    found = set()
    folder = file.relative_to(PACKAGE).parts[:-1]
    for node in imports(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            bases = [
                (tuple(alias.name.split("."))[1:], ()) for alias in node.names if alias.name.startswith("sam_hf.")
            ]
        elif node.level:
            base = folder[: len(folder) - node.level + 1] + tuple(
                (node.module or "").split(".") if node.module else ()
            )
            bases = [(base, (alias.name,)) for alias in node.names]
        elif (node.module or "").partition(".")[0] == "sam_hf":
            bases = [(tuple(node.module.split("."))[1:], (alias.name,)) for alias in node.names]
        else:
            continue
        for base, name in bases:
            target = module_of(base + name) or module_of(base)
            if target is not None:
                found.add(target)
    return found - {file}


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_folder_has_a_place_in_the_order():
    top = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert len(files) <= 4
    assert top | files - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file):
    if file == PACKAGE / "__init__.py":
        return
    floors = {name: floor for floor, name in enumerate(ORDER)}
    above = [str(target) for target in imported(file) if floors[room(target)] > floors[room(file)]]
    assert not above


def test_no_import_cycle():
    graph = {file: imported(file) for file in FILES}
    while leaves := [file for file, targets in graph.items() if not targets & graph.keys()]:
        for file in leaves:
            del graph[file]
    assert not [str(file) for file in graph]


def test_files_and_functions_are_small():
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 300, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = [s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{file}: {node.name}"


def test_every_kind_of_window_is_stepped_alike():
    assert not re.search(r"isinstance\([^)]*Window", "".join(file.read_text(encoding="utf-8") for file in FILES))


def test_contributing_names_every_folder():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert not [name for name in ORDER if not re.search(rf"`{name}(/|\.py)`", text)]
