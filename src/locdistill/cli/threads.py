"""How threads wait for each other, which is decided before PyTorch is imported."""

from __future__ import annotations

import os
import sys

SHORT_SPIN = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
"""Look a thousand times (some microseconds), then sleep: see `benchmarks/neighbours.py`."""


def wait_politely() -> None:
    """Let OpenMP's threads sleep where they would wait long, unless the user decides that."""
    if "torch" in sys.modules or any(name in os.environ for name in SHORT_SPIN):
        return
    os.environ.update(SHORT_SPIN)
