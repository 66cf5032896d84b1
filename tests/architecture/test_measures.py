"""The house stays readable: short functions, not too many of them, one name for one thing, rooms of a size."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

from tests.architecture.test_floors import FILES, FLOOR_OF, PACKAGE

LONG = 45
"""Lines that nine functions out of ten do not exceed."""
FUNCTIONS = 45
"""In 1 000 lines, at most, methods and properties counted."""
ROOM = 4500
"""Lines of a package."""
SAME = {
    "settings": "each room's own",
    "regions": "without a teacher, with one, and drawn",
    "open": "data sets, and caches",
    "load": "teachers, and recipes",
    "pictures": "of one run, and of several",
}
"""Modules of neighbouring floors that share a name, and why they may."""


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _lines(paths: list[Path]) -> int:
    return sum(len(path.read_text().splitlines()) for path in paths)


def _functions() -> list[int]:
    """Length of each function, in lines."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for path in FILES for node in ast.walk(_tree(path)) if isinstance(node, kinds)]
    return sorted((node.end_lineno or 0) - node.lineno + 1 for node in found)


def _named(path: Path) -> set[str]:
    """Names of the classes and of the type aliases that a module defines."""
    body = _tree(path).body
    assigned = [(node.targets[0], node.value) for node in body if isinstance(node, ast.Assign)]
    assigned += [(node.target, node.value) for node in body if isinstance(node, ast.AnnAssign) and node.value]
    aliases = {target.id for target, _ in assigned if isinstance(target, ast.Name)}
    classes = {node.name for node in body if isinstance(node, ast.ClassDef)}
    return classes | {name for name in aliases if re.fullmatch(r"_?[A-Z]\w*[a-z]\w*", name)}


def test_functions_are_short() -> None:
    lengths = _functions()
    assert lengths[int(0.9 * len(lengths))] <= LONG


def test_there_is_more_text_than_jumps() -> None:
    assert 1000 * len(_functions()) / _lines(FILES) <= FUNCTIONS


def test_a_class_or_alias_has_a_name_of_its_own() -> None:
    homes = defaultdict(list)
    for path in FILES:
        for name in _named(path):
            homes[name].append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_neighbouring_floors_have_modules_of_different_names() -> None:
    """The command line is left out: its files are called as the verbs are, and so are what these call."""
    floors = defaultdict(set)
    for path in FILES:
        room = path.relative_to(PACKAGE).parts[0]
        if room in FLOOR_OF and room != "cli" and path.stem != "__init__":
            floors[path.stem].add(FLOOR_OF[room])
    twice = {name for name, found in floors.items() if any(floor + 1 in found for floor in found)}
    assert twice == set(SAME)


def test_no_package_is_a_house_of_its_own() -> None:
    for room in FLOOR_OF:
        assert _lines(sorted((PACKAGE / room).rglob("*.py"))) <= ROOM, room
