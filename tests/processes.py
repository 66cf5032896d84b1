"""Waiting for processes that a test starts. No test may pass or fail by how fast a machine is."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

STUCK = 3600.0
"""Seconds after which a process hangs for sure: a guard, which decides nothing on a machine that works."""


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something happened, as long as the process that does it runs.

    Raises:
        AssertionError: The process ended before.
    """
    while not happened():
        assert process.poll() is None or happened(), "the process ended before"
        time.sleep(0.01)
