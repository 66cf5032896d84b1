"""Data as a detector is to see them."""

from __future__ import annotations

from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset
from locdistill.data.settings import DataSettings
from locdistill.models.settings import DetectorSettings


def open_for(
    detector: DetectorSettings, settings: DataSettings, split: str, *, training: bool | None = None
) -> Dataset:
    """A split whose objects are boxes of the kind that the detector has.

    For a detector of axis-aligned boxes a rotated object is the box that circumscribes it; for one of rotated boxes an
    axis-aligned object is a rectangle like any other.

    Args:
        detector: Who is to look.
        settings: Where the data are.
        split: As for :func:`locdistill.data.open.open_dataset`; also the rest.
        training: As there.
    """
    return open_dataset(settings, split, training=training).as_oriented(detector.rotated, detector.angles)
