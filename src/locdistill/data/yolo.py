"""YOLO folders: ``data.yaml``, images, and one text file of normalised boxes per image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from locdistill.data.files import images_below, in_threads
from locdistill.data.problems import Problem
from locdistill.data.settings import DataSettings
from locdistill.data.sources import Listed, Source, box_arrays
from locdistill.errors import AnnotationError

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
LOOKED_FOR = "data.yaml or another single YAML file"
TOLERANCE = 1e-4  # exporters round to four or more digits


def find_yaml(path: Path) -> Path | None:
    """Find the description of the data set: the path itself, a file of a usual name in it, or its only YAML file."""
    if path.is_file():
        return path if path.suffix in (".yaml", ".yml") else None
    usual = next((path / name for name in YAML_NAMES if (path / name).is_file()), None)
    others = [*path.glob("*.yaml"), *path.glob("*.yml")] if path.is_dir() else []
    return usual or (others[0] if len(others) == 1 else None)


def split_keys(split: str) -> tuple[str, ...]:
    """Return the possible names of a split in ``data.yaml``."""
    return ("val", "valid", "validation") if split == "val" else (split,)


def fits(path: Path, _names: Sequence[str]) -> bool:
    """Return whether a path is or has a description of the data set."""
    return find_yaml(path) is not None


def splits(path: Path) -> list[str]:
    """Return those of train, val and test that the description names.

    Raises:
        AnnotationError: The file is no YAML mapping.
    """
    return [split for split in ("train", "val", "test") if entry_of(path, split)]


def entry_of(path: Path, split: str) -> Any:
    """Return what the description says of a split; None if nothing, or if there is no description.

    Raises:
        AnnotationError: The file is no YAML mapping.
    """
    file = find_yaml(path)
    if file is None:
        raise AnnotationError(f"{path}: no data.yaml with 'names', 'train' and 'val' in it; write one")
    content = _load(file)
    return next((content[key] for key in split_keys(split) if content.get(key)), None)


def read(settings: DataSettings, _entry: Any, split: str) -> list[Source]:
    """Read a split; see :func:`read_yolo`."""
    file = find_yaml(Path(settings.path))
    assert file is not None
    return [read_yolo(file, split)]


def read_yolo(file: Path, split: str) -> Source:
    """Read one split.

    A line of a label file is ``class cx cy w h`` as fractions of the image sides. An image without a label file has no
    objects. Images are numbered from 1 in the order of their names, or of the list file.

    Raises:
        AnnotationError: The YAML file does not describe a data set with this split.
    """
    content = _load(file)
    names = _class_names(file, content)
    source = Source(file=str(file), categories=list(enumerate(names)), relative=True)
    pictures = _split_images(file, content, split, source)
    parsed = in_threads(lambda path: _parse(label_file(path), len(names)), pictures, label="reading labels")
    for position, (path, (rows, problems, repeated)) in enumerate(zip(pictures, parsed, strict=True), start=1):
        source.problems += problems
        source.notes["label lines written twice"] += repeated
        centres = box_arrays([(x, y, w, h) for _, x, y, w, h in rows])
        halves = centres[:, 2:] / 2
        source.images.append(
            Listed(
                path=path,
                image_id=position,
                declared=None,
                boxes=np.concatenate((centres[:, :2] - halves, centres[:, :2] + halves), axis=1),
                categories=np.array([row[0] for row in rows], dtype=np.int64),
                ignored=np.zeros(len(rows), dtype=bool),
                where=f"image {path.name}",
            )
        )
    return source


def label_file(image: Path) -> Path:
    """Return the label file of an image: ``labels`` replaces the last ``images`` in its path, else beside the image."""
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _load(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError) as error:
        raise AnnotationError(f"{file}: not valid YAML ({error}); write 'names', 'train' and 'val'") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{file}: expected the keys 'names', 'train' and 'val', found a {type(content).__name__}")
    return content


def _class_names(file: Path, content: dict[str, Any]) -> list[str]:
    names = content.get("names")
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise AnnotationError(
            f"{file}: 'names' is {names!r}; expected a list of class names, or a mapping 0: name, 1: name, ..."
        )
    texts = [str(name) for name in names]
    if len(set(texts)) < len(texts):
        raise AnnotationError(f"{file}: 'names' holds a class twice: {texts}; give each class its own name")
    return texts


def _split_images(file: Path, content: dict[str, Any], split: str, source: Source) -> list[Path]:
    """Return the images of a split; ``path`` in the YAML file is relative to it, and ignored if it is no folder."""
    entry = next((content[key] for key in split_keys(split) if content.get(key)), None)
    entries: list[Any] = entry if isinstance(entry, list) else [entry]
    if not all(isinstance(item, str) for item in entries):
        known = [key for key, value in content.items() if key not in ("names", "path", "nc") and value]
        raise AnnotationError(
            f"{file}: no split {split!r} (a folder, a list file, or a list of them); the file has {known}"
        )
    stated = content.get("path")
    root = file.parent / str(stated) if stated else file.parent
    if not root.is_dir():
        root = file.parent
    pictures: list[Path] = []
    for item in entries:
        places = [root / item, root / item.removeprefix("../")]
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise AnnotationError(
                f"{file}: {split!r} is {item!r}, but there is no {root / item}; correct 'path' or {split!r}"
            )
        pictures += images_below(place) if place.is_dir() else _listed(place, root, source)
    return list(dict.fromkeys(pictures))


def _listed(file: Path, root: Path, source: Source) -> list[Path]:
    """Read the images of a list file: absolute, or relative to the file or to the root; none outside the root.

    Only names are checked; symbolic links are followed.
    """
    pictures = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        places = [file.parent / name, root / name]
        place = next((place for place in places if place.is_file()), places[0])
        if ".." in Path(name).parts or not place.absolute().is_relative_to(root.absolute()):
            what = f"{name!r} leaves the data folder {root}"
            source.problems.append(Problem(str(file), f"line {number}", what, "list images below the data folder"))
        else:
            pictures.append(place)
    return pictures


LabelRows = list[tuple[int, float, float, float, float]]


def _parse(file: Path, classes: int) -> tuple[LabelRows, list[Problem], int]:
    """Parse a label file; return its rows, its faults, and the number of duplicate lines."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return [], [], 0
    except (OSError, ValueError) as error:
        return [], [Problem(str(file), "", f"cannot be read as text ({error})", "export the labels again")], 0
    rows: LabelRows = []
    problems = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        row, fault = _row(line, classes)
        if fault:
            problems.append(Problem(str(file), f"line {number}", *fault))
        elif row:
            rows.append(row)
    return rows, problems, len(rows) - len(set(rows))


def _row(line: str, classes: int) -> tuple[tuple[int, float, float, float, float] | None, tuple[str, str] | None]:
    fields = line.split()
    if len(fields) != 5:
        return None, (
            f"has {len(fields)} fields",
            "expected 'class cx cy w h' (polygons and key points are other formats: export boxes)",
        )
    try:
        label = float(fields[0])
        x, y, w, h = (float(field) for field in fields[1:])
    except ValueError:
        return None, (f"{line.strip()!r} is not five numbers", "expected 'class cx cy w h'")
    if not label.is_integer() or not 0 <= label < classes:
        return None, (f"the class is {fields[0]}", f"the data set has the classes 0 to {classes - 1}")
    if not all(math.isfinite(value) and -TOLERANCE <= value <= 1 + TOLERANCE for value in (x, y, w, h)):
        return None, (f"the box {fields[1:]} is not within 0..1", "write parts of the image width and height")
    return (int(label), x, y, max(w, 0.0), max(h, 0.0)), None
