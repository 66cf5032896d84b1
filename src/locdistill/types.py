"""Types shared by all packages: predictions, ground truth and detections.

Shapes use one alphabet throughout the project: ``b`` images, ``l`` locations (all pyramid levels, flattened level by
level, row by row), ``c`` classes, ``e`` edges of a box (4: left, top, right, bottom; a rotated box has its
angle as a fifth), ``n`` bins of an edge distribution, ``g`` ground-truth slots of the image with the most objects,
``d`` numbers of a box (4: ``x1, y1, x2, y2``; 5: ``cx, cy, w, h, theta``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import logsigmoid

Tell = Callable[[str], None]
"""Callback that receives a line of progress from time to time."""
Doubles = npt.NDArray[np.float64]
Triple = tuple[float, float, float]
Progress = Callable[[Iterable[Any], int | None], Iterable[Any]]
"""Function that passes on the items of an iterable of this length (None: unknown) and displays progress."""


class Dense(NamedTuple):
    """Predictions of a dense detector for a batch, flattened over the pyramid.

    Attributes:
        cls_logits: Class scores before the sigmoid.
        edge_logits: Unnormalised log-probabilities over the bins of each number that a location predicts for its box:
            the distances of four edges in strides or, by the kind of detector, an anchor's shift and growth; the angle
            of a rotated box is one more. ``e`` is their number, ``n`` that of the bins.
        quality_logits: A localization quality beside the class score, for heads that have one.
        features: The maps of the pyramid, for terms that imitate features; empty unless requested.
        quality_in_score: Role of the quality. True: it is a factor of the class score, trained together with it (GFL
            v2). False: it only ranks detections (the centerness of ATSS and FCOS).
        known: Indices of the known classes; None for all. Logits of the others are meaningless. A teacher that was
            trained on other classes than its student knows only some of them.
        towers: Maps inside the head, for terms that pass them through another head; empty unless requested. For each
            level, the map of the class tower and that of the edge tower.
    """

    cls_logits: Float[Tensor, "b l c"]
    edge_logits: Float[Tensor, "b l e n"]
    quality_logits: Float[Tensor, "b l"] | None = None
    features: tuple[Float[Tensor, "b d h w"], ...] = ()
    quality_in_score: bool = False
    known: tuple[int, ...] | None = None
    towers: tuple[Float[Tensor, "b d h w"], ...] = ()

    @property
    def score_logits(self) -> Float[Tensor, "b l c"]:
        """Logits of the final class scores: the class logits, or their product with the quality as a logit.

        With ``p = sigmoid(a) sigmoid(b)`` the logit is ``log p - log(1 - p)``, and ``1 - p = sigmoid(-a) + sigmoid(a)
        sigmoid(-b)``: a sum, so that nothing is lost where ``p`` is close to 0 or 1.
        """
        if self.quality_logits is None or not self.quality_in_score:
            return self.cls_logits
        a, b = self.cls_logits, self.quality_logits[..., None]
        against = torch.logaddexp(logsigmoid(-a), logsigmoid(a) + logsigmoid(-b))
        return logsigmoid(a) + logsigmoid(b) - against


class Instances(NamedTuple):
    """Ground truth of a batch, padded to the largest number of objects; an image may have none.

    Attributes:
        boxes: ``x1, y1, x2, y2`` in pixels of the resized image; zeros in empty slots. For a rotated object it is the
            circumscribed box.
        labels: Class indices; zeros in empty slots.
        present: Slots that hold an object to detect.
        ignored: Slots that hold a crowd region or a difficult object. Never true together with ``present``.
        extents: Height and width, in pixels, of the part of the padded batch in which locations count for the image:
            its own size rounded up to the padding multiple.
        oriented: Rotated boxes ``cx, cy, w, h, theta`` (pixels and radians), if these are to be detected; zeros in
            empty slots.
    """

    boxes: Float[Tensor, "b g 4"]
    labels: Int[Tensor, "b g"]
    present: Bool[Tensor, "b g"]
    ignored: Bool[Tensor, "b g"]
    extents: Int[Tensor, "b 2"]
    oriented: Float[Tensor, "b g 5"] | None = None

    @property
    def targets(self) -> Float[Tensor, "b g d"]:
        """Boxes to detect: the rotated boxes where there are any, else the axis-aligned ones."""
        return self.boxes if self.oriented is None else self.oriented

    def of(self, images: Tensor | list[int]) -> Instances:
        """Return the instances of some of the images."""
        oriented = None if self.oriented is None else self.oriented[images]
        boxes, labels, present, ignored, extents = (values[images] for values in self[:5] if values is not None)
        return Instances(boxes, labels, present, ignored, extents, oriented)


class Batch(NamedTuple):
    """Images as the loader returns them, with their annotations and metadata.

    Attributes:
        images: RGB, padded right and bottom with zeros to the batch maximum.
        sizes: Height and width of each image within the padding (after resizing).
        original_sizes: Height and width of each image before resizing.
        image_ids: The data set's own identifier of each image.
        instances: Ground truth in pixels of the resized images.
        flipped: Whether all images are mirrored left and right, for a further view (test-time augmentation).
        from_cache: Cached values for this view of the images, by name; None where no cache is used. A teacher's cache
            stores the teacher's predictions here.
    """

    images: UInt8[Tensor, "b 3 h w"]
    sizes: Int[Tensor, "b 2"]
    original_sizes: Int[Tensor, "b 2"]
    image_ids: Int[Tensor, " b"]
    instances: Instances
    flipped: bool = False
    from_cache: Mapping[str, Tensor] | None = None


class Detections(NamedTuple):
    """Detections in one image, best score first; or candidates before suppression, in any order.

    Attributes:
        boxes: Boxes in pixels of the original image: ``x1, y1, x2, y2``, or rotated boxes ``cx, cy, w, h, theta``.
        scores: Scores between 0 and 1.
        labels: Class indices.
    """

    boxes: Float[Tensor, "k d"]
    scores: Float[Tensor, " k"]
    labels: Int[Tensor, " k"]
