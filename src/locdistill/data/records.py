"""What a data set is once its files have been read: images with boxes, whatever the format was."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

Kind: TypeAlias = Literal["coco", "voc", "yolo"]


@dataclass(frozen=True, eq=False)
class Record:
    """One image and its annotations.

    Attributes:
        path: The image file.
        image_id: The data set's own identifier; for formats without one, the position from 1.
        width: Of the upright image, in pixels.
        height: Of the upright image, in pixels.
        boxes: ``(n, 4)`` float32, ``x1, y1, x2, y2`` in pixels, as annotated: they may reach beyond the image.
        labels: ``(n,)`` int64, indices into the classes of the data set.
        ignored: ``(n,)`` bool: crowd regions and difficult objects.
        areas: ``(n,)`` float32, the area by which COCO sorts objects into small, medium and large: that of the
            annotated mask where the file has one; the box's otherwise (and when not given).
    """

    path: Path
    image_id: int
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray = field(default=None)  # type: ignore[arg-type]  # filled below

    def __post_init__(self) -> None:
        if self.areas is None:
            sides = self.boxes[:, 2:] - self.boxes[:, :2]
            object.__setattr__(self, "areas", sides.prod(-1))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A split, ready to train or evaluate on.

    Attributes:
        name: For people: the folder and the split.
        classes: Names, in the order of the labels.
        records: The images.
        kind: The format it came from; ``voc`` is evaluated by VOC's rules.
        category_ids: What the file calls each class: COCO category ids, ``1..C`` for other formats.
        empty: Images without objects that were left out, and are not among the records.
    """

    name: str
    classes: tuple[str, ...]
    records: tuple[Record, ...]
    kind: Kind
    category_ids: tuple[int, ...]
    empty: int = 0

    def __len__(self) -> int:
        return len(self.records)
