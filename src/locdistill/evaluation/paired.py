"""Paired differences over seeds, their uncertainty by seeds and images, and the conclusion from them.

A difference of AP has two sources of uncertainty: other seeds would give other weights, and other images would give
another AP of the same weights. The first is estimated by the spread over seeds; the second by resamples of the images
(the same for both sides), with the mean difference over seeds computed on each. Each gives half the width of an
interval (by Student's t over the seeds, by the normal distribution over the images), and their squares are added. The
interaction of seed and image is included in both, so the interval is rather too wide than too narrow.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# 0.975 quantiles of Student's t with 1, 2, ... degrees of freedom.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)

_NORMAL = 1.96


def t_quantile(freedom: int) -> float:
    """Return the 0.975 quantile of Student's t (above 30 degrees of freedom to within 0.002)."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom


@dataclass(frozen=True)
class OverImages:
    """The mean difference over seeds on resamples of the images.

    Attributes:
        error: Its standard deviation over the resamples.
        low: 2.5th percentile.
        high: 97.5th percentile.
    """

    error: float
    low: float
    high: float

    @classmethod
    def of(cls, resampled: NDArray[np.float64]) -> OverImages | None:
        """Compute from a difference per resample, without NaN (resamples without objects); None for fewer than two."""
        defined = resampled[~np.isnan(resampled)]
        if len(defined) < 2:
            return None
        low, high = np.percentile(defined, (2.5, 97.5)).tolist()
        return cls(float(defined.std(ddof=1)), low, high)


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences, with its uncertainty.

    Attributes:
        differences: Differences, one per seed.
        mean: Their mean.
        deviation: Their standard deviation (n - 1); NaN for one seed.
        error: The standard error of the mean over seeds; NaN for one seed.
        low: Lower end of the 95 % interval of the mean, for other seeds and, where these were resampled, other images;
            minus infinity for one seed.
        high: Its upper end.
        images: Uncertainty by images only; None if they were not resampled.
    """

    differences: tuple[float, ...]
    mean: float
    deviation: float
    error: float
    low: float
    high: float
    images: OverImages | None = None

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float], images: OverImages | None = None) -> Paired:
        """Compare two measurements of the same seeds: ``first`` minus ``second``.

        Raises:
            ValueError: The two differ in length, or are empty.
        """
        differences = tuple(a - b for a, b in zip(first, second, strict=True))
        if not differences:
            raise ValueError("nothing to compare: no seed was run")
        mean, count = statistics.fmean(differences), len(differences)
        if count == 1:
            return cls(differences, mean, math.nan, math.nan, -math.inf, math.inf, images)
        deviation = statistics.stdev(differences)
        error = deviation / math.sqrt(count)
        over_images = _NORMAL * images.error if images is not None else 0.0
        half = math.hypot(t_quantile(count - 1) * error, over_images)
        return cls(differences, mean, deviation, error, mean - half, mean + half, images)

    @property
    def finding(self) -> str:
        """``higher``, ``lower``, ``within noise`` where the interval contains 0, or ``unknown`` with one seed."""
        if len(self.differences) == 1:
            return "unknown"
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "within noise"

    def text(self) -> str:
        """Format mean, interval and spread, as ``+4.3 (95 % interval +2.9 to +5.7; deviation 0.6, 3 seeds)``."""
        count = len(self.differences)
        if count == 1:
            over = "no interval"
            if self.images is not None:
                over = f"95 % interval over images alone {self.images.low:+z.1f} to {self.images.high:+z.1f}"
            return f"{self.mean:+z.1f} (one seed, {over})"
        return (
            f"{self.mean:+z.1f} (95 % interval {self.low:+z.1f} to {self.high:+z.1f}; "
            f"standard deviation {self.deviation:.1f} over {count} seeds)"
        )


_STEPS = {
    "higher": "{what} helps",
    "lower": "{what} hurts",
    "within noise": "the difference is within noise (the interval contains 0): nothing is shown",
    "unknown": "one seed says nothing about the difference",
}
_TIME = {
    "higher": "At equal time it helps{too}",
    "lower": "At equal time {rival}, trained for longer, is ahead",
    "within noise": "At equal time the difference is within noise (the interval contains 0)",
    "unknown": "At equal time neither",
}


@dataclass(frozen=True)
class Wording:
    """The words of a verdict.

    Attributes:
        what: Subject that helps or hurts.
        rival: Baseline of the comparison.
        condition: Condition of the first comparison.
    """

    what: str = "localization distillation"
    rival: str = "the student alone"
    condition: str = "At equal steps"


def verdict(equal_steps: Paired, equal_time: Paired | None, words: Wording | None = None) -> str:
    """Return a sentence with the finding, in AP of the first side (the distilled student) minus the second."""
    words = words or Wording()
    lead = _STEPS[equal_steps.finding].format(what=words.what)
    sentence = f"{words.condition} {lead}: AP {equal_steps.text()}."
    if equal_time is None:
        return f"{sentence} Equal time was not measured."
    shown = {equal_steps.finding, equal_time.finding} & {"higher", "lower"}
    opposite = shown and equal_steps.mean * equal_time.mean < 0
    turn = " - the opposite sign of the comparison at equal steps" if opposite else ""
    too = " too" if equal_steps.finding == "higher" else ""
    return f"{sentence} {_TIME[equal_time.finding].format(too=too, rival=words.rival)}{turn}: AP {equal_time.text()}."
