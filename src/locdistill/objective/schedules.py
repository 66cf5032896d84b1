"""Schedules of a term's weight: a factor for every share of the run that is done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """Factor of a term's weight."""

    __slots__ = ()

    def __call__(self, progress: float) -> float:
        """Return the factor when this share of the run is done, from 0 (no step yet) to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Span(Schedule):
    """Change from one factor to another between two moments of the run; constant before and after.

    Attributes:
        first: Factor until ``start``.
        last: Factor from ``end`` on.
        start: Share of the run at which the factor begins to change.
        end: Share of the run at which the change ends; if equal to ``start``, the factor jumps.
    """

    first: float = 1.0
    last: float = 0.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a span that is not within the run.

        Raises:
            ValueError: It begins before the run, ends after it, or ends before it begins.
        """
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(
                f"start and end are shares of the run, 0 <= start <= end <= 1; got {self.start:g} and {self.end:g}"
            )

    def _through(self, progress: float) -> float:
        """Return the share of the span that is over."""
        if progress >= self.end:
            return 1.0
        return max(0.0, (progress - self.start) / (self.end - self.start)) if progress > self.start else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear(_Span):
    """Straight line from the first factor to the last."""

    def __call__(self, progress: float) -> float:
        """Return ``first + (last - first) t``, with ``t`` the share of the span that is over."""
        return self.first + (self.last - self.first) * self._through(progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine(_Span):
    """Half a cosine from the first factor to the last: strong distillation early, labels late.

    The self-distillation of YOLOv6 has ``first`` 1 and ``last`` 0.01 over the whole run.
    """

    def __call__(self, progress: float) -> float:
        """Return ``last + (first - last) (1 + cos(pi t)) / 2``, with ``t`` the share of the span that is over."""
        return self.last + (self.first - self.last) * (1 + math.cos(math.pi * self._through(progress))) / 2
