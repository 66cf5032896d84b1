"""Classes of a user's own in a recipe, by dotted path: ``of: my_package.my_module.MyDivergence``.

A dotted path runs code, so it is allowed only in a recipe that the user names: a file or name, its ``base``, settings
on the command line, and the run folder that is resumed, compared, diagnosed or published. Only these call
:func:`import_own`. Weights, their metadata, checkpoints and downloads from a hub import nothing, whatever their content
and the files beside them: :func:`own_class` only looks up classes that are imported already.

A module is imported from the environment or from the working directory, which is appended to ``sys.path``.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from locdistill.assign.assignment import Assigner
from locdistill.dist import process_rank
from locdistill.errors import RecipeError
from locdistill.objective.normalisers import Normaliser
from locdistill.objective.schedules import Schedule
from locdistill.objective.term import Divergence, Region
from locdistill.settings import group, suggestion

log = logging.getLogger("locdistill")
ROLES: dict[str, type] = {
    "of": Divergence,
    "on": Region,
    "norm": Normaliser,
    "schedule": Schedule,
    "assigner": Assigner,
}
"""Base class required of a user's class, by key of the recipe."""


def own_paths(recipe: Any) -> dict[str, str]:
    """Return the dotted paths of classes in a recipe's plain data, by setting."""
    terms = group(recipe, "terms")
    specs = {f"terms.{name}.{part}": group(terms, name).get(part) for name in terms for part in ROLES}
    specs["assigner"] = recipe.get("assigner") if isinstance(recipe, dict) else None
    names = {key: next(iter(spec), None) if isinstance(spec, dict) else spec for key, spec in specs.items()}
    return {key: name for key, name in names.items() if isinstance(name, str) and "." in name}


def imports_of(recipe: Any) -> list[str]:
    """List the imported classes of a recipe's plain data, one per line, each with its file."""
    return [
        f"{key} is {path}, imported from {getattr(sys.modules.get(_split(path)[0]), '__file__', None)}"
        for key, path in own_paths(recipe).items()
    ]


def import_own(recipe: Any, where: str) -> None:
    """Import the classes that a recipe names by dotted path; log each module before its import.

    Args:
        recipe: Plain data of a recipe that the user names.
        where: Name of the recipe in errors.

    Raises:
        RecipeError: A module cannot be imported, or its name is ambiguous; all problems in one message.
    """
    wrong = []
    for key, path in own_paths(recipe).items():
        try:
            _import(path)
        except ValueError as error:
            wrong.append(f"{key}: {error}")
    if wrong:
        raise RecipeError("\n  ".join([f"{where}: {len(wrong)} problem{'s' if len(wrong) > 1 else ''}:", *wrong]))


def _import(path: str) -> None:
    """Import the module of a dotted path.

    Raises:
        ValueError: The module cannot be imported, or exists in two places.
    """
    module, _ = _split(path)
    file = _found(module.partition(".")[0])
    if module in sys.modules:
        return
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    if process_rank() == 0:
        log.warning("the recipe imports %s, from %s", path, file)
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"no module {error.name} in {here} or the environment; start from the folder that holds it, or "
                "install it"
            ) from error
        raise ValueError(f"importing {module} raised {type(error).__name__}: {error}; fix the module") from error


def _split(path: str) -> tuple[str, str]:
    """Split a dotted path into module and class.

    Raises:
        ValueError: The text is no dotted path.
    """
    if not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(f"{path!r} is not the dotted path of a class; expected one such as my_module.MyClass")
    module, _, name = path.rpartition(".")
    return module, name


def _found(top: str) -> str:
    """Describe the place from which a top-level module would be imported.

    Raises:
        ValueError: Both the working directory and the environment have a module of this name.
    """
    here = next((p for p in (Path(f"{top}.py"), Path(top, "__init__.py")) if p.is_file()), None)
    other = getattr(sys.modules.get(top), "__file__", None)
    elsewhere = [path for path in sys.path if Path(path).resolve() != Path.cwd()]
    for finder in sys.meta_path if other is None else ():
        spec: ModuleSpec | None = finder.find_spec(top, elsewhere if finder is PathFinder else None)
        if spec is not None and spec.origin is not None:
            other = spec.origin
            break
    if here is None:
        return other or f"{Path.cwd()} or the environment"
    if other is not None and (not Path(other).exists() or not here.samefile(other)):
        raise ValueError(f"two modules are called {top}: {here.resolve()} and {other}; rename yours")
    return str(here.resolve())


def own_class(kind: str, path: str, known: dict[str, type]) -> type:
    """Return the class of a dotted path; its module must be imported already.

    Args:
        kind: The key of the recipe.
        path: Module and class.
        known: The package's own classes allowed under the key, by name.

    Raises:
        ValueError: The class is not imported, or not allowed under the key.
    """
    module, name = _split(path)
    if module not in sys.modules:
        raise ValueError(
            f"{path} is a class of a user, and weights files import no code; pass the recipe or run folder that uses it"
        )
    classes = {key: value for key, value in vars(sys.modules[module]).items() if isinstance(value, type)}
    if name not in classes:
        mine = [key for key, value in classes.items() if value.__module__ == module]
        raise ValueError(f"{module} has no class {name}; {suggestion(name, mine)}")
    found, role = classes[name], ROLES[kind]
    home = f"{role.__module__}.{role.__name__}"
    roles = [other for other in ROLES.values() if other in found.__mro__]
    if role not in roles and not issubclass(found, tuple(known.values())):
        is_a = f"is a {roles[0].__name__}, not a" if roles else "does not derive from"
        raise ValueError(f"{path} {is_a} {role.__name__}; expected class {name}({role.__name__}), {home}")
    parts = [part for part in vars(role) if part == "__call__" or not part.startswith("_")]
    if missing := [part for part in parts if getattr(found, part, None) is getattr(role, part)]:
        raise ValueError(f"{path} has no {' and no '.join(missing)}; define it as {home} describes")
    if "__dataclass_params__" not in vars(found) or not vars(found)["__dataclass_params__"].frozen:
        raise ValueError(f"{path} is not a frozen dataclass; put @dataclass(frozen=True, kw_only=True) above it")
    return found


def check_plain(name: str, options: dict[str, Any]) -> None:
    """Reject options that a recipe cannot hold.

    Raises:
        ValueError: An option is no plain value.
    """
    wrong = [key for key, value in options.items() if not _plain(value)]
    if wrong:
        raise ValueError(
            f"{name}.{wrong[0]} is {options[wrong[0]]!r}; expected a number, a flag, a word, null, or a list of them"
        )


def _plain(value: Any) -> bool:
    return (
        all(map(_plain, value)) if type(value) in (list, tuple) else type(value) in (bool, int, float, str, type(None))
    )


def own_fields(component: type) -> list[dataclasses.Field[Any]]:
    """Return the fields of a dataclass that are settings."""
    return [field for field in dataclasses.fields(component) if field.init]
