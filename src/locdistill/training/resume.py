"""Resuming a run: what of it may change, and what must not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from locdistill.engine.settings import SpeedSettings
from locdistill.engine.signals import requeued
from locdistill.errors import RecipeError, RunError
from locdistill.recipe.defaults import Request, override_of, parsed_override, request_words, resolve
from locdistill.recipe.load import Override, build_recipe, named_recipe, recipe_data
from locdistill.recipe.overrides import apply_overrides
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.run_folder import RECIPE, saved_recipe

_MAY_CHANGE = {
    *("data.path", "data.workers", "data.cache", "teacher.weights", "teacher.more.weights", "teacher.cache.path"),
    *("engine.accelerator", "engine.launch", "engine.progress", "engine.profile"),
    *(f"engine.speed.{part}" for part in SpeedSettings.model_fields),
    *("engine.checkpoint_every_steps", "engine.checkpoint_every_minutes"),
}
"""What may differ when a run is resumed: where things lie and how the machine is used, nothing of the mathematics."""

_CHOSEN = {
    *("detector.classes", "detector.mean", "detector.std", "data.classes"),
    *("teacher.sha256", "teacher.more.sha256", "engine.precision"),
}
"""What a run fills in when it begins, and keeps, where its recipe leaves it open."""

_UNSET: tuple[Any, ...] = (None, [], "auto")


def recipe_for(request: Request, out: str | Path | None, *, resume: bool) -> Recipe:
    """The recipe that is run for a request: a new one, or that of the run in ``out``, which goes on.

    A job that SLURM has started again goes on with its run unasked.

    Raises:
        LocdistillError: One of its kinds, as `resolve` and `resumed_recipe`.
    """
    return resumed_recipe(request, out) if goes_on(out, resume=resume) else resolve(request)


def goes_on(out: str | Path | None, *, resume: bool) -> bool:
    """Whether the run in ``out`` is to go on: it is asked for, or SLURM has started its job again."""
    return resume or (requeued() and out is not None and (Path(out) / RECIPE).is_file())


def resumed_recipe(request: Request, out: str | Path | None) -> Recipe:
    """The saved recipe of a run, with those of the request's settings that may change within a run.

    Giving the same words again, with ``--resume`` behind them, is fine.

    Raises:
        RunError: There is no run, or the request asks for something else than what the run began with.
    """
    saved = saved_recipe(out)
    name = override_of(request, "name") or (recipe_data(request.recipe)["name"] if request.recipe is not None else None)
    if name not in (None, saved.name):
        raise RunError(f"{out} is a run of the recipe {saved.name}, not of {name}; leave --recipe out to resume it")
    plain = saved.model_dump(mode="json")
    asked = apply_overrides(plain, [*_words_again(request, plain), *_overrides_again(request, plain)])
    try:
        now = named_recipe(asked, f"{out}/recipe.yaml").model_dump(mode="json")
    except RecipeError:
        _check_same(out, _differences(plain, asked))
        raise
    differences = _differences(plain, now)
    _check_same(out, differences)
    for path, _, value in differences:
        if _setting(path) not in _CHOSEN:
            _put(plain, path, value)
    return build_recipe(plain, f"{out}/recipe.yaml")


def _words_again(request: Request, plain: dict[str, Any]) -> list[Override]:
    """A request's own words, to be laid over the recipe of a run; its milestones are where they belong."""
    words = request_words(replace(request, epochs=None), plain)
    return words if request.epochs is None else [(("engine", "epochs"), request.epochs), *words]


def _overrides_again(request: Request, plain: dict[str, Any]) -> list[Override]:
    """A request's overrides, without those of terms that the last of them takes out and the run does not have."""
    parsed = [parsed_override(override) for override in request.overrides]
    gone = {path[1] for path, _ in parsed if path[0] == "terms" and len(path) > 1 and path[1] not in plain["terms"]}
    gone = {name for name in gone if [value for path, value in parsed if path == ("terms", name)][-1:] == [None]}
    return [(path, value) for path, value in parsed if not (path[0] == "terms" and path[1:2] and path[1] in gone)]


def _check_same(out: str | Path | None, differences: list[_Difference]) -> None:
    """Refuse to resume a run with settings that may not change.

    Raises:
        RunError: There are some.
    """
    changed = [
        f"{_setting(path)}: {before!r} in the run, {after!r} asked for"
        for path, before, after in differences
        if _setting(path) not in _MAY_CHANGE and not (_setting(path) in _CHOSEN and after in _UNSET)
    ]
    if changed:
        listed = "\n  ".join(changed)
        raise RunError(f"{out} is resumed as it began; leave these settings out, or start a new run:\n  {listed}")


_Path = tuple[str | int, ...]

_Difference = tuple[_Path, Any, Any]


def _differences(before: Any, after: Any, path: _Path = ()) -> list[_Difference]:
    """Where plain data differ, with both values; lists of groups are compared group by group."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys((*before, *after))
        return [d for key in keys for d in _differences(before.get(key), after.get(key), (*path, key))]
    if _groups(before) and _groups(after) and len(before) == len(after):
        return [d for i in range(len(before)) for d in _differences(before[i], after[i], (*path, i))]
    return [] if before == after else [(path, before, after)]


def _groups(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _setting(path: _Path) -> str:
    """The name of a setting, whichever member of a list it is of."""
    return ".".join(part for part in path if isinstance(part, str))


def _put(data: Any, path: _Path, value: Any) -> None:
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = value
