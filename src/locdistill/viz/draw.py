"""Boxes on an image, upright or rotated: predictions and ground truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from locdistill.geometry.kinds import kind_of
from locdistill.types import Detections
from locdistill.viz.style import MUTED, PAPER, Colour, class_colour, font, ink_on

Rectangle = tuple[float, float, float, float]
Point = tuple[float, float]
Boxes: TypeAlias = Float[Tensor, "k d"] | Float[Tensor, "k 4 2"]
"""Boxes ``x1, y1, x2, y2``; rotated ones ``cx, cy, w, h, theta`` or four corners ``x, y``; in pixels of the image."""
Style = Literal["predicted", "truth", "ignored"]
MANY = 200
"""Limit of boxes beyond which lines are thin, and of tags beyond which none is drawn: they would cover the picture."""


class Layer(NamedTuple):
    """Boxes drawn in the same style.

    Attributes:
        boxes: See ``Boxes``.
        labels: Class indices, which determine the colour.
        scores: Scores, shown in percent after the name of the class; None: not shown.
        style: ``predicted``: a solid line and a tag. ``truth``: dashes in the colour of the class and white, and a dark
            tag unless predictions are drawn too. ``ignored`` (crowd or difficult): short dashes in grey and white, and
            no tag.
    """

    boxes: Boxes
    labels: Int[Tensor, " k"]
    scores: Float[Tensor, " k"] | None = None
    style: Style = "predicted"

    def scaled(self, factor: float) -> Layer:
        """Return the layer with boxes scaled by a factor."""
        if self.boxes.ndim == 3:
            return self._replace(boxes=self.boxes * factor)
        return self._replace(boxes=kind_of(self.boxes).scaled(self.boxes, torch.tensor(factor)))


class _Outline(NamedTuple):
    around: Rectangle
    tips: tuple[Point, ...]  # highest and lowest corner of a rotated box
    draw: Callable[..., None]


class _Tag(NamedTuple):
    text: str
    colour: Colour
    filled: bool
    outline: _Outline
    rank: float  # order of placement


def to_picture(image: UInt8[Tensor, "3 h w"]) -> Image.Image:
    """Convert a tensor of an RGB image to a picture."""
    return Image.fromarray(np.ascontiguousarray(image.detach().cpu().permute(1, 2, 0).numpy()), "RGB")


def draw_detections(
    image: UInt8[Tensor, "3 h w"] | Image.Image,
    detections: Detections,
    *,
    classes: Sequence[str],
    threshold: float = 0.3,
    truth: Layer | None = None,
    min_side: int = 0,
) -> Image.Image:
    """Draw the detections with a score of at least ``threshold``, over the ground truth if given."""
    kept = detections.scores >= threshold
    predicted = Layer(detections.boxes[kept], detections.labels[kept], detections.scores[kept])
    return draw_layers(image, [*([truth] if truth else []), predicted], classes=classes, min_side=min_side)


def draw_layers(
    image: UInt8[Tensor, "3 h w"] | Image.Image,
    layers: Sequence[Layer],
    *,
    classes: Sequence[str] | None,
    min_side: int = 0,
) -> Image.Image:
    """Draw several layers of boxes, the last on top; tags are drawn over all boxes and avoid each other.

    Args:
        image: RGB; not modified.
        layers: Boxes with their classes and scores.
        classes: Names by index; a class without a name is shown by its number. No tags are drawn for None, or if there
            are more than ``MANY``.
        min_side: Minimum longer side in pixels; smaller images are enlarged by an integer factor for legible tags.

    Returns:
        The picture, in the size of the (enlarged) image.
    """
    picture = (image if isinstance(image, Image.Image) else to_picture(image)).convert("RGB")
    factor = max(1, -(-min_side // max(picture.size)))
    if factor == 1:
        picture = picture.copy()
    else:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(picture)
    many = sum(len(layer.labels) for layer in layers) > MANY
    width = 1 if many else max(1, round(max(picture.size) / 320))
    size = max(9, min(16, round(max(picture.size) / 44)))
    tags: list[_Tag] = []
    for layer in layers:
        tags += _draw_layer(canvas, layer.scaled(factor), classes or (), width=width)
    shown = [tag for tag in tags if tag.filled] or tags
    if classes is not None and len(shown) <= MANY:
        _draw_tags(picture, shown, size)
    return picture


def _draw_layer(canvas: ImageDraw.ImageDraw, layer: Layer, classes: Sequence[str], *, width: int) -> list[_Tag]:
    """Draw the boxes, worst score first so that the best lie on top; return their tags."""
    outlines = _outlines(canvas, layer.boxes)
    scores = layer.scores.tolist() if layer.scores is not None else [1.0] * len(layer.labels)
    tags = []
    for i in sorted(range(len(scores)), key=lambda k: scores[k]):
        label = int(layer.labels[i])
        colour = MUTED if layer.style == "ignored" else class_colour(label)
        dash = {"predicted": 0, "truth": 4 * width, "ignored": 2 * width}[layer.style]
        if dash:  # white between the dashes, visible on any image
            outlines[i].draw(PAPER, width=width, dash=0)
        outlines[i].draw(colour, width=width, dash=dash)
        if layer.style != "ignored":
            name = classes[label] if label < len(classes) else str(label)
            text = f"{name} {100 * scores[i]:.0f}" if layer.scores is not None else name
            rank = scores[i] if layer.style == "predicted" else -1.0
            tags.append(_Tag(text, colour, layer.style == "predicted", outlines[i], rank))
    return tags


def _outlines(canvas: ImageDraw.ImageDraw, boxes: Tensor) -> list[_Outline]:
    """Return the outline of each box: its drawing function and its extent within the picture."""
    if boxes.shape[1:] == (4,):
        rectangles = [_within(box, canvas.im.size) for box in boxes.tolist()]
        return [_Outline(box, (), partial(_rectangle, canvas, box)) for box in rectangles]
    corners = boxes if boxes.ndim == 3 else kind_of(boxes).corners(boxes)
    outlines = []
    # Coordinates refer to corners between pixels, but a line is drawn from pixel to pixel.
    for quad, inside in zip(corners.tolist(), (corners - 0.5).round().tolist(), strict=True):
        (xs, ys), by_height = zip(*quad, strict=True), sorted(inside, key=lambda corner: corner[1])
        around = _within((min(xs), min(ys), max(xs), max(ys)), canvas.im.size)
        tips = (tuple(by_height[0]), tuple(by_height[-1]))
        outlines.append(_Outline(around, tips, partial(_polygon, canvas, [tuple(corner) for corner in inside])))
    return outlines


def _within(box: Sequence[float], size: tuple[int, int]) -> Rectangle:
    """Clip a box to whole pixels inside the picture, so that each of its sides is visible."""
    x1, y1, x2, y2 = (round(v) for v in box)
    right, bottom = size[0] - 1, size[1] - 1
    x1, y1 = min(max(x1, 0), right), min(max(y1, 0), bottom)
    # A box ends where the next pixel begins: [0, 10] covers the pixels 0 to 9.
    return x1, y1, min(max(x2 - 1, x1), right), min(max(y2 - 1, y1), bottom)


def _rectangle(canvas: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, *, width: int, dash: int) -> None:
    """Draw an outline whose outer edge is the box; ``dash`` is the length of a dash and of the gap after it."""
    if not dash:
        canvas.rectangle(box, outline=colour, width=width)
        return
    x1, y1, x2, y2 = box
    inset = width - 1
    for start in np.arange(x1, x2 + 1, 2 * dash):
        end = min(start + dash - 1, x2)
        canvas.rectangle((start, y1, end, min(y1 + inset, y2)), fill=colour)
        canvas.rectangle((start, max(y2 - inset, y1), end, y2), fill=colour)
    for start in np.arange(y1, y2 + 1, 2 * dash):
        end = min(start + dash - 1, y2)
        canvas.rectangle((x1, start, min(x1 + inset, x2), end), fill=colour)
        canvas.rectangle((max(x2 - inset, x1), start, x2, end), fill=colour)


def _polygon(canvas: ImageDraw.ImageDraw, corners: Sequence[Point], colour: Colour, *, width: int, dash: int) -> None:
    """Draw an outline along the corners; ``dash`` as in `_rectangle`."""
    closed = [*corners, corners[0]]
    if not dash:
        canvas.line([*closed, corners[1]], fill=colour, width=width, joint="curve")
        return
    for start, end in pairwise(np.array(closed)):
        length = float(np.hypot(*(end - start)))
        for done in np.arange(0, length, 2 * dash):
            piece = start + np.outer((done, min(done + dash, length)), (end - start) / length)
            canvas.line([tuple(point) for point in piece.round().tolist()], fill=colour, width=width)


def _draw_tags(picture: Image.Image, tags: Sequence[_Tag], size: int) -> None:
    """Write the tags near their boxes, placed in order of score."""
    taken = np.zeros(picture.size[::-1], np.uint16)  # number of tags on each pixel
    for tag in sorted(tags, key=lambda t: -t.rank):
        written = _written(tag.text, tag.colour, size, filled=tag.filled)
        x, y = _free_place(tag.outline, written.size, taken)
        taken[y : y + written.height, x : x + written.width] += 1
        picture.paste(written, (x, y))


@lru_cache(maxsize=2048)
def _written(text: str, colour: Colour, size: int, *, filled: bool) -> Image.Image:
    """Write a tag; kept, because many boxes have the same one, and writing takes longer than all the rest."""
    face, pad = font(size, bold=True), max(1, size // 6)
    ascent, descent = face.getmetrics()
    height, width = ascent + descent + 2 * pad - 1, round(face.getlength(text)) + 2 * pad + 2
    tag = Image.new("RGB", (width, height), colour if filled else (20, 22, 26))
    canvas = ImageDraw.Draw(tag)
    if not filled:
        canvas.rectangle((0, 0, width - 1, height - 1), outline=colour)
    canvas.text((pad + 1, pad - 1), text, fill=ink_on(colour) if filled else PAPER, font=face)
    return tag


def _free_place(outline: _Outline, size: tuple[int, int], taken: np.ndarray) -> tuple[int, int]:
    """Find the top left corner for a tag: above its box, below it, or inside, with the least overlap with other tags.

    Args:
        outline: Outline of its box.
        size: Width and height of the tag.
        taken: Number of tags on each pixel, which makes the search time independent of the number of tags.
    """
    x1, y1, x2, y2 = outline.around
    width, height = size
    beside = [max(x1, min(x - width / 2, x2 - width)) for x, _ in outline.tips]
    corners = list(zip(beside, (y1 - height, y2 + 1), strict=False))
    corners += [
        (x1, y1 - height),
        (x1, y2 + 1),
        (x1, y1),
        (x2 - width + 1, y1 - height),
        (x2 - width + 1, y2 + 1),
        (x2 - width + 1, y2 - height + 1),
        (x1, y2 - height + 1),
    ]
    best, least = (0, 0), float("inf")
    for wanted_x, wanted_y in corners:
        x = max(0, min(round(wanted_x), taken.shape[1] - width))
        y = max(0, min(round(wanted_y), taken.shape[0] - height))
        # A shift back into the picture has a small cost, so that a free place without a shift is preferred.
        cost = int(taken[y : y + height, x : x + width].sum()) + abs(y - wanted_y) / height
        if cost < least:
            best, least = (x, y), cost
        if not cost:
            break
    return best
