"""Settings of a small detector."""

from __future__ import annotations

from typing import Any

from locdistill.models.settings import DetectorSettings, InputSettings
from tests.conftest import CLASSES


def small_detector(**changes: Any) -> DetectorSettings:
    """A detector of the drawn images that trains in moments, with changes of its settings."""
    usual: dict[str, Any] = {
        "backbone": "test_resnet",
        "pretrained": False,
        "classes": CLASSES,
        "channels": 16,
        "depth": 1,
        "norm_groups": 4,
        "levels": (3, 4),
        "input": InputSettings(short=96, long=128),
    }
    return DetectorSettings(**usual | changes)
