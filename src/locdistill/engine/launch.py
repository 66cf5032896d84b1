"""The processes and devices of a run: their number, and how they are started."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.plugins.precision.amp import MixedPrecision
from lightning_fabric.strategies.ddp import DDPStrategy

from locdistill.engine.devices import device_kind, devices_here
from locdistill.engine.settings import EngineSettings
from locdistill.engine.signals import requeue_job
from locdistill.engine.speed import Speed
from locdistill.engine.training import End
from locdistill.errors import RunError, RunInterrupted

logger = logging.getLogger("locdistill.engine")


def check_training_devices(settings: EngineSettings) -> None:
    """Raise an error if the accelerator does not exist, or has fewer devices than requested.

    Processes started by torchrun or SLURM may see only their own device each, so their number is not checked.

    Raises:
        RunError: The accelerator does not exist or has too few devices.
    """
    kind = device_kind(settings)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[kind]:
        raise RunError(
            f"engine.accelerator is {kind}, but PyTorch finds no such device; {devices_here()}. Set "
            "engine.accelerator to auto or cpu, or install a driver and a PyTorch build for it"
        )
    if kind == "cpu" or settings.devices == "auto" or started_outside():
        return
    count = torch.cuda.device_count() if kind == "cuda" else 1
    devices = range(settings.devices) if isinstance(settings.devices, int) else settings.devices
    if len(set(devices)) < len(devices):
        raise RunError(f"engine.devices {list(devices)} names a device twice; name each once")
    if any(index >= count for index in devices):
        asked = settings.devices if isinstance(settings.devices, int) else list(settings.devices)
        raise RunError(
            f"engine.devices is {asked}, but there {'is' if count == 1 else 'are'} {count} of kind {kind} (counted "
            f"from 0); set --devices to {count} at most, or train on the CPU with engine.accelerator=cpu"
        )


def build_fabric(settings: EngineSettings, speed: Speed) -> Fabric:
    """Return a Fabric with device, precision and processes configured; nothing is started yet."""
    in_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()
    plugins: list[Any] = [SLURMEnvironment(auto_requeue=False)] if in_slurm else []  # `StopSignals` stops between steps
    if settings.precision == "fp16" and speed.precision == "bf16":
        logger.warning("PyTorch has no fp16 training on the CPU: bf16 is used")
    if speed.precision != "32":
        mixed: Literal["bf16-mixed", "16-mixed"] = "bf16-mixed" if speed.precision == "bf16" else "16-mixed"
        plugins.append(Mixed(mixed, device_kind(settings)))
    devices, nodes = device_count(settings)
    strategy: Any = "auto"
    if process_count(settings) > 1:
        how = {"spawn": "spawn", "fork": "fork"}.get(launch_method(settings), "popen")
        strategy = DDPStrategy(find_unused_parameters=False, start_method=how)  # type: ignore[arg-type]
    return Fabric(
        accelerator="gpu" if settings.accelerator == "cuda" else settings.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        plugins=plugins,
    )


class Mixed(MixedPrecision):
    """Mixed precision with two differences from Fabric's own.

    The batch is not cast, since the boxes of objects would be rounded too. Weights are cast at each use, without a
    cache: gradients of a head shared by all levels are then summed in float32, not in half precision.
    """

    def forward_context(self) -> torch.autocast:
        """Return the context of the forward pass."""
        return torch.autocast(self.device, dtype=self._desired_input_dtype, cache_enabled=False)

    def convert_input(self, data: Any) -> Any:
        """Return the data unchanged."""
        return data

    convert_output = convert_input


def device_count(settings: EngineSettings) -> tuple[int | list[int], int]:
    """Return the devices per machine and the number of machines, from torchrun or SLURM or else from the settings."""
    environment = os.environ
    if TorchElasticEnvironment.detect():
        local = int(environment.get("LOCAL_WORLD_SIZE", "1"))
        return local, int(environment["WORLD_SIZE"]) // local
    if SLURMEnvironment.detect():
        nodes = int(environment.get("SLURM_NNODES", environment.get("SLURM_JOB_NUM_NODES", "1")))
        return max(1, int(environment["SLURM_NTASKS"]) // nodes), nodes
    if settings.devices == "auto":
        return 1, settings.nodes
    if isinstance(settings.devices, int):
        return settings.devices, settings.nodes
    on_cpu = settings.accelerator == "cpu" or not torch.cuda.is_available()
    return len(settings.devices) if on_cpu else list(settings.devices), settings.nodes


def process_count(settings: EngineSettings) -> int:
    """Return the number of processes that train together."""
    devices, nodes = device_count(settings)
    return nodes * (devices if isinstance(devices, int) else len(devices))


def started_outside() -> bool:
    """Return whether torchrun or SLURM starts the processes."""
    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def launch_method(settings: EngineSettings) -> str:
    """Return how training starts further processes: ``subprocess``, ``spawn`` or ``fork``; else ``none``.

    ``subprocess`` runs this process's command again. None are started by a single process, torchrun or SLURM.
    """
    if process_count(settings) == 1 or started_outside():
        return "none"
    if settings.launch == "auto":
        interactive = hasattr(sys, "ps1") or not hasattr(sys.modules["__main__"], "__file__")
        return "fork" if interactive else "subprocess"
    return settings.launch


def leave(end: End, out: Path, *, first: bool) -> NoReturn:
    """Exit after a signal: the first process reports how to resume, the others exit silently.

    Raises:
        RunInterrupted: In the first process.
    """
    if not first:
        raise SystemExit(0)
    message = (
        f"stopped by {signal.Signals(end.interrupted).name} after optimiser step {end.step} of {end.total}; the "
        f"checkpoint is {out / 'last.ckpt'}. Resume with the same command and --resume --out {shlex.quote(str(out))}"
    )
    if end.interrupted == getattr(signal, "SIGUSR1", None) and requeue_job():
        message += " (SLURM requeues the job automatically)"
    raise RunInterrupted(message, end.interrupted)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's tips, but not its errors."""
    names = ("lightning_fabric", "lightning_fabric.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [log.level for log in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning_fabric\..*")
        try:
            for log in loggers:
                log.setLevel(logging.ERROR)
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
