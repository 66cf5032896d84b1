"""Loading of a recipe from a name or file, its check, and its output as YAML."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from locdistill.errors import RecipeError
from locdistill.recipe.overrides import apply_overrides
from locdistill.recipe.own import import_own
from locdistill.recipe.recipe import Recipe, kind_of_detector, supervised_terms
from locdistill.recipe.yaml_io import Inline, read_yaml_file, write_yaml
from locdistill.settings import nearest, problems

_PUBLISHED = {path.stem: path for path in Path(__file__).with_name("published").glob("*/*.yaml")}
"""Files of the package's recipes, by name."""
_Model = TypeVar("_Model", bound=BaseModel)
_read_published = functools.cache(read_yaml_file)
"""Reads a recipe of the package; cached, because many share a base."""
_OWN = ("name", "description", "published")
"""Fields that are not inherited from a base recipe, because they describe a single run."""
Override = str | tuple[tuple[str, ...], Any]
"""An override: ``"a.b=value"``, or the path and the value."""


def recipe_names() -> list[str]:
    """Return the names of the package's recipes."""
    # digits are compared as numbers: r50 comes before r101
    return sorted(_PUBLISHED, key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)])


def recipe_path(name_or_path: str | Path) -> Path:
    """Return the recipe file for a recipe's name, a path to a YAML file, or a run folder.

    Raises:
        RecipeError: There is no such recipe.
    """
    text, path = str(name_or_path), Path(name_or_path)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if path.suffix in (".yaml", ".yml") or path.parent != Path():
        if path.is_file():
            return path
        raise RecipeError(f"{text}: no such recipe file; 'locdistill recipes' lists the recipes by name.")
    if text in _PUBLISHED:
        return _PUBLISHED[text]
    close = nearest(text, recipe_names())
    hint = f" Did you mean {close!r}?" if close else ""
    raise RecipeError(f"no recipe is called {text!r}.{hint} 'locdistill recipes' lists them; a file ends in .yaml.")


def load_recipe(name_or_path: str | Path, overrides: Iterable[Override] = ()) -> Recipe:
    """Load a recipe of the package, or a YAML file, and apply ``key.path=value`` overrides.

    The user's own classes in it are imported, so call this only for a recipe that the user named.

    Raises:
        RecipeError: The recipe does not exist, cannot be read, or is invalid. The message lists every problem with its
            dotted path, the expected and the actual value, and the nearest valid key.
    """
    return named_recipe(laid_over(recipe_data(name_or_path), overrides), str(name_or_path))


def named_recipe(data: dict[str, Any], where: str) -> Recipe:
    """Import the user's own classes in a recipe that the user named, and build the recipe.

    Raises:
        RecipeError: The recipe is invalid.
    """
    import_own(data, where)
    return build_recipe(data, where)


def recipe_data(name_or_path: str | Path) -> dict[str, Any]:
    """Read the plain data of a recipe, merged over its ``base`` (the name of a recipe, or a path beside the file)."""
    return copy.deepcopy(_with_bases(recipe_path(name_or_path), ()))


def _with_bases(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise RecipeError(f"{path}: 'base' is circular: {' -> '.join(p.stem for p in (*seen, path))}.")
    content = _read_published(path) if path in _PUBLISHED.values() else read_yaml_file(path)
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected a mapping with keys such as detector, data and engine, came {content!r}.")
    data = dict(content)
    base = data.pop("base", None)
    data.setdefault("name", path.stem)
    if base is None:
        return data
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base: expected the name or path of one recipe, came {base!r}.")
    beside = path.parent / base
    below = _with_bases(beside if beside.is_file() else recipe_path(base), (*seen, path))
    inherited = {key: value for key, value in below.items() if key not in _OWN}
    return laid_over(inherited, [((key,), value) for key, value in data.items()])


def laid_over(data: dict[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """Apply overrides to the plain data of a recipe.

    A recipe without terms has the published loss of its detector. Overrides of terms are then applied to that loss, so
    that an added distillation term does not replace it.

    Raises:
        RecipeError: An override cannot be applied (see :func:`locdistill.recipe.overrides.apply_overrides`).
    """
    given = list(overrides)
    others = [o for o in given if (re.split("[.=]", o)[0].strip() if isinstance(o, str) else o[0][0]) != "terms"]
    if not data.get("terms") and len(others) < len(given):
        model = kind_of_detector(apply_overrides(data, others))
        terms = supervised_terms(model) if model is not None else {}
        data = data | {"terms": {name: term.model_dump() for name, term in terms.items()}}
    return apply_overrides(data, given)


def build_recipe(data: dict[str, Any], where: str = "the recipe") -> Recipe:
    """Check plain data and build the recipe; nothing is imported.

    Raises:
        RecipeError: The data are invalid; the message lists every problem.
    """
    return validate(Recipe, data, where)


def validate(model: type[_Model], data: Any, where: str) -> _Model:
    """Build settings from plain data, with one readable error that lists all problems.

    Raises:
        RecipeError: The data are invalid.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        wrong = problems(error, model, data)
        head = f"{where}: {len(wrong)} problem{'s' if len(wrong) > 1 else ''}:"
        raise RecipeError("\n  ".join([head, *wrong])) from None


def dump_recipe(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML with every setting; loading it gives an equal recipe."""
    data = recipe.model_dump(mode="json")
    for term in data["terms"].values():
        for part in ("of", "on", "norm"):
            term[part] = Inline((name, Inline(options)) for name, options in term[part].items())
    return write_yaml(data)
