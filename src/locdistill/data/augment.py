"""Changes of pixels that leave objects in place: colour, and rectangles of noise."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from locdistill.data.settings import ColourSettings
from locdistill.geometry.rotated import part_inside

LUMA = np.array((0.2989, 0.587, 0.114))
"""Weights of red, green and blue in a grey value, as in torchvision."""
YIQ = np.array(((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)))
HIDDEN = 0.5
"""Largest share of an object that erased rectangles may hide."""
PATCHES = 3
"""Largest number of erased rectangles of an image."""
PATCH_AREA = (0.01, 0.08)
PATCH_RATIO = (0.3, 3.3)
_TOGETHER = 8  # pixels in one row of the product below: fastest
_STEP = 4096  # coefficients are multiples of its inverse, so that float32 is exact in any order of summation


class ColourChange(NamedTuple):
    """A change of colours, in this order.

    Attributes:
        brightness: Factor of all values.
        contrast: Factor of the distance from the image's mean grey.
        saturation: Factor of the distance from a pixel's own grey.
        hue: Turn of the colours about the grey axis, in turns; grey values stay.
        grey: Whether only grey values remain.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    grey: bool = False


class Patch(NamedTuple):
    """A rectangle of noise; position and size are shares of the frame.

    Attributes:
        x: Left edge.
        y: Upper edge.
        width: Width.
        height: Height.
        seed: Seed of the noise.
    """

    x: float
    y: float
    width: float
    height: float
    seed: int


def drawn_colour(settings: ColourSettings, chance: np.random.Generator) -> ColourChange:
    """Draw a change of colours; parts that are off consume no random number."""
    limits = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    brightness, contrast, saturation, turn = (
        1 + float(chance.uniform(-limit, limit)) if limit else 1.0 for limit in limits
    )
    grey = settings.grey > 0 and bool(chance.random() < settings.grey)
    return ColourChange(brightness, contrast, saturation, hue=turn - 1, grey=grey)


def drawn_patches(chance: np.random.Generator) -> tuple[Patch, ...]:
    """Draw one to three rectangles to erase."""
    patches = []
    for _ in range(int(chance.integers(1, PATCHES + 1))):
        area, ratio = (float(np.exp(chance.uniform(*np.log(limits)))) for limits in (PATCH_AREA, PATCH_RATIO))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        x, y = float(chance.uniform(0, 1 - width)), float(chance.uniform(0, 1 - height))
        patches.append(Patch(x, y, width, height, int(chance.integers(2**32))))
    return tuple(patches)


def coloured(image: UInt8[Tensor, "3 h w"], colour: ColourChange) -> UInt8[Tensor, "3 h w"]:
    """Return the image with other colours: one affine map of red, green and blue, rounded once.

    Every sum is exact in float32, so that the number of threads changes nothing.
    """
    height, width = image.shape[-2:]
    count, row = 3 * height * width, 3 * _TOGETHER
    padded = torch.zeros(-(-count // row) * row)
    pixels = padded[:count].view(height, width, 3).copy_(image.permute(1, 2, 0))
    # sums of a row are exact in float32, unlike those of an image
    mean = pixels.sum(1).double().sum(0).numpy() / (height * width) if colour.contrast != 1 else np.zeros(3)
    to_grey = np.tile(LUMA, (3, 1))
    matrix = np.eye(3) * colour.brightness * colour.contrast
    offset = np.full(3, (1 - colour.contrast) * colour.brightness * float(LUMA @ mean))
    steps = [colour.saturation * np.eye(3) + (1 - colour.saturation) * to_grey]
    if colour.hue:
        cos, sin = math.cos(2 * math.pi * colour.hue), math.sin(2 * math.pi * colour.hue)
        steps.append(np.linalg.inv(YIQ) @ np.array(((1, 0, 0), (0, cos, -sin), (0, sin, cos))) @ YIQ)
    for step in [*steps, to_grey] if colour.grey else steps:
        matrix, offset = step @ matrix, step @ offset
    factors, shift = (torch.from_numpy(np.round(part * _STEP) / _STEP).float() for part in (matrix, offset))
    blocks = torch.kron(torch.eye(_TOGETHER), factors.T.contiguous())
    changed = torch.addmm((shift + 0.5).repeat(_TOGETHER), padded.view(-1, row), blocks).clamp_(0, 255)
    return changed.view(-1)[:count].to(torch.uint8).view(height, width, 3).permute(2, 0, 1)


def erased(
    image: UInt8[Tensor, "3 h w"], patches: tuple[Patch, ...], corners: Float[Tensor, "g 4 2"]
) -> UInt8[Tensor, "3 h w"]:
    """Return the image with rectangles of noise; one that would hide more than half of an object is left out.

    Args:
        image: The image.
        patches: The rectangles.
        corners: Corners of the objects in pixels.
    """
    height, width = image.shape[-2:]
    image, hidden = image.clone(), torch.zeros(len(corners), dtype=torch.float64)
    for patch in patches:
        x, y = int(patch.x * width), int(patch.y * height)
        w, h = min(int(patch.width * width) + 1, width - x), min(int(patch.height * height) + 1, height - y)
        more = hidden + part_inside(corners.new_tensor([x + w / 2, y + h / 2, w, h, 0]), corners)
        if bool((more <= HIDDEN).all()):
            hidden = more
            noise = np.random.default_rng(patch.seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
            image[:, y : y + h, x : x + w] = torch.from_numpy(noise).permute(2, 0, 1)
    return image
