"""Comparison of all locations with all objects, some objects at a time.

A table of images x locations x objects takes gigabytes with hundreds of objects. Only a maximum over objects, or values
of single objects, are needed from it: neither depends on how many objects are processed together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

PAIRS_AT_ONCE = {"cpu": 2**18}
"""Pairs of a location and an object that are compared together; few enough on a CPU to fit its cache."""
PAIRS_AT_ONCE_ELSEWHERE = 2**25
"""The same on other devices, where each iteration has a fixed cost: a table of so many numbers takes 128 MB."""
AT_ONCE_COMPILED = 64
"""Objects of each image that are compared together in compiled code. Compiled code materialises no tables, and its
graph grows with the number of iterations; were that number to depend on the image size, each size would be compiled
anew.
"""


def in_turn(locations: Tensor, *of_objects: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield some objects at a time, from tensors that have the objects on their second axis.

    Args:
        locations: Locations the objects are compared with, along the first axis.
        of_objects: Tensors to split together.
    """
    images, objects = of_objects[0].shape[:2]
    if torch.compiler.is_compiling():
        step = AT_ONCE_COMPILED
    else:
        pairs = PAIRS_AT_ONCE.get(locations.device.type, PAIRS_AT_ONCE_ELSEWHERE)
        step = max(1, pairs // max(1, images * len(locations)))
    start = 0
    while start < objects:  # a range would tie compiled code to this very number of objects
        yield tuple(values[:, start : start + step] for values in of_objects)
        start += step


def inside_some(
    points: Float[Tensor, "l 2"], boxes: Float[Tensor, "b g 4"], chosen: Bool[Tensor, "b g"]
) -> Bool[Tensor, "b l"]:
    """Return which points lie strictly inside at least one chosen box of each image, not on its edge."""
    x, y = points.unbind(-1)
    found = torch.zeros(len(boxes), len(points), dtype=torch.bool, device=points.device)
    for some, among in in_turn(points, boxes, chosen):
        left, top, right, bottom = some[:, :, None].unbind(-1)
        found = found | ((x > left) & (y > top) & (x < right) & (y < bottom) & among[..., None]).any(1)
    return found
