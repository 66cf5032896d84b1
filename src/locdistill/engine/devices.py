"""Choice of the device, with a check that it exists."""

from __future__ import annotations

import os
from typing import Literal

import torch

from locdistill.engine.settings import EngineSettings
from locdistill.errors import RunError


def existing_device(name: str | torch.device) -> torch.device:
    """Return the device of this name after a trial computation.

    Raises:
        RunError: There is no such device, or PyTorch cannot compute on it.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RunError(f"device '{name}': expected cpu, cuda, cuda:1 or the like; {devices_here()}") from error
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"device '{name}' cannot be used ({reason}); {devices_here()}") from error
    return device


def device_kind(settings: EngineSettings) -> Literal["cpu", "cuda", "mps"]:
    """Return the kind of device to train on; ``auto`` prefers MPS, then CUDA, then the CPU."""
    if settings.accelerator != "auto":
        return settings.accelerator
    return "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"


def device_name(settings: EngineSettings) -> str:
    """Return the name of the device that the first process trains on."""
    kind = device_kind(settings)
    if kind == "cpu":
        return f"cpu ({os.cpu_count()} cores)"
    if kind == "mps":
        return "mps"
    index = 0 if isinstance(settings.devices, int | str) else settings.devices[0]
    return torch.cuda.get_device_name(index)


def devices_here() -> str:
    """Return a phrase that lists the devices of this machine."""
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return f"this machine has {', '.join(found)}"


def default_device() -> str:
    """Return ``cuda`` if there is a GPU, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
