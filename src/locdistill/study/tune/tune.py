"""``tune``: resumable search of a recipe's settings by short runs.

Every trial is an ordinary run, with the same seeds as all others. A share of the training images is held out for its
evaluation, so that the validation images stay unseen. The student alone and the recipe as it is are trained in the same
way, as baselines of the search. The highest AP of many trials is biased upwards; use ``compare`` with the recipes
written here for an unbiased result, on the validation images and at full length.

The folder of a search holds ``study.json`` (the request, and the values of each trial), a folder for each run,
``tune.json``, ``tune.csv``, ``tune.png``, and the recipes ``alone.yaml``, ``as_is.yaml`` and ``best.yaml``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from locdistill.data.digest import data_digest
from locdistill.data.open import open_dataset
from locdistill.distillation.load import teacher_files
from locdistill.errors import NonFiniteLossError, RecipeError, RunError
from locdistill.files import make_folder, write_text
from locdistill.recipe.defaults import resolve
from locdistill.recipe.load import build_recipe, dump_recipe
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import DistillWords, Request, takes
from locdistill.recipe.run_folder import PARENT
from locdistill.study.arms import Arm, train_arms, without_teacher
from locdistill.study.compare.arms import USE, chosen_seeds, flat
from locdistill.study.tune.result import ALONE, AS_IS, BEST, LABELS, Trial, TuneResult, best_of, describe
from locdistill.study.tune.sampler import propose, sampler
from locdistill.study.tune.space import Searched, check_space, default_space, own_values, parse_search, with_values
from locdistill.training.separately import Train, run_apart
from locdistill.types import Tell

SHARE = 0.25
"""Default length of a trial, as a share of the recipe's length."""


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """A checked plan of a search.

    Attributes:
        recipe: Recipe at full length.
        short: Recipe at the length of a trial.
        space: Searched settings.
        trials: Number of trials, in addition to the student alone and the recipe as it is.
        seeds: Seeds of every trial.
        judged_on: Description of the evaluation images.
        images: Digest of the evaluation images.
        out: Folder of the search.
    """

    recipe: Recipe
    short: Recipe
    space: tuple[Searched, ...]
    trials: int
    seeds: tuple[int, ...]
    judged_on: str
    images: str
    out: Path


@takes(DistillWords)
def tune(  # noqa: PLR0913 - beside the words, where and how long
    teacher: str | Path | None = None,
    data: str | Path | None = None,
    *,
    search: Sequence[str] = (),
    trials: int = 20,
    seeds: int | Sequence[int] = 1,
    steps: int | None = None,
    holdout: float = 0.2,
    out: str | Path | None = None,
    tell: Tell = print,
    **words: Unpack[DistillWords],
) -> TuneResult:
    """Search settings of a recipe by short runs, and write tables, a picture and the recipe with the best values.

    Finished runs in ``out`` are not trained again and interrupted ones are resumed: run the same command again. Trials
    and seeds can be added later. ``epochs`` is the length of a trial, by default a quarter of the recipe's; milestones
    and warm-up are scaled in proportion.

    Args:
        teacher: As for :func:`locdistill.distill`.
        data: Folder of the data set.
        search: Searched settings, ``"KEY=LOW..HIGH"``, ``"KEY=LOW..HIGH:log"`` or ``"KEY=A|B"`` (see
            :mod:`locdistill.study.tune.space`). Default: temperatures, weights and regions of the distillation.
        trials: Number of trials, in addition to the student alone and the recipe as it is.
        seeds: Number of seeds (0, 1, ...), or a list of them, for each trial.
        steps: Optimiser steps of a trial, in place of epochs.
        holdout: Share of the training images held out to evaluate the trials; 0 evaluates them on the validation
            images, whose AP is then no longer unbiased.
        out: Folder of the search. Default: ``runs/tune-<name>``.
        tell: Callback for progress messages.
        words: See :class:`Request`.

    Raises:
        LocdistillError: Recipe, search, data, weights or folder are invalid; a subclass for each cause, a
            :class:`RunError` if optuna is missing.
    """
    sampler()  # raises now, not after hours
    epochs = words.pop("epochs", None)
    request = Request(teacher=teacher, data=data, **words)
    full = resolve(request)
    if not full.data.path:
        raise RecipeError(f"{full.name}: no data set given; pass --data FOLDER, or set data.path in the recipe")
    teacher_files(full.teacher, full.name)  # checked before any training
    space = tuple(parse_search(text, full) for text in search) or default_space(full)
    check_space(space, full)
    held = full.model_copy(update={"data": full.data.model_copy(update={"holdout": holdout})})
    held = build_recipe(held.model_dump(mode="json"), "the settings")  # raises for an invalid share
    training = open_dataset(held.data, "train", boxes=full.detector)
    settings = held.data.model_copy(update={"classes": full.detector.classes or full.data.classes or training.classes})
    judging = open_dataset(settings, "val", boxes=full.detector)
    judged_on = f"the {len(judging)} validation images of {judging.name}, which are no longer unseen"
    if held.data.holdout:
        judged_on = f"{len(judging)} held-out training images of {training.name}; {len(training)} are trained on"
    plan = SearchPlan(
        recipe=full,
        short=shortened(held, len(training), epochs=epochs, steps=steps),
        space=space,
        trials=trials,
        seeds=chosen_seeds(seeds) or (0,),
        judged_on=judged_on,
        images=data_digest(judging),
        out=Path(out) if out is not None else PARENT / f"tune-{full.name}",
    )
    return run_plan(plan, train=run_apart, tell=tell)


def shortened(recipe: Recipe, images: int, *, epochs: int | None = None, steps: int | None = None) -> Recipe:
    """Return the recipe at another length, with evaluation at its end, and milestones and warm-up in proportion.

    Args:
        recipe: Recipe at full length.
        images: Number of training images. Used for conversion between epochs and steps, which assumes one process.
        epochs: Passes over the data. Default, if ``steps`` is not given either: a quarter of the recipe's length.
        steps: Optimiser steps.

    Raises:
        RecipeError: Both lengths are given, or the length is invalid.
    """
    engine, data = recipe.engine, recipe.data
    if epochs is not None and steps is not None:
        raise RecipeError(f"both {epochs} epochs and {steps} steps are given as the length of a trial; leave out one")
    if epochs is None and steps is None:
        if engine.steps is None:
            epochs = max(1, round(SHARE * engine.epochs))
        else:
            steps = max(1, round(SHARE * engine.steps))
    per_epoch = math.ceil(images * data.repeat / data.batch_per_device) / engine.accumulate
    before = engine.steps or engine.epochs * per_epoch
    share = (steps or (epochs or 0) * per_epoch) / before
    milestones = [m if m < 1 else m * per_epoch / before for m in engine.milestones]
    changes = {
        **({"epochs": epochs, "steps": None} if steps is None else {"steps": steps}),
        "milestones": [m for m in milestones if m < 1],
        "warmup_steps": round(share * engine.warmup_steps),
        "eval_every": 0,
        "patience": None,
    }
    plain = recipe.model_dump(mode="json")
    return build_recipe(plain | {"engine": plain["engine"] | changes}, "the settings of a trial")


def run_plan(plan: SearchPlan, *, train: Train, tell: Tell = print) -> TuneResult:
    """Train missing runs, and write the results.

    Args:
        plan: Plan of the search.
        train: Function that trains a recipe into a folder.
        tell: Callback for progress messages.

    Raises:
        RunError: The folder holds another search, or no trial could be trained.
    """
    study = _Study(plan, train, tell)
    tell(f"searching {', '.join(map(str, plan.space))}; AP is that on {plan.judged_on}")
    alone = study.attempt(ALONE, without_teacher(plan.short), {}) if plan.short.distils else None
    own = own_values(plan.short, plan.space)
    as_is = study.attempt(AS_IS, plan.short, own or {})
    trials: list[Trial] = []
    shown = as_is
    for number in range(1, plan.trials + 1):
        trials.append(study.trial(number, [as_is, *trials]))
        if trials[-1].ap > shown.ap or (trials[-1].runs and not shown.runs):
            shown = trials[-1]
            tell(f"best so far: {shown.label}, AP {shown.ap:.1f} ({describe(plan.space, shown.values)})")
    best = best_of([as_is, *trials])
    tuned = plan.recipe if best is as_is else with_values(plan.recipe, plan.space, best.values)
    result = TuneResult(
        recipe=tuned,
        space=plan.space,
        alone=alone,
        as_is=as_is,
        trials=tuple(trials),
        judged_on=plan.judged_on,
        held_out=bool(plan.short.data.holdout),
        out=plan.out,
    )
    recipes = {AS_IS: plan.recipe, BEST: result.recipe.model_copy(update={"name": f"{plan.recipe.name}-tuned"})}
    if plan.recipe.distils:
        recipes[ALONE] = without_teacher(plan.recipe)
    for name, recipe in recipes.items():
        write_text(plan.out / f"{name}.yaml", dump_recipe(recipe))
    write_text(plan.out / "tune.json", json.dumps(result.as_dict(), indent=1) + "\n")
    write_text(plan.out / "tune.csv", result.as_csv())
    result.draw(plan.out / "tune.png")
    return result


class _Study:
    """The folder of a search; the values of a trial are saved before its training.

    Raises:
        RunError: The folder holds another search.
    """

    def __init__(self, plan: SearchPlan, train: Train, tell: Tell) -> None:
        self.plan, self.train, self.tell = plan, train, tell
        self.stamp = plan.out / "study.json"
        asked: dict[str, Any] = flat(plan.short, without=USE) | {
            "full length": plan.recipe.engine.model_dump(mode="json", include={"epochs", "steps"}),
            "search": [str(searched) for searched in plan.space],
            "images": plan.images,
        }
        asked = json.loads(json.dumps(asked))
        self.state: dict[str, Any] = {"asked": asked, "trials": [], "failed": {}}
        if self.stamp.is_file():
            self.state = json.loads(self.stamp.read_text(encoding="utf-8"))
        before = self.state["asked"]
        changed = [key for key in dict.fromkeys((*before, *asked)) if before.get(key) != asked.get(key)]
        if changed:
            raise RunError(
                f"{plan.out} holds a search with another {', '.join(changed[:3])} (see {self.stamp}); pass another "
                "folder with --out"
            )
        make_folder(plan.out)
        self._save()

    def _save(self) -> None:
        write_text(self.stamp, json.dumps(self.state, indent=1) + "\n")

    def trial(self, number: int, before: Sequence[Trial]) -> Trial:
        """Train with the saved values of a trial, or with new ones."""
        name, plan = f"trial-{number:03d}", self.plan
        if len(self.state["trials"]) < number:
            finished = [(t.values, t.ap) for t in before if t.values and not math.isnan(t.ap)]
            self.state["trials"].append(propose(plan.space, finished, number))
            self._save()
        values = self.state["trials"][number - 1]
        try:
            recipe = with_values(plan.short, plan.space, values)
        except RecipeError as error:  # each value is valid, but not their combination
            return Trial(name, values, failed=str(error))
        return self.attempt(name, recipe, values)

    def attempt(self, name: str, recipe: Recipe, values: dict[str, Any]) -> Trial:
        """Train a recipe with every seed; a non-finite loss gives a failed trial."""
        failed: dict[str, str] = self.state["failed"]
        words = f" ({describe(self.plan.space, values)})" if values else ""
        arm = Arm(name, f"{LABELS.get(name, name)}{words}", recipe, self.plan.seeds)
        try:
            runs = [] if name in failed else train_arms([arm], self.plan.out, train=self.train, tell=self.tell)
        except NonFiniteLossError as error:
            self.tell(f"failed: {arm.label}: {error}")
            runs, failed[name] = [], str(error)
            self._save()
        for finished in runs:
            (finished.folder / "last.ckpt").unlink(missing_ok=True)  # needed for resumption only
        return Trial(name, values, tuple(runs), failed.get(name, ""))
