"""Training speed of this machine, measured on a few steps of a run, and runs that fit a time."""

from __future__ import annotations

import logging
import time
from itertools import chain, islice, repeat
from typing import Any

import torch
from lightning_fabric import Fabric

from locdistill.data.loader import training_loader
from locdistill.engine.devices import device_kind
from locdistill.engine.launch import build_fabric, process_count, quiet_lightning
from locdistill.engine.module import TrainingModule
from locdistill.engine.plan import Plan
from locdistill.engine.speed import own_backends
from locdistill.errors import RecipeError
from locdistill.recipe.fitted import Facts, levels_for, reduced_size
from locdistill.recipe.recipe import Recipe
from locdistill.training.prepare import Parts, compose
from locdistill.types import Batch

log = logging.getLogger("locdistill")
_WARM_UP, _TIMED = 2, 6
_PASSES = 10
"""Passes over the images below which a smaller input serves better."""
_PREDICTION = 0.4
"""Ratio of the time to evaluate on an image to that to train on it."""
_EVALUATIONS, _THEIR_SHARE = 20, 0.1
"""Largest number of evaluations in a run of limited time, and their largest share of it."""


def fitted_to(recipe: Recipe, minutes: float, *, resize: bool) -> Recipe:
    """Choose the number of steps and of evaluations such that a run takes about so many minutes on this machine.

    Args:
        recipe: Recipe of the run.
        minutes: Duration, evaluations included.
        resize: Whether to reduce the input size, as far as small objects allow, where the time is short of a few passes
            over the images.

    Raises:
        RecipeError: The run would have several processes, whose time per step cannot be measured from one.
        LocdistillError: As for :func:`locdistill.training.train.run`.
    """
    if process_count(recipe.engine) > 1:
        raise RecipeError("--minutes measures the steps of one process; with several give --epochs or engine.steps")
    parts = compose(recipe, fresh=True)
    train_set, batch = parts.datasets["train"], recipe.data.batch_per_device * recipe.engine.accumulate
    per_step, per_pass = _measured(parts), len(train_set) * recipe.data.repeat / batch
    passes = 60 * minutes / (per_step * per_pass)
    if resize and passes < _PASSES:
        facts = Facts.of(
            train_set, cpu=device_kind(recipe.engine) == "cpu", pretrained=recipe.detector.pretrained is not False
        )
        smaller = _resized(recipe, reduced_size(facts, passes / _PASSES))
        if smaller != recipe:
            log.info("input %d x %d instead of %d x %d, for more passes", *smaller.data.sizes[0], *recipe.data.sizes[0])
            recipe, per_step = smaller, seconds_per_step(smaller)
    per_evaluation = len(parts.datasets["val"]) * per_step / batch * _PREDICTION
    evaluations = min(max(int(_THEIR_SHARE * 60 * minutes / per_evaluation), 1), _EVALUATIONS)
    steps = max(int((60 * minutes - evaluations * per_evaluation) / per_step), 1)
    every = int(max(steps / per_pass / evaluations, 1)) if evaluations > 1 else 0
    engine = {"steps": steps, "eval_every": every} | ({} if every else {"patience": None})
    log.info("%.3g s a step: %d steps (%.3g epochs) in %.3g minutes", per_step, steps, steps / per_pass, minutes)
    return _changed(recipe, engine=engine)


def _resized(recipe: Recipe, size: tuple[int, int]) -> Recipe:
    long, short = size
    detector: dict[str, Any] = {"input": recipe.detector.input.model_copy(update={"short": short, "long": long})}
    if recipe.detector.levels == tuple(levels_for(recipe.data.sizes[0])):
        detector["levels"] = tuple(levels_for(size))
    return _changed(recipe, detector=detector, data={"sizes": (size,)})


def _changed(recipe: Recipe, **groups: dict[str, Any]) -> Recipe:
    updates = {name: getattr(recipe, name).model_copy(update=update) for name, update in groups.items()}
    return recipe.model_copy(update=updates)


def seconds_per_step(recipe: Recipe) -> float:
    """Measure the seconds per optimiser step of a recipe on the CPU, including reading of images; nothing is written.

    Raises:
        LocdistillError: As for :func:`locdistill.training.train.run`.
    """
    return _measured(compose(recipe, fresh=True))


def _measured(parts: Parts) -> float:
    engine, data = parts.recipe.engine, parts.recipe.data
    module = TrainingModule(parts.detector, parts.objective, parts.teacher, engine, speed=parts.speed)
    loader = training_loader(parts.datasets["train"], data, seed=engine.seed, memory=parts.memory)
    module.plan = Plan.of(loader, engine.model_copy(update={"steps": 1000}), 1)
    with quiet_lightning(), own_backends():
        fabric = build_fabric(engine, parts.speed)
        model, optimizer = fabric.setup(module, module.optimizer())
        module.speed_up(fabric.device)
        parts.detector.train()
        batches = chain.from_iterable(repeat(loader))
        for batch in islice(batches, _WARM_UP):
            _take_step(fabric, model, optimizer, batch)
        begun = _now(fabric)
        for batch in islice(batches, _TIMED):
            _take_step(fabric, model, optimizer, batch)
        return (_now(fabric) - begun) / _TIMED * engine.accumulate


def _take_step(fabric: Fabric, model: Any, optimizer: Any, batch: Batch) -> None:
    fabric.backward(model(fabric.to_device(batch)).total)
    optimizer.step()
    optimizer.zero_grad()


def _now(fabric: Fabric) -> float:
    if fabric.device.type == "cuda":
        torch.cuda.synchronize(fabric.device)
    return time.perf_counter()
