"""Detections of a data set as arrays, checked against its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from locdistill.data.records import Dataset
from locdistill.types import Detections


class Found(NamedTuple):
    """What was detected in one image, in the order in which it was given.

    Attributes:
        boxes: ``(k, 4)``, ``x1, y1, x2, y2`` in pixels of the original image.
        scores: ``(k,)``.
        labels: ``(k,)`` class indices.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


def found(dataset: Dataset, detections: Mapping[int, Detections]) -> dict[int, Found]:
    """Detections as arrays, image by image in the order of the data set; an image without an entry has none.

    Raises:
        ValueError: Detections were given for an image that the data set does not have, or for a class it does not have.
    """
    known = {record.image_id for record in dataset.records}
    strangers = [image_id for image_id in detections if image_id not in known]
    if strangers:
        raise ValueError(
            f"detections were given for {len(strangers)} image(s) that are not in data set '{dataset.name}' "
            f"({len(known)} images), first: {strangers[:5]}; evaluate on the data that was detected on"
        )
    nothing = Found(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    arrays = dict.fromkeys((record.image_id for record in dataset.records), nothing)
    for image_id, found_here in detections.items():
        arrays[image_id] = _arrays(found_here)
        labels = arrays[image_id].labels
        outside = labels[(labels < 0) | (labels >= len(dataset.classes))]
        if outside.size:
            raise ValueError(
                f"image {image_id}: a detection has class index {outside[0]}, but data set '{dataset.name}' has "
                f"{len(dataset.classes)} classes; was the model trained on other ones?"
            )
    return arrays


def _arrays(detections: Detections) -> Found:
    boxes, scores, labels = (part.detach().cpu().numpy() for part in detections)
    return Found(
        boxes.reshape(-1, 4).astype(np.float32, copy=False),
        scores.astype(np.float32, copy=False),
        labels.astype(np.int64, copy=False),
    )
