"""Average precision of rotated boxes against annotated quadrilaterals, at ten overlaps.

The rules are those of :mod:`locdistill.evaluation.voc`, which are also those of the DOTA development kit, with two
differences, both the kit's: a detection overlaps the quadrilateral as it was annotated (eight numbers, not a rectangle
fitted to it), and it is true if the overlap is *greater* than the threshold, where VOC requires at least the threshold.
Equal scores are ranked by image and then by the given order. Among objects that a detection overlaps equally, those to
find come before the difficult ones, and then the given order decides.

Overlaps are computed in float64, once for all thresholds, for those detections and objects whose circumscribed boxes
intersect. There are three differences from the kit: its 11-point AP divides by the number of objects, which may be 0
(here a class without objects is left out of all means, and shown as undefined); it widens boxes by a pixel to choose
the pairs to compare; and it sorts equal scores in an undefined order.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from locdistill.evaluation.arrays import Rows
from locdistill.evaluation.tables import Table, percent
from locdistill.evaluation.voc import NAMES, Floats, Rules, VocResult
from locdistill.geometry.rotated import hull, paired_polygon_iou, polygon_hull
from locdistill.geometry.sweep import in_parts, moved_apart, overlapping_pairs

PUBLISHED_CLASSES = 15  # number of classes of DOTA 1.0, by which the published evaluator divides


def rotated_overlaps(reported: Rows, objects: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Return detection, object and overlap of all pairs in one image whose circumscribed boxes intersect."""
    boxes, quads = torch.from_numpy(reported.boxes).double(), torch.from_numpy(objects.boxes).double()
    images = torch.from_numpy(np.concatenate((reported.images, objects.images)))
    hulls = moved_apart(torch.cat((hull(boxes), polygon_hull(quads))), images)
    pairs = overlapping_pairs(hulls[: len(boxes)], hulls[len(boxes) :])
    overlaps = in_parts(lambda i, j: paired_polygon_iou(boxes[i], quads[j]), *pairs).numpy()
    return pairs[0].numpy(), pairs[1].numpy(), overlaps


def _nearest(reported: Rows, objects: Rows) -> tuple[NDArray[np.int64], Floats]:
    """Find the nearest object by the overlap of rotated boxes with quadrilaterals; all images at once."""
    detection, target, overlaps = rotated_overlaps(reported, objects)
    most = np.zeros(len(reported.images))
    np.maximum.at(most, detection, overlaps)
    best = overlaps == most[detection]
    nearest = np.full(len(most), len(objects.images) - 1)
    np.minimum.at(nearest, detection[best], target[best])
    return nearest, most


# An overlap is greater than a threshold if it reaches the next larger number.
ROTATED = Rules("Rotated boxes:", np.nextafter(np.arange(50, 100, 5) / 100, 1.0), _nearest)


def published_sum(result: VocResult) -> dict[str, float | None]:
    """Compute AP as printed by the published evaluator of Rotated-LD; for comparison with its numbers only.

    For each overlap in turn, that script adds the classes' AP to a sum, divides it by 15 and prints it, without
    resetting the sum to 0. So it prints ``r_t = true_t + r_(t-1) / 15`` in place of ``true_t``: AP50 is right, the
    others are too large. The first entry, AP, is the mean of the ten.
    """
    stats, before = result.stats, 0.0
    printed: list[float] = []
    for name in NAMES:
        if (true := stats[name]) is None:
            return dict.fromkeys(("AP", *NAMES))
        before = true + before / PUBLISHED_CLASSES
        printed.append(before)
    return {"AP": sum(printed) / len(printed), **dict(zip(NAMES, printed, strict=True))}


def published_table(result: VocResult) -> Table:
    """Return a table of the true metrics, and below them their `published_sum`."""
    series, stats = published_sum(result), result.stats
    rows = (("AP", stats), (f"running sum r_t = AP_t + r_(t-1) / {PUBLISHED_CLASSES}", series))
    return Table(
        "As the published evaluator of Rotated-LD prints it (%): not AP, only for comparison with its numbers",
        ("", *series),
        tuple((name, *(percent(values[key]) for key in series)) for name, values in rows),
    )
