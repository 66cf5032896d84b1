"""What happens to one training image: a size, a flip, and its boxes along with it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from locdistill.images import keep_ratio_size, resize_to


class Sample(NamedTuple):
    """One image on its way into a batch.

    Attributes:
        image: RGB.
        boxes: ``x1, y1, x2, y2`` in pixels of ``image``.
        labels: Class indices.
        ignored: Crowd regions and difficult objects.
        original_size: Height and width of the file.
        image_id: The data set's identifier.
    """

    image: UInt8[Tensor, "3 h w"]
    boxes: Float[Tensor, "g 4"]
    labels: Int[Tensor, " g"]
    ignored: Bool[Tensor, " g"]
    original_size: tuple[int, int]
    image_id: int


def choose_limits(
    sizes: tuple[tuple[int, int], ...], mode: Literal["value", "range"], random: np.random.Generator
) -> tuple[int, int]:
    """Limits ``(long, short)`` for one image.

    ``value`` takes one of the pairs, each with equal probability; ``range`` draws either limit as a whole number,
    uniformly between its smallest and largest value, both included.
    """
    if mode == "value":
        return sizes[int(random.integers(len(sizes)))]
    longs, shorts = zip(*sizes, strict=True)
    long = int(random.integers(min(longs), max(longs) + 1))
    short = int(random.integers(min(shorts), max(shorts) + 1))
    return long, min(long, short)


def resize(sample: Sample, *, long: int, short: int, flipped: bool = False) -> Sample:
    """Resize image and boxes with the aspect ratio kept; boxes by the ratio of sides per axis, then clipped.

    With ``flipped`` they are mirrored left and right then: ``x' = width - x``.
    """
    height, width = sample.original_size
    size = keep_ratio_size(height, width, short=short, long=long)
    scale = torch.tensor(2 * (size[1] / width, size[0] / height))
    bounds = torch.tensor(2 * (size[1], size[0]), dtype=torch.float32)
    boxes = torch.minimum((sample.boxes * scale).clamp_(min=0), bounds)
    if flipped:
        x1, y1, x2, y2 = boxes.unbind(-1)
        boxes = torch.stack((size[1] - x2, y1, size[1] - x1, y2), -1)
    return sample._replace(image=resize_to(sample.image, size, flipped=flipped), boxes=boxes)
