"""Settings of the default run, fitted to a user's own images and objects and to the machine.

Every value is a default: it stands in the resolved recipe, and any option or setting replaces it. The choices were
measured by ``benchmarks/own_data.py``; see ``docs/results.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from locdistill.data.records import Dataset, most_objects
from locdistill.errors import RecipeError
from locdistill.models.settings import DetectionSettings


class Size(NamedTuple):
    """A size of detector: backbone, width of pyramid and head, and depth of the head's towers."""

    backbone: str
    channels: int
    depth: int


SIZES: dict[str, Size] = {
    "n": Size("mobilenetv4_conv_small", 64, 2),
    "s": Size("resnet18", 96, 2),
    "m": Size("resnet34", 128, 3),
    "l": Size("resnet50", 256, 4),
}
BATCH = 8
FEW, ENOUGH = 16, 40
"""Side of small objects (the lowest fifth) in the input of the network, in pixels: images are enlarged for the first,
and on a CPU reduced to the second."""
ENLARGED = 2.0
"""Largest factor by which images are enlarged for small objects."""
LEAST_SIDE = 256
"""Long side below which images are not reduced, in pixels."""
LARGEST, LARGEST_ROTATED, LARGEST_CPU = (1333, 800), (1024, 1024), (640, 640)
IMAGES_SEEN = 36_000
"""Images that a run trains on in all, repetitions counted, unless that is fewer or more passes than those below."""
FEWEST_EPOCHS, MOST_EPOCHS = 24, 150
PASSES = 10
"""Passes over the images below which a smaller input serves better."""
SOME_EPOCHS, MANY_EPOCHS = 6, 50
"""Passes from which augmentation is light, and strong."""
VIEWS = 8
"""Views of each image with a cache."""
EVALUATIONS = 20
PATIENCE = 8
"""Evaluations without a better AP after which a run stops."""


@dataclass(frozen=True)
class DataFacts:
    """What the default run depends on.

    Attributes:
        images: Number of training images.
        long: Median of the longer side of an image, in pixels.
        short: Median of the shorter side.
        small: Side of a small object (20th percentile of the square root of the area), in pixels of the image; None
            without objects.
        oriented: Whether objects are rotated boxes.
        cpu: Whether the training runs on a CPU.
        pretrained: Whether the backbone begins with pretrained weights.
        passes: Passes over the images for which there is time, at the size chosen without a limit; None for no limit.
    """

    images: int
    long: float
    short: float
    small: float | None
    oriented: bool
    cpu: bool
    pretrained: bool
    passes: float | None = None

    @classmethod
    def of(cls, dataset: Dataset, *, cpu: bool, pretrained: bool, passes: float | None = None) -> DataFacts:
        """Measure a training set.

        Raises:
            RecipeError: It has no images.
        """
        if not dataset.records:
            raise RecipeError(f"{dataset.name}: there are no training images to choose the input size by")
        sides = np.array([(record.width, record.height) for record in dataset.records])
        boxes = np.concatenate([record.boxes[~record.ignored] for record in dataset.records])
        areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), -1)
        return cls(
            images=len(dataset),
            long=float(np.median(sides.max(1))),
            short=float(np.median(sides.min(1))),
            small=float(np.quantile(np.sqrt(areas), 0.2)) if len(areas) else None,
            oriented=dataset.oriented,
            cpu=cpu,
            pretrained=pretrained,
            passes=passes,
        )


def input_size(facts: DataFacts) -> tuple[int, int]:
    """Return the long and the short side of the input, multiples of 32 (or the limits themselves).

    The sides are those of the median image, rounded up; enlarged (at most twice) where small objects have less than
    16 pixels; on a CPU reduced where they keep 40; and shrunk to 1333 x 800, as usual for COCO, to 1024 x 1024 for
    rotated objects, as for DOTA, or to 640 x 640 on a CPU. Where the time is short of ten passes over the images, they
    are reduced for as many passes, if small objects keep 16 pixels.
    """
    limits = LARGEST_CPU if facts.cpu else LARGEST_ROTATED if facts.oriented else LARGEST
    least, small = min(1.0, LEAST_SIDE / facts.long), max(facts.small or FEW, 1.0)
    grown = min(max(FEW / small, 1.0), ENLARGED)
    shrunk = max(min(ENOUGH / small, 1.0), least) if facts.cpu and facts.small is not None else 1.0
    scale = min(grown * shrunk, limits[0] / facts.long, limits[1] / facts.short)
    if facts.passes is not None and facts.passes < PASSES:
        keeps = 1.0 if facts.small is None else FEW / max(facts.small, 1.0)
        scale = min(scale, max(scale * math.sqrt(facts.passes / PASSES), keeps, least))
    long, short = (
        min(limit, max(32, math.ceil(round(side * scale, 3) / 32) * 32))
        for side, limit in zip((facts.long, facts.short), limits, strict=True)
    )
    return max(long, short), short


def levels_for(size: Sequence[int]) -> list[int]:
    """Return the levels of the pyramid for an input size: no map of a few cells, and a range for the largest box."""
    highest = 5 if size[0] <= 416 else 6 if size[0] <= 800 else 7
    return list(range(3, highest + 1))


def anchor_for(facts: DataFacts, size: Sequence[int]) -> float:
    """Return the side of the anchors in strides, from 4 to 8 (as published): the smallest is as large as small objects.

    ATSS ranks locations by the overlap of their anchors with the object. Anchors that all contain it rank them equally.
    """
    small = FEW if facts.small is None else facts.small * size[0] / facts.long
    return float(min(max(round(small / 8), 4), 8))


def epochs_for(facts: DataFacts) -> int:
    """Return the number of passes over the images: more for fewer images, and twice as many from random weights."""
    passes = min(max(round(IMAGES_SEEN / facts.images), FEWEST_EPOCHS), MOST_EPOCHS)
    return passes if facts.pretrained else 2 * passes


def engine_for(facts: DataFacts, epochs: float, *, evaluated: bool = True) -> dict[str, Any]:
    """Return the engine settings that differ from the published ones, all in proportion to the run.

    Early stopping needs evaluations before the end (``evaluated``).
    """
    return {
        "epochs": max(round(epochs), 1),
        "optimizer": "adamw",
        "lr": 1e-3 if not facts.pretrained else 5e-4,
        "scale_lr": False,
        "weight_decay": 0.05,
        "norm_bias_decay": False,
        "clip_norm": 10.0,
        "warmup_steps": 0.05,
        "schedule": "cosine",
        "ema": "auto",
        "eval_every": max(1, int(epochs / EVALUATIONS)),
        "patience": PATIENCE if evaluated else None,
    }


def detections_for(dataset: Dataset) -> dict[str, Any]:
    """Return the detection settings that differ from the default ones: as many detections as an image has objects."""
    most, usual = most_objects(dataset), DetectionSettings().max_detections
    return {"max_detections": math.ceil(most / usual) * usual} if most > usual else {}


def data_for(facts: DataFacts, epochs: float, *, cached: bool = False) -> dict[str, Any]:
    """Return the data settings that differ from the published ones; images that are seen often are changed most.

    With a cache of a teacher's predictions each image has a fixed number of views.
    """
    augment = "strong" if epochs >= MANY_EPOCHS else "light" if epochs >= SOME_EPOCHS else "none"
    return {
        "batch_per_device": BATCH,
        "sizes": [list(input_size(facts))],
        "filter_empty": False,
        "augment": augment,
        "views": min(VIEWS, math.ceil(epochs)) if cached else None,
    }


def described(facts: DataFacts, size: Sequence[int], *, chosen: bool) -> str:
    """Describe the data and the input size, which was chosen for them or given."""
    long, short = size
    own = f"images of {facts.long:.0f} x {facts.short:.0f}"
    small = "" if facts.small is None else f", small objects of {facts.small:.0f} pixels"
    change = "" if not chosen else "reduced" if long < facts.long else "enlarged" if long > facts.long + 31 else ""
    why = {"reduced": " (reduced: they stay large enough)", "enlarged": " (enlarged for them)"}
    return f"fitted to {facts.images} {own}{small}: input {long} x {short}{why.get(change, '')}"
