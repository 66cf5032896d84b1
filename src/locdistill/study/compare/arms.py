"""Arms of a comparison: recipes to train, and folders of finished runs, grouped by recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from locdistill.distillation.load import teacher_files
from locdistill.distillation.settings import TeacherSettings
from locdistill.errors import RecipeError, RunError
from locdistill.recipe.catalogue import spelled_term
from locdistill.recipe.defaults import resolve
from locdistill.recipe.load import Override, load_recipe, named_recipe
from locdistill.recipe.overrides import apply_overrides
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import Request
from locdistill.recipe.run_folder import METRICS, RECIPE
from locdistill.study.arms import NOTHING, Arm

SEEDS = (0, 1, 2)
USE = {
    *("engine.seed", "engine.accelerator", "engine.launch", "engine.progress", "engine.profile", "engine.log_every"),
    *("engine.checkpoint_every_steps", "engine.checkpoint_every_minutes", "data.workers", "data.cache"),
    "teacher.cache",
}
"""Settings that do not distinguish recipes: the seed, and use of the machine."""
TOLD = {"name", "description", "published", "teacher.name", "teacher.where"}
"""Descriptive settings of a recipe, without effect."""
NAMES = TOLD | {"data.path", "teacher.weights"}
"""Settings in which finished runs of one recipe may differ: names and paths (contents are compared by digests)."""


def chosen_seeds(seeds: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the seeds for a number of seeds, or for a list of them.

    Raises:
        RecipeError: There is no seed, one is negative, or one occurs twice.
    """
    chosen = None if seeds is None else tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if chosen is not None and (not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen)):
        raise RecipeError(f"seeds: expected a number of at least 1, or different numbers from 0, came {seeds!r}")
    return chosen


def arms_of(given: Sequence[str | Path | Recipe], request: Request, seeds: tuple[int, ...] | None) -> tuple[Arm, ...]:
    """Return an arm per recipe, in the given order.

    Raises:
        RecipeError: There are fewer than two, or one is invalid.
        RunError: A folder holds no finished run, or two hold runs of one recipe with the same seed.
        TeacherError: A recipe needs a teacher and has none.
    """
    groups: dict[str, dict[int, Path]] = {}  # finished folders, by their recipe
    found: list[tuple[Recipe, dict[int, Path]]] = []
    for item in given:
        if isinstance(item, Recipe) or not Path(item).is_dir():
            found.append((_recipe(item, request), {}))
            continue
        recipe = finished_recipe(Path(item))
        key = json.dumps(flat(recipe, without=USE | NAMES), sort_keys=True)
        if key not in groups:
            groups[key] = {}
            found.append((recipe, groups[key]))
        twin = groups[key].setdefault(recipe.engine.seed, Path(item))
        if twin != Path(item):
            raise RunError(
                f"{twin} and {item} are runs of the same recipe with the same seed ({recipe.engine.seed}); leave out "
                "one of them"
            )
    if len(found) < 2:
        what = "runs of a single recipe" if len(given) > 1 else str(len(given))
        raise RecipeError(
            f"nothing to compare: expected at least two different recipes or run folders, came {what}; the others are "
            "compared with the first"
        )
    # names of recipes; for finished runs without the seed at the end
    names = _names(
        [(recipe.name.removesuffix(f"-{recipe.engine.seed}") if there else recipe.name) for recipe, there in found]
    )
    finished = [set(there) for _, there in found if there]
    common = tuple(sorted(set.intersection(*finished))) if finished else ()
    arms = []
    for name, (recipe, there) in zip(names, found, strict=True):
        own = seeds or tuple(sorted(there)) or common or SEEDS
        arms.append(Arm(name, name, recipe, own, {seed: folder for seed, folder in there.items() if seed in own}))
    return tuple(arms)


def _names(wanted: list[str]) -> list[str]:
    """Make names unique with numbers."""
    names: list[str] = []
    for name in wanted:
        free, number = name, 1
        while free in names:
            number += 1
            free = f"{name}-{number}"
        names.append(free)
    return names


def _recipe(item: str | Path | Recipe, request: Request) -> Recipe:
    """Resolve an item and the request to a recipe.

    Raises:
        RecipeError: The recipe is invalid, or has no data.
        TeacherError: The recipe needs a teacher and has none.
        WeightsError: The teacher's file does not exist.
    """
    if isinstance(item, Recipe):
        words: list[Override] = [*request.get("overrides", ())]
        if request.get("data") is not None:
            words.insert(0, (("data", "path"), str(request["data"])))
        plain = apply_overrides(item.model_dump(mode="json"), words) if words else None
        recipe = item if plain is None else named_recipe(plain, item.name)
    else:
        recipe = resolve({**request, "recipe": item, "teacher": None})
    if not recipe.data.path:
        raise RecipeError(f"{recipe.name}: no data set given; pass --data FOLDER, or set data.path in the recipe")
    if recipe.teacher is None or recipe.teacher.follows:
        return recipe
    if recipe.teacher.weights is None and request.get("teacher") is not None:
        recipe = recipe.model_copy(
            update={"teacher": recipe.teacher.model_copy(update={"weights": str(request["teacher"])})}
        )
    teacher_files(recipe.teacher, recipe.name)  # checked before hours of training
    return recipe


def finished_recipe(folder: Path) -> Recipe:
    """Load the resolved recipe of a finished run.

    Raises:
        RunError: The folder holds no run, or an unfinished one.
    """
    if not (folder / RECIPE).is_file():
        raise RunError(
            f"{folder} is not a run folder: it has no {RECIPE}; pass run folders, or recipes by file or name"
        )
    recipe = load_recipe(folder / RECIPE)
    try:
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    if not content.get("stopped") or content.get("last") is None:
        verb = "distill" if recipe.distils else "train"
        at = f" (it is at step {content['steps']})" if "steps" in content else ""
        raise RunError(
            f"{folder} is not finished{at}; continue it with 'locdistill {verb} --resume --out {folder}', then compare"
        )
    return recipe


def flat(recipe: Recipe, *, without: Set[str]) -> dict[str, Any]:
    """Flatten a recipe to settings by dotted key, without those in ``without``; each term is one setting."""
    found: dict[str, Any] = {}
    for part, value in recipe.model_dump(mode="json").items():
        if isinstance(value, dict) and value and part != "assigner":
            found |= {f"{part}.{key}": item for key, item in value.items()}
        else:
            found[part] = value
    return {key: value for key, value in found.items() if not {key, key.split(".")[0]} & without}


def changes(first: Arm, other: Arm) -> tuple[tuple[str, str, str], ...]:
    """List the settings in which an arm differs from the first: name, value of the first, value of the other."""
    there, here = (flat(arm.recipe(arm.seeds[0]), without=USE | TOLD) for arm in (first, other))
    usual = {f"teacher.{key}": value for key, value in TeacherSettings().model_dump(mode="json").items()}
    pairs = {key: [side.get(key, usual.get(key)) for side in (there, here)] for key in (*there, *here)}
    return tuple((key, _words(its), _words(own)) for key, (its, own) in pairs.items() if its != own)


def _words(value: Any) -> str:
    """Format a setting for display."""
    if isinstance(value, dict) and {"of", "on", "norm"} <= set(value):
        return spelled_term(value)
    return NOTHING if value is None else str(value)
