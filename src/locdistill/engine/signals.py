"""Being asked to stop, from a keyboard or a cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from types import FrameType
from typing import Any


def in_slurm() -> bool:
    """Whether this process was started by a SLURM job."""
    return "SLURM_JOB_ID" in os.environ


def requeued() -> bool:
    """Whether SLURM runs this job again after a preemption; such a run resumes by itself."""
    return in_slurm() and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


class StopSignals:
    """Notes SIGINT and SIGTERM, and SIGUSR1 under SLURM, so that training can stop between two steps.

    The second signal of a kind acts as if nobody listened, so an impatient Ctrl-C twice ends the process at once.
    Lightning's own handlers are not used: for SLURM they save in the middle of a step, which could not be resumed
    exactly.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def listen(self) -> None:
        """Begin to note signals; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread():
            return
        wanted = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGUSR1] if in_slurm() else [])
        for number in wanted:
            self._previous[number] = signal.signal(number, self._note)

    def restore(self) -> None:
        """Give signals back to who had them before."""
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)
        self._previous.clear()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def requeue_job() -> bool:
    """Ask SLURM to run this job again; whether it agreed."""
    job = os.environ.get("SLURM_JOB_ID", "")
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array and task else job
    scontrol = shutil.which("scontrol")
    if scontrol is None or not name.replace("_", "").isdigit():
        return False
    return subprocess.run([scontrol, "requeue", name], check=False).returncode == 0  # noqa: S603
