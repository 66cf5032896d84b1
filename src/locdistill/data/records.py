"""A data set in memory, independent of its file format: images with boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from locdistill.annotations.sources import DataFormat, corners
from locdistill.geometry.rotated import AngleRange
from locdistill.images import read_image


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its annotations.

    Attributes:
        path: The image file.
        image_id: The data set's own identifier; for formats without one, the position from 1.
        width: Width of the upright image, in pixels.
        height: Height of the upright image, in pixels.
        boxes: ``(n, 4)`` float32, ``x1, y1, x2, y2`` in pixels, as annotated: they may reach beyond the image.
        labels: ``(n,)`` int64, indices into the classes of the data set.
        ignored: ``(n,)`` bool: crowd regions and difficult objects.
        areas: ``(n,)`` float32, the area by which COCO sorts objects into small, medium and large: the area of the
            annotated mask if the file has one, otherwise (and by default) that of the box.
        quads: ``(n, 4, 2)`` float32, the corners ``x, y`` of each object as annotated, clockwise on screen; only for
            rotated objects. ``boxes`` then circumscribe them.
    """

    path: Path
    image_id: int
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray = field(default=None)  # type: ignore[arg-type]  # filled below
    quads: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.areas is None:
            sides = self.boxes[:, 2:] - self.boxes[:, :2]
            object.__setattr__(self, "areas", sides.prod(-1))

    def of(self, objects: np.ndarray) -> Record:
        """Return the image with a subset of its objects, selected by a mask or by indices."""
        names = ("boxes", "labels", "ignored", "areas", "quads")
        rows = {name: getattr(self, name) for name in names}
        return replace(self, **{name: row[objects] for name, row in rows.items() if row is not None})


@dataclass(frozen=True, eq=False)
class Dataset:
    """A split, ready to train or evaluate on.

    Attributes:
        name: Name for messages: the folder and the split.
        classes: Names, in the order of the labels.
        records: The images.
        kind: File format; ``voc`` is evaluated by VOC's rules.
        category_ids: Identifier of each class in the file: the COCO category id, ``1..C`` for other formats.
        empty: Number of images that were left out of the records because they have no objects.
        notes: What was left out, changed or guessed when the split was read, with the number of each.
        oriented: Whether objects are rotated boxes; every record then has ``quads``.
        angles: Range of the angles of rotated boxes.
        bits: Number of bits that the values of 16-bit images use; None: 16.
    """

    name: str
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    kind: DataFormat
    category_ids: tuple[int, ...]
    empty: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)
    oriented: bool = False
    angles: AngleRange = "le135"
    bits: int | None = None

    def __len__(self) -> int:
        return len(self.records)

    def picture(self, record: Record) -> UInt8[Tensor, "3 h w"]:
        """Read an image as it is trained on, to look at it or to draw on it.

        Raises:
            ImageError: It cannot be read.
        """
        return read_image(record.path, bits=self.bits)

    def as_oriented(self, oriented: bool, angles: AngleRange = "le135") -> Dataset:
        """Convert the objects to rotated boxes with angles in a range, or to axis-aligned boxes.

        The quadrilateral of an axis-aligned box is its own corners; ``boxes`` circumscribe rotated objects.
        """
        if oriented == self.oriented:
            return replace(self, angles=angles)
        records = [replace(record, quads=corners(record.boxes) if oriented else None) for record in self.records]
        return replace(self, records=tuple(records), oriented=oriented, angles=angles)


def most_objects(dataset: Dataset) -> int:
    """Return the largest number of objects in an image, without ignored ones."""
    return max((int((~record.ignored).sum()) for record in dataset.records), default=0)


def evenly(dataset: Dataset, images: int | None) -> Dataset:
    """Return ``images`` evenly spaced images of a data set; all if there are no more, or for None."""
    count = len(dataset)
    if images is None or images >= count:
        return dataset
    return replace(dataset, records=tuple(dataset.records[i * count // images] for i in range(images)))
