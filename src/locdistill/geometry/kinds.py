"""Kinds of boxes: the operations on boxes of four numbers and of five.

``Horizontal`` boxes are ``x1, y1, x2, y2``; ``Rotated`` ones ``cx, cy, w, h, theta``, with the side ``w`` along
``(cos theta, sin theta)``, so that in an image, where ``y`` points down, a positive angle turns clockwise. All
operations that depend on the kind are methods of it; other code need not distinguish the kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from locdistill.geometry import boxes as horizontal
from locdistill.geometry import rotated
from locdistill.geometry.nms import class_nms, rotated_class_nms
from locdistill.geometry.rotated import AngleRange


@dataclass(frozen=True, slots=True)
class Horizontal:
    """Axis-aligned boxes ``x1, y1, x2, y2``; the IoUs of anchors that contain the same box are equal bit by bit."""

    numbers: ClassVar[int] = 4
    rounding: ClassVar[float] = 0.0
    # Their docstrings are in the modules `boxes` and `nms`.
    clipped = staticmethod(horizontal.clip)
    paired_iou = staticmethod(horizontal.paired_iou)
    pairwise_iou = staticmethod(horizontal.pairwise_iou)
    nms = staticmethod(class_nms)

    def hull(self, boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
        """Return the circumscribed axis-aligned boxes: the boxes themselves."""
        return boxes

    upright = hull  # from axis-aligned boxes to boxes of this kind: the same

    def corners(self, boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4 2"]:
        """Return the corners ``x, y``, clockwise on screen from the upper left one."""
        x1, y1, x2, y2 = boxes.unbind(-1)
        return torch.stack((torch.stack((x1, x2, x2, x1), -1), torch.stack((y1, y1, y2, y2), -1)), -1)

    def scaled(self, boxes: Float[Tensor, "*batch 4"], factor: Tensor) -> Float[Tensor, "*batch 4"]:
        """Convert the boxes to another unit of length: multiply each coordinate by the factor."""
        return boxes * factor

    def moved(self, boxes: Float[Tensor, "*batch 4"], offset: Float[Tensor, "*#batch 2"]) -> Float[Tensor, "*batch 4"]:
        """Move the boxes along ``x`` and ``y``: add the offset to both corners."""
        return boxes + torch.cat((offset, offset), -1)

    def shrunk(
        self, boxes: Float[Tensor, "*batch 4"], factors: Float[Tensor, "*#batch 2"]
    ) -> Float[Tensor, "*batch 4"]:
        """Convert the boxes back to the image before it was enlarged by factors along ``x`` and ``y``."""
        return boxes / torch.cat((factors, factors), -1)

    def mirrored(self, boxes: Float[Tensor, "*batch 4"], width: Tensor) -> Float[Tensor, "*batch 4"]:
        """Mirror the boxes left and right in an image of this width."""
        left, top, right, bottom = boxes.unbind(-1)
        return torch.stack((width - right, top, width - left, bottom), -1)

    def anchor_iou(self, anchors: Float[Tensor, "l 4"], boxes: Float[Tensor, "b k 4"]) -> Float[Tensor, "b k l"]:
        """Compute intersection over union of axis-aligned anchors ``x1, y1, x2, y2`` and boxes, all pairs."""
        return horizontal.paired_iou(anchors, boxes[:, :, None])

    def anchor_iof(self, anchors: Float[Tensor, "l 4"], boxes: Float[Tensor, "b k 4"]) -> Float[Tensor, "b k l"]:
        """Compute the share of each anchor ``x1, y1, x2, y2`` (by area) that lies in each box."""
        return horizontal.paired_iof(anchors, boxes[:, :, None])

    def depth(self, points: Float[Tensor, "*#batch 2"], boxes: Float[Tensor, "*#batch 4"]) -> Float[Tensor, "*#batch"]:
        """Compute the distance of each point to the nearest edge of its box; negative outside."""
        return torch.minimum(points - boxes[..., :2], boxes[..., 2:] - points).amin(-1)


@dataclass(frozen=True, slots=True)
class Rotated:
    """Rotated boxes ``cx, cy, w, h, theta``.

    Attributes:
        angles: Angle range, which selects one of the equivalent parametrisations (see
            :func:`locdistill.geometry.rotated.canonical`).
    """

    numbers: ClassVar[int] = 5
    rounding: ClassVar[float] = 1e-5
    angles: AngleRange = "le135"
    # Their docstrings are in the modules `rotated` and `nms`.
    hull = staticmethod(rotated.hull)
    corners = staticmethod(rotated.corners)
    paired_iou = staticmethod(rotated.paired_iou)
    pairwise_iou = staticmethod(rotated.pairwise_iou)
    nms = staticmethod(rotated_class_nms)

    def upright(self, boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 5"]:
        """Return boxes of angle 0, whatever the angle range."""
        sides = boxes[..., 2:] - boxes[..., :2]
        return torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, sides, torch.zeros_like(sides[..., :1])), -1)

    def scaled(self, boxes: Float[Tensor, "*batch 5"], factor: Tensor) -> Float[Tensor, "*batch 5"]:
        """Multiply centre and sides by the factor."""
        return torch.cat((boxes[..., :4] * factor, boxes[..., 4:]), -1)

    def moved(self, boxes: Float[Tensor, "*batch 5"], offset: Float[Tensor, "*#batch 2"]) -> Float[Tensor, "*batch 5"]:
        """Add the offset to the centre."""
        return torch.cat((boxes[..., :2] + offset, boxes[..., 2:]), -1)

    def shrunk(
        self, boxes: Float[Tensor, "*batch 5"], factors: Float[Tensor, "*#batch 2"]
    ) -> Float[Tensor, "*batch 5"]:
        """Divide by the factors; where they differ a box becomes a parallelogram: its side ``w`` and area are kept."""
        cos, sin = boxes[..., 4].cos() / factors[..., 0], boxes[..., 4].sin() / factors[..., 1]
        part = torch.hypot(cos, sin)
        width, height = boxes[..., 2] * part, boxes[..., 3] / (factors.prod(-1) * part)
        turned = torch.stack((width, height, torch.atan2(sin, cos)), -1)
        return rotated.canonical(torch.cat((boxes[..., :2] / factors, turned), -1), self.angles)

    def mirrored(self, boxes: Float[Tensor, "*batch 5"], width: Tensor) -> Float[Tensor, "*batch 5"]:
        """Mirror the boxes: the angle changes its sign."""
        x, y, w, h, theta = boxes.unbind(-1)
        return rotated.canonical(torch.stack((width - x, y, w, h, -theta), -1), self.angles)

    def clipped(self, boxes: Float[Tensor, "*batch 5"], size: Int[Tensor, "*#batch 2"]) -> Float[Tensor, "*batch 5"]:
        """Limit the centres to the image, as in the reference; clipped boxes would no longer be rectangles."""
        limit = size.flip(-1).to(boxes.dtype)
        return torch.cat((torch.minimum(boxes[..., :2].clamp(min=0), limit), boxes[..., 2:]), -1)

    def anchor_iou(self, anchors: Float[Tensor, "l 4"], boxes: Float[Tensor, "b k 5"]) -> Float[Tensor, "b k l"]:
        """Compute the IoU of pairs whose hulls meet, after a GPU synchronisation; compiled code computes all pairs."""
        if torch.compiler.is_compiling():
            return rotated.paired_iou(self.upright(anchors), boxes[:, :, None])
        hulls = rotated.hull(boxes)[:, :, None]
        low, high = torch.maximum(hulls[..., :2], anchors[:, :2]), torch.minimum(hulls[..., 2:], anchors[:, 2:])
        met: Bool[Tensor, "b k l"] = (low < high).all(-1)
        box, anchor = met.flatten(0, 1).nonzero().unbind(1)
        lying = self.upright(anchors[anchor])  # few of many
        found = rotated.iou_of_pairs(lying, boxes.flatten(0, 1), torch.arange(len(lying), device=box.device), box)
        return found.new_zeros(met.flatten(0, 1).shape).index_put((box, anchor), found).view_as(met)

    def anchor_iof(self, anchors: Float[Tensor, "l 4"], boxes: Float[Tensor, "b k 5"]) -> Float[Tensor, "b k l"]:
        """Return the share inside the hull where the anchor's centre lies in the box itself, else 0.

        For a thin box it is an overestimate, but still separates the anchors on it from those beside it; the exact
        share would make a GPU synchronise at each step.
        """
        middle = (anchors[:, :2] + anchors[:, 2:]) / 2
        part = horizontal.paired_iof(anchors, rotated.hull(boxes)[:, :, None])
        return part * (self.depth(middle, boxes[:, :, None]) > 0)

    def depth(self, points: Float[Tensor, "*#batch 2"], boxes: Float[Tensor, "*#batch 5"]) -> Float[Tensor, "*#batch"]:
        """Return the smallest of the distances to the four edges, in the frame of the box."""
        along, across = rotated.in_frame(points, boxes)
        return torch.minimum(boxes[..., 2] / 2 - along.abs(), boxes[..., 3] / 2 - across.abs())


BoxKind: TypeAlias = Horizontal | Rotated
"""Kind of boxes: ``numbers`` is the number of coordinates per box, ``rounding`` the largest relative difference in
float32 of two IoUs that are mathematically equal.
"""
HORIZONTAL = Horizontal()
_KINDS: dict[int, BoxKind] = {4: HORIZONTAL, 5: Rotated()}


def kind_of(boxes: Float[Tensor, "*batch d"]) -> BoxKind:
    """Return the kind of boxes by the length of their last axis; for rotated ones, the angle range is arbitrary."""
    numbers = boxes.shape[-1]
    assert numbers in _KINDS, f"boxes have 4 numbers, or 5 if they are rotated; these have the shape {(*boxes.shape,)}"
    return _KINDS[numbers]
