"""Paired differences over seeds, and what may be concluded from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# 0.975 quantiles of Student's t with 1, 2, ... degrees of freedom.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def t_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's t (above 30 degrees of freedom to within 0.002)."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.4 / freedom


@dataclass(frozen=True)
class Paired:
    """The mean of paired differences, and how sure it is.

    Attributes:
        differences: One per seed.
        mean: Their mean.
        deviation: Their standard deviation (n - 1); NaN for one seed.
        error: The standard error of the mean; NaN for one seed.
        low: Lower end of the 95 % interval of the mean by Student's t; minus infinity for one seed.
        high: Its upper end.
    """

    differences: tuple[float, ...]
    mean: float
    deviation: float
    error: float
    low: float
    high: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Paired:
        """Compare two measurements of the same seeds: ``first`` minus ``second``.

        Raises:
            ValueError: The two are of different length, or empty.
        """
        differences = tuple(a - b for a, b in zip(first, second, strict=True))
        if not differences:
            raise ValueError("nothing to compare: no seed was run")
        mean, count = statistics.fmean(differences), len(differences)
        if count == 1:
            return cls(differences, mean, math.nan, math.nan, -math.inf, math.inf)
        deviation = statistics.stdev(differences)
        error = deviation / math.sqrt(count)
        half = t_quantile(count - 1) * error
        return cls(differences, mean, deviation, error, mean - half, mean + half)

    @property
    def finding(self) -> str:
        """``higher``, ``lower``, ``within noise`` where the interval contains 0, or ``unknown`` with one seed."""
        if len(self.differences) == 1:
            return "unknown"
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "within noise"

    def text(self) -> str:
        """The mean, its interval and the spread, as ``+4.3 (95 % interval +2.9 to +5.7; deviation 0.6, 3 seeds)``."""
        count = len(self.differences)
        if count == 1:
            return f"{self.mean:+z.1f} (one seed, no interval)"
        return (
            f"{self.mean:+z.1f} (95 % interval {self.low:+z.1f} to {self.high:+z.1f}; "
            f"standard deviation {self.deviation:.1f} over {count} seeds)"
        )


_STEPS = {
    "higher": "At equal steps localization distillation helps",
    "lower": "At equal steps localization distillation hurts",
    "within noise": "At equal steps the difference is within noise (the interval contains 0): nothing is shown",
    "unknown": "At equal steps one seed says nothing about the difference",
}
_TIME = {
    "higher": "At equal time it helps too",
    "lower": "At equal time the student trained alone, for longer, is ahead",
    "within noise": "At equal time the difference is within noise (the interval contains 0)",
    "unknown": "At equal time neither",
}


def verdict(equal_steps: Paired, equal_time: Paired | None) -> str:
    """Say what was seen, in AP of the distilled student minus the student alone, and no more than that."""
    sentence = f"{_STEPS[equal_steps.finding]}: AP {equal_steps.text()}."
    if equal_time is None:
        return f"{sentence} Equal time was not measured."
    shown = {equal_steps.finding, equal_time.finding} & {"higher", "lower"}
    opposite = shown and equal_steps.mean * equal_time.mean < 0
    turn = " - the opposite sign of the comparison at equal steps" if opposite else ""
    lead = _TIME[equal_time.finding].replace("helps too", "helps too" if equal_steps.finding == "higher" else "helps")
    return f"{sentence} {lead}{turn}: AP {equal_time.text()}."
