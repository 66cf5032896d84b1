"""The detections in a picture, as data, as a drawing, and for other programs."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from locdistill.errors import RunError
from locdistill.evaluation.results import rounded
from locdistill.geometry.kinds import kind_of
from locdistill.images import read_image
from locdistill.types import Detections
from locdistill.viz.draw import draw_detections


@dataclass(frozen=True)
class Prediction:
    """The detections in one picture, or one frame of a video.

    Attributes:
        source: The file, address or camera.
        height: Height in pixels.
        width: Width in pixels.
        detections: Detections with a score of at least the threshold.
        classes: Class names by label.
        picture: The drawn picture or video, if saved.
        number: Number of the frame in its video, from 0; None for a picture.
        seconds: Time of the frame in its video.
        pixels: RGB, from `stream`; `predict` does not keep them.
        bits: Number of bits that the values of a 16-bit picture use; None: 16.
    """

    source: str
    height: int
    width: int
    detections: Detections
    classes: tuple[str, ...] = field(repr=False)
    picture: Path | None = None
    number: int | None = None
    seconds: float | None = None
    pixels: UInt8[Tensor, "3 h w"] | None = field(default=None, repr=False, compare=False)
    bits: int | None = field(default=None, repr=False, compare=False)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.source)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        detections = [
            {"class": self.classes[label], "label": label, "score": round(score, 5), "box": rounded(box)}
            for box, score, label in zip(*(value.tolist() for value in self.detections), strict=True)
        ]
        frame = {} if self.number is None else {"frame": self.number, "seconds": self.seconds}
        return {"image": self.source, **frame, "width": self.width, "height": self.height, "detections": detections}

    def to_json(self) -> str:
        """Return `as_dict` as JSON."""
        return json.dumps(self.as_dict())

    def plot(self) -> Image.Image:
        """Draw the detections; without `pixels` the picture is read again.

        Raises:
            ImageError: The picture cannot be read.
        """
        pixels = read_image(self.source, bits=self.bits) if self.pixels is None else self.pixels
        return draw_detections(pixels, self.detections, classes=self.classes, threshold=0.0)

    def to_supervision(self) -> Any:
        """Return the detections for the package ``supervision``; corners of rotated boxes are in ``data["xyxyxyxy"]``.

        Raises:
            RunError: The package is not installed.
        """
        if importlib.util.find_spec("supervision") is None:
            raise RunError("the package supervision is not installed: pip install supervision")
        import supervision  # noqa: PLC0415 - optional

        boxes, kind = self.detections.boxes, kind_of(self.detections.boxes)
        labels = self.detections.labels.numpy()
        data: dict[str, Any] = {"class_name": [self.classes[label] for label in labels]}
        if boxes.shape[1] == 5:
            data["xyxyxyxy"] = kind.corners(boxes).numpy()
        return supervision.Detections(
            xyxy=kind.hull(boxes).numpy(), confidence=self.detections.scores.numpy(), class_id=labels, data=data
        )
