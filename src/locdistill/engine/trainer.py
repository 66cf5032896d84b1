"""Training from the first step to the last, on one device or many."""

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
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from locdistill.engine.callbacks import Conductor, MakeLoader, Surroundings
from locdistill.engine.checkpoint import AtomicCheckpointIO
from locdistill.engine.devices import check_training_devices
from locdistill.engine.module import TrainingModule
from locdistill.engine.profile import Profile
from locdistill.engine.result import FitResult
from locdistill.engine.settings import EngineSettings
from locdistill.engine.signals import requeue_job, requeued
from locdistill.engine.speed import Machine, Speed, choose, own_backends
from locdistill.engine.validation import Evaluate
from locdistill.errors import RunError, RunInterrupted

logger = logging.getLogger("locdistill.engine")


def fit(
    module: TrainingModule,
    *,
    make_train_loader: MakeLoader,
    make_val_loader: MakeLoader | None = None,
    evaluate: Evaluate | None = None,
    out: Path,
    settings: EngineSettings | None = None,
    resume: bool = False,
) -> FitResult:
    """Train, evaluate and save until the end of the schedule; or go on with a run that was stopped.

    A resumed run takes the same steps, with the same losses on the same hardware, as one that was never stopped; if
    it was killed before its first checkpoint, it begins again. A run that is over goes on if it is given more epochs,
    time or patience than before. SLURM jobs that are preempted and run again resume by
    themselves.

    The folder gets ``last.ckpt`` (to resume from), ``best.safetensors`` and ``last.safetensors`` (the student; its
    averaged weights if ``ema`` is set), ``metrics.csv``, ``metrics.json`` and ``logs/`` for TensorBoard. What a teacher
    learned from the student is in ``last.ckpt`` alone. Files are replaced in one stroke, so that a crash never leaves
    half of one.

    Args:
        module: The detector with its objective and teacher.
        make_train_loader: From rank and number of processes to the loader of the training batches; its batch sampler
            has ``set_epoch``, ``skip`` and ``batch_size``.
        make_val_loader: Likewise for the images to evaluate on, each process a share.
        evaluate: From all detections by image to metrics, among them ``AP``; called on the first process only.
        out: Folder of the run.
        settings: How to train; by default the module's.
        resume: Go on with the run in ``out``.

    Raises:
        RunError: ``out`` holds a run and ``resume`` is not set, or the run in it is not the same; or a device that is
            asked for is not there.
        NonFiniteLossError: A loss term became NaN or infinite.
        RunInterrupted: A signal asked to stop; the checkpoint is written.
    """
    if settings is not None and settings != module.settings:
        module.settings, module.speed = settings, choose(settings, Machine.here(settings))
    settings = module.settings
    check_training_devices(settings)
    out = Path(out)
    checkpoint = out / "last.ckpt"
    resume = resume or requeued()
    if checkpoint.exists() and not resume:
        raise RunError(f"{out} holds a run already: resume it (--resume), or choose another folder (--out)")
    if resume and not checkpoint.exists():
        logger.warning("%s has no checkpoint yet: the run begins at its first step", out)
    out.mkdir(parents=True, exist_ok=True)
    conductor = Conductor(
        settings,
        Surroundings(make_train_loader=make_train_loader, make_val_loader=make_val_loader, evaluate=evaluate, out=out),
    )
    with quiet_lightning(), own_backends():
        trainer = build_trainer(settings, out, conductor, module.speed)
        trainer.fit(module, ckpt_path=str(checkpoint) if checkpoint.exists() else None)
    if conductor.progress.interrupted:
        _leave(trainer, conductor, out)
    if conductor.progress.stopped:
        return FitResult.of(conductor.progress, conductor.clock.seconds, out)
    return FitResult.read(out)  # spawned processes trained, and this one only waited


def build_trainer(settings: EngineSettings, out: Path, conductor: Conductor, speed: Speed) -> pl.Trainer:
    """Lightning's trainer, with everything off that the conductor does itself.

    To Lightning, a run is one epoch: the stream of all batches that are left. Its epochs cannot be entered in the
    middle exactly, and would cut accumulated steps at their ends.
    """
    devices, nodes = device_count(settings)
    return pl.Trainer(
        accelerator="gpu" if settings.accelerator == "cuda" else settings.accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy(settings, devices, nodes),
        precision=_precision(settings, speed),
        max_epochs=1,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip_norm,
        gradient_clip_algorithm="norm",
        deterministic="warn" if settings.deterministic else None,
        benchmark=speed.cudnn_benchmark,
        use_distributed_sampler=False,
        callbacks=[*([Profile(conductor)] if settings.profile else []), conductor],
        plugins=_plugins(),
        default_root_dir=out,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def device_count(settings: EngineSettings) -> tuple[int | list[int], int]:
    """Devices per machine, and machines: those that torchrun or SLURM started, or else those of the settings."""
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


def strategy(settings: EngineSettings, devices: int | list[int], nodes: int) -> Any:
    """One device alone, or distributed data parallel training without a search for unused parameters."""
    if _processes(devices, nodes) == 1:
        return "auto"
    methods = {"subprocess": "popen", "spawn": "spawn", "fork": "fork"}
    return DDPStrategy(find_unused_parameters=False, start_method=methods[_launch(settings)])  # type: ignore[arg-type]


def started_by_command(settings: EngineSettings) -> bool:
    """Whether training starts further processes by giving the command of this one again."""
    return process_count(settings) > 1 and not _started_outside() and _launch(settings) == "subprocess"


def process_count(settings: EngineSettings) -> int:
    """Processes that train together."""
    return _processes(*device_count(settings))


def _processes(devices: int | list[int], nodes: int) -> int:
    return nodes * (devices if isinstance(devices, int) else len(devices))


def _launch(settings: EngineSettings) -> str:
    if _started_outside():
        return "subprocess"
    if settings.launch == "auto":
        return "fork" if _interactive() else "subprocess"
    return settings.launch


def _started_outside() -> bool:
    return TorchElasticEnvironment.detect() or SLURMEnvironment.detect()


def _interactive() -> bool:
    return hasattr(sys, "ps1") or not hasattr(sys.modules["__main__"], "__file__")


def _plugins() -> list[Any]:
    plugins: list[Any] = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # ours saves between two steps, see StopSignals
    return plugins


def _precision(settings: EngineSettings, speed: Speed) -> Any:
    if settings.precision == "fp16" and speed.precision == "bf16":
        logger.warning("precision fp16 is not there for training on CPU: bf16 is used")
    return {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[speed.precision]


def _leave(trainer: pl.Trainer, conductor: Conductor, out: Path) -> None:
    """Say how to go on, and end; processes beside the first leave quietly."""
    number = conductor.progress.interrupted
    if trainer.global_rank > 0:
        raise SystemExit(0)
    message = (
        f"stopped by {signal.Signals(number).name} after optimiser step {conductor.progress.step} of "
        f"{conductor.plan.total_steps}; the checkpoint is {out / 'last.ckpt'}. "
        f"Go on with the same command and --resume --out {shlex.quote(str(out))}"
    )
    if number == getattr(signal, "SIGUSR1", None) and requeue_job():
        message += " (SLURM runs the job again by itself)"
    raise RunInterrupted(message, number)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's tips to itself; its errors pass."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [log.level for log in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=r".*lr_scheduler\.step\(\).*before.*optimizer\.step\(\).*")
        try:
            for log in loggers:
                log.setLevel(logging.ERROR)
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)
