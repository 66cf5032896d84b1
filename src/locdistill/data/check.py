"""The check of a data set without training: every annotation, every pixel, and harmless oddities."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from locdistill.annotations.brightness import describe_brightness
from locdistill.annotations.files import in_threads, look_closely
from locdistill.annotations.formats import available_splits, locate
from locdistill.annotations.problems import Problem
from locdistill.annotations.sources import circumscribed, signed_areas
from locdistill.data.open import HELD_OUT_NOTE, Scan, scan_dataset, shared_images, sides_of, trainable, with_holdout
from locdistill.data.records import Dataset, most_objects
from locdistill.data.settings import DataSettings
from locdistill.errors import DataError
from locdistill.geometry.rotated import fit

TINY_SIDE = 4.0
LEAST_FILL = 0.8
APART = 2.0
SECTOR = 30
UPRIGHT_DEGREES = 1.0
EXAMPLES = 5
DETECTED = 100
"""Detections that are kept in an image by default."""
ALIKE = 16
"""Bits of 256 in which the looks of two pictures may differ that are probably copies or frames of one scene."""


@dataclass(frozen=True)
class Turned:
    """Shapes and directions of rotated objects, measured on the smallest rectangles around them.

    Attributes:
        ratios: 5 %, 50 % and 95 % quantiles of longer over shorter side.
        upright: Number of objects with sides parallel to the image's, within a degree.
        directions: Number of objects by direction of the longer side: the nearest multiple of 30 degrees from the x
            axis, clockwise on screen.
    """

    ratios: tuple[float, ...]
    upright: int
    directions: dict[int, int]


@dataclass(frozen=True)
class SplitSummary:
    """Counts of one split.

    Attributes:
        name: Name of the split.
        images: Number of images with sound files and entries.
        empty: Number of images without boxes.
        boxes: Number of boxes, including ignored ones.
        ignored: Number of crowd regions and difficult objects.
        per_class: Number of boxes of each class, including ignored ones.
        image_sides: Smallest, median and largest side of the images, in pixels.
        box_sides: 5 %, 50 % and 95 % quantiles of the square root of the area of the boxes (the rotated boxes in
            oriented data), in pixels; empty if there is no box.
        notes: Number of harmless oddities of each kind.
        turned: Shapes and directions of the objects; only for rotated objects.
    """

    name: str
    images: int
    empty: int
    boxes: int
    ignored: int
    per_class: dict[str, int]
    image_sides: tuple[float, ...]
    box_sides: tuple[float, ...]
    notes: dict[str, int]
    turned: Turned | None = None


@dataclass(frozen=True)
class CheckReport:
    """Result of `check`.

    Attributes:
        path: Path of the data set.
        kind: Format; empty if it was not recognised.
        problems: All faults that must be repaired before training.
        warnings: Oddities worth inspecting.
        splits: Counts of each readable split.
    """

    path: str
    kind: str
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    splits: list[SplitSummary] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if there is no problem, so that training can start."""
        return not self.problems

    def as_dict(self) -> dict[str, object]:
        """Return the report as plain data for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        """Format the report as text."""
        lines = [f"{self.path}: {self.kind or 'not recognised'}"]
        for split in self.splits:
            lines += ["", *_described(split)]
        for title, entries in (("problems", list(map(str, self.problems))), ("warnings", self.warnings)):
            if entries:
                lines += ["", f"{title}:", *(f"  {entry}" for entry in entries)]
        return "\n".join([*lines, "", "no problems" if self.ok else f"{len(self.problems)} problems"])


def check(data: DataSettings | str | Path) -> CheckReport:
    """Read all splits, decode all images, and report everything that is broken or odd.

    Besides the faults that stop training, the report warns of duplicate boxes, boxes too small to learn or beyond the
    image, classes without boxes, more objects in an image than are detected or evaluated, equal image files within a
    split or between splits, and images that look like one of another split. For rotated objects it also
    warns of quadrilaterals far from rectangular, and of boxes that do not match their rotated boxes.
    """
    given = data if isinstance(data, DataSettings) else DataSettings(path=str(data))
    settings = given
    try:
        kind = locate(settings).kind
        settings = with_holdout(settings)
        names = available_splits(settings) or ["train"]
    except DataError as error:
        return CheckReport(settings.path, "", [_as_problem(settings, error)])
    report = CheckReport(settings.path, kind)
    scans: dict[str, Scan] = {}
    for name in _splits_to_check(names, report, divided=bool(settings.holdout)):
        try:
            closely = partial(in_threads, look_closely, label="looking at images")
            scans[name] = scan_dataset(settings, name, training=False, inspect=closely)
        except DataError as error:
            if (problem := _as_problem(settings, error)) not in report.problems:
                report.problems.append(problem)
    for name, scan in scans.items():
        report.problems.extend(scan.problems)
        if name == "val" and given.holdout is None and settings.holdout:
            scan.notes[HELD_OUT_NOTE] = len(scan.dataset)
        if name == "train":
            trainable(scan.dataset.records, settings, scan.notes)
        report.splits.append(_summary(name, scan))
        brightness, odd = describe_brightness(list(scan.seen), settings.bits)
        odder = [*_oddities(scan.dataset, whole=not scan.problems), *([brightness] if odd else [])]
        report.warnings.extend(f"{name}: {warning}" for warning in odder)
    report.problems.extend(_disagreements(settings, scans))
    report.warnings.extend(_equal_files(scans))
    report.warnings.extend(_look_alikes(scans))
    return report


def _splits_to_check(names: list[str], report: CheckReport, *, divided: bool) -> list[str]:
    """Return the splits that exist or are held out; report those that are needed and do not exist."""
    if "train" not in names:
        report.warnings.append(
            f"there is no split train to train on (it has {', '.join(names)}); name one with data.train=NAME"
        )
    elif "val" not in names and divided:
        return [name for split in names for name in ((split, "val") if split == "train" else (split,))]
    elif "val" not in names:
        report.warnings.append(
            "there is no split val to evaluate on; name another with data.val=NAME, or hold out some of the training "
            "images with data.holdout=0.1"
        )
    return names


def _disagreements(settings: DataSettings, scans: dict[str, Scan]) -> list[Problem]:
    """List the faults of splits beside each other: other classes, or the same images to train and to evaluate on."""
    problems = []
    first = next(iter(scans), "")
    for name, scan in scans.items():
        own, others = scan.dataset.classes, scans[first].dataset.classes
        if own != others:
            what = f"has the classes {list(own)}, but {first} has {list(others)}"
            remedy = "list the same categories in the same order in every file, or set data.classes"
            problems.append(Problem(settings.path, f"split {name}", what, remedy))
    if {"train", "val"} <= scans.keys():
        train, val = (scans[name].dataset for name in ("train", "val"))
        if (both := shared_images(train, val)) and len(both) == len(val):
            what = f"all {len(val)} images to evaluate on are trained on"
            remedy = "name other images with data.val=NAME, or hold some out with data.holdout=0.1"
            problems.append(Problem(settings.path, "split val", what, remedy))
    return problems


def _as_problem(settings: DataSettings, error: DataError) -> Problem:
    where, _, what = str(error).partition(": ")
    return Problem(where if what else settings.path, "", what or where, "correct it and check again")


def _summary(name: str, scan: Scan) -> SplitSummary:
    records, classes = scan.dataset.records, scan.dataset.classes
    labels = np.concatenate([np.zeros(0, np.int64), *(record.labels for record in records)])
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    sides, turned = sides_of(*records), None
    if scan.dataset.oriented and len(labels):
        quads = np.concatenate([record.quads for record in records if record.quads is not None])
        boxes = fit(torch.from_numpy(quads), "le90").numpy()
        degrees = np.degrees(boxes[:, 4])
        aside = np.abs(degrees - np.round(degrees / 90) * 90)
        nearest = (np.round(degrees / SECTOR) * SECTOR).astype(int)
        nearest[nearest == -90] = 90
        turned = Turned(
            ratios=_quantiles(boxes[:, 2] / np.maximum(boxes[:, 3], 1e-6), (0.05, 0.5, 0.95)),
            upright=int((aside <= UPRIGHT_DEGREES).sum()),
            directions={angle: int((nearest == angle).sum()) for angle in range(SECTOR - 90, 91, SECTOR)},
        )
    images = np.array([(record.height, record.width) for record in records]).reshape(-1)
    return SplitSummary(
        name=name,
        images=len(records),
        empty=sum(not len(record.labels) for record in records),
        boxes=len(labels),
        ignored=sum(int(record.ignored.sum()) for record in records),
        per_class={name: int(count) for name, count in zip(classes, counts, strict=True)},
        image_sides=_quantiles(images, (0, 0.5, 1)),
        box_sides=_quantiles(np.sqrt(sides.prod(-1)), (0.05, 0.5, 0.95)),
        notes={note: count for note, count in sorted(scan.notes.items()) if count},
        turned=turned,
    )


def _quantiles(values: np.ndarray, at: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(float(value), 1) for value in np.quantile(values, at)) if len(values) else ()


def _oddities(dataset: Dataset, *, whole: bool) -> list[str]:
    """Describe what is odd in a split; what it has too few of, only if nothing was left out because of a fault."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for record in dataset.records:
        outlines = record.boxes if record.quads is None else record.quads.reshape(-1, 8)
        rows = np.column_stack((outlines, record.labels))
        hulls = record.boxes if record.quads is None else circumscribed(record.quads)
        bounds = (record.width, record.height)
        beyond = (hulls[:, :2] < -1).any(-1) | (hulls[:, 2:] > np.add(bounds, 1)).any(-1)
        counts = {
            "boxes drawn twice": len(rows) - len(np.unique(rows, axis=0)),
            f"boxes with a side below {TINY_SIDE:g} pixels": int((sides_of(record) < TINY_SIDE).any(-1).sum()),
            "boxes that reach beyond the image by more than a pixel": int(beyond.sum()),
        }
        if record.quads is not None:
            areas, limit = np.abs(signed_areas(record.quads)), np.tile(bounds, 2)
            thin = (areas > 0) & (areas < LEAST_FILL * sides_of(record).prod(-1))
            beside = (hulls[:, 2:] <= 0).any(-1) | (hulls[:, :2] >= bounds).any(-1)
            apart = np.abs(np.clip(hulls, 0, limit) - np.clip(record.boxes, 0, limit)).max(-1, initial=0)
            counts |= {
                "quadrilaterals without an area": int((areas <= 0).sum()),
                "quadrilaterals beside the image": int(beside.sum()),
                f"quadrilaterals that fill less than {LEAST_FILL:.0%} of the smallest rectangle around them": int(
                    thin.sum()
                ),
                f"boxes that differ by more than {APART:g} pixels from those around their rotated boxes (whose angle "
                "is in radians, clockwise)": int((apart > APART).sum()),
            }
        for oddity, count in counts.items():
            found[oddity] += [record.path.name] * count
    warnings = [f"{len(names)} {oddity}: {_examples(names)}" for oddity, names in found.items() if names]
    used = {int(label) for record in dataset.records for label in record.labels}
    unused = [name for index, name in enumerate(dataset.classes) if index not in used]
    warnings += [f"no boxes of {', '.join(unused)}"] if unused and whole else []
    if whole and dataset.records and all(record.ignored.all() for record in dataset.records):
        warnings.append("no image has an object to learn or to find")
    most = most_objects(dataset)
    if most > DETECTED:
        warnings.append(
            f"up to {most} objects in an image, where {DETECTED} are detected by default; runs without a recipe choose "
            "detector.detections.max_detections for them, with a recipe set it"
        )
    return warnings


def _equal_files(scans: dict[str, Scan]) -> list[str]:
    """Describe images with the same content, grouped by the splits that contain them."""
    places: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, scan in scans.items():
        for path, seen in scan.seen.items():
            if seen.digest:
                places[seen.digest].append((name, path.name))
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for found in places.values():
        if len(found) > 1:
            splits = Counter(name for name, _ in found)
            groups[" and ".join(splits)].append(" = ".join(dict.fromkeys(file for _, file in found)))
    return [
        f"{len(files)} images are in {splits}{'' if ' and ' in splits else ' more than once'}: {_examples(files)}"
        for splits, files in groups.items()
    ]


def _look_alikes(scans: dict[str, Scan]) -> list[str]:
    """Describe images that look like an image of another split, without being the same file."""
    warnings = []
    for (one, first), (other, second) in itertools.combinations(scans.items(), 2):
        theirs = [(path, seen) for path, seen in first.seen.items() if seen.look]
        looks = np.array([np.frombuffer(seen.look, np.uint64) for _, seen in theirs]).reshape(-1, 4)
        pairs = []
        for path, seen in second.seen.items():
            if not seen.look or not theirs:
                continue
            apart = np.bitwise_count(looks ^ np.frombuffer(seen.look, np.uint64)).sum(1)
            nearest = int(apart.argmin())
            if apart[nearest] <= ALIKE and seen.digest != theirs[nearest][1].digest:
                pairs.append(f"{path.name} ~ {theirs[nearest][0].name}")
        if pairs:
            warnings.append(
                f"{len(pairs)} images of {other} look like images of {one}: {_examples(pairs)}; copies or frames of "
                "one scene make AP too good (data.holdout with data.holdout_by keeps groups of images together)"
            )
    return warnings


def _examples(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(names))
    return ", ".join(different[:EXAMPLES]) + (", ..." if len(different) > EXAMPLES else "")


def _described(split: SplitSummary) -> list[str]:
    lines = [
        f"{split.name}: {split.images} images ({split.empty} without boxes),"
        f" {split.boxes} boxes ({split.ignored} ignored)"
    ]
    if split.image_sides:
        lines.append(
            "  image sides {:g} to {:g}, median {:g} pixels".format(*(split.image_sides[i] for i in (0, 2, 1)))
        )
    if split.box_sides:
        lines.append(
            "  box sides mostly {:g} to {:g}, median {:g} pixels".format(*(split.box_sides[i] for i in (0, 2, 1)))
        )
    if split.turned is not None:
        turned, total = split.turned, sum(split.turned.directions.values())
        shares = ", ".join(f"{angle} {count / total:.0%}" for angle, count in turned.directions.items())
        low, middle, high = turned.ratios
        lines += [
            f"  rotated: the longer side mostly {low:g} to {high:g} times the shorter, median {middle:g};"
            f" {turned.upright / total:.0%} upright",
            f"  the longer side's direction, in degrees clockwise from the x axis: {shares}",
        ]
    width = max(map(len, split.per_class), default=0)
    lines += [f"  {name:<{width}}  {count}" for name, count in split.per_class.items()]
    return lines + [f"  {count} {note}" for note, count in split.notes.items()]
