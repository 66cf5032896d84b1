"""Objects and detections of a data set as arrays, checked against its images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from locdistill.data.records import Dataset, Record
from locdistill.types import Detections


class Found(NamedTuple):
    """Detections in one image, in the given order.

    Attributes:
        boxes: ``(k, 4)``, ``x1, y1, x2, y2`` in pixels of the original image; rotated ones ``(k, 5)``,
            ``cx, cy, w, h, theta``.
        scores: ``(k,)``.
        labels: ``(k,)`` class indices.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


def found(dataset: Dataset, detections: Mapping[int, Detections]) -> dict[int, Found]:
    """Convert detections to arrays, image by image in the order of the data set; no entry means no detections.

    Raises:
        ValueError: Detections were given for an image that the data set does not have, or for a class it does not have,
            or their boxes are rotated and its objects are not, or vice versa.
    """
    known = {record.image_id for record in dataset.records}
    strangers = [image_id for image_id in detections if image_id not in known]
    if strangers:
        raise ValueError(
            f"detections were given for {len(strangers)} image(s) that are not in data set '{dataset.name}' "
            f"({len(known)} images), first: {strangers[:5]}; evaluate on the images that were detected on"
        )
    numbers = 5 if dataset.oriented else 4
    nothing = Found(np.zeros((0, numbers), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    arrays = dict.fromkeys((record.image_id for record in dataset.records), nothing)
    for image_id, found_here in detections.items():
        boxes, scores, labels = (part.detach().cpu().numpy() for part in found_here)
        if not len(boxes):
            boxes = boxes.reshape(0, numbers)
        arrays[image_id] = Found(
            boxes.astype(np.float32, copy=False),
            scores.astype(np.float32, copy=False),
            labels.astype(np.int64, copy=False),
        )
        if boxes.shape[1] != numbers:
            kinds = ("axis-aligned", "rotated")
            came, expected = kinds if dataset.oriented else kinds[::-1]
            raise ValueError(
                f"image {image_id}: expected {expected} boxes, as the objects of data set '{dataset.name}' are, came "
                f"{came} ones; evaluate on dataset.as_oriented({not dataset.oriented}), or use a detector of "
                f"{expected} boxes"
            )
        outside = labels[(labels < 0) | (labels >= len(dataset.classes))]
        if outside.size:
            raise ValueError(
                f"image {image_id}: a detection has class index {outside[0]}, but data set '{dataset.name}' has "
                f"{len(dataset.classes)} classes; use a model that was trained on these classes"
            )
    return arrays


def outlines(record: Record) -> NDArray[np.float32]:
    """Return the ground truth of an image: quadrilaterals ``(n, 4, 2)`` if it has them, else boxes ``(n, 4)``."""
    return record.boxes if record.quads is None else record.quads


class Rows(NamedTuple):
    """Objects or detections of all images, sorted by class, then image, then (detections) descending score.

    Rows equal in all of these stay in the given order.

    Attributes:
        images: ``(n,)`` index of the image among those given.
        labels: ``(n,)`` class indices.
        boxes: ``(n, 4)``, ``x1, y1, x2, y2`` in pixels of the original image; for rotated objects the corners
            ``(n, 4, 2)``, for rotated detections ``(n, 5)``.
        values: ``(n,)``: for objects, whether they are ignored; for detections, the score.
        areas: ``(n,)``, which decide the size class of an object; for detections, areas of the boxes.
    """

    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float32]
    values: NDArray[Any]
    areas: NDArray[np.float64]

    @classmethod
    def objects(cls, records: Sequence[Record]) -> Rows:
        """Create the rows of the ground truth."""
        images, labels = _numbered(record.labels for record in records)
        boxes = _joined(map(outlines, records), np.zeros((0, 4), np.float32))
        ignored = _joined((record.ignored for record in records), np.zeros(0, bool))
        areas = _joined((record.areas for record in records), np.zeros(0)).astype(np.float64)
        return cls(images, labels, boxes, ignored, areas).taken(np.lexsort((images, labels)))

    @classmethod
    def detections(cls, parts: Sequence[Found]) -> Rows:
        """Create the rows of detections in images in the same order."""
        images, labels = _numbered(part.labels for part in parts)
        boxes = _joined((part.boxes for part in parts), np.zeros((0, 4), np.float32))
        scores = _joined((part.scores for part in parts), np.zeros(0, np.float32))
        exact = boxes.astype(np.float64)
        rotated = boxes.shape[1] == 5
        areas = (exact[:, 2:4] if rotated else exact[:, 2:] - exact[:, :2]).prod(-1)
        return cls(images, labels, boxes, scores, areas).taken(np.lexsort((-scores, images, labels)))

    def of_class(self, label: int) -> Rows:
        """Return the rows of one class."""
        first, end = np.searchsorted(self.labels, (label, label + 1))
        return self.taken(slice(first, end))

    def by_image(self) -> dict[int, slice]:
        """Return the slice of each image's rows, for images with rows; the rows must be of one class."""
        images, starts = np.unique(self.images, return_index=True)
        ends = np.append(starts, len(self.images))[1:]
        rows = map(slice, starts.tolist(), ends.tolist())
        return dict(zip(images.tolist(), rows, strict=True))

    def taken(self, order: NDArray[np.int64] | slice) -> Rows:
        """Return the selected rows in the given order."""
        columns: list[NDArray[Any]] = [column[order] for column in self]
        return Rows(*columns)


def _numbered(labels_by_image: Iterable[NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the image index of each entry, and all labels."""
    parts = list(labels_by_image)
    return np.repeat(np.arange(len(parts)), [len(part) for part in parts]), _joined(parts, np.zeros(0, np.int64))


def _joined(parts: Iterable[NDArray[Any]], nothing: NDArray[Any]) -> NDArray[Any]:
    """Concatenate all arrays; ``nothing`` gives shape and type if there is none."""
    return np.concatenate(list(parts) or [nothing])
