"""The tree of errors that is drawn in ``errors.py`` is the tree of the classes, wherever they are defined."""

from __future__ import annotations

import importlib
import pkgutil

import locdistill
from locdistill import errors
from locdistill.errors import LocdistillError

CAUGHT_AT_HOME = {"CannotFoldError"}
"""Not for users: a module raises them for itself."""


def _import_all() -> list[str]:
    modules = [module.name for module in pkgutil.walk_packages(locdistill.__path__, "locdistill.")]
    for name in modules:
        importlib.import_module(name)
    return modules


def _below(kind: type[BaseException]) -> list[type[BaseException]]:
    """All classes of this package under one, itself left out."""
    children = [child for child in kind.__subclasses__() if child.__module__.startswith("locdistill")]
    return [found for child in children for found in (child, *_below(child))]


def _drawn(kind: type[BaseException], order: list[str], indent: str = "") -> list[str]:
    """The lines of a tree without words, siblings in a given order."""
    children = [child for child in kind.__subclasses__() if child.__module__.startswith("locdistill")]
    children.sort(key=lambda child: order.index(child.__name__) if child.__name__ in order else len(order))
    lines = []
    for child in children:
        last = child is children[-1]
        lines.append(f"{indent}{'└── ' if last else '├── '}{child.__name__}")
        lines += _drawn(child, order, indent + ("    " if last else "│   "))
    return lines


def _written() -> dict[str, str]:
    """Lines of the tree in the docstring, up to the name of the class, and the words behind it."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if "── " in line]
    found = {}
    for line in lines:
        branch, _, rest = line.partition("── ")
        name, _, words = rest.partition(" ")
        found[f"{branch}── {name}"] = words.strip()
    return found


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    _import_all()
    written = _written()
    assert list(written) == _drawn(LocdistillError, [line.rpartition(" ")[2] for line in written])
    assert all(written.values())
    assert "\nLocdistillError\n" in (errors.__doc__ or "")


def test_what_is_defined_elsewhere_names_its_file():
    _import_all()
    words = {line.rpartition(" ")[2]: text for line, text in _written().items()}
    for kind in _below(LocdistillError):
        home = kind.__module__.removeprefix("locdistill.").replace(".", "/") + ".py"
        assert home == "errors.py" or words[kind.__name__].endswith(f"({home})"), kind


def test_every_error_of_this_package_is_in_the_tree():
    _import_all()
    ours = {kind.__name__ for kind in _below(Exception) + _below(BaseException)}
    assert ours - {kind.__name__ for kind in (LocdistillError, *_below(LocdistillError))} <= CAUGHT_AT_HOME
