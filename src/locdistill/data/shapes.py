"""A seeded synthetic detection data set: soft shapes whose edges are hard to localize.

Its difficulty is *localization*. Each class has its own hue (with shape alone, classification errors would outweigh
localization errors). Edges are blurred and partly covered by bars. Boxes of the training split are jittered; those of
the validation split are exact. A larger network trained longer on the same jittered boxes predicts edges and their
uncertainty better: this is the knowledge that localization distillation transfers.

Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)`` and its centre is ``i + 0.5``.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from locdistill.errors import RunError
from locdistill.settings import Settings

SPLITS = ("train", "val")
CLASSES = ("ellipse", "rectangle", "star")
_HUES = (0.02, 0.36, 0.62)  # red, green, blue; each shape's own hue lies within 0.05 of it
_FILE = "{}_{:05d}.png"
_VERSION = 1  # version of the drawing: a folder drawn by another version is not reused

Singles = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]


class ShapesSettings(Settings):
    """Settings of the drawing.

    Attributes:
        train: Number of images of the training split, whose boxes are jittered.
        val: Number of images of the validation split, whose boxes are exact.
        size: Height and width of each image, in pixels.
        objects: Smallest and largest number of shapes per image.
        radius: Smallest and largest half of the longer axis, as a fraction of ``size``.
        blur: Smallest and largest standard deviation of the edge blur, as a fraction of the radius.
        bars: Largest number of occluding bars per image.
        jitter: Standard deviation of the noise on each edge of a training box, as a fraction of the side; truncated at
            two standard deviations.
        noise: Standard deviation of the pixel noise; 1 is the full range.
        seed: Random seed. Equal settings give byte-identical folders (with equal versions of numpy and Pillow).
    """

    train: int = 3000
    val: int = 500
    size: int = 128
    objects: tuple[int, int] = (1, 4)
    radius: tuple[float, float] = (0.07, 0.28)
    blur: tuple[float, float] = (0.02, 0.12)
    bars: int = 3
    jitter: float = 0.08
    noise: float = 0.03
    seed: int = 0


@dataclass(frozen=True)
class Shape:
    """One drawn object.

    Attributes:
        label: Index into `CLASSES`.
        centre: x and y, in pixels.
        axes: Half-axes along and across the object's own direction, in pixels (both the outer radius for a star).
        angle_rad: Angle from the x axis towards the y axis, which points down.
        blur_px: Standard deviation of the edge blur.
        colour: Red, green, blue between 0 and 1.
    """

    label: int
    centre: tuple[float, float]
    axes: tuple[float, float]
    angle_rad: float
    blur_px: float
    colour: tuple[float, float, float]

    @property
    def box(self) -> Box:
        """Tightest box ``x1, y1, x2, y2`` around the contour at which the shape is half opaque."""
        x, y = self.centre
        if self.label == 0:
            cos, sin = math.cos(self.angle_rad), math.sin(self.angle_rad)
            a, b = self.axes
            half_w, half_h = math.hypot(a * cos, b * sin), math.hypot(a * sin, b * cos)
            return x - half_w, y - half_h, x + half_w, y + half_h
        corners = self.corners()
        (x1, y1), (x2, y2) = corners.min(0), corners.max(0)
        return float(x1), float(y1), float(x2), float(y2)

    def corners(self) -> Singles:
        """Return the corners ``(n, 2)`` of a rectangle or a star, in order around it."""
        a, b = self.axes
        if self.label == 1:
            local = np.array([(-a, -b), (a, -b), (a, b), (-a, b)])
        else:
            turn = np.arange(10) * math.pi / 5
            local = np.where(np.arange(10) % 2, 0.5, 1.0)[:, None] * np.stack([a * np.cos(turn), b * np.sin(turn)], 1)
        cos, sin = math.cos(self.angle_rad), math.sin(self.angle_rad)
        turned = local @ np.array([[cos, sin], [-sin, cos]]) + np.array(self.centre)
        corners: Singles = turned.astype(np.float32)
        return corners

    def distance(self, x: Singles, y: Singles) -> Singles:
        """Compute signed distances of points to the contour in pixels, negative inside (first order for an ellipse)."""
        if self.label:
            # to the nearest edge of the polygon, negative inside by the even-odd rule
            corners, nearest, inside = self.corners(), np.full(x.shape, np.inf, np.float32), np.zeros(x.shape, bool)
            for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
                dx, dy, px, py = x2 - x1, y2 - y1, x - x1, y - y1
                along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
                nearest = np.minimum(nearest, (px - along * dx) ** 2 + (py - along * dy) ** 2)
                inside ^= ((y1 > y) != (y2 > y)) & (px * dy < dx * py if dy > 0 else px * dy > dx * py)
            distance: Singles = np.where(inside, -1, 1).astype(np.float32) * np.sqrt(nearest)
        else:
            cos, sin = math.cos(self.angle_rad), math.sin(self.angle_rad)
            dx, dy = x - self.centre[0], y - self.centre[1]
            along, across = dx * cos + dy * sin, dy * cos - dx * sin
            a, b = self.axes
            level = np.hypot(along / a, across / b)
            # (f - 1) / |grad f| of f = |p / axes|: exact on the contour, where the blur is evaluated.
            distance = level * (level - 1) / np.maximum(np.hypot(along / a**2, across / b**2), 1e-6)
        return distance

    def alpha(self, size: int) -> Singles:
        """Compute the opacity ``(size, size)``: 0.5 on the contour, a logistic edge with the blur's deviation."""
        alpha = np.zeros((size, size), np.float32)
        x1, y1, x2, y2 = self.box
        margin = 4 * self.blur_px + 1
        columns = slice(max(int(x1 - margin), 0), min(math.ceil(x2 + margin), size))
        rows = slice(max(int(y1 - margin), 0), min(math.ceil(y2 + margin), size))
        y, x = np.mgrid[rows, columns].astype(np.float32) + np.float32(0.5)
        steepness = math.pi / math.sqrt(3) / self.blur_px  # a logistic of scale s has the deviation s pi / sqrt(3)
        alpha[rows, columns] = 1 / (1 + np.exp(np.clip(self.distance(x, y) * steepness, -30, 30)))
        return alpha


@dataclass(frozen=True)
class Drawing:
    """One drawn image ``(size, size, 3)`` uint8 and its shapes, later ones over earlier ones."""

    image: npt.NDArray[np.uint8]
    shapes: tuple[Shape, ...]


def _random_shape(settings: ShapesSettings, rng: np.random.Generator) -> Shape:
    """Draw a random shape whose box lies within the image."""
    low, high = (fraction * settings.size for fraction in settings.radius)
    label = int(rng.integers(len(CLASSES)))
    radius = math.exp(rng.uniform(math.log(low), math.log(high)))  # as many small ones as large ones
    ratio = 1.0 if label == 2 else rng.uniform(0.45, 1.0)
    hue = (_HUES[label] + rng.uniform(-0.05, 0.05)) % 1.0
    shape = Shape(
        label=label,
        centre=(0.0, 0.0),
        axes=(radius, radius * ratio),
        angle_rad=float(rng.uniform(0, 2 * math.pi)),
        blur_px=float(radius * rng.uniform(*settings.blur)),
        colour=colorsys.hsv_to_rgb(hue, rng.uniform(0.45, 0.9), rng.uniform(0.5, 0.95)),
    )
    x1, y1, x2, y2 = shape.box
    x, y = rng.uniform(-x1, settings.size - x2), rng.uniform(-y1, settings.size - y2)
    return Shape(shape.label, (float(x), float(y)), shape.axes, shape.angle_rad, shape.blur_px, shape.colour)


def _overlap(first: Shape, second: Shape) -> float:
    """Compute the intersection of two boxes as a fraction of the smaller one."""
    a, b = np.array(first.box), np.array(second.box)
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    return float(sides.prod() / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))


def draw_picture(settings: ShapesSettings, rng: np.random.Generator) -> Drawing:
    """Draw one image: a tinted ground, soft shapes, bars over them, noise over all."""
    size = settings.size
    y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
    ground = rng.uniform(0.3, 0.7, 3) * 0.2 + rng.uniform(0.3, 0.7) * 0.8
    slope = rng.uniform(-0.2, 0.2, 2)
    canvas = (ground + (slope[0] * x + slope[1] * y)[..., None]).astype(np.float32)
    shapes: list[Shape] = []
    for _ in range(int(rng.integers(settings.objects[0], settings.objects[1] + 1))):
        for _ in range(20):  # shapes overlap little; one without room is left out
            shape = _random_shape(settings, rng)
            if all(_overlap(shape, other) < 0.15 for other in shapes):
                shapes.append(shape)
                break
    for shape in shapes:
        canvas += shape.alpha(size)[..., None] * (np.array(shape.colour, np.float32) - canvas)
    y, x = np.mgrid[:size, :size].astype(np.float32) + np.float32(0.5)
    for _ in range(int(rng.integers(settings.bars + 1))):  # of random place, direction, length, width and grey
        angle, cx, cy = rng.uniform(0, math.pi), rng.uniform(0, size), rng.uniform(0, size)
        length, width = rng.uniform(0.3, 0.9) * size, rng.uniform(0.02, 0.06) * size
        along = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
        across = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
        outside = np.maximum(np.abs(along) - length / 2, np.abs(across) - width / 2)
        alpha = np.clip(0.5 - outside, 0, 1)[..., None]
        canvas += alpha * (np.float32(rng.uniform(0.1, 0.9)) - canvas)
    canvas += np.float32(settings.noise) * rng.standard_normal(canvas.shape, np.float32)
    return Drawing(np.rint(np.clip(canvas, 0, 1) * 255).astype(np.uint8), tuple(shapes))


def jittered(box: Box, settings: ShapesSettings, rng: np.random.Generator) -> Box:
    """Move each edge of a box by noise relative to its side; the box stays within the image and non-empty."""
    x1, y1, x2, y2 = box
    noise = np.clip(rng.normal(0, 1, 4), -2, 2) * settings.jitter
    moved = np.array(box) + noise * np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
    nx1, ny1, nx2, ny2 = np.clip(moved, 0, settings.size)
    return float(nx1), float(ny1), float(nx2), float(ny2)


def _draw(settings: ShapesSettings, split: str, index: int, folder: Path) -> list[tuple[int, Box]]:
    """Draw one image of a split, write it, and return the label and the box of each shape on it."""
    # Seeded by split and index: an image depends neither on the number of others nor on the thread that draws it.
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    picture = draw_picture(settings, rng)
    Image.fromarray(picture.image).save(folder / "images" / _FILE.format(split, index), compress_level=1)
    if split == "val":
        return [(shape.label, shape.box) for shape in picture.shapes]
    return [(shape.label, jittered(shape.box, settings, rng)) for shape in picture.shapes]


def _annotation(settings: ShapesSettings, split: str, drawn: list[list[tuple[int, Box]]]) -> dict[str, object]:
    """Build the COCO annotation of a split; image ids differ between splits."""
    first = 1 if split == "train" else 1 + settings.train
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index, found in enumerate(drawn):
        image = {"id": first + index, "file_name": _FILE.format(split, index)}
        images.append(image | {"width": settings.size, "height": settings.size})
        for label, (x1, y1, x2, y2) in found:
            x, y, w, h = (round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1))
            about = {"id": len(annotations) + 1, "image_id": first + index, "category_id": label + 1, "iscrowd": 0}
            annotations.append(about | {"bbox": [x, y, w, h], "area": round(w * h, 3)})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_shapes(folder: Path, settings: ShapesSettings, *, report: Callable[[int, int], None] | None = None) -> Path:
    """Draw the data set as a COCO folder: ``images/``, ``train.json``, ``val.json``; a finished one is kept as it is.

    Args:
        folder: Output folder; created if absent.
        settings: Settings of the drawing.
        report: Called with the number of images drawn so far and in total.

    Raises:
        RunError: The folder holds a data set that was drawn with other settings.
    """
    stamp, content = folder / "shapes.json", {"version": _VERSION, **settings.model_dump(mode="json")}
    if stamp.is_file():
        if json.loads(stamp.read_text()) == content:
            return folder
        raise RunError(
            f"{folder} holds a data set drawn with other settings (see {stamp}); remove it or choose another folder"
        )
    (folder / "images").mkdir(parents=True, exist_ok=True)
    counts, done = {"train": settings.train, "val": settings.val}, 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # threads suffice: numpy and the PNG encoder release the lock
        for split in SPLITS:
            drawn = []
            for found in pool.map(
                lambda index, split=split: _draw(settings, split, index, folder), range(counts[split])
            ):
                drawn.append(found)
                done += 1
                if report:
                    report(done, sum(counts.values()))
            (folder / f"{split}.json").write_text(json.dumps(_annotation(settings, split, drawn)))
    stamp.write_text(json.dumps(content))  # last, as the mark of a complete folder
    return folder
