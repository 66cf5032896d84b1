"""Resources of the machine available to a process: cores for readers, memory for decoded images."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from locdistill.errors import RecipeError

MOST_WORKERS = 16
CONTROL_GROUPS = Path("/sys/fs/cgroup")
DEFAULT_MEMORY = 8 * 10**9
"""Memory to assume where the system reports none, in bytes."""


def worker_count(wanted: int | None, processes: int) -> int:
    """Return the number of reader processes for each of ``processes`` training processes.

    The default is one per core, less one core for the training process itself, and at most 16. (One reader delivers
    about 200 photographs a second at 1333 x 800; 16 are for slow formats, large files and fast devices.) The training
    processes of a machine share its cores.
    """
    if wanted is not None:
        return wanted
    return min(max(cores(processes) - 1, 1), MOST_WORKERS)


def picture_memory(wanted: float | None, processes: int) -> int:
    """Return the bytes of decoded images that each of ``processes`` training processes may keep in memory.

    Args:
        wanted: GB (10^9 bytes) for the whole machine; None is a quarter of its memory.
        processes: Number of processes that train together.

    Raises:
        RecipeError: The machine has less memory than ``wanted``.
    """
    there = DEFAULT_MEMORY
    if hasattr(os, "sysconf"):  # the memory of the machine, or of the container if it has less
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        there = min([pages, *(limit for (limit,) in _limits("memory.max"))])
    if wanted is not None and wanted * 10**9 > there:
        raise RecipeError(
            f"data.cache is {wanted:g} GB, but this machine has {there / 10**9:.1f} GB of memory; set data.cache to "
            "less, to true (a quarter of it), or to false"
        )
    return int(there / 4 if wanted is None else wanted * 10**9) // processes_here(processes)


def processes_here(processes: int) -> int:
    """Return how many of the training processes run on this machine, from torchrun or SLURM; all otherwise."""
    local = os.environ.get("LOCAL_WORLD_SIZE")
    if local is not None:
        return min(int(local), processes)
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    return max(-(-processes // nodes), 1)


def cores(processes: int = 1) -> int:
    """Return the number of cores for one training process, within the limits of process, container and SLURM."""
    every = allowed_cores()
    task = os.environ.get("SLURM_CPUS_PER_TASK")
    if task is not None and os.environ.get("SLURM_NTASKS") == str(processes):  # each is a task with cores of its own
        return min(every, int(task))
    return max(every // processes_here(processes), 1)


def allowed_cores() -> int:
    """Return the number of usable cores: those visible to the process, or its container's quota if that is less."""
    return min([visible_cores(), *(max(quota // period, 1) for quota, period in _limits("cpu.max"))])


def visible_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _limits(name: str) -> Iterable[tuple[int, ...]]:
    """Read the numbers in a file of the container's control group (version 2); empty if there is no limit."""
    try:
        words = (CONTROL_GROUPS / name).read_text(encoding="ascii").split()
    except OSError:
        return ()
    return () if words[:1] == ["max"] else (tuple(map(int, words)),)
