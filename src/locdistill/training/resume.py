"""Resumption of a run: settings that may change, and settings that must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from locdistill.engine.settings import SpeedSettings
from locdistill.engine.signals import requeued
from locdistill.errors import RecipeError, RunError
from locdistill.recipe.defaults import request_words
from locdistill.recipe.load import Override, build_recipe, named_recipe, recipe_data
from locdistill.recipe.overrides import apply_overrides, parse_override
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import Request, override_of
from locdistill.recipe.run_folder import RECIPE, saved_recipe

_MAY_CHANGE = {
    *("data.path", "data.workers", "data.cache", "teacher.weights", "teacher.more.weights", "teacher.cache.path"),
    *("engine.accelerator", "engine.launch", "engine.progress", "engine.profile"),
    *(f"engine.speed.{part}" for part in SpeedSettings.model_fields),
    *("engine.checkpoint_every_steps", "engine.checkpoint_every_minutes", "engine.save_every"),
}
"""Settings that may change on resumption: paths and use of the machine, nothing that affects the mathematics."""

_CHOSEN = {
    *("detector.classes", "detector.mean", "detector.std", "data.classes"),
    *("teacher.sha256", "teacher.more.sha256", "engine.precision"),
}
"""Settings that a run fills in at its start, if the recipe leaves them open, and then keeps."""

_UNSET: tuple[Any, ...] = (None, [], "auto")


def goes_on(out: str | Path | None, *, resume: bool) -> bool:
    """Return whether to resume the run in ``out``: on request, or because SLURM has requeued its job."""
    return resume or (requeued() and out is not None and (Path(out) / RECIPE).is_file())


def resumed_recipe(request: Request, out: str | Path | None) -> Recipe:
    """Return the saved recipe of a run, updated with the request's settings that may change within a run.

    A request may repeat the settings of the original command.

    Raises:
        RunError: There is no run, or the request differs from the run in a setting that must not change.
    """
    saved = saved_recipe(out)
    named = request.get("recipe")
    name = override_of(request, "name") or (recipe_data(named)["name"] if named is not None else None)
    if name not in (None, saved.name):
        raise RunError(f"{out} is a run of the recipe {saved.name}, not of {name}; leave out --recipe to resume it")
    plain = saved.model_dump(mode="json")
    words: list[Override] = request_words({**request, "epochs": None}, plain)
    if (epochs := request.get("epochs")) is not None:  # the milestones in the saved recipe already match
        words.insert(0, (("engine", "epochs"), epochs))
    # overrides, without those of terms that the last override removes and the run does not have
    parsed = [parse_override(override) for override in request.get("overrides", ())]
    gone = {path[1] for path, _ in parsed if path[0] == "terms" and len(path) > 1 and path[1] not in plain["terms"]}
    gone = {name for name in gone if [value for path, value in parsed if path == ("terms", name)][-1:] == [None]}
    words += [(path, value) for path, value in parsed if not (path[0] == "terms" and path[1:2] and path[1] in gone)]
    asked = apply_overrides(plain, words)
    try:
        now = named_recipe(asked, f"{out}/recipe.yaml").model_dump(mode="json")
    except RecipeError:
        _check_same(out, _differences(plain, asked))
        raise
    differences = _differences(plain, now)
    _check_same(out, differences)
    for path, _, value in differences:
        if _setting(path) not in _CHOSEN:
            data: Any = plain
            for part in path[:-1]:
                data = data[part]
            data[path[-1]] = value
    return build_recipe(plain, f"{out}/recipe.yaml")


def _check_same(out: str | Path | None, differences: list[_Difference]) -> None:
    """Check that only settings differ that may change on resumption.

    Raises:
        RunError: Another setting differs.
    """
    changed = [
        f"{_setting(path)}: {before!r} in the run, {after!r} requested"
        for path, before, after in differences
        if _setting(path) not in _MAY_CHANGE and not (_setting(path) in _CHOSEN and after in _UNSET)
    ]
    if changed:
        listed = "\n  ".join(changed)
        raise RunError(
            f"{out}: these settings cannot change in a resumed run; leave them out, or start a new run:\n  {listed}"
        )


_Path = tuple[str | int, ...]

_Difference = tuple[_Path, Any, Any]


def _differences(before: Any, after: Any, path: _Path = ()) -> list[_Difference]:
    """List the paths at which plain data differ, with both values; lists of groups are compared group by group."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys((*before, *after))
        return [d for key in keys for d in _differences(before.get(key), after.get(key), (*path, key))]
    lists = all(isinstance(one, list) and all(isinstance(item, dict) for item in one) for one in (before, after))
    if lists and len(before) == len(after):
        return [d for i in range(len(before)) for d in _differences(before[i], after[i], (*path, i))]
    return [] if before == after else [(path, before, after)]


def _setting(path: _Path) -> str:
    """Return the dotted name of a setting, without list indices."""
    return ".".join(part for part in path if isinstance(part, str))
