"""Training speed of this machine, measured on a few steps of a run."""

from __future__ import annotations

import time

import torch

from locdistill.data.loader import training_loader
from locdistill.engine.module import TrainingModule
from locdistill.engine.plan import Plan
from locdistill.recipe.recipe import Recipe
from locdistill.training.prepare import compose

_WARM_UP, _TIMED = 2, 6


def seconds_per_step(recipe: Recipe) -> float:
    """Measure the seconds per optimiser step of a recipe on the CPU, including reading of images; nothing is written.

    Raises:
        LocdistillError: As for :func:`locdistill.training.train.run`.
    """
    parts = compose(recipe, fresh=True)
    engine = parts.recipe.engine
    module = TrainingModule(parts.detector, parts.objective, parts.teacher, engine, speed=parts.speed)
    loader = training_loader(parts.datasets["train"], parts.recipe.data, seed=engine.seed)
    batch = parts.recipe.data.batch_per_device
    module.plan = Plan(batches_per_epoch=len(loader), accumulate=1, batch_per_device=batch, world=1, total_steps=1000)
    optimizer = module.optimizer()
    batches, dtype = iter(loader), parts.speed.dtype
    begun = 0.0
    for step in range(_WARM_UP + _TIMED):
        if step == _WARM_UP:
            begun = time.perf_counter()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = module(next(batches)).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - begun) / _TIMED
