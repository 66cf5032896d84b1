"""Number and waiting policy of OpenMP's threads, which must be set before PyTorch is imported."""

from __future__ import annotations

import os
import sys

from locdistill.data.resources import allowed_cores, visible_cores

SHORT_SPIN = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
"""Settings to poll 3000 times (some microseconds), then sleep; `benchmarks/neighbours.py` measures the cost."""


def share_politely() -> None:
    """Let OpenMP's threads sleep during long waits, and limit their number to the cores that a container may use.

    Variables set by the user stay unchanged.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in SHORT_SPIN):
        os.environ.update(SHORT_SPIN)
    if allowed_cores() < visible_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(allowed_cores()))
