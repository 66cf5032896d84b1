"""Stop signals from a keyboard or a cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from dataclasses import dataclass, field
from types import FrameType
from typing import Any


def requeued() -> bool:
    """Return whether SLURM requeued this job after a preemption; such a run resumes automatically."""
    return "SLURM_JOB_ID" in os.environ and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


@dataclass(slots=True)
class StopSignals:
    """Handler of SIGINT and SIGTERM, and SIGUSR1 under SLURM, so that training can stop between two steps.

    The second signal of a kind has its default effect, so that a second Ctrl-C ends the process immediately.
    Lightning's own handlers are not used: for SLURM they save in the middle of a step, which could not be resumed
    exactly.
    """

    received: int | None = None
    _previous: dict[int, Any] = field(default_factory=dict)

    def listen(self) -> None:
        """Install the handlers; this is possible only in the main thread of a process."""
        if threading.current_thread() is not threading.main_thread():
            return
        wanted = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])
        for number in wanted:
            self._previous[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)
        self._previous.clear()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def requeue_job() -> bool:
    """Requeue this SLURM job; return whether SLURM accepted."""
    job = os.environ.get("SLURM_JOB_ID", "")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array and task else job
    scontrol = shutil.which("scontrol")
    if scontrol is None or not name.replace("_", "").isdigit():
        return False
    return subprocess.run([scontrol, "requeue", name], check=False).returncode == 0  # noqa: S603
