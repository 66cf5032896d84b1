"""Agreement of two detectors by region and edge, and reliability of an edge's spread as a predictor of its error.

Distances, spreads and errors are in units of bins, which are one stride apart in horizontal detectors. The edges of a
rotated box and its angle have different units, and a mean or a rank over both would mix strides with radians.

All are pure functions of predictions. In addition to the measure that every run logs (``agree/...``, at the positives),
they separate regions and edges, for a diagnosis of a finished run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from locdistill.losses.distribution import softened_kl
from locdistill.objective.scene import Scene
from locdistill.types import Doubles

OTHERS = 3
"""Number of sums that are not per edge: locations, overlap and score."""
EXPRESSED = 1e-6
"""Tolerance for rounding outside the range of values that the bins can express."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of two detectors in a region; means over its locations, NaN where it has none.

    Attributes:
        locations: Number of locations.
        edge_kl: Per edge, divergence of the student's distributions from the teacher's, in nats, at temperature 1.
        distance: Per edge, distance between the two expected positions, in bins.
        box_iou: IoU of both boxes.
        score: Largest difference of the two scores of a class, as probabilities.
    """

    locations: int
    edge_kl: tuple[float, ...]
    distance: tuple[float, ...]
    box_iou: float
    score: float

    @classmethod
    def of(cls, sums: Float[Tensor, " k"]) -> Agreement:
        """Create from sums over any number of batches (see `agreement_sums`)."""
        count, *rest = sums.tolist()
        means = [value / count if count else math.nan for value in rest]
        edges = (len(sums) - OTHERS) // 2
        return cls(int(count), tuple(means[:edges]), tuple(means[edges : 2 * edges]), *means[2 * edges :])

    @property
    def mean_edge_kl(self) -> float:
        """Mean of ``edge_kl`` over the edges."""
        return math.fsum(self.edge_kl) / len(self.edge_kl)


@torch.no_grad()
def agreement_sums(scene: Scene, region: Bool[Tensor, "b l"]) -> Float[Tensor, " k"]:
    """Return the number of locations in a region, and the sums over them for `Agreement`, in float64.

    Sums of several batches may be added, so that means over all of them are exact. The two detectors may be of
    different kinds on one grid; their common classes are compared.
    """
    student, teacher = scene.student, scene.teacher
    assert teacher is not None, "there are two detectors to compare"
    divergence = scene.bins.count * softened_kl(student.edge_logits, teacher.edge_logits, temperature=1.0)
    ours, its = (scene.bins.expect(dense.edge_logits) for dense in (student, teacher))
    distance = scene.bins.difference(ours, its).abs() / scene.bins.steps(ours)
    overlap = scene.coding.kind.paired_iou(scene.boxes, scene.boxes_of(teacher))
    # The largest difference of the two scores of a common class; NaN if there is no common class.
    count = min(student.cls_logits.shape[-1], teacher.cls_logits.shape[-1])
    common = [c for c in range(count) if all(dense.known is None or c in dense.known for dense in (student, teacher))]
    gap = torch.full_like(overlap, torch.nan)
    if common:
        mine, theirs = (dense.score_logits[..., common].sigmoid() for dense in (student, teacher))
        gap = (mine - theirs).abs().amax(-1)
    values = torch.cat((divergence, distance, overlap[..., None], gap[..., None]), -1)
    # Selected, not weighted: boxes in the background may be degenerate, and 0 times NaN is NaN.
    sums = values[region].double().sum(0)
    return torch.cat((region.sum().double()[None], sums))


@torch.no_grad()
def edge_errors(scene: Scene, logits: Float[Tensor, "b l e n"]) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Return the predicted standard deviation and the actual absolute error of the edges at the positives, in bins.

    Between two bins a deviation cannot be less than ``sqrt(f (1 - f))``, with ``f`` the fractional part of the mean,
    which is up to half a bin. This lower bound overestimates the uncertainty of sharp distributions. Edges that no
    distribution can express are left out: beyond the last bin, or on the wrong side of the location.
    """
    truth = scene.coding.encode(scene.grid, scene.target_boxes)
    expressed = scene.bins.difference(scene.bins.clamp(truth, margin=0), truth).abs() <= EXPRESSED
    kept = scene.assignment.positive[..., None] & expressed
    error = scene.bins.difference(scene.bins.expect(logits), truth).abs()
    steps = scene.bins.steps(truth)
    return (scene.bins.deviation(logits) / steps)[kept], (error / steps)[kept]


@dataclass(frozen=True)
class ReliabilityBin:
    """Edges with similar predicted spread.

    Attributes:
        count: Number of edges.
        deviation: Root mean square of their predicted standard deviations, in bins.
        error: Mean of their absolute errors, in bins.
        rms_error: Root mean square of their errors, in bins, which equals ``deviation`` in a calibrated detector.
    """

    count: int
    deviation: float
    error: float
    rms_error: float


@dataclass(frozen=True)
class Reliability:
    """Reliability of the spread of edge distributions as a predictor of the error.

    Attributes:
        count: Number of edges.
        pearson: Correlation of predicted standard deviation and absolute error.
        spearman: Correlation of their ranks, which is robust to a few large errors.
        ratio: Root mean square error over root mean square deviation: above 1 the detector is overconfident.
        ence: Expected normalised calibration error (Levi et al. 2022): the mean over bins of the absolute difference
            between root mean square error and deviation, relative to the deviation.
        bins: Edges sorted by predicted spread, in bins of equal count.
    """

    count: int
    pearson: float
    spearman: float
    ratio: float
    ence: float
    bins: tuple[ReliabilityBin, ...]


def reliability(deviations: npt.ArrayLike, errors: npt.ArrayLike, *, bins: int = 10) -> Reliability:
    """Compare predicted standard deviations with actual errors; NaN for quantities undefined with too few edges.

    Args:
        deviations: Predicted standard deviation of each edge.
        errors: Its actual error, signed or absolute.
        bins: Number of bins; fewer if there are fewer edges.
    """
    sigma, error = np.asarray(deviations, np.float64), np.abs(np.asarray(errors, np.float64))
    if sigma.shape != error.shape or sigma.ndim != 1:
        raise ValueError(f"expected two lists of equal length, came shapes {sigma.shape} and {error.shape}")
    order = np.argsort(sigma, kind="stable")
    parts = np.array_split(order, max(1, min(bins, len(order))))
    rows = []
    for part in parts:
        if len(part):
            here, off = sigma[part], error[part]
            rows.append(ReliabilityBin(len(part), _rms(here), float(off.mean()), _rms(off)))
    ranks = []  # from 1; equal values get the mean of their ranks
    for values in (sigma, error):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place.ravel()])
    gaps = [abs(row.rms_error - row.deviation) / row.deviation if row.deviation else math.nan for row in rows]
    return Reliability(
        count=len(order),
        pearson=correlation(sigma, error),
        spearman=correlation(*ranks),
        ratio=_quotient(_rms(error), _rms(sigma)),
        ence=_quotient(math.fsum(gaps), len(gaps)),
        bins=tuple(rows),
    )


def _rms(values: Doubles) -> float:
    return float(np.sqrt(np.square(values).mean())) if len(values) else math.nan


def _quotient(a: float, b: float) -> float:
    return a / b if b else math.nan


def correlation(a: Sequence[float] | Doubles, b: Sequence[float] | Doubles) -> float:
    """Compute Pearson's correlation; NaN if one of the two is constant."""
    x, y = (np.asarray(values, np.float64) for values in (a, b))
    x, y = (values - values.mean() if len(values) else values for values in (x, y))
    return _quotient(float(x @ y), math.sqrt(float(x @ x) * float(y @ y)))


EDGE_KL = "agree/edge_kl"

BOX_IOU = "agree/box_iou"


@torch.no_grad()
def agreement(scene: Scene) -> dict[str, Float[Tensor, "2"]]:
    """Measure the agreement of student and teacher at the positive locations; empty without a teacher.

    Only objects of classes that the teacher knows are included.

    Unlike the terms of a recipe, which have temperatures, regions and weights of their own, this is the same measure in
    every run. The teacher may be a detector of another kind on the same grid.

    Returns:
        By name, a sum over the positives and their number, so that means over many batches are exact.

        ``agree/edge_kl``
            Divergence of the student's edge distributions from the teacher's, in nats: the sum over bins at temperature
            1, averaged over the edges. 0 is full agreement.
        ``agree/box_iou``
            IoU of both boxes, each the mean of its distributions. 1 is full agreement.
    """
    if scene.teacher is None:
        return {}
    theirs = scene.teacher.edge_logits
    # All locations are compared, since selecting the positives would synchronise with the device.
    divergence = scene.bins.count * softened_kl(scene.student.edge_logits, theirs, temperature=1.0).mean(-1)
    overlap = scene.coding.kind.paired_iou(scene.boxes, scene.boxes_of(scene.teacher))
    positive = scene.taught.assignment.positive.to(divergence.dtype)
    count = positive.sum()
    return {
        EDGE_KL: torch.stack(((divergence * positive).sum(), count)),
        BOX_IOU: torch.stack(((overlap * positive).sum(), count)),
    }
