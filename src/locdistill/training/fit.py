"""Training of a prepared run, and its pictures."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from locdistill.data.loader import training_loader
from locdistill.dist import process_rank
from locdistill.engine.loop import fit
from locdistill.engine.module import TrainingModule
from locdistill.engine.result import FitResult
from locdistill.evaluation.agreement import agreement
from locdistill.evaluation.evaluator import Evaluator
from locdistill.inference.evaluate import validation_loader
from locdistill.models.detector import Detector
from locdistill.recipe.run_folder import METRICS
from locdistill.training import pictures
from locdistill.training.prepare import Parts
from locdistill.types import Batch
from locdistill.viz.mosaic import batch_mosaic

log = logging.getLogger("locdistill")


@dataclass(frozen=True)
class RunResult:
    """Files and metrics of a run.

    Attributes:
        out: Run folder.
        best: Weights with the best AP; None if the run had no evaluation.
        last: Weights at the end.
        metrics: Content of ``metrics.json``.
    """

    out: Path
    best: Path | None
    last: Path
    metrics: dict[str, Any]


def fit_run(parts: Parts, out: Path, resume: bool) -> RunResult:
    """Train a prepared run; draw a training batch, predictions and curves."""
    recipe, detector, datasets = parts.recipe, parts.detector, parts.datasets
    counts = (len(datasets["train"]), len(datasets["val"]), len(recipe.detector.classes))
    log.info("%s: %d training images, %d to evaluate on, %d classes", recipe.name, *counts)

    def train_loader(rank: int, world: int) -> DataLoader[Batch]:
        settings, seed = recipe.data, recipe.engine.seed
        return training_loader(datasets["train"], settings, seed=seed, rank=rank, world_size=world, memory=parts.memory)

    def val_loader(rank: int, world: int) -> DataLoader[Batch]:
        batch, workers = recipe.data.batch_per_device, recipe.data.workers
        return validation_loader(
            datasets["val"], detector.settings, batch=batch, workers=workers, rank=rank, world_size=world
        )

    first = process_rank() == 0
    if first and not resume:
        _draw_batch(parts, out)
    watch = agreement if parts.teacher is None or parts.teacher.comparable else None
    module = TrainingModule(detector, parts.objective, parts.teacher, recipe.engine, watch=watch, speed=parts.speed)
    fitted = fit(
        module,
        make_train_loader=train_loader,
        make_val_loader=val_loader,
        evaluate=Evaluator(datasets["val"]),
        out=out,
        settings=recipe.engine,
        resume=resume,
    )
    if first:
        _draw_results(parts, out, fitted)
    metrics = json.loads((out / METRICS).read_text(encoding="utf-8"))
    return RunResult(out=out, best=fitted.best, last=fitted.last, metrics=metrics)


def _draw_batch(parts: Parts, out: Path) -> None:
    settings = parts.recipe.data.model_copy(update={"workers": 0})
    loader = training_loader(parts.datasets["train"], settings, seed=parts.recipe.engine.seed)
    batch_mosaic(next(iter(loader)), parts.recipe.detector.classes).save(out / "train_batch.png")


def _draw_results(parts: Parts, out: Path, fitted: FitResult) -> None:
    detector = Detector.load(fitted.best or fitted.last)
    pictures.predictions(out / "val_predictions.png", detector, parts.datasets["val"])
    from locdistill.viz.curves import plot_run  # noqa: PLC0415 - imports matplotlib, needed only after the training

    plot_run(out / "metrics.csv", out / "curves.png")
