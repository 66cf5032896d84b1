"""Devices that are asked for must be there."""

from __future__ import annotations

import os
from typing import Literal

import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from locdistill.engine.settings import EngineSettings
from locdistill.errors import RunError


def existing_device(name: str | torch.device) -> torch.device:
    """The device of this name, which is tried out.

    Raises:
        RunError: There is no such device, or PyTorch cannot compute on it.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RunError(f"device '{name}': expected cpu, cuda, cuda:1 or the like; {_here()}") from error
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"device '{name}' cannot be used ({reason}); {_here()}") from error
    return device


def device_kind(settings: EngineSettings) -> Literal["cpu", "cuda", "mps"]:
    """What is trained on; ``auto`` is what Lightning chooses."""
    if settings.accelerator != "auto":
        return settings.accelerator
    return "mps" if torch.backends.mps.is_available() else "cuda" if torch.cuda.is_available() else "cpu"


def device_name(settings: EngineSettings) -> str:
    """The device that the first process trains on, in words."""
    kind = device_kind(settings)
    if kind == "cpu":
        return f"cpu ({os.cpu_count()} cores)"
    if kind == "mps":
        return "mps"
    index = 0 if isinstance(settings.devices, int | str) else settings.devices[0]
    return torch.cuda.get_device_name(index)


def check_training_devices(settings: EngineSettings) -> None:
    """Refuse to train on an accelerator that is not there, or on more devices than there are.

    Processes that torchrun or SLURM started may each see their own device only; their number is not judged.

    Raises:
        RunError: As said.
    """
    kind = device_kind(settings)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[kind]:
        raise RunError(
            f"engine.accelerator is {kind}, but PyTorch finds no such device; {_here()}: set engine.accelerator to "
            "auto or cpu, or install a PyTorch build and a driver for it"
        )
    if kind == "cpu" or settings.devices == "auto" or TorchElasticEnvironment.detect() or SLURMEnvironment.detect():
        return
    count = torch.cuda.device_count() if kind == "cuda" else 1
    devices = range(settings.devices) if isinstance(settings.devices, int) else settings.devices
    if len(set(devices)) < len(devices):
        raise RunError(f"engine.devices {list(devices)} names a device twice: name each once")
    if any(index >= count for index in devices):
        asked = settings.devices if isinstance(settings.devices, int) else list(settings.devices)
        raise RunError(
            f"engine.devices is {asked}, but there {'is' if count == 1 else 'are'} {count} of kind {kind} (counted "
            f"from 0); ask for {count} at most with --devices, or for processes on the CPU with engine.accelerator=cpu"
        )


def _here() -> str:
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return f"this machine has {', '.join(found)}"


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
