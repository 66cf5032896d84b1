"""Comparison of an exported file with the detector that it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from locdistill.geometry.kinds import kind_of
from locdistill.images import ImageSource, pad_together
from locdistill.models.detector import Detector
from locdistill.models.exported import BOXES, RAW, FileFacts, RunFile, fitted
from locdistill.types import Dense, Detections

LARGEST = 1e-3
"""Largest difference of raw outputs, as a share of their largest absolute value: 32-bit arithmetic in another order,
through a hundred layers, stays a hundred times below."""
_SAME_IOU, _SAME_SCORE = 0.99, 1e-2
_ROUNDING = 1e-4
"""Difference of overlaps and of scores that rounding explains."""
_LEAST_SIDE = 1e-2
"""Side of a box in pixels below which it has no area."""
_STRAY, _STRAY_SHARE = 1, 0.02
"""Detections that may be without a counterpart: overlaps and scores that lie on a threshold fall on either side."""


COMPARED = ("compared on", "images", "height x width", "raw outputs", "detections", "stray", "boxes, pixels", "scores")
"""Columns of a table of checks."""


@dataclass(frozen=True)
class Check:
    """Comparison on one batch.

    Attributes:
        what: Description of the images.
        images: Number of images.
        size: Height and width of the input.
        raw: Largest difference of raw outputs, as a share of their largest absolute value.
        detections: Number of detections of the detector.
        stray: Number of detections of either side without a counterpart on the other, where no decision between equal
            scores explains it.
        pixels: Largest difference of the boxes of counterparts, in pixels of the input; rotated: of their corners.
        scores: Largest difference of their scores.
    """

    what: str
    images: int
    size: tuple[int, int]
    raw: float
    detections: int
    stray: int
    pixels: float
    scores: float

    @property
    def equal(self) -> bool:
        """Whether the differences are those of rounding."""
        return self.raw <= LARGEST and self.stray <= max(_STRAY, _STRAY_SHARE * self.detections)

    def cells(self) -> tuple[str, ...]:
        """Format as a row of a table with the columns `COMPARED`."""
        counts = (str(self.detections), str(self.stray))
        size = f"{self.size[0]}x{self.size[1]}"
        return self.what, str(self.images), size, f"{self.raw:.1e}", *counts, f"{self.pixels:.1e}", f"{self.scores:.1e}"


def batches(facts: FileFacts) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield numbers of images and sizes to compare at: three sizes of two aspect ratios where they are open."""
    pad = 2 ** min(5, facts.settings.levels[-1])
    short, long = (max(-(-side // pad) * pad, pad) for side in (facts.settings.input.short, facts.settings.input.long))
    sizes = [facts.size] if facts.size else [(short, long), (long, short), (max(short // 2 // pad, 1) * pad, long)]
    for index, size in enumerate(sizes):
        for batch in (facts.batch,) if facts.batch else (1, 3 if index else 2):
            yield batch, size


def compare(detector: Detector, run: RunFile, facts: FileFacts, pictures: Sequence[ImageSource]) -> list[Check]:
    """Compare a file with its detector on noise of several sizes, and on pictures from reading to boxes.

    Args:
        detector: The detector, on the device of the file.
        run: The file.
        facts: Metadata of the file.
        pictures: Pictures, best of several aspect ratios.
    """
    generator = torch.Generator().manual_seed(0)
    checks = []
    for batch, (height, width) in batches(facts):
        images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
        sizes = torch.tensor([[height, width]]).repeat(batch, 1)
        sizes[-1] -= torch.tensor([min(5, height - 1), min(9, width - 1)])  # one has padding
        checks.append(_check("noise", detector, run, images, sizes))
    for picture in pictures:
        prepared = detector.prepare(picture) if facts.size is None else fitted(picture, facts.size)
        height, width = prepared.padded[0]
        image = prepared.images[0]
        images = pad_together([image], height=height, width=width).repeat(facts.batch or 1, 1, 1, 1)
        sizes = torch.tensor([image.shape[-2:]]).repeat(len(images), 1)
        name = f"picture of {prepared.original[0]}x{prepared.original[1]}"
        checks.append(_check(name, detector, run, images, sizes))
    return checks


def _check(what: str, detector: Detector, run: RunFile, images: Tensor, sizes: Tensor) -> Check:
    device = detector.device
    with torch.no_grad():
        dense, grid = detector.see(images.to(device), sizes.to(device))
    expected = [
        d._replace(boxes=d.boxes.cpu(), scores=d.scores.cpu(), labels=d.labels.cpu())
        for d in detector.detections(dense, grid, sizes.to(device), sizes.to(device))
    ]
    values = {name: torch.from_numpy(value) for name, value in run(images.numpy(), sizes.numpy()).items()}
    raw = _raw_difference(detector, dense, values)
    if BOXES[0] in values:
        boxes, scores, labels, index = (values[name] for name in BOXES)
        found = [Detections(boxes[index == k], scores[index == k], labels[index == k]) for k in range(len(images))]
    else:
        scores, edges = (values[name].to(device) for name in RAW[:2])
        quality = values[RAW[2]].to(device) if RAW[2] in values else dense.quality_logits
        outputs = dense._replace(cls_logits=scores, edge_logits=edges, quality_logits=quality)
        decoded = detector.detections(outputs, grid, sizes.to(device), sizes.to(device))
        found = [Detections(*(part.cpu() for part in here)) for here in decoded]
    pairs = [_paired(a, b) for a, b in zip(expected, found, strict=True)]
    stray = [alone for alone, _, _ in pairs]
    if BOXES[0] in values and any(stray):
        with torch.no_grad():
            candidates = detector.candidates(dense, grid, sizes.to(device), sizes.to(device))
        own = (Detections(*(part.cpu() for part in here)) for here in candidates)
        stray = [wrongly_kept(here, several, detector) for here, several in zip(found, own, strict=True)]
    return Check(
        what,
        len(images),
        (int(images.shape[-2]), int(images.shape[-1])),
        raw,
        sum(len(here.scores) for here in expected),
        sum(stray),
        max((pixels for _, pixels, _ in pairs), default=0.0),
        max((score for _, _, score in pairs), default=0.0),
    )


def _raw_difference(detector: Detector, dense: Dense, values: dict[str, Tensor]) -> float:
    worst = 0.0
    classes = len(detector.settings.classes)
    for name in RAW:
        own = getattr(dense, name)
        if own is None or name not in values:
            continue
        own = (own[..., :classes] if name == RAW[0] else own).float().cpu()
        if own.shape != values[name].shape:
            return float("inf")
        worst = max(worst, float((own - values[name]).abs().max() / own.abs().max().clamp(min=1e-12)))
    return worst


def _paired(a: Detections, b: Detections) -> tuple[int, float, float]:
    """Return the number of detections without a counterpart, and the largest differences of counterparts.

    Boxes without area, which were clipped to an edge of the image from beyond it, have no overlap and do not count.
    """
    a, b = (Detections(*(part[_has_area(here.boxes)] for part in here)) for here in (a, b))
    if not len(a.scores) or not len(b.scores):
        return len(a.scores) + len(b.scores), 0.0, 0.0
    kind = kind_of(a.boxes)
    iou = kind.pairwise_iou(a.boxes.double(), b.boxes.double())
    iou = torch.where(a.labels[:, None] == b.labels[None], iou, -1.0)
    best, other = iou.max(1)
    apart = (a.scores - b.scores[other]).abs()
    same = (best >= _SAME_IOU) & (apart <= _SAME_SCORE)
    mutual = same & (iou.argmax(0)[other] == torch.arange(len(other)))
    corners = [kind.corners(boxes) for boxes in (a.boxes[mutual], b.boxes[other[mutual]])]
    pixels = float((corners[0] - corners[1]).abs().max()) if mutual.any() else 0.0
    scores = float(apart[mutual].max()) if mutual.any() else 0.0
    return len(a.scores) + len(b.scores) - 2 * int(mutual.sum()), pixels, scores


def wrongly_kept(found: Detections, candidates: Detections, detector: Detector) -> int:
    """Count what contradicts that these detections are the detector's candidates after suppression.

    Programs decide differently between candidates of equal scores, as in areas of one colour, and what they keep
    decides which of the worse ones go. Any of these results is right: each detection is a candidate, none overlaps a
    better one of its class, and each candidate that is not kept does, or is worse than all that are, if these are as
    many as may be.
    """
    settings, kind = detector.settings.detections, detector.coding.kind
    full = len(found.scores) >= settings.max_detections
    least = found.scores.min() if full else found.scores.new_zeros(())
    found, candidates = (Detections(*(part[_has_area(x.boxes)] for part in x)) for x in (found, candidates))
    if not len(found.scores) or not len(candidates.scores):
        return len(found.scores) + len(candidates.scores)
    among = kind.pairwise_iou(found.boxes.double(), found.boxes.double())
    among = torch.where(found.labels[:, None] == found.labels, among, -1.0).fill_diagonal_(-1)
    overlaps = int((among.triu() > settings.nms_iou + _ROUNDING).sum())
    iou = kind.pairwise_iou(candidates.boxes.double(), found.boxes.double())
    iou = torch.where(candidates.labels[:, None] == found.labels, iou, -1.0)
    apart = candidates.scores[:, None] - found.scores
    strange = int((~((iou >= _SAME_IOU) & (apart.abs() <= _SAME_SCORE)).any(0)).sum())
    explained = ((iou > settings.nms_iou - _ROUNDING) & (apart <= _ROUNDING)).any(1)
    missing = int((~explained & (candidates.scores > least + _ROUNDING)).sum())
    return overlaps + strange + missing


def _has_area(boxes: Tensor) -> Tensor:
    around = kind_of(boxes).hull(boxes)
    return (around[:, 2:] - around[:, :2]).amin(1) > _LEAST_SIDE
