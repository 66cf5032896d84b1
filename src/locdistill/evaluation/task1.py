"""Detections as the files of DOTA's first task: one for each class, and a zip file for the server.

A line is ``image score x1 y1 x2 y2 x3 y3 x4 y4``: the image's name without its suffix, and the corners clockwise.
"""

from __future__ import annotations

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
from locdistill.geometry.rotated import polygon_hull
from locdistill.types import Detections

ARCHIVE = "Task1.zip"


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
    names = {record.image_id: record.path.stem for record in dataset.records}
    seen: set[str] = set()
    for record in dataset.records:
        if record.path.stem in seen:
            raise DataError(
                f"{record.path}: a second image of the name {record.path.stem!r} in data set '{dataset.name}'; "
                "Task-1 files identify images by name alone, rename one of them"
            )
        seen.add(record.path.stem)
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
            file = f"Task1_{name}.txt"
            if Path(name).name != name:
                raise DataError(f"class {name!r}: no file can be called {file!r}; rename the class")
            (folder / file).write_text("".join(own), encoding="utf-8")
            together.writestr(file, "".join(own))
    return archive


def from_upper_left(quads: Float[Tensor, "k 4 2"]) -> Float[Tensor, "k 4 2"]:
    """Rotate the order of the corners to the one that is closest to the corners of the circumscribed box.

    The orientation is kept. Closeness is the sum of the distances; of equal sums the first in the given order is used.
    """
    box = HORIZONTAL.corners(polygon_hull(quads))
    turns = torch.stack([quads.roll(-i, 1) for i in range(4)], 1)
    best = (turns - box[:, None]).norm(dim=-1).sum(-1).argmin(1)
    return turns[torch.arange(len(quads)), best]
