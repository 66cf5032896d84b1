"""Changes to a recipe from the command line: ``engine.lr=0.02``, ``terms.ld.weight=2``, ``terms.kd=null``."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from locdistill.data.settings import PARTS
from locdistill.engine.settings import spelled_out
from locdistill.errors import RecipeError
from locdistill.recipe.vocabulary import ASSIGNERS, DIVERGENCES, NORMALISERS, REGIONS, SCHEDULES
from locdistill.recipe.yaml_io import read_yaml
from locdistill.settings import group, suggestion

_COMPONENTS = ("of", "on", "norm")
_OWN = (*_COMPONENTS, "schedule")
_FIRST = (("data",), ("data", "augment"), ("data", "sizes"))
"""Paths of the overrides that are applied first."""
_BUILT_IN = DIVERGENCES.keys() | REGIONS.keys() | NORMALISERS.keys() | SCHEDULES.keys() | ASSIGNERS.keys()


def parse_override(override: str | tuple[tuple[str, ...], Any]) -> tuple[tuple[str, ...], Any]:
    """Split ``a.b=value`` into the path ``("a", "b")`` and the value, which is read as YAML; keep one already split.

    Raises:
        RecipeError: There is no ``=``, the path has an empty part, or the value is no YAML.
    """
    if not isinstance(override, str):
        return override
    key, sign, value = override.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not sign or not all(path):
        raise RecipeError(
            f"{override!r} is not a setting; expected key.path=value, such as engine.lr=0.02 or terms.ld.weight=2."
        )
    return path, read_yaml(value, f"the value of {key}")


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Merge ``change`` into ``base``: groups are merged key by key, lists and values replaced; terms merge by name.

    The assigner, and ``of``, ``on`` and ``norm`` of a term, are merged only if they name the same class; a term that is
    null is removed. If ``change`` sets ``data.augment``, its parts in ``base`` are dropped; if it sets ``data.sizes``,
    so is the input size outside training, which belongs to those of ``base``. Neither argument is modified; unchanged
    parts are shared with ``base``.
    """
    merged = dict(base)
    for key, value in change.items():
        if key == "assigner":
            merged[key] = _merge_component(merged.get(key), value)
        elif key == "terms" and isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = dict(merged[key])
            for name, term in value.items():
                before = merged[key].get(name)
                if term is None:
                    merged[key].pop(name, None)
                elif isinstance(term, dict) and isinstance(before, dict):
                    merged[key][name] = before | {k: _merge_component(before.get(k), v) for k, v in term.items()}
                else:
                    merged[key][name] = copy.deepcopy(term)
        elif key == "data" and isinstance(value, dict) and "augment" in value and isinstance(merged.get(key), dict):
            merged[key] = merge({name: old for name, old in merged[key].items() if name not in PARTS}, value)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    shown = group(merged, "detector").get("input")
    if "sizes" in group(change, "data") and isinstance(shown, dict):
        anew = {"short", "long"} - group(group(change, "detector"), "input").keys()
        kept = {name: value for name, value in shown.items() if name not in anew}
        merged["detector"] = {**merged["detector"], "input": kept}
    return merged


def _merge_component(base: Any, change: Any) -> Any:
    base = {base: {}} if isinstance(base, str) else base
    if not (isinstance(base, dict) and isinstance(change, dict) and set(base) == set(change)):
        return copy.deepcopy(change)
    merged = {}
    for name, options in change.items():
        if isinstance(base[name], dict | None) and isinstance(options, dict | None):
            merged[name] = {**(base[name] or {}), **(options or {})}
        else:  # not options: rejected when the recipe is checked
            merged[name] = copy.deepcopy(options)
    return merged


def apply_overrides(data: dict[str, Any], overrides: Iterable[str | tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """Apply overrides, as text or already parsed, to the plain data of a recipe, in order.

    ``data.augment`` and ``data.sizes`` are applied first; what they drop may be set after them.

    Raises:
        RecipeError: An override cannot be parsed, its path passes through a value that is no group, or it names a term
            that the recipe does not have; all such problems in one message.
    """
    problems = []
    for override in sorted(
        overrides,
        key=lambda o: (tuple(o.partition("=")[0].strip().split(".")) if isinstance(o, str) else o[0]) not in _FIRST,
    ):
        try:
            path, value = parse_override(override)
            path = _with_own_names(path)
            engine = group(data, "engine")
            if path[:2] == ("engine", "speed") and len(path) > 2 and engine.get("speed") in ("auto", "off"):
                spelled = engine | {"speed": spelled_out(engine["speed"])}  # as a group, of which a part is set
                data = data | {"engine": spelled}
            _check_path(data, path, value)
            for key in reversed(path):
                value = {key: value}
            data = merge(data, value)
        except RecipeError as error:
            problems.append(str(error))
    if problems:
        raise RecipeError("\n".join(problems))
    return data


def _with_own_names(path: tuple[str, ...]) -> tuple[str, ...]:
    """Join the dotted name of a class to one part of the path, as in ``terms.ld.of.my_module.MyKL.power``."""
    above = 1 if path[0] == "assigner" else 3 if path[0] == "terms" and path[2:3] and path[2] in _OWN else len(path)
    if len(path) - above < 3 or path[above] in _BUILT_IN:
        return path
    return (*path[:above], ".".join(path[above:-1]), path[-1])


def _check_path(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    terms = data.get("terms")
    if path[0] == "terms" and len(path) > 1 and isinstance(terms, dict) and path[1] not in terms:
        whole = len(path) == 2 and isinstance(value, dict)
        if not whole:
            raise RecipeError(
                f"terms.{path[1]}: the recipe has no such term; {suggestion(path[1], terms)}. "
                f"Define a new term as a whole: 'terms.{path[1]}={{of: edge_kl, on: positives, weight: 1}}'"
            )
    here: Any = data
    for depth, key in enumerate(path[:-1]):
        here = here.get(key)
        component = (path[0] == "terms" and depth == 2 and key in _COMPONENTS) or (key == "assigner" and depth == 0)
        if here is None or (component and isinstance(here, str)):
            return
        if not isinstance(here, dict):
            at = ".".join(path[: depth + 1])
            raise RecipeError(f"{'.'.join(path)}: {at} is the value {here!r}, not a group with keys")
