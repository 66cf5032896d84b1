"""Where it is worth listening to the teacher beside the positives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.geometry.boxes import centre_offset, pairwise_iof, pairwise_iou
from locdistill.objective.scene import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuableLocations:
    """The valuable localization region: locations whose anchor nearly reaches an object (LD, algorithm 1).

    A location belongs to it when, for some object with ATSS threshold ``t``, ``gamma * t <= D < t``. Positives are not
    left out, as in the reference; an image without objects has none.

    Attributes:
        gamma: Lower bound as a part of the threshold (0.25 in the paper).
        metric: What ``D`` is. ``diou``, the paper's: IoU less the normalised squared centre distance. ``iof_diou``, of
            the published code, which the published numbers come from: with intersection over the area of the *anchor*
            in place of the IoU, which on fine levels gives a ring along the rim of large objects.
        by: Weight of a location: ``iou``, the highest IoU with an object whose band it is in (the published code), or
            ``mask``, 1 (the paper).
    """

    gamma: float = 0.25
    metric: Literal["iof_diou", "diou"] = "iof_diou"
    by: Literal["iou", "mask"] = "iou"

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """The chosen weight in the region. Memory grows with locations times objects."""
        instances, assignment = scene.instances, scene.assignment
        anchors = scene.grid.anchors()[None]
        iou = pairwise_iou(anchors, instances.boxes)
        overlap = iou if self.metric == "diou" else pairwise_iof(anchors, instances.boxes)
        closeness = overlap - centre_offset(anchors[:, :, None], instances.boxes[:, None])
        threshold = assignment.thresholds[:, None]
        band = (closeness >= self.gamma * threshold) & (closeness < threshold)
        band = band & instances.present[:, None] & assignment.inside[..., None]
        # An empty column keeps the maximum defined for a batch without any object.
        value = torch.nn.functional.pad(iou * band, (0, 1)).amax(-1)
        return value if self.by == "iou" else (value > 0).to(value.dtype)
