"""Opening a data set: read its annotations, check every image file, refuse what is broken."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from locdistill.annotations.files import Seen, collected_later
from locdistill.annotations.formats import locate, places_of, read, split_names, trains_on_val
from locdistill.annotations.index import look_at
from locdistill.annotations.problems import Problem, error_of
from locdistill.annotations.sources import Listed, Source, corners, parts_between
from locdistill.annotations.tiles import image_name
from locdistill.data.records import Dataset, Record
from locdistill.data.settings import DataSettings
from locdistill.errors import AnnotationError
from locdistill.geometry.rotated import AngleRange, fit

HELD_OUT = 0.1
"""Share of the training images to evaluate on where there is no other split."""
HELD_OUT_NOTE = "images held out of train by name, for there is no split val (data.val=NAME names one)"
EMPTY = "images without objects, left out"
COLUMNS = ("boxes", "ignored", "categories")
ANY, LEFT_OUT = -1, -2
"""Special labels: regions to ignore for every class, and annotations that are left out."""


@dataclass
class Scan:
    """A split as read, with all its faults.

    Attributes:
        dataset: The images with sound files and annotations. Objects of `DataSettings.ignore_classes` have the label
            ``ANY``.
        problems: Faults.
        notes: Number of harmless oddities of each kind.
        seen: Result of the check of each image file, by path.
    """

    dataset: Dataset
    problems: list[Problem] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    seen: dict[Path, Seen] = field(default_factory=dict)


@runtime_checkable
class DetectorBoxes(Protocol):
    """Interface of the kind of boxes of a detector, implemented by its settings; ``angles`` is their range."""

    angles: AngleRange

    @property
    def rotated(self) -> bool:
        """True for rotated boxes."""


def open_dataset(
    settings: DataSettings,
    split: str,
    *,
    training: bool | None = None,
    boxes: DetectorBoxes | None = None,
    labelled: bool = True,
) -> Dataset:
    """Open a split for training or evaluation.

    For training, boxes that do not touch the image, have an area of zero, or short sides (`DataSettings.min_box_side`)
    are left out, then images without any annotation or with a short side (`.filter_empty`, `.min_side`). For evaluation
    every image and box stays. Crowd regions and difficult objects are marked as ignored; in training
    `DataSettings.crowd` decides. An object of `DataSettings.ignore_classes` becomes an ignored object of each class.

    Every image file is checked (header, size, ending), so that a broken one is found before the first epoch.

    Args:
        settings: Path, classes and filters.
        split: ``train`` and ``val`` are resolved by the settings; any other name is used as it is.
        training: Whether to leave out what cannot be trained on; ``None``: for the split ``train``.
        boxes: Kind of boxes to convert the objects to: axis-aligned boxes circumscribe rotated objects; axis-aligned
            objects become rotated boxes with the same corners. None leaves them as they are.
        labelled: Whether the images must have annotations; those of test servers have none.

    Raises:
        AnnotationError: There is no such data set, or annotations are broken; the message lists all faults.
        ImageError: Only images are missing, damaged, or of another size than declared; the message lists all.
    """
    scan = scan_dataset(settings, split, training=training, labelled=labelled)
    if scan.problems:
        raise error_of(scan.problems, scan.dataset.name, settings.path)
    if not scan.dataset.records:
        why = "; ".join(f"{count} {note}" for note, count in scan.notes.items() if count) or "it lists no images"
        name, names = scan.dataset.name, list(scan.dataset.classes)
        raise AnnotationError(f"{settings.path}: no image of {name} can be used for the classes {names}: {why}")
    dataset, classes = scan.dataset, len(scan.dataset.classes)
    if settings.ignore_classes:  # repeat each object of these once per class
        records = []
        for record in dataset.records:
            loose, named = np.flatnonzero(record.labels == ANY), np.flatnonzero(record.labels != ANY)
            labels = np.concatenate((record.labels[named], np.tile(np.arange(classes), len(loose))))
            records.append(replace(record.of(np.concatenate((named, loose.repeat(classes)))), labels=labels))
        dataset = replace(dataset, records=tuple(records))
    return dataset if boxes is None else dataset.as_oriented(boxes.rotated, boxes.angles)


def with_holdout(settings: DataSettings) -> DataSettings:
    """Return the settings with the share of the training images to hold out: a tenth if there is no other split.

    A COCO file by itself serves any split, and so has no split to evaluate on.

    Raises:
        AnnotationError: Nothing is recognised.
    """
    if settings.holdout is not None:
        return settings
    found = locate(settings)
    train, val = (places_of(settings, found, split) for split in ("train", "val"))
    shared = trains_on_val(settings, found) or (val == train and found.kind == "coco")
    alone = settings.val is None and (not all(val) or shared)
    return settings.model_copy(update={"holdout": HELD_OUT if alone and all(train) else 0.0})


@collected_later()
def scan_dataset(
    settings: DataSettings,
    split: str,
    *,
    training: bool | None = None,
    inspect: Callable[[Sequence[Path]], list[Seen]] = look_at,
    labelled: bool | None = None,
) -> Scan:
    """Read a split and collect all its faults instead of stopping at the first.

    Args:
        settings: Path, classes and filters.
        split: As for :func:`open_dataset`.
        training: As for :func:`open_dataset`.
        inspect: Function that checks the image files.
        labelled: Whether it is a fault that a source has no annotations; None: for ``train`` and ``val``.

    Raises:
        AnnotationError: The split cannot be read: it is absent, of another format, or lacks the chosen classes.
    """
    divided = bool(settings.holdout) and split in ("train", "val")
    source_split = "train" if divided else split
    kind, sources = read(settings, source_split)
    if divided:
        _hold_out(sources, settings, split)
    classes, category_ids = _choose_classes(sources, settings.classes, settings.ignore_classes)
    kept_back = " (held out)" if divided and split == "val" else ""
    name = f"{Path(settings.path).name}/{'+'.join(split_names(settings, source_split))}{kept_back}"
    dataset = Dataset(name, classes, (), kind, category_ids, bits=settings.bits)
    scan = Scan(dataset)
    for source in sources:
        scan.problems += source.problems
        scan.notes += source.notes
        if not source.labelled and (split in ("train", "val") if labelled is None else labelled):
            what = "has no annotations, like files of test images whose labels are not public"
            remedy = (
                "name a split with labels, or only write results, with 'locdistill evaluate WEIGHTS --format-only FILE'"
            )
            scan.problems.append(Problem(source.file, "", what, remedy))
        scan.notes["files without annotations"] += not source.labelled
    paths = list(dict.fromkeys(listed.path for source in sources for listed in source.images))
    scan.seen = dict(zip(paths, inspect(paths), strict=True))
    lenient = split == "train" if training is None else training
    oriented = any(listed.quads is not None for source in sources for listed in source.images)
    lookup = dict.fromkeys(settings.ignore_classes, ANY) | {name: label for label, name in enumerate(classes)}
    records: list[Record] = []
    for source in sources:
        labels = np.array([lookup.get(name, LEFT_OUT) for _, name in source.categories], dtype=np.int64)
        sound = [listed for listed in source.images if _is_sound(listed, scan)]
        records += _records(sound, source, labels, scan, oriented=oriented) if sound else []
    if lenient:
        records = trainable(records, settings, scan.notes)
    if len({record.image_id for record in records}) < len(records):  # concatenated sources share identifiers
        records = [replace(record, image_id=number) for number, record in enumerate(records, start=1)]
    notes = {note: count for note, count in sorted(scan.notes.items()) if count}
    scan.dataset = replace(dataset, records=tuple(records), empty=scan.notes[EMPTY], notes=notes, oriented=oriented)
    return scan


def _hold_out(sources: Sequence[Source], settings: DataSettings, split: str) -> None:
    """Restrict the sources of training images to the held-out images (``val``) or to the others.

    The choice depends on file names alone, not on their order or on the machine. Tiles of an image, which may overlap,
    stay together, as do the images of a group (`DataSettings.holdout_by`).

    Raises:
        AnnotationError: All images are of one group.
    """
    groups = {}
    for path in (listed.path for source in sources for listed in source.images):
        whole = path.with_stem(image_name(path.stem))
        found = re.search(settings.holdout_by, whole.name) if settings.holdout_by else None
        groups[path] = path.parent / found.group() if found else whole
    shuffled = sorted(set(groups.values()), key=lambda path: (hashlib.sha256(path.name.encode()).digest(), path))
    if len(shuffled) == 1:
        raise AnnotationError(
            f"{settings.path}: no images can be held out to evaluate on (all are of one group); name others with "
            "data.val=NAME, or set data.holdout=0"
        )
    count = max(1, round((settings.holdout or 0) * len(shuffled)))
    held = set(shuffled[: max(min(count, len(shuffled) - 1), 0)])
    for source in sources:
        source.images = [image for image in source.images if (groups[image.path] in held) == (split == "val")]


def class_names(settings: DataSettings, split: str) -> tuple[str, ...]:
    """Return all classes of a split in the data's own order, without the choice in the settings; reads no image.

    Raises:
        AnnotationError: Nothing can be read.
    """
    source_split = "train" if settings.holdout and split == "val" else split
    return _choose_classes(read(settings, source_split)[1], None, settings.ignore_classes)[0]


def _choose_classes(
    sources: Sequence[Source], wanted: tuple[str, ...] | None, ignored: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the chosen class names in order, and the first source's identifiers for them."""
    first = sources[0]
    for source in sources[1:]:
        if {name for _, name in source.categories} != {name for _, name in first.categories}:
            raise AnnotationError(
                f"{first.file} and {source.file} have different classes: {[name for _, name in first.categories]} and"
                f" {[name for _, name in source.categories]}; only data with the same classes can be concatenated"
            )
    numbers = {name: identifier for identifier, name in first.categories}
    if not numbers and not first.problems:
        raise AnnotationError(f"{first.file}: has no categories; list the classes")
    chosen = tuple(name for name in numbers if name not in ignored) if wanted is None else wanted
    missing = [name for name in (*chosen, *ignored) if name not in numbers]
    if missing:
        close = difflib.get_close_matches(missing[0], numbers, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise AnnotationError(f"{first.file}: has no class {', '.join(missing)}{hint} It has: {', '.join(numbers)}")
    is_coco = not first.relative and Path(first.file).suffix.lower() == ".json"
    ids = tuple(numbers[name] for name in chosen) if is_coco else tuple(range(1, len(chosen) + 1))
    return chosen, ids


def _is_sound(listed: Listed, scan: Scan) -> bool:
    """Return whether the file of an image is as it should be; add a problem if not."""
    size, fault = scan.seen[listed.path][:2]
    if size is None:
        remedy = "put it there, or remove the image from the annotations" if "no such" in fault else "replace it"
        scan.problems.append(Problem(str(listed.path), "", fault, remedy, image=True))
        return False
    if listed.declared is not None and listed.declared != size:
        declared = listed.declared
        what = f"{listed.where} is declared as {declared[1]}x{declared[0]}, but the file has {size[1]}x{size[0]}"
        remedy = "the boxes were drawn on another version: use that one, or correct the annotations"
        if declared[::-1] == size:
            remedy = "the picture is stored rotated (EXIF) or the sides are swapped: annotate the upright picture"
        scan.problems.append(Problem(str(listed.path), "", what, remedy, image=True))
        return False
    return True


def _records(
    images: Sequence[Listed], source: Source, labels: np.ndarray, scan: Scan, *, oriented: bool
) -> list[Record]:
    """Build records with boxes in pixels and the chosen classes, of all images at once."""
    sizes = [scan.seen[listed.path].size or (0, 0) for listed in images]
    counts = np.array([len(listed.boxes) for listed in images])
    boxes, ignored, categories = (np.concatenate([getattr(one, n) for one in images]) for n in COLUMNS)
    own = labels[categories]
    areas, quads = (
        None if getattr(images[0], name) is None else np.concatenate([getattr(one, name) for one in images])
        for name in ("areas", "quads")
    )
    if source.relative:
        unit = np.array(sizes)[:, ::-1].repeat(counts, axis=0)
        boxes = boxes * np.tile(unit, 2)
        quads = None if quads is None else quads * unit[:, None]
        areas = None if areas is None else areas * unit.prod(-1)
    if areas is None:
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    if oriented and quads is None:
        quads = corners(boxes)
    ignored = ignored | (own == ANY)
    if not (chosen := own != LEFT_OUT).all():
        counts = np.bincount(np.arange(len(images)).repeat(counts)[chosen], minlength=len(images))
        boxes, own, ignored, areas = (column[chosen] for column in (boxes, own, ignored, areas))
        quads = None if quads is None else quads[chosen]
    ends = np.cumsum(counts).tolist()
    single = [column.astype(np.float32) for column in (boxes, areas)]
    parts = [parts_between(column, ends) for column in (single[0], own, ignored, single[1])]
    outlines = [None] * len(images) if quads is None else parts_between(quads.astype(np.float32), ends)
    return [
        Record(listed.path, listed.image_id, width, height, *objects)
        for listed, (height, width), *objects in zip(images, sizes, *parts, outlines, strict=True)
    ]


def trainable(records: Sequence[Record], settings: DataSettings, notes: Counter[str]) -> list[Record]:
    """Return the images to train on, with their trainable boxes (LD reference's rules); count what is left out.

    The sides of a rotated object are those of the smallest rectangle around it.
    """
    notes[EMPTY] += sum(settings.filter_empty and not len(record.boxes) for record in records)
    records = [record for record in records if len(record.boxes) or not settings.filter_empty]
    large = [record for record in records if min(record.height, record.width) >= settings.min_side]
    notes[f"images with a side below {settings.min_side} pixels, left out"] += len(records) - len(large)
    if not large:
        return []
    # all objects at once, because a large data set has many images
    counts = [len(record.boxes) for record in large]
    bounds = np.array([(record.width, record.height) for record in large], np.float32).repeat(counts, axis=0)
    boxes, areas = (np.concatenate([getattr(record, name) for record in large]) for name in ("boxes", "areas"))
    overlap = np.minimum(boxes[:, 2:], bounds) - np.maximum(boxes[:, :2], 0)
    flat = (boxes[:, 2:] <= boxes[:, :2]).any(-1)
    outside, tiny = (overlap <= 0).any(-1) & ~flat, flat | (sides_of(*large) < settings.min_box_side).any(-1)
    keep = ~(outside | tiny | (areas <= 0))
    notes["boxes outside the image, left out"] += int(outside.sum())
    notes[f"boxes with a side below {settings.min_box_side:g} px, left out"] += int((tiny & ~outside).sum())
    notes["boxes with area 0, left out"] += int((~keep & ~outside & ~tiny).sum())
    if settings.crowd == "objects":
        large = [replace(record, ignored=record.labels == ANY) for record in large]
    ends = np.cumsum(counts)
    for number in np.unique(np.searchsorted(ends, np.flatnonzero(~keep), side="right")).tolist():
        large[number] = large[number].of(keep[ends[number] - counts[number] : ends[number]])
    return large


def shared_images(train: Dataset, val: Dataset) -> list[str]:
    """Return the names of the images of ``val`` that are in ``train`` as well."""
    folders: dict[str, str] = {}
    paths = []  # without links, following those of each folder once
    for record in (*train.records, *val.records):
        path = str(record.path)
        head, name = os.path.split(path)
        if head not in folders:
            folders[head] = os.path.realpath(head)
        paths.append(os.path.realpath(path) if os.path.islink(path) else f"{folders[head]}{os.sep}{name}")
    known = set(paths[: len(train)])
    return [record.path.name for record, path in zip(val.records, paths[len(train) :], strict=True) if path in known]


def sides_of(*records: Record) -> np.ndarray:
    """Return the side lengths ``(n, 2)`` in pixels of each object's box, or of the smallest rectangle around it."""
    quads = [record.quads for record in records if record.quads is not None]
    if quads:
        return fit(torch.from_numpy(np.concatenate(quads)), "oc")[:, 2:4].numpy()
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(record.boxes for record in records)])
    sides: np.ndarray = boxes[:, 2:] - boxes[:, :2]
    return sides
