"""Where numbers were measured. Benchmarks that use this are run as modules: ``python -m benchmarks.NAME``."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
UNTOLD = "unknown"


def about() -> dict[str, str | int]:
    """The machine, the cores and threads that are used, the version of PyTorch, and the commit that was measured."""
    return {
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU: {_processor()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _processor() -> str:
    """Name of the processor; where it does not say more than its kind, with what it multiplies bf16 by."""
    name = platform.processor() or platform.machine()
    if platform.system() != "Linux":
        return name
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in facts.get("flags", "").split()]
    return ", ".join([facts.get("model name", name), *units])


def _commit() -> str:
    """Short hash of the commit; with a mark where files that git tracks were changed since."""
    command = ("git", "describe", "--always", "--dirty", "--exclude=*")
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return UNTOLD
    return run.stdout.strip() or UNTOLD
