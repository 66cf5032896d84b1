"""Detections as the files of DOTA's first task: one for each class, and a zip file for the server.

A line is ``image score x1 y1 x2 y2 x3 y3 x4 y4``: the image's name without its suffix, and the corners clockwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.data.records import Dataset
from locdistill.errors import DataError
from locdistill.evaluation.arrays import found
from locdistill.geometry.kinds import HORIZONTAL, kind_of
from locdistill.geometry.rotated import AngleRange, fit, polygon_hull
from locdistill.types import Detections

ARCHIVE = "Task1.zip"
_FIELDS = 10
_SHOWN = 10


def task1_name(name: str) -> str:
    """Return the file name of a class."""
    return f"Task1_{name}.txt"


def write_task1(dataset: Dataset, detections: Mapping[int, Detections], folder: str | Path) -> Path:
    """Write ``Task1_{class}.txt`` for every class, also without detections, and a flat ``Task1.zip`` of these.

    Scores have five decimals and coordinates two. The first corner is chosen so that the corners fit best to those of
    the circumscribed box, counted from its upper left one, as in the DOTA development kit.

    Args:
        dataset: Data set with the names of images and classes.
        detections: By image identifier, in pixels of the original image.
        folder: Folder to create; files of these names in it are replaced.

    Returns:
        The path of the zip file.

    Raises:
        ValueError: Detections for an image or a class that the data set does not have.
        DataError: Two images have the same name, or a class has a name that is not a valid file name.
    """
    names = {image_id: stem for stem, image_id in _image_ids(dataset).items()}
    lines: list[list[str]] = [[] for _ in dataset.classes]
    for image_id, here in found(dataset, detections).items():
        boxes = torch.from_numpy(here.boxes).double()
        quads = from_upper_left(kind_of(boxes).corners(boxes)).flatten(1)
        for quad, score, label in zip(quads.tolist(), here.scores.tolist(), here.labels.tolist(), strict=True):
            lines[label].append(" ".join([names[image_id], f"{score:.5f}", *(f"{v:.2f}" for v in quad)]) + "\n")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / ARCHIVE
    with ZipFile(archive, "w", ZIP_DEFLATED) as together:
        for name, own in zip(dataset.classes, lines, strict=True):
            if Path(name).name != name:
                raise DataError(f"class {name!r}: no file can be called {task1_name(name)!r}; rename the class")
            (folder / task1_name(name)).write_text("".join(own), encoding="utf-8")
            together.writestr(task1_name(name), "".join(own))
    return archive


def from_upper_left(quads: Float[Tensor, "k 4 2"]) -> Float[Tensor, "k 4 2"]:
    """Rotate the order of the corners to the one that is closest to the corners of the circumscribed box.

    The orientation is kept. Closeness is the sum of the distances; of equal sums the first in the given order is used.
    """
    box = HORIZONTAL.corners(polygon_hull(quads))
    turns = torch.stack([quads.roll(-i, 1) for i in range(4)], 1)
    best = (turns - box[:, None]).norm(dim=-1).sum(-1).argmin(1)
    return turns[torch.arange(len(quads)), best]


def read_task1(folder: str | Path, dataset: Dataset, *, angles: AngleRange = "oc") -> dict[int, Detections]:
    """Read the files of `write_task1`, or of another program, best score first within each image.

    Corners are converted to the rotated box with the smallest area around them, with the angle in the given range.

    Raises:
        DataError: The file of a class is absent, or lines are invalid or of images that the data set lacks; the message
            lists the first of them.
    """
    image_ids = _image_ids(dataset)
    rows: dict[int, list[tuple[int, list[float]]]] = {record.image_id: [] for record in dataset.records}
    problems: list[str] = []
    for label, name in enumerate(dataset.classes):
        path = Path(folder) / task1_name(name)
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"{path}: no readable Task-1 file of class {name!r}: {error}") from error
        for number, line in enumerate(lines, 1):
            image, *words = line.strip().rsplit(maxsplit=_FIELDS - 1) or [""]
            numbers = _numbers(words)
            if image not in image_ids or numbers is None:
                problems.append(f"  {path.name}, line {number}: {line[:80]!r}")
            else:
                rows[image_ids[image]].append((label, numbers))
    if problems:
        raise DataError(
            f"{folder}: {len(problems)} lines are not 'image score x1 y1 ... x4 y4' of an image of data set "
            f"'{dataset.name}':\n" + "\n".join(problems[:_SHOWN])
        )
    return {image_id: _detections(own, angles) for image_id, own in rows.items()}


def _numbers(words: list[str]) -> list[float] | None:
    """Parse the score and corners of a line; return None if it is invalid."""
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        return None
    return numbers if len(numbers) == _FIELDS - 1 and all(map(math.isfinite, numbers)) else None


def _detections(rows: list[tuple[int, list[float]]], angles: AngleRange) -> Detections:
    rows = sorted(rows, key=lambda row: -row[1][0])  # stable: equal scores stay in the order of classes and lines
    numbers = torch.tensor([numbers for _, numbers in rows], dtype=torch.float64).reshape(-1, _FIELDS - 1)
    return Detections(
        boxes=fit(numbers[:, 1:].reshape(-1, 4, 2), angles).float(),
        scores=numbers[:, 0].float(),
        labels=torch.tensor([label for label, _ in rows], dtype=torch.int64),
    )


def _image_ids(dataset: Dataset) -> dict[str, int]:
    """Return image identifiers by the names used in Task-1 files."""
    image_ids: dict[str, int] = {}
    for record in dataset.records:
        if record.path.stem in image_ids:
            raise DataError(
                f"{record.path}: a second image of the name {record.path.stem!r} in data set '{dataset.name}'; Task-1 "
                "files tell images by their names alone, rename one of them"
            )
        image_ids[record.path.stem] = record.image_id
    return image_ids
