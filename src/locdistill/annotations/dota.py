"""DOTA: images, and one text file per image with the corners of its objects; whole images or tiles."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from locdistill.annotations.coco_files import ALIASES
from locdistill.annotations.files import by_name, files_of, images_below, in_threads, subfolders
from locdistill.annotations.folders import files_in, note_unreadable
from locdistill.annotations.index import kept_sources
from locdistill.annotations.problems import Problem
from locdistill.annotations.sources import (
    Listed,
    Source,
    SourceSettings,
    circumscribed,
    clockwise,
    listed_names,
    signed_areas,
)
from locdistill.annotations.tiles import WINDOWS, Origin, origin
from locdistill.interop.classes import DOTA_BY_COUNT

LABELS = ("labelTxt", "annfiles")
HEADERS = ("imagesource:", "gsd:")
LOOKED_FOR = "images and labelTxt in train and val, or in the folder, with lists train.txt and val.txt"
LINE = "expected 'x1 y1 x2 y2 x3 y3 x4 y4 class difficult'"


class Place(NamedTuple):
    """Location of a split.

    Attributes:
        images: Folder of its images.
        labels: Folder of its label files; None if there are none, as for DOTA's test images.
        names: List file of its images; None if it has its own folder.
    """

    images: Path
    labels: Path | None
    names: Path | None = None


def label_folder(folder: Path) -> Path | None:
    """Find the folder of label files in a folder: ``labelTxt``, ``annfiles``, or the only ``labelTxt-v*``."""
    candidates = [folder / name for name in LABELS] + sorted(folder.glob("labelTxt-v*"))
    found = [labels for labels in candidates if labels.is_dir() and any(files_in(labels, ".txt", nested=False))]
    return found[0] if found and (found[0].name in LABELS or len(found) == 1) else None


def label_folders(path: Path) -> list[Path]:
    """Find the label folders of a data folder: directly in it, in its subfolders, and the folders of splits in one."""
    folders = [path, *subfolders(path)] if path.is_dir() else []
    divided = [sub for labels in LABELS for sub in subfolders(path / labels) if next(iter(files_of(sub, ".txt")), None)]
    return [labels for folder in folders if (labels := label_folder(folder))] + divided


def find_place(path: Path, split: str) -> Place | None:
    """Find a split: a folder of its name, or ``images`` and ``labelTxt`` with such folders or with a list file."""
    for name in ALIASES.get(split, (split,)):
        folder = path / name
        if (folder / "images").is_dir():
            return Place(folder / "images", label_folder(folder))
        if (path / "images" / name).is_dir():
            divided = (path / labels / name for labels in LABELS)
            return Place(path / "images" / name, next((labels for labels in divided if labels.is_dir()), None))
        for names in (path / f"{name}.txt", path / "ImageSets" / f"{name}.txt"):
            if names.is_file() and (path / "images").is_dir():
                return Place(path / "images", label_folder(path), names)
    return None


def read(_settings: SourceSettings, path: Path, place: Place, _split: str) -> list[Source]:
    """Read a split.

    A line of a label file is ``x1 y1 x2 y2 x3 y3 x4 y4 class difficult``, in pixels. ``difficult`` may be absent;
    objects with 1 or more are marked as ignored. Corners are ordered clockwise on screen; boxes circumscribe them. An
    image without a label file has no objects. Images are numbered from 1 in the order of their names, or of the list.

    The classes are those of the first version of DOTA that has all names in the data folder (of all splits), in its
    order; if none has, the names that occur, sorted. Objects are rotated. Tiles have the classes of the data that they
    were cut from, and rotated objects if those had.
    """
    source = Source(file=str(place.names or place.images.parent), categories=[])
    pictures = by_name(place.images, images_below(place.images))
    note_unreadable(place.images, source.notes)
    if place.names is not None:
        suffixes = {file.name: name for name, file in pictures.items()}
        names = [suffixes.get(name, name) for name in listed_names(place.names, source)]
    else:  # of all images and all label files, whose image may be missing
        labelled = {file.stem for file in files_of(place.labels, ".txt")} if place.labels else set()
        names = sorted(labelled.union(pictures))
    files = [place.labels / f"{name}.txt" if place.labels else None for name in names]
    others = {file for folder in label_folders(path) for file in files_of(folder, ".txt")}.difference(files)
    depends = [place.images.parent / WINDOWS, *(file for file in files if file), *sorted(others)]
    named = {name: pictures.get(name) for name in names}
    also = [str(place.names), *names, *map(str, pictures.values())]
    filled = partial(_with_objects, source, place, named, files, others)
    return kept_sources(depends, place.images.name, filled, also)


def _with_objects(
    source: Source,
    place: Place,
    pictures: Mapping[str, Path | None],
    files: Sequence[Path | None],
    others: Collection[Path],
) -> list[Source]:
    """Add the images by name, the objects of their label files, and the classes of all label files to a source."""
    parsed = in_threads(_parse, files, label="reading labels")
    source.notes["images without a label file, taken as without objects"] += sum(own is UNLABELLED for own in parsed)
    cut = origin(place.images.parent) or Origin(True, {})
    used = {row.name for rows, _ in parsed for row in rows}
    known = cut.classes if used <= cut.classes.keys() else {}
    classes = tuple(known.values())
    if not classes:
        found = in_threads(_parse, list(others), label="collecting classes")
        used.update(row.name for rows, _ in found for row in rows)
        classes = next((version for version in DOTA_BY_COUNT.values() if used <= set(version)), tuple(sorted(used)))
    source.categories = list(enumerate(classes))
    labels = {name: index for index, name in enumerate(known or classes)}
    for position, (name, (rows, problems)) in enumerate(zip(pictures, parsed, strict=True), start=1):
        source.problems += problems
        quads = clockwise(np.array([row.corners for row in rows], dtype=np.float64).reshape(-1, 4, 2), source.notes)
        source.images.append(
            Listed(
                path=pictures[name] or place.images / f"{name}.png",
                image_id=position,
                declared=None,
                boxes=circumscribed(quads),
                categories=np.array([labels[row.name] for row in rows], dtype=np.int64),
                ignored=np.array([row.difficult for row in rows], dtype=bool),
                areas=signed_areas(quads),
                where=f"image {name}",
                quads=quads if cut.oriented else None,
            )
        )
    return [source]


class _Row(NamedTuple):
    corners: tuple[float, ...]
    name: str
    difficult: bool


_Parsed = tuple[list[_Row], list[Problem]]
UNLABELLED: _Parsed = ([], [])
"""Content of an image without a label file; recognised by identity."""


def _parse(file: Path | None) -> _Parsed:
    """Parse a label file; return its rows and its faults."""
    if file is None:
        return UNLABELLED
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return UNLABELLED
    except (OSError, ValueError) as error:
        return [], [Problem(str(file), "", f"cannot be read as text ({error})", "export the labels again")]
    rows, problems = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lower().startswith(HEADERS):
            continue
        row = _row(line.split())
        if isinstance(row, _Row):
            rows.append(row)
        else:
            problems.append(Problem(str(file), f"line {number}", *row))
    return rows, problems


def _row(fields: list[str]) -> _Row | tuple[str, str]:
    """Parse a line; return its object, or the fault and the remedy."""
    if len(fields) not in (9, 10):
        return f"has {len(fields)} fields", LINE
    try:
        corners = tuple(float(field) for field in fields[:8])
    except ValueError:
        corners = (math.nan,)
    if not all(math.isfinite(value) for value in corners):
        return f"the corners {' '.join(fields[:8])} are not eight finite numbers", LINE
    difficult = fields[9] if len(fields) == 10 else "0"
    if not difficult.isdecimal():
        return f"'difficult' is {difficult!r}", "write 0, or a larger number for an object to ignore"
    return _Row(corners, fields[8], int(difficult) > 0)
