"""AP of a teacher on a run's validation images, as the student receives its predictions.

The teacher's predictions are computed as in training (its own normalisation, the bridges into the student's classes,
bins and locations), and decoded to detections like the student's. Faults of this conversion therefore lower the AP.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import nan

import numpy as np
import torch
from lightning_fabric.utilities.apply_func import move_data_to_device

from locdistill.data.loader import evaluation_loader
from locdistill.data.records import Dataset, evenly
from locdistill.distillation.bridges import SeveralTeachers
from locdistill.distillation.onnx_teacher import ExportedTeacher
from locdistill.distillation.teacher import FrozenTeacher, LiveTeacher
from locdistill.evaluation.evaluator import Evaluator, per_class
from locdistill.geometry.boxes import pairwise_iou
from locdistill.geometry.kinds import kind_of
from locdistill.inference.evaluate import evaluation_batch
from locdistill.models.detector import Detector
from locdistill.models.settings import InputSettings, NormalisationSettings
from locdistill.recipe.recipe import OF_TEACHER
from locdistill.training.preflight.report import TeacherNetwork, network
from locdistill.training.prepare import Parts
from locdistill.types import Batch, Dense, Detections, Progress

TRIED = 32
"""Number of images on which other normalisations are tried too."""
SEEN = 3
"""Minimum number of found objects of a class to report their predicted class."""
ALL, START = "all teachers together", "the student at its start"
Predict = Callable[[Batch], Dense]
_USUAL = {
    "ImageNet statistics, RGB": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False),
    "ImageNet statistics, BGR": ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), True),
    "Detectron's (Caffe): BGR, divided by 1": ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), True),
    "0 to 1, RGB": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0), False),
    "-1 to 1, RGB": ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5), False),
    "0 to 255, BGR": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), True),
}


@dataclass(frozen=True)
class TeacherScore:
    """Accuracy of detections on some images.

    Attributes:
        ap: AP, mean over the known classes that have objects; NaN if there is none.
        ap50: AP50, likewise.
        objects: Number of ground-truth objects of the known classes.
        images: Number of images.
        found: Number of objects found, regardless of the predicted class.
        right: Share of the found objects with the correct class.
        called: Pairs of a class and the class predicted for most of its objects, where the two differ.
    """

    ap: float
    ap50: float
    objects: int
    images: int
    found: int = 0
    right: float = nan
    called: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Format as text, in percent."""
        return f"AP {100 * self.ap:.1f}, AP50 {100 * self.ap50:.1f}"


@dataclass(frozen=True)
class NormalisationTrial:
    """Measurement with another normalisation, on fewer images.

    Attributes:
        name: Name of the normalisation.
        how: Normalisation.
        score: Accuracy with this normalisation.
        own: Accuracy with the teacher's own normalisation, on the same images.
    """

    name: str
    how: NormalisationSettings
    score: TeacherScore
    own: TeacherScore


@dataclass(frozen=True)
class Measurement:
    """Measurement of a teacher.

    Attributes:
        score: Accuracy of the detections.
        found: Detections, by image.
        trials: Measurements with other normalisations.
    """

    score: TeacherScore
    found: dict[int, Detections] = field(repr=False, default_factory=dict)
    trials: tuple[NormalisationTrial, ...] = ()


@dataclass(frozen=True)
class _Predictor:
    """A function that predicts on batches: a teacher, or a teacher with another normalisation."""

    name: str
    predict: Predict
    through: str = ""
    how: NormalisationSettings | None = None


def members(teacher: FrozenTeacher) -> tuple[FrozenTeacher, ...]:
    """Return the single teachers."""
    return teacher.teachers if isinstance(teacher, SeveralTeachers) else (teacher,)


def measure(
    parts: Parts,
    teachers: dict[str, FrozenTeacher],
    *,
    images: int,
    seconds: float,
    device: torch.device,
    progress: Progress | None = None,
) -> dict[str, Measurement]:
    """Measure the AP of each teacher, of several together, and of the student if it starts from other trained weights.

    Args:
        parts: The run; its student stays unchanged.
        teachers: Single teachers by name.
        images: Number of validation images, spread evenly over the split; fewer if they would take too long.
        seconds: Time limit, after which no further images are read; up to half of it is for other normalisations.
        device: Device of the teachers; they stay on it.
        progress: Progress display.
    """
    assert parts.teacher is not None
    everybody = teachers if len(teachers) == 1 else teachers | {ALL: parts.teacher}
    if parts.start is not None and parts.recipe.start != OF_TEACHER:
        everybody = everybody | {START: LiveTeacher(copy.deepcopy(parts.detector))}
    predictors = [_Predictor(name, each.to(device)) for name, each in everybody.items()]
    for name, each in teachers.items():
        net = network(each)
        if isinstance(net, ExportedTeacher):  # it normalises images itself
            continue
        predictors += [
            _Predictor(name, partial(_predict_as, how, net, each), label, how)
            for label, how in usual(net.normalisation)
        ]
    # shuffled, so that the first images, whatever their number, are spread over the split
    dataset = evenly(parts.datasets["val"], images)
    order = np.random.default_rng(0).permutation(len(dataset))
    dataset = replace(dataset, records=tuple(dataset.records[i] for i in order))
    data = parts.recipe.data
    long, short = max(data.sizes)
    limits = InputSettings(long=long, short=short, pad_to=data.pad_to, bits=data.bits)
    batch = evaluation_batch(dataset, limits, data.batch_per_device)
    loader = evaluation_loader(dataset, limits, batch=batch, workers=data.workers)
    batches: Iterable[Batch] = progress(loader, len(loader)) if progress is not None else loader
    found, known = _predict(parts.detector, batches, predictors, seconds=seconds, device=device)
    result: dict[str, Measurement] = {}
    for predictor, seen in zip(predictors, found, strict=True):
        score = judged(dataset, seen, known[predictor.name])
        if not predictor.through:
            result[predictor.name] = Measurement(score, seen)
            continue
        base = result[predictor.name]
        own = judged(dataset, {image: base.found[image] for image in seen}, known[predictor.name])
        assert predictor.how is not None
        trial = NormalisationTrial(predictor.through, predictor.how, score, own)
        result[predictor.name] = replace(base, trials=(*base.trials, trial))
    return result


def usual(own: NormalisationSettings) -> list[tuple[str, NormalisationSettings]]:
    """Return common normalisations that are often mistaken for each other, without the teacher's own."""
    assert own.mean is not None, "a detector that was built has both"
    assert own.std is not None
    order = "RGB" if own.bgr else "BGR"
    swapped = NormalisationSettings(mean=own.mean[::-1], std=own.std[::-1], bgr=not own.bgr)
    others = {f"the other order of channels, {order}": swapped} | {
        name: NormalisationSettings(mean=mean, std=std, bgr=bgr) for name, (mean, std, bgr) in _USUAL.items()
    }
    chosen: list[tuple[str, NormalisationSettings]] = []
    for name, how in others.items():
        if not any(_alike(how, known) for known in (own, *(known for _, known in chosen))):
            chosen.append((name, how))
    return chosen


def _alike(one: NormalisationSettings, other: NormalisationSettings) -> bool:
    """Return whether two normalisations give nearly the same image."""
    if one.bgr != other.bgr:
        return False
    ours, theirs = (np.array((how.mean, how.std)) for how in (one, other))
    return bool((np.abs(ours[0] - theirs[0]) < 3).all() and (np.abs(ours[1] / theirs[1] - 1) < 0.05).all())


def _predict_as(how: NormalisationSettings, net: TeacherNetwork, teacher: Predict, batch: Batch) -> Dense:
    """Predict as a teacher whose network has another normalisation."""
    own = net.normalisation
    net.normalise_as(how)
    try:
        return teacher(batch)
    finally:
        net.normalise_as(own)


def _predict(
    student: Detector,
    batches: Iterable[Batch],
    predictors: Sequence[_Predictor],
    *,
    seconds: float,
    device: torch.device,
) -> tuple[list[dict[int, Detections]], dict[str, tuple[int, ...] | None]]:
    """Return the detections by image of each predictor, and the known classes of each.

    All predictors process the same batch before the next one, so that a trial and the teacher's own normalisation have
    the same images.
    """
    found: list[dict[int, Detections]] = [{} for _ in predictors]
    known: dict[str, tuple[int, ...] | None] = {}
    begun = time.monotonic()
    for batch in batches:
        grid = student.grid_for(batch.images.shape[-2:])
        spent, moved = time.monotonic() - begun, move_data_to_device(batch, device)
        trying = len(found[0]) < TRIED and spent < seconds / 2
        for predictor, mine in zip(predictors, found, strict=True):
            if predictor.through and not trying:
                continue
            dense = move_data_to_device(predictor.predict(moved), torch.device("cpu"))
            known[predictor.name] = dense.known
            detections = student.detections(dense, grid, batch.sizes, batch.original_sizes)
            mine.update(zip(batch.image_ids.tolist(), detections, strict=True))
        if time.monotonic() - begun > seconds:
            break
    return found, known


def judged(dataset: Dataset, found: dict[int, Detections], known: tuple[int, ...] | None) -> TeacherScore:
    """Compute the accuracy of detections on some images of a data set, over the known classes."""
    looked = replace(dataset, records=tuple(r for r in dataset.records if r.image_id in found))
    names = dataset.classes if known is None else tuple(dataset.classes[i] for i in known)
    by_class = per_class(Evaluator(looked).result(found))
    ap, ap50 = (_mean([by_class[name][metric] for name in names]) for metric in ("AP", "AP50"))
    objects = int(sum(by_class[name]["objects"] or 0 for name in names))
    counts = _named_classes(looked, found, {dataset.classes.index(name) for name in names})
    total, right = sum(c.total() for c in counts.values()), sum(count[label] for label, count in counts.items())
    mostly = {label: count.most_common(1)[0][0] for label, count in counts.items() if count.total() >= SEEN}
    called = tuple((dataset.classes[label], dataset.classes[o]) for label, o in sorted(mostly.items()) if o != label)
    return TeacherScore(ap, ap50, objects, len(looked), total, right / total if total else nan, called)


def _mean(values: Iterable[float | None]) -> float:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else nan


def _named_classes(dataset: Dataset, found: dict[int, Detections], known: set[int]) -> dict[int, Counter[int]]:
    """Count the predicted classes of the found objects of each class.

    An object is found if a detection of any class has an IoU of at least 0.5 with it (for rotated boxes, between the
    circumscribed horizontal boxes). The detection with the highest score counts.
    """
    counts: dict[int, Counter[int]] = {label: Counter() for label in known}
    for record in dataset.records:
        detections = found[record.image_id]
        boxes = kind_of(detections.boxes).hull(detections.boxes.float())
        near = pairwise_iou(torch.from_numpy(record.boxes), boxes) >= 0.5
        best = (detections.scores * near).max(-1) if near.shape[-1] else None
        for i, label in enumerate(record.labels.tolist()):
            if best is not None and near[i].any() and label in known and not record.ignored[i]:
                counts[label][int(detections.labels[best.indices[i]])] += 1
    return counts
