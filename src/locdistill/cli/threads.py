"""How many threads there are and how they wait for each other, which is decided before PyTorch is imported."""

from __future__ import annotations

import os
import sys

from locdistill.data.resources import allowed_cores, visible_cores

SHORT_SPIN = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
"""Look three thousand times (some microseconds), then sleep; `benchmarks/neighbours.py` measures what that costs."""


def share_politely() -> None:
    """Let OpenMP's threads sleep where they would wait long, and be no more than the cores that a container may use.

    What the user has set in the environment stays.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in SHORT_SPIN):
        os.environ.update(SHORT_SPIN)
    if allowed_cores() < visible_cores():
        os.environ.setdefault("OMP_NUM_THREADS", str(allowed_cores()))
