"""YOLO folders: a description with names and splits, images, and one text file of normalised boxes per image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from locdistill.annotations.coco_files import ALIASES
from locdistill.annotations.files import IMAGE_SUFFIXES, images_below, in_threads, read_text, subfolders
from locdistill.annotations.folders import note_unreadable
from locdistill.annotations.index import kept_sources
from locdistill.annotations.problems import Problem
from locdistill.annotations.sources import Listed, Source, SourceSettings, circumscribed, clockwise, signed_areas
from locdistill.annotations.yolo_description import (
    YAML_SUFFIXES,
    Description,
    cleaned,
    find,
    find_description,
    has_labels,
    load,
    places_of_entry,
)
from locdistill.annotations.yolo_labels import find_labels, kind_of_rows, objects_of, parse
from locdistill.errors import AnnotationError

LOOKED_FOR = (
    "data.yaml or another single YAML file with 'names', 'train' and 'val' (write one where only images and labels "
    "exist); obj.data; or classes.txt with a name in each line beside images and labels"
)


def hint(path: Path) -> str:
    """Return what to do with a description in a folder below, or with label files without names."""
    if not path.is_dir():
        return ""
    below = [file for file in map(find_description, subfolders(path)) if file and file.suffix in YAML_SUFFIXES]
    if below:
        return f"{below[0].relative_to(path)} may describe it; pass --data {below[0]}"
    if has_labels(Description(path, {}, path)):
        return f"There are label files without names; write the classes, one a line, to {path / 'classes.txt'}"
    return ""


def doubt(path: Path) -> int:
    """Return 2 if no split has label files in the usual places, so that the data may be of another format; else 0."""
    try:
        return 0 if has_labels(_described(path)) else 2
    except AnnotationError:
        return 0


def usual(path: Path, split: str) -> str:
    """Return the usual name of a split: ``val`` to train on as well, if it is the only one."""
    if split != "train":
        return split
    description = _described(path)
    only_val = [other for other in ALIASES if description.entries(other)] == ["val"]  # a whole data set by FiftyOne
    return "val" if only_val and any(Path(place).exists() for place in place_of(path, "val")) else split


def place_of(path: Path, split: str) -> list[str]:
    """Return the folders and lists of a split, also those that do not exist; none for a test split without them.

    So it is for a split to evaluate on in a file of Roboflow.

    Raises:
        AnnotationError: There is no description, or it cannot be read.
    """
    description = _described(path)
    # Roboflow's file names three splits whether or not they have images
    generated = "roboflow" in description.content or (description.home / "README.roboflow.txt").is_file()
    roots, found = description.roots(), []
    for item in description.entries(split):
        places, _ = places_of_entry(item, roots, split) if isinstance(item, str) else ([], True)
        if not places and (split == "test" or (split == "val" and generated)):
            return []
        found += [str(place) for place in places] or [str(item)]
    return found


def read(settings: SourceSettings, path: Path, _place: list[str], split: str) -> list[Source]:
    """Read a split.

    A line of a label file is ``class cx cy w h`` as fractions of the image sides. Polygons become the boxes around
    them; a confidence and key points are dropped. Where all lines have four corners, objects are rotated. An image
    without a label file has no objects. Images are numbered from 1 in the order of their names, or of the list file.

    Raises:
        AnnotationError: The description has no such split, or no valid names.
    """
    description = _described(path)
    names = description.class_names()
    points = description.key_points()
    source = Source(file=str(description.file), categories=list(enumerate(names)), relative=True)
    pictures, folders = _pictures(description, split, settings.root, source)
    files = find_labels(pictures, folders, source, split=split, root=description.roots()[0])
    labels = [file for file in files if file]
    also = [split, str(points), *names, *map(str, pictures)]
    filled = partial(_with_objects, source, pictures, files, names, points)
    found = kept_sources([description.file, *labels], split, filled, also)
    for other in ("val", "test") if split == "train" else ():
        absent = description.entries(other) if not place_of(path, other) else []
        found[0].notes.update(f"split {other!r} ({item}) that does not exist, left out" for item in absent)
    return found


def _described(path: Path) -> Description:
    file = find_description(path)
    if file is None:
        raise AnnotationError(f"{path}: no data.yaml with 'names', 'train' and 'val' in it; write one")
    return load(file, path if path.is_dir() else path.parent)


def _with_objects(
    source: Source,
    pictures: Sequence[Path],
    files: Sequence[Path | None],
    names: Sequence[str],
    points: tuple[int, int] | None,
) -> list[Source]:
    """Add the images, and the objects of their label files, to a source."""
    parsed = in_threads(partial(parse, names=names), files, label="reading labels")
    kind = kind_of_rows(parsed, points)
    for position, (path, file, found) in enumerate(zip(pictures, files, parsed, strict=True), start=1):
        source.problems += found.problems
        source.notes["label lines with commas, read"] += found.with_commas
        objects = objects_of(str(file), found.rows, kind, points, source)
        quads = clockwise(objects.quads, source.notes) if kind == "corners" else None
        source.images.append(
            Listed(
                path=path,
                image_id=position,
                declared=None,
                boxes=objects.boxes if quads is None else circumscribed(quads),
                categories=objects.labels,
                ignored=np.zeros(len(objects.labels), dtype=bool),
                areas=None if quads is None else signed_areas(quads),
                where=f"image {path.name}",
                quads=quads,
            )
        )
    return [source]


def _pictures(description: Description, split: str, root: str, source: Source) -> tuple[list[Path], list[Path]]:
    """Return the images of a split, and the folders of which it has all images."""
    file, entries = description.file, description.entries(split)
    if not entries or not all(isinstance(item, str) for item in entries):
        known = [key for key, value in description.content.items() if key not in ("names", "path", "nc") and value]
        raise AnnotationError(
            f"{file}: no split {split!r} (a folder, a list file, or a list of them); the file has {known}"
        )
    roots, stated = description.roots(root), description.stated
    if stated and not (description.home / stated).is_dir():
        source.notes[f"'path' that is no folder here ({stated}), replaced by the folder of {file.name}"] += 1
    pictures: list[Path] = []
    folders: list[Path] = []
    for item in entries:
        places, exact = places_of_entry(item, roots, split)
        if not places:
            what = f"{split!r} is {item!r}, but there is no {roots[0] / cleaned(item)}"
            raise AnnotationError(f"{file}: {what}; correct 'path' or {split!r}")
        source.notes[f"path that does not exist as written ({item}), read as {places[0]}"] += not exact
        for place in places:
            if place.is_dir():
                folders.append(place)
                pictures += images_below(place)
                note_unreadable(place, source.notes)
            elif place.suffix.lower() in IMAGE_SUFFIXES:
                pictures.append(place)
            else:
                pictures += _listed(place, roots, source)
    if not pictures and split != "test":
        what = f"{split!r} is {', '.join(entries)}, where no images are"
        remedy = "put them there; some exporters leave images out unless told otherwise"
        source.problems.append(Problem(str(file), "", what, remedy))
    return list(dict.fromkeys(pictures)), folders


def _listed(file: Path, roots: Sequence[Path], source: Source) -> list[Path]:
    """Read the images of a list file: relative to the file or a root, absolute, or found by the last parts of a name.

    Only names inside these folders are accepted; symbolic links are followed.
    """
    places = list(dict.fromkeys([file.parent, *roots]))
    known: dict[str, tuple[Path, bool]] = {}
    pictures: list[Path] = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        folder, _, name = cleaned(line).rpartition("/")
        if not name:
            continue
        home, exact = known.get(folder, (None, True))
        place = home / name if home else None
        if place is None or not place.is_file():
            place, exact = find(line, places)
            place = places[0] / cleaned(line) if place is None else place
            inside = any(Path(os.path.abspath(place)).is_relative_to(os.path.abspath(above)) for above in places)
            if place.exists() and not inside:
                what = f"{cleaned(line)!r} leaves the data folder {roots[0]}"
                remedy = "list images below it, or set data.root to a folder above the images"
                source.problems.append(Problem(str(file), f"line {number}", what, remedy))
                continue
            known[folder] = place.parent, exact
        source.notes["listed images that do not exist as written, found by the last parts of their names"] += not exact
        pictures.append(place)
    return pictures
