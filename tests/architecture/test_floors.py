"""The house stands: imports only go down, and the files of a floor's rooms do not go round in circles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "locdistill"
FLOORS = (
    ("errors",),
    ("types", "settings", "dist", "files"),
    ("geometry", "images"),
    ("assign", "losses", "interop", "viz"),
    ("annotations",),
    ("data", "models", "objective"),
    ("distillation", "evaluation", "engine"),
    ("recipe",),
    ("inference",),
    ("export",),
    ("training", "publishing"),
    ("study", "monitor"),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path) for path in FILES}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            # A name that is a module of its own is what is imported; any other comes from the module before it.
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in MODULES else node.module)
    return {name for name in names if name.startswith("locdistill.")}


def test_every_room_has_a_floor():
    assert {_module(path).split(".")[1] for path in FILES} == set(FLOOR_OF)


@pytest.mark.parametrize("path", FILES, ids=[_module(p) for p in FILES])
def test_imports_only_go_down(path: Path):
    room = _module(path).split(".")[1]
    for name in _imports(path):
        other = name.split(".")[1]
        if other != room and other in FLOOR_OF:
            assert FLOOR_OF[other] < FLOOR_OF[room], f"{_module(path)} imports {name}, which is not on a lower floor"


def test_no_import_cycles():
    modules = {_module(path): path for path in FILES}
    edges = {name: {m for m in _imports(path) if m in modules and m != name} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(modules):
        visit(name, ())


def test_no_dead_or_copyleft_library_is_imported():
    dead = {"mmcv", "mmdet", "mmengine", "albumentations", "fvcore", "thop", "ultralytics"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not dead & {name.split(".")[0] for name in names}, path
