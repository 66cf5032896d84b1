"""Training of a prepared run, and its pictures."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from locdistill.data.loader import training_loader
from locdistill.data.records import Dataset, most_objects
from locdistill.dist import process_rank
from locdistill.engine.devices import device_kind
from locdistill.engine.loop import fit
from locdistill.engine.module import TrainingModule
from locdistill.engine.result import FitResult, rank_of
from locdistill.engine.validation import Evaluate, detect_all
from locdistill.evaluation.agreement import agreement
from locdistill.evaluation.evaluator import Evaluator
from locdistill.inference.evaluate import validation_loader
from locdistill.inference.evaluation_files import Findings, labels_picture
from locdistill.models.count import parameters
from locdistill.models.detector import Detector
from locdistill.models.weights import THRESHOLDS, add_extra
from locdistill.recipe.run_folder import METRICS
from locdistill.training import pictures
from locdistill.training.prepare import Parts
from locdistill.types import Batch, Detections
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


@dataclass(frozen=True)
class Kept:
    """Detections of an evaluation, and their AP."""

    ap: float
    detections: dict[int, Detections] = field(repr=False)


@dataclass
class KeepingEvaluator:
    """An evaluator that keeps the detections of the best and of the last evaluation, to judge them at the end.

    Attributes:
        evaluator: Function from detections to metrics.
        first_time: Function to call at the first evaluation.
        best: The detections with the highest AP; None before the first evaluation in this process.
        last: Those of the last evaluation, likewise.
    """

    evaluator: Evaluate
    first_time: Callable[[], None] | None = None
    best: Kept | None = None
    last: Kept | None = None

    def __call__(self, detections: dict[int, Detections]) -> dict[str, float]:
        """Return the metrics."""
        if self.first_time is not None:
            self.first_time()
            self.first_time = None
        metrics = dict(self.evaluator(detections))
        self.last = Kept(metrics["AP"], detections)
        if self.best is None or rank_of(metrics) > rank_of({"AP": self.best.ap}):
            self.best = self.last
        return metrics

    def of(self, fitted: FitResult) -> list[tuple[Path, float, Kept | None]]:
        """Return best and last weights of a run with the AP that they reached, and the detections of that AP."""
        found = [] if fitted.best is None else [(fitted.best, fitted.metrics["AP"], self.best)]
        end = fitted.history[-1]["AP"] if fitted.history else math.nan
        return [*found, (fitted.last, end, self.last)]


def fit_run(parts: Parts, out: Path, resume: bool) -> RunResult:
    """Train a prepared run; draw a training batch, predictions and curves."""
    recipe, detector, datasets = parts.recipe, parts.detector, parts.datasets
    size, images = parameters(detector) / 1e6, (len(datasets["train"]), len(datasets["val"]))
    log.info("%s: %.1f million parameters, %d classes", recipe.name, size, len(recipe.detector.classes))
    log.info("%d training images, %d to evaluate on", *images)
    _say_what_is_odd(parts)

    def train_loader(rank: int, world: int) -> DataLoader[Batch]:
        settings, seed = recipe.data, recipe.engine.seed
        return training_loader(datasets["train"], settings, seed=seed, rank=rank, world_size=world, memory=parts.memory)

    def val_loader(rank: int, world: int) -> DataLoader[Batch]:
        batch, workers = recipe.data.batch_per_device, recipe.data.workers
        return validation_loader(
            datasets["val"], detector.settings, batch=batch, workers=workers, rank=rank, world_size=world
        )

    first_time = None if resume else partial(_draw_labels, datasets["train"], out / "labels.png")
    evaluate = KeepingEvaluator(Evaluator(datasets["val"]), first_time)
    first = process_rank() == 0
    if first and not resume:
        _draw_batch(parts, out)
    watch = agreement if parts.teacher is None or parts.teacher.comparable else None
    module = TrainingModule(detector, parts.objective, parts.teacher, recipe.engine, watch=watch, speed=parts.speed)
    fitted = fit(
        module,
        make_train_loader=train_loader,
        make_val_loader=val_loader,
        evaluate=evaluate,
        out=out,
        settings=recipe.engine,
        resume=resume,
    )
    if first:
        _draw_results(parts, out, fitted, evaluate)
    metrics = json.loads((out / METRICS).read_text(encoding="utf-8"))
    return RunResult(out=out, best=fitted.best, last=fitted.last, metrics=metrics)


def _draw_batch(parts: Parts, out: Path) -> None:
    settings = parts.recipe.data.model_copy(update={"workers": 0})
    with pictures.guarded(out / "train_batch.png"):
        loader = training_loader(parts.datasets["train"], settings, seed=parts.recipe.engine.seed)
        batch_mosaic(next(iter(loader)), parts.recipe.detector.classes).save(out / "train_batch.png")


def _draw_labels(dataset: Dataset, path: Path) -> None:
    """Draw the training objects; at the first evaluation, as charts are slow to import and the first step is not."""
    with pictures.guarded(path):
        labels_picture(dataset).save(path)


def _draw_results(parts: Parts, out: Path, fitted: FitResult, evaluate: KeepingEvaluator) -> None:
    """Judge the best and the last weights, store their best scores in the files, and draw all pictures."""
    dataset = parts.datasets["val"]
    with pictures.guarded(out / "val_predictions.png"):
        pictures.predictions(out / "val_predictions.png", Detector.load(fitted.best or fitted.last), dataset)
    with pictures.guarded(out / "curves.png"):
        from locdistill.viz.curves import plot_run  # noqa: PLC0415 - imports matplotlib, needed only after the training

        plot_run(out / "metrics.csv", out / "curves.png")
    best = findings = None
    for weights, ap, kept in evaluate.of(fitted):
        with pictures.guarded(weights):
            if kept is not None and kept.ap == ap:
                found = kept.detections
            else:  # they were in another process, or before the run resumed
                device = torch.device(device_kind(parts.recipe.engine))
                detector, data = Detector.load(weights, device), parts.recipe.data
                batch, workers = data.batch_per_device, data.workers
                loader = validation_loader(dataset, detector.settings, batch=batch, workers=workers)
                found = detect_all(detector, loader, device)
            if findings is None or findings.detections is not found:  # the last weights are often the best
                findings = Findings(dataset, found)
            add_extra(weights, {THRESHOLDS: findings.thresholds})
            best = best or findings
    if best is not None:
        pictures.judgement(out, best)


def _say_what_is_odd(parts: Parts) -> None:
    """Log what was left out, changed or guessed in the data, and what cannot be learned or detected."""
    recipe, datasets = parts.recipe, parts.datasets
    for name, dataset in datasets.items():
        for note, count in dataset.notes.items():
            log.info("%s: %d %s", name, count, note)
    if all(record.ignored.all() for record in datasets["train"].records):
        log.warning("no training image has an object to learn (crowds and difficult ones do not count)")
    most, kept = max(map(most_objects, datasets.values())), recipe.detector.detections.max_detections
    if most > kept:
        log.warning(
            "images have up to %d objects, of which at most %d are detected: set detector.detections.max_detections=%d",
            *(most, kept, most),
        )
