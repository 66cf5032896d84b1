"""Training speed of this machine, measured on a few steps of a run, and runs that fit a time."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from itertools import chain, islice, repeat

import torch

from locdistill.data.loader import training_loader
from locdistill.engine.launch import build_fabric, process_count, quiet_lightning
from locdistill.engine.module import TrainingModule
from locdistill.engine.plan import Plan
from locdistill.engine.speed import own_backends
from locdistill.errors import RecipeError
from locdistill.recipe.defaults import resolve
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.request import Request
from locdistill.training.prepare import Parts, compose

log = logging.getLogger("locdistill")
_WARM_UP, _TIMED, _LONG_ENOUGH = 2, 6, 5.0
"""Steps before those that are timed, the largest number of these, and seconds after which they are enough."""
_PREDICTION = 0.4
"""Ratio of the time to evaluate on an image to that to train on it."""
_EVALUATIONS, _THEIR_SHARE = 20, 0.1
"""Largest number of evaluations in a run of limited time, and their largest share of it."""


def fitted_to(request: Request) -> Recipe:
    """Resolve a request whose duration is limited; its number of steps follows from the time of the first few.

    Without a recipe the other settings fit the number of passes for which there is time.

    Raises:
        RecipeError: The run would have several processes, whose time per step cannot be measured from one.
        LocdistillError: As for :func:`locdistill.training.train.run`.
    """
    recipe = resolve(request)
    if process_count(recipe.engine) > 1:
        raise RecipeError("--minutes measures the steps of one process; with several give --epochs or engine.steps")
    seconds = 60 * float(request["minutes"] or 0)
    pace = RunPace.of(recipe)
    shorter = resolve(request, seconds / (pace.step * pace.per_pass))
    if shorter.data.sizes != recipe.data.sizes:
        pace = RunPace.of(shorter)
    evaluations = min(max(int(_THEIR_SHARE * seconds / pace.evaluation), 1), _EVALUATIONS)
    steps = max(int((seconds - evaluations * pace.evaluation) / pace.step), 1)
    passes = steps / pace.per_pass
    every = int(max(passes / evaluations, 1)) if evaluations > 1 else 0
    engine = {"steps": steps, "eval_every": every} | ({} if every else {"patience": None})
    log.info("%.3g s a step: %d steps (%.3g epochs) in %g minutes", pace.step, steps, passes, seconds / 60)
    return shorter.model_copy(update={"engine": shorter.engine.model_copy(update=engine)})


@dataclass(frozen=True)
class RunPace:
    """Speed of a run: seconds of a step and of an evaluation, and steps of a pass over the images."""

    step: float
    evaluation: float
    per_pass: float

    @classmethod
    def of(cls, recipe: Recipe) -> RunPace:
        """Measure the pace of a run."""
        parts = compose(recipe, fresh=True)
        step, batch = _measured(parts), recipe.data.batch_per_device * recipe.engine.accumulate
        train_set, val_set = parts.datasets["train"], parts.datasets["val"]
        return cls(step, len(val_set) * step / batch * _PREDICTION, len(train_set) * recipe.data.repeat / batch)


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
        ends = []
        for batch in islice(chain.from_iterable(repeat(loader)), _WARM_UP + _TIMED):
            fabric.backward(model(fabric.to_device(batch)).total)
            optimizer.step()
            optimizer.zero_grad()
            if fabric.device.type == "cuda":
                torch.cuda.synchronize(fabric.device)
            ends.append(time.perf_counter())
            if len(ends) > _WARM_UP and ends[-1] - ends[0] > _LONG_ENOUGH:
                break
        return (ends[-1] - ends[_WARM_UP - 1]) / (len(ends) - _WARM_UP) * engine.accumulate
