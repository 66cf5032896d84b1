"""What is done with trained weights: evaluate them on a data set, let them look at pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from locdistill.data.loader import evaluation_loader
from locdistill.data.open import class_names, open_dataset
from locdistill.data.records import Dataset
from locdistill.data.settings import DataSettings
from locdistill.dist import rank, world_size
from locdistill.engine.devices import default_device, existing_device
from locdistill.engine.validation import evaluate_together
from locdistill.errors import DataError, RecipeError
from locdistill.evaluation.coco import CocoResult
from locdistill.evaluation.evaluator import Evaluator
from locdistill.evaluation.results import write_results
from locdistill.evaluation.rotated import published_sum, published_table
from locdistill.evaluation.tables import Table
from locdistill.evaluation.voc import VocResult
from locdistill.images import View, keep_ratio_size
from locdistill.models.detector import Detector
from locdistill.models.hub import find
from locdistill.models.settings import DetectionSettings, DetectorSettings, InputSettings
from locdistill.models.weights import locate
from locdistill.recipe.load import Override, recipe_data, validate
from locdistill.recipe.overrides import apply_overrides
from locdistill.recipe.run_folder import RECIPE
from locdistill.settings import group
from locdistill.types import Batch, Detections, Progress

"""Wraps something to go through, of a known length, to show how far one is."""


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        metrics: Named numbers between 0 and 1; empty where only a results file was asked for.
        per_class: By class name.
        tables: Ready to print.
        detections: By image identifier, in pixels of the images as they are on disk.
        dataset: What was looked at.
        results: The results file, if one was written.
        task1: The zip file of DOTA's Task-1 files, if it was written.
        published_sum: AP at each overlap as the published evaluator of Rotated-LD would print it, if asked for: a
            running sum that is not AP (see :func:`locdistill.evaluation.rotated.published_sum`).
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float | None]]
    tables: tuple[Table, ...]
    detections: dict[int, Detections]
    dataset: Dataset
    results: Path | None = None
    task1: Path | None = None
    published_sum: dict[str, float | None] | None = None

    def judged(self, *, eleven_point: bool | None = None, published: bool = False) -> EvaluationResult:
        """The same detections with their metrics.

        Args:
            eleven_point: How AP is averaged by the rules of VOC and DOTA; as usual for the data unless given (see
                :class:`locdistill.evaluation.Evaluator`).
            published: Whether to add ``published_sum`` and a table of it.

        Raises:
            RecipeError: The rules are COCO's, which have one average, or the boxes are not rotated, as those of the
                published evaluator are.
        """
        result = Evaluator(self.dataset, eleven_point).result(self.detections)
        if eleven_point is not None and isinstance(result, CocoResult):
            raise RecipeError(
                f"{self.dataset.name} is evaluated by COCO's rules, which know neither 11-point nor area: leave out "
                "--eleven-point and --area (eleven_point=None), which are for VOC, DOTA and HRSC2016"
            )
        series, tables = None, result.tables()
        if published:
            if isinstance(result, CocoResult) or not self.dataset.oriented:
                raise RecipeError(
                    f"the published sum is one of rotated boxes, those of {self.dataset.name} are upright: leave out "
                    "--published-sum (published=False), or take a rotated detector and data with rotated objects"
                )
            series, tables = published_sum(result), (*tables, published_table(result))
        return replace(self, metrics=result.metrics(), per_class=per_class(result), tables=tables, published_sum=series)


def evaluate(
    weights: str | Path,
    data: str | Path | None = None,
    *,
    split: str = "val",
    format_only: str | Path | None = None,
    batch: int = 8,
    device: str | None = None,
    overrides: Sequence[Override] = (),
    progress: Progress | None = None,
) -> EvaluationResult:
    """Evaluate trained weights; the teacher, if there was one, is not needed.

    Under ``torchrun`` each process detects on its share of the images, and every process gets the result.

    Args:
        weights: A weights file, a run folder, or ``run/best``.
        data: Folder of the data set; that of the run unless given.
        split: ``train``, ``val``, or any name of the format.
        format_only: Write the detections to this COCO results file instead of computing metrics; for test servers.
        batch: Images at once, if all have the same size (see :func:`evaluation_batch`).
        device: Such as ``cuda:0``; a GPU if there is one unless given.
        overrides: Settings of ``data``, ``input`` (size of the images) and ``detections`` (thresholds, suppression,
            test-time augmentation), such as ``"detections.score_threshold=0.01"`` or
            ``"detections.augment={scales: [0.8, 1, 1.2], flip: true}"``.
        progress: Shows how far the evaluation is.

    Raises:
        WeightsError: The weights cannot be read.
        DataError: The data cannot be read, or lack a class that the detector knows.
        RecipeError: An override is wrong.
        RunError: There is no such device.
    """
    weights = find(weights)
    with _processes() as local:
        where = existing_device(device or local or default_device())
        detector = Detector.load(weights, where)
        detector.settings, others = adjusted(detector.settings, overrides, data=data_of(weights, data))
        settings = validate(DataSettings, others["data"], "data")
        settings = with_classes(settings, split, detector.settings.classes)
        dataset = open_dataset(settings, split, training=False, boxes=detector.settings)
        loader: Iterable[Batch] = validation_loader(
            dataset,
            detector.settings,
            batch=batch,
            workers=settings.workers,
            rank=rank(),
            world_size=world_size(),
        )
        if progress is not None and rank() == 0:
            loader = progress(loader, len(loader))  # type: ignore[arg-type]
        return _judge(detector, loader, dataset, where, format_only)


def validation_loader(
    dataset: Dataset,
    detector: DetectorSettings,
    *,
    batch: int,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Batch]:
    """What a detector is evaluated on: its input size, and as many views of each image as its settings ask for.

    Args:
        dataset: The images.
        detector: Settings of the detector.
        batch: Images at once, if all have the same size (see :func:`evaluation_batch`).
        workers: Processes that read images; a few unless given.
        rank: Index of this process among those that share the images.
        world_size: Number of those.
    """
    views = detector.detections.augment.views
    return evaluation_loader(
        dataset,
        detector.input,
        batch=evaluation_batch(dataset, detector.input, batch, views),
        workers=workers,
        rank=rank,
        world_size=world_size,
        views=views,
    )


def evaluation_batch(dataset: Dataset, limits: InputSettings, batch: int, views: tuple[View, ...] = (View(),)) -> int:
    """Images that may share a batch without changing what is found: ``batch`` where all are padded alike, or else 1.

    The head's group normalisation sees the padding, so an image's detections depend on the size it is padded to. The
    reference evaluates one image at a time.
    """
    for view in views:
        short, long = view.limits(short=limits.short, long=limits.long)
        sizes = {keep_ratio_size(record.height, record.width, short=short, long=long) for record in dataset.records}
        if len({tuple(-(-side // limits.pad_to) for side in size) for size in sizes}) > 1:
            return 1
    return batch


def _judge(
    detector: Detector, loader: Iterable[Batch], dataset: Dataset, device: torch.device, format_only: str | Path | None
) -> EvaluationResult:
    kept = EvaluationResult({}, {}, (), {}, dataset)

    def judge(detections: dict[int, Detections]) -> dict[str, float]:
        nonlocal kept
        kept = replace(kept, detections=detections)
        if format_only is None:
            kept = kept.judged()
        else:
            kept = replace(kept, results=write_results(format_only, dataset, detections))
        return kept.metrics

    metrics = evaluate_together(detector, loader, judge, device)
    return replace(kept, metrics=metrics)


def per_class(result: CocoResult | VocResult) -> dict[str, dict[str, float | None]]:
    """AP of each class, None without objects, and its number of objects."""
    if isinstance(result, CocoResult):
        return result.per_class
    return {
        name: {
            "AP": float(result.ap[:, c].mean()) if result.objects[c] else None,
            **{f"AP{50 + 5 * t}": float(v) if result.objects[c] else None for t, v in enumerate(result.ap[:, c])},
            "objects": float(result.objects[c]),
        }
        for c, name in enumerate(result.classes)
    }


def data_of(weights: str | Path, data: str | Path | None) -> dict[str, Any]:
    """Data settings: a folder with all defaults, or those of the run that the weights belong to."""
    if data is not None:
        return {"path": str(data)}
    beside = locate(weights).parent / RECIPE
    if not beside.is_file():
        raise RecipeError(f"no data set given, and {beside} does not exist; pass --data FOLDER")
    settings = validate(DataSettings, group(recipe_data(beside), "data"), f"{beside}: data")
    return settings.model_dump(mode="json")


def with_classes(settings: DataSettings, split: str, known: tuple[str, ...]) -> DataSettings:
    """Data settings that choose the detector's classes, in its order.

    Raises:
        DataError: The data lack one, or other classes were asked for.
    """
    if settings.classes not in (None, known):
        raise DataError(
            f"the detector knows the classes {list(known)} in this order, data.classes are "
            f"{list(settings.classes or ())}; leave data.classes out"
        )
    there = class_names(settings, split)
    if missing := [name for name in known if name not in there]:
        raise DataError(
            f"the detector knows the classes {list(known)}, but {settings.path} has {list(there)} and lacks {missing}; "
            "evaluate on data of the detector's classes"
        )
    return settings.model_copy(update={"classes": known})


def adjusted(
    settings: DetectorSettings, overrides: Sequence[Override], **others: dict[str, Any]
) -> tuple[DetectorSettings, dict[str, Any]]:
    """Lay overrides over the input and the detections of a detector, and over other groups, which come back changed.

    Raises:
        RecipeError: An override is wrong.
    """
    own = {name: getattr(settings, name).model_dump(mode="json") for name in ("input", "detections")}
    changed = apply_overrides(others | own, overrides)
    unknown = [key for key in changed if key not in others | own]
    if unknown:
        raise RecipeError(f"{unknown[0]}: trained weights can be adjusted in {', '.join(others | own)} only")
    groups = {
        "input": validate(InputSettings, changed["input"], "input"),
        "detections": validate(DetectionSettings, changed["detections"], "detections"),
    }
    return settings.model_copy(update=groups), {name: changed[name] for name in others}


@contextmanager
def _processes() -> Iterator[str | None]:
    """Join the other processes if torchrun started several; the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield None
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = f"cuda:{local}" if torch.cuda.is_available() else None
    dist.init_process_group("nccl" if device else "gloo", timeout=timedelta(hours=1))
    try:
        if device:
            existing_device(device)
            torch.cuda.set_device(local)
        yield device
    finally:
        dist.destroy_process_group()
