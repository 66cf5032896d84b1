"""From words to what is compared: recipes to train, and folders of finished runs, grouped by recipe."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from locdistill.distillation.load import teacher_files
from locdistill.distillation.settings import TeacherSettings
from locdistill.errors import RecipeError, RunError
from locdistill.recipe.catalogue import spelled_term
from locdistill.recipe.defaults import Request, resolve
from locdistill.recipe.load import Override, load_recipe, named_recipe
from locdistill.recipe.overrides import apply_overrides
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.run_folder import METRICS, RECIPE
from locdistill.study.arms import NOTHING, Arm

SEEDS = (0, 1, 2)
USE = {
    *("engine.seed", "engine.accelerator", "engine.launch", "engine.progress", "engine.profile", "engine.log_every"),
    *("engine.checkpoint_every_steps", "engine.checkpoint_every_minutes", "data.workers", "data.cache"),
    "teacher.cache",
}
"""Settings that do not make another recipe: the seed, and how the machine is used."""
TOLD = {"name", "description", "published", "teacher.name", "teacher.where"}
"""What is said of a recipe, and changes nothing."""
NAMES = TOLD | {"data.path", "teacher.weights"}
"""What finished runs of one recipe may differ in: names, and where things lie (contents are compared by digests)."""


def chosen_seeds(seeds: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """The seeds that were asked for: so many, or these.

    Raises:
        RecipeError: That is none, or one twice.
    """
    chosen = None if seeds is None else tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if chosen is not None and (not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen)):
        raise RecipeError(f"seeds are {seeds!r}; expected a number of at least 1, or different numbers from 0")
    return chosen


def arms_of(given: Sequence[str | Path | Recipe], request: Request, seeds: tuple[int, ...] | None) -> tuple[Arm, ...]:
    """An arm per recipe, in the order in which they were named.

    Raises:
        RecipeError: There are fewer than two, or one is wrong.
        RunError: A folder holds no finished run.
        TeacherError: A recipe needs a teacher and names none.
    """
    groups: dict[str, dict[int, Path]] = {}  # finished folders, by what their recipe says
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
                f"{twin} and {item} are runs of the same recipe with the same seed ({recipe.engine.seed}); name one"
            )
    if len(found) < 2:
        what = "all of them are runs of one recipe" if len(given) > 1 else f"{len(given)} given"
        raise RecipeError(
            f"nothing to compare: expected at least two different recipes or run folders, {what}; the first is what "
            "the others are compared with"
        )
    names = _names([_name(recipe, there) for recipe, there in found])
    common = seeds or _common_seeds([there for _, there in found if there]) or SEEDS
    return tuple(
        _arm(name, recipe, there, seeds or (tuple(sorted(there)) if there else common))
        for name, (recipe, there) in zip(names, found, strict=True)
    )


def _arm(name: str, recipe: Recipe, there: dict[int, Path], seeds: tuple[int, ...]) -> Arm:
    def at(seed: int) -> Recipe:
        return recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"seed": seed})})

    return Arm(name, name, at, seeds, {seed: folder for seed, folder in there.items() if seed in seeds})


def _common_seeds(folders: list[dict[int, Path]]) -> tuple[int, ...]:
    """Seeds that every group of folders has."""
    common = set.intersection(*(set(there) for there in folders)) if folders else set()
    return tuple(sorted(common))


def _name(recipe: Recipe, there: dict[int, Path]) -> str:
    """Name of a recipe; of finished runs that end on their seed, what they have in common."""
    return recipe.name.removesuffix(f"-{recipe.engine.seed}") if there else recipe.name


def _names(wanted: list[str]) -> list[str]:
    """Names, numbered where they coincide."""
    names: list[str] = []
    for name in wanted:
        free, number = name, 1
        while free in names:
            number += 1
            free = f"{name}-{number}"
        names.append(free)
    return names


def _recipe(item: str | Path | Recipe, request: Request) -> Recipe:
    """The recipe that a word and the request stand for.

    Raises:
        RecipeError: It is wrong, or names no data.
        TeacherError: It needs a teacher and names none.
        WeightsError: The teacher's file is not there.
    """
    if isinstance(item, Recipe):
        words: list[Override] = [*request.overrides]
        if request.data is not None:
            words.insert(0, (("data", "path"), str(request.data)))
        plain = apply_overrides(item.model_dump(mode="json"), words) if words else None
        recipe = item if plain is None else named_recipe(plain, item.name)
    else:
        recipe = resolve(dataclasses.replace(request, recipe=item, teacher=None))
    if not recipe.data.path:
        raise RecipeError(f"{recipe.name}: no data are named; expected --data FOLDER, or data.path in the recipe")
    if recipe.teacher is None or recipe.teacher.follows:
        return recipe
    if recipe.teacher.weights is None and request.teacher is not None:
        recipe = recipe.model_copy(
            update={"teacher": recipe.teacher.model_copy(update={"weights": str(request.teacher)})}
        )
    teacher_files(recipe.teacher, recipe.name)  # looked for before anything is trained: hours later would be late
    return recipe


def finished_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a finished run.

    Raises:
        RunError: The folder holds no run, or one that did not reach its end.
    """
    if not (folder / RECIPE).is_file():
        raise RunError(f"{folder} holds no run: expected {RECIPE} in it; name run folders, or recipes by file or name")
    recipe = load_recipe(folder / RECIPE)
    try:
        content = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    if not content.get("stopped") or content.get("last") is None:
        verb = "distill" if recipe.distils else "train"
        at = f" (it is at step {content['steps']})" if "steps" in content else ""
        raise RunError(
            f"{folder} is not finished{at}; go on with it by 'locdistill {verb} --resume --out {folder}', then compare"
        )
    return recipe


def flat(recipe: Recipe, *, without: Set[str]) -> dict[str, Any]:
    """The settings of a recipe by dotted key, each term whole; without some of them."""

    def walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and path.count(".") + (path != "") < 2 and value and path != "assigner":
            for key, item in value.items():
                yield from walk(item, f"{path}.{key}" if path else key)
        else:
            yield path, value

    plain = recipe.model_dump(mode="json")
    return {key: value for key, value in walk(plain, "") if not {key, key.split(".")[0]} & without}


def changes(first: Arm, other: Arm) -> tuple[tuple[str, str, str], ...]:
    """Settings in which an arm differs from the first: name, value there, value here."""
    there, here = (flat(arm.recipe(arm.seeds[0]), without=USE | TOLD) for arm in (first, other))
    usual = {f"teacher.{key}": value for key, value in TeacherSettings().model_dump(mode="json").items()}
    pairs = {key: [side.get(key, usual.get(key)) for side in (there, here)] for key in (*there, *here)}
    return tuple((key, _words(its), _words(own)) for key, (its, own) in pairs.items() if its != own)


def _words(value: Any) -> str:
    """A setting for people."""
    if isinstance(value, dict) and {"of", "on", "norm"} <= set(value):
        return spelled_term(value)
    return NOTHING if value is None else str(value)
