"""Comparing all locations with all objects, some objects at a time.

A table of images x locations x objects takes gigabytes where there are hundreds of objects. What is wanted of it is a
maximum over objects, or something of each object alone: neither depends on how many objects are looked at together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from locdistill.geometry.boxes import paired_inside

AT_ONCE = 8
"""Objects of each image that are compared together; sixteen images of 800 x 1333 take 100 MB per number and pair for
RetinaNet's 200 000 anchors. On a processor fewer at once are faster too: their numbers stay in its cache."""
AT_ONCE_COMPILED = 64
"""The same where the comparison is compiled: it writes no tables, and a graph grows with the number of turns."""


def in_turn(*of_objects: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Some objects after the other, of tensors that have the objects on their second axis."""
    step = AT_ONCE_COMPILED if torch.compiler.is_compiling() else AT_ONCE
    for start in range(0, of_objects[0].shape[1], step):
        yield tuple(values[:, start : start + step] for values in of_objects)


def inside_some(
    points: Float[Tensor, "l 2"], boxes: Float[Tensor, "b g 4"], chosen: Bool[Tensor, "b g"]
) -> Bool[Tensor, "b l"]:
    """Which points lie strictly inside some chosen box of each image."""
    found = torch.zeros(len(boxes), len(points), dtype=torch.bool, device=points.device)
    for some, among in in_turn(boxes, chosen):
        found = found | (paired_inside(points, some[:, :, None]) & among[..., None]).any(1)
    return found
