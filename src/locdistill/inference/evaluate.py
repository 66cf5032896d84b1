"""Evaluation of trained weights on a data set."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from locdistill.annotations.formats import locate as locate_data
from locdistill.annotations.formats import places_of
from locdistill.data.loader import evaluation_loader
from locdistill.data.open import class_names, open_dataset
from locdistill.data.records import Dataset
from locdistill.data.settings import DataSettings
from locdistill.dist import rank, world_size
from locdistill.engine.devices import default_device, existing_device
from locdistill.engine.validation import evaluate_together
from locdistill.errors import DataError, RecipeError
from locdistill.evaluation.coco import CocoResult
from locdistill.evaluation.evaluator import Evaluator, per_class
from locdistill.evaluation.results import read_results, write_results
from locdistill.evaluation.rotated import published_sum, published_table
from locdistill.evaluation.tables import Table
from locdistill.images import ScaledView, keep_ratio_size, pad_together
from locdistill.inference.evaluation_files import Findings, save_findings
from locdistill.models.detector import Detector
from locdistill.models.exported import ExportedDetector, open_detector
from locdistill.models.hub import find
from locdistill.models.settings import DetectionSettings, DetectorSettings, InputSettings
from locdistill.models.weights import locate
from locdistill.recipe.load import Override, recipe_data, validate
from locdistill.recipe.overrides import apply_overrides
from locdistill.recipe.run_folder import RECIPE
from locdistill.settings import group
from locdistill.types import Batch, Detections, Instances, Progress

log = logging.getLogger("locdistill")


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        metrics: Metrics by name, between 0 and 1; empty if only a results file was written.
        per_class: Results by class name.
        tables: Tables ready to print.
        detections: Detections by image identifier, in pixels of the image files.
        dataset: The evaluated data set.
        results: The results file, if written.
        task1: The zip file of DOTA's Task-1 files, if written.
        published_sum: AP at each overlap as the published evaluator of Rotated-LD would print it, on request: a
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
        """Compute the metrics of the detections.

        Args:
            eleven_point: Averaging of AP by the rules of VOC and DOTA; by default as usual for the data (see
                :class:`locdistill.evaluation.evaluator.Evaluator`).
            published: Whether to add ``published_sum`` and a table of it.

        Raises:
            RecipeError: ``eleven_point`` is given for COCO's rules, which have one average, or ``published`` for COCO's
                rules or for boxes that are not rotated, as the published evaluator's are.
        """
        result = Evaluator(self.dataset, eleven_point).result(self.detections)
        if eleven_point is not None and isinstance(result, CocoResult):
            raise RecipeError(
                f"{self.dataset.name} is evaluated by COCO's rules, which have one average; leave out --eleven-point "
                "and --area (eleven_point=None), which are for VOC, DOTA and HRSC2016"
            )
        series, tables = None, result.tables()
        if published:
            if isinstance(result, CocoResult) or not self.dataset.oriented:
                raise RecipeError(
                    f"the published sum needs rotated boxes, and those of {self.dataset.name} are upright; leave out "
                    "--published-sum (published=False), or use a rotated detector and data with rotated objects"
                )
            series, tables = published_sum(result), (*tables, published_table(result))
        return replace(self, metrics=result.metrics(), per_class=per_class(result), tables=tables, published_sum=series)

    def save(
        self,
        folder: str | Path,
        *,
        images: int | None = None,
        eleven_point: bool | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Write pictures and files of the detections and their errors into a folder.

        See :func:`locdistill.inference.evaluation_files.save_findings` for what is written, and for errors.

        Args:
            folder: Folder to create; files of the same names are replaced.
            images: Number of images to draw with truth and detections, evenly spaced; by default all.
            eleven_point: As for `judged`.
            progress: Progress display.
        """
        findings = Findings(self.dataset, self.detections, eleven_point)
        save_findings(findings, Path(folder), images=images, progress=progress)


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
    """Evaluate trained weights, or stored results; the teacher, if there was one, is not needed.

    Under ``torchrun`` each process detects on its share of the images, and every process gets the result.

    Args:
        weights: A weights file, a run folder, or ``run/best``; or a ``.json`` file of COCO results, of any program, for
            which ``data`` is required and settings of ``data`` alone apply.
        data: Folder of the data set; by default that of the run.
        split: ``train``, ``val``, or any name of the format.
        format_only: COCO results file to write instead of computing metrics; for test servers.
        batch: Images per batch, if all have the same size (see :func:`evaluation_batch`).
        device: Device such as ``cuda:0``; by default a GPU if available.
        overrides: Settings of ``data``, ``input`` (size of the images) and ``detections`` (thresholds, suppression,
            test-time augmentation), such as ``"detections.score_threshold=0.01"`` or
            ``"detections.augment={scales: [0.8, 1, 1.2], flip: true}"``.
        progress: Progress display.

    Raises:
        WeightsError: The weights cannot be read.
        DataError: The data or stored results cannot be read, or do not fit each other.
        RecipeError: An override is wrong, or ``format_only`` is given for stored results.
        RunError: There is no such device.
    """
    if Path(weights).suffix.lower() == ".json":
        if format_only is not None:
            raise RecipeError(f"{weights} holds results, as --format-only (format_only) would write them; leave it out")
        return _stored(Path(weights), data, split, overrides)
    weights = find(weights)
    with _processes() as local:
        where = existing_device(device or local or default_device())
        detector = open_detector(weights, where)
        detector.settings, others = adjusted(detector.settings, overrides, data=data_of(weights, data))
        settings = validate(DataSettings, others["data"], "data")
        settings = with_classes(settings, split, detector.settings.classes)
        settings = settings.model_copy(update={"bits": detector.settings.input.bits})
        dataset = open_dataset(settings, split, training=False, boxes=detector.settings, labelled=format_only is None)
        if settings.holdout and split == "val":
            log.info(
                "%s: evaluated are the %d images that the run held out of its training images (--split train: those "
                "trained on; data.holdout=0: all)",
                settings.path,
                len(dataset),
            )
        loader: FittedImages | Iterable[Batch]
        if isinstance(detector, ExportedDetector) and detector.facts.size is not None:
            loader = FittedImages(detector, dataset)
        else:
            loader = validation_loader(
                dataset,
                detector.settings,
                batch=batch,
                workers=settings.workers,
                rank=rank(),
                world_size=world_size(),
            )
        if progress is not None and rank() == 0:
            loader = progress(loader, len(loader))
        return _judge(detector, loader, dataset, where, format_only)


class FittedImages:
    """The images of a data set in batches without objects, resized for an exported file of one size.

    Each process has its share.
    """

    def __init__(self, detector: ExportedDetector, dataset: Dataset) -> None:
        own, step = dataset.records[rank() :: world_size()], detector.facts.batch or 1
        self.detector, self.groups = detector, [own[start : start + step] for start in range(0, len(own), step)]

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.groups)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches of as many images as the file takes."""
        for records in self.groups:
            prepared = [self.detector.prepare(record.path) for record in records]
            height, width = prepared[0].padded[0]
            images = pad_together([each.images[0] for each in prepared], height=height, width=width)
            sizes, originals = (
                torch.tensor([each.images[0].shape[-2:] for each in prepared]),
                torch.tensor([each.original for each in prepared]),
            )
            none = torch.zeros(len(records), 0)
            objects = Instances(torch.zeros(len(records), 0, 4), none.long(), none.bool(), none.bool(), sizes)
            yield Batch(images, sizes, originals, torch.tensor([record.image_id for record in records]), objects)


def _stored(path: Path, data: str | Path | None, split: str, overrides: Sequence[Override]) -> EvaluationResult:
    """Evaluate the detections in a file of COCO results."""
    changed = apply_overrides({"data": {} if data is None else {"path": str(data)}}, overrides)
    if unknown := [key for key in changed if key != "data"]:
        raise RecipeError(f"{unknown[0]}: stored results can be adjusted in data only; leave it out, or name weights")
    if "path" not in changed["data"]:
        raise RecipeError(f"no data set given, on which {path} is to be judged; pass --data FOLDER")
    dataset = open_dataset(validate(DataSettings, changed["data"], "data"), split, training=False)
    detections = read_results(path, dataset)
    if some := next((found for found in detections.values() if len(found.boxes)), None):
        dataset = dataset.as_oriented(some.boxes.shape[1] == 5)
    return EvaluationResult({}, {}, (), detections, dataset).judged()


def validation_loader(
    dataset: Dataset,
    detector: DetectorSettings,
    *,
    batch: int,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Batch]:
    """Build the loader for evaluation, with the detector's input size and test-time views.

    Args:
        dataset: The images.
        detector: Settings of the detector.
        batch: Images per batch, if all have the same size (see :func:`evaluation_batch`).
        workers: Number of reader processes; a few by default.
        rank: Index of this process among those that share the images.
        world_size: Number of these processes.
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


def evaluation_batch(
    dataset: Dataset, limits: InputSettings, batch: int, views: tuple[ScaledView, ...] = (ScaledView(),)
) -> int:
    """Return the batch size that does not change detections: ``batch`` if all images are padded alike, else 1.

    The head's group normalisation includes the padding, so an image's detections depend on its padded size. The
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


def data_of(weights: str | Path, data: str | Path | None) -> dict[str, Any]:
    """Return data settings: a folder with all defaults, or those of the run of the weights.

    Of the data that the run was trained on, by its folder or by the file of its training images, those count that were
    held out to evaluate on; of any other data all count.
    """
    beside = locate(weights).parent / RECIPE
    if data is not None and not beside.is_file():
        return {"path": str(data)}
    if not beside.is_file():
        raise RecipeError(f"no data set given, and {beside} does not exist; pass --data FOLDER")
    settings = validate(DataSettings, group(recipe_data(beside), "data"), f"{beside}: data")
    if data is None:
        return settings.model_dump(mode="json")
    trained_on = Path(settings.path).resolve() == Path(data).resolve()
    if not trained_on:  # they may still be one of its annotation files of training images
        given = DataSettings(path=str(data))
        with suppress(DataError):
            own, there = (
                {place.resolve() for place in places_of(one, locate_data(one), split) if isinstance(place, Path)}
                for one, split in ((settings, "train"), (given, "val"))
            )
            trained_on = not own.isdisjoint(there)
    held = {"holdout": settings.holdout, "holdout_by": settings.holdout_by} if trained_on else {}
    return {"path": str(data)} | held


def with_classes(settings: DataSettings, split: str, known: tuple[str, ...]) -> DataSettings:
    """Return data settings that choose the detector's classes, in its order.

    Raises:
        DataError: The data lack one of them, or the settings choose other classes.
    """
    if settings.classes not in (None, known):
        raise DataError(
            f"data.classes are {list(settings.classes or ())}, but the detector has the classes {list(known)}, in this "
            "order; leave data.classes out"
        )
    there = class_names(settings, split)
    if missing := [name for name in known if name not in there]:
        raise DataError(
            f"the detector has the classes {list(known)}, but {settings.path} has {list(there)} and lacks {missing}; "
            "evaluate on data with the detector's classes"
        )
    return settings.model_copy(update={"classes": known})


def adjusted(
    settings: DetectorSettings, overrides: Sequence[Override], **others: dict[str, Any]
) -> tuple[DetectorSettings, dict[str, Any]]:
    """Apply overrides to input and detections of a detector, and to other groups; return its settings and these groups.

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
    """Join the other processes if torchrun started several; yield the device of this one."""
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
