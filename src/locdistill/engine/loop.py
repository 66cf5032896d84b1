"""The training loop, on one device or several."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path

import torch
from lightning_fabric import Fabric

from locdistill.engine.launch import build_fabric, check_training_devices, leave, quiet_lightning
from locdistill.engine.module import TrainingModule
from locdistill.engine.result import FitResult
from locdistill.engine.settings import EngineSettings
from locdistill.engine.signals import requeued
from locdistill.engine.speed import Machine, choose, own_backends
from locdistill.engine.training import CHECKPOINT, Decisions, End, Enough, MakeLoader, Surroundings, Training
from locdistill.engine.validation import Evaluate
from locdistill.errors import RunError

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
    enough: Enough | None = None,
) -> FitResult:
    """Train, evaluate and save until the end of the schedule, or resume a run that was stopped.

    A resumed run takes the same steps, with the same losses on the same hardware, as one that was never stopped; if it
    was killed before its first checkpoint, it starts from the beginning. A finished run continues if it gets more
    epochs, time or patience than before. SLURM jobs that are preempted and requeued resume automatically.

    The folder gets ``last.ckpt`` (to resume from), ``best.safetensors`` and ``last.safetensors`` (the student; its
    averaged weights if ``ema`` is set), ``metrics.csv``, ``metrics.json`` and ``logs/`` for TensorBoard. The state that
    a teacher learned from the student is only in ``last.ckpt``. Files are replaced atomically, so that a crash never
    leaves a partial one.

    Args:
        module: The detector with its objective and teacher.
        make_train_loader: Function from rank and number of processes to the loader of the training batches; its batch
            sampler has ``set_epoch``, ``skip`` and ``batch_size``.
        make_val_loader: Likewise for the images to evaluate on, with a share for each process.
        evaluate: Function from all detections by image to metrics including ``AP``; called on the first process only.
        out: Folder of the run.
        settings: Training settings; by default the module's.
        resume: Whether to continue the run in ``out``.
        enough: Function from metrics to whether the run ends with them; it is not asked by default.

    Raises:
        RunError: ``out`` holds a run and ``resume`` is not set, or the run in it is a different one; or a requested
            device does not exist.
        NonFiniteLossError: A loss term became NaN or infinite.
        RunInterrupted: A signal requested a stop; the checkpoint is written.
    """
    if settings is not None and settings != module.settings:
        module.settings, module.speed = settings, choose(settings, Machine.here(settings))
    check_training_devices(module.settings)
    out = Path(out)
    resume = resume or requeued()
    if (out / CHECKPOINT).exists() and not resume:
        raise RunError(f"{out} holds a run already; resume it (--resume), or choose another folder (--out)")
    if resume and not (out / CHECKPOINT).exists():
        logger.warning("%s has no checkpoint yet: the run begins at its first step", out)
    out.mkdir(parents=True, exist_ok=True)
    around = Surroundings(
        make_train_loader=make_train_loader,
        make_val_loader=make_val_loader,
        evaluate=evaluate,
        out=out,
        enough=enough,
    )
    with quiet_lightning():
        fabric = build_fabric(module.settings, module.speed)
        end: End = fabric.launch(train, module, around)  # type: ignore[arg-type]  # its type omits them
    if end.interrupted:
        leave(end, out, first=fabric.global_rank == 0)
    return FitResult.read(out)


def train(fabric: Fabric, module: TrainingModule, around: Surroundings) -> End:
    """Run the loop in this process, from the checkpoint in the run's folder or from the first step.

    The order of operations between two steps is fixed, which makes a resumed run equal to one that never stopped: a
    checkpoint includes everything before it, and nothing after it.
    """
    settings = module.settings
    training = Training(fabric, module, around)
    with quiet_lightning(), own_backends(deterministic=settings.deterministic), closing(training):
        model, optimizer = training.set_up()
        plan, state, student, lap = training.plan, training.state, training.student, module.lap
        stream = training.stream if training.profile is None else training.profile.watched(training.stream)
        for number, batch in enumerate(map(fabric.to_device, stream)):
            lap("copy")
            begins, completes = number % plan.accumulate == 0, (number + 1) % plan.accumulate == 0
            if begins and module.speed.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # frees earlier results
            with fabric.no_backward_sync(model, enabled=not completes):
                losses = model(batch)
                fabric.backward(losses.total / plan.accumulate)
            lap("backward")
            training.note(losses, batch)
            if not completes:
                lap("update")
                continue

            if settings.clip_norm is not None:
                fabric.clip_gradients(model, optimizer, max_norm=settings.clip_norm, error_if_nonfinite=False)
            for group in optimizer.param_groups:
                group["lr"] = group["full_lr"] * training.factor(state.step)
            optimizer.step()
            optimizer.zero_grad()
            state.step += 1
            if training.average is not None:
                training.average.update(student)
            if training.teacher is not None:
                training.teacher.after_step(student)
            lap("update")

            step = state.step
            ends = step >= plan.total_steps
            evaluates = ends or plan.completes(step, settings.eval_every)
            boundary = evaluates or plan.completes(step)
            due = settings.checkpoint_every_steps is not None and step % settings.checkpoint_every_steps == 0
            agrees = boundary or due or step % training.agrees_every == 0
            decisions = training.agree() if agrees else Decisions()
            if step % settings.log_every == 0 or ends:
                training.log()
            training.terminal.advance(step)
            if ends or decisions.time_is_up:
                state.stopped = "finished" if ends else "time"
            if evaluates or state.stopped:
                training.evaluate()  # may end the run (patience)
            over = bool(state.stopped) or decisions.stop > 0
            if boundary or over or due or decisions.save:
                training.save(weights=boundary or over)
            if over:
                state.interrupted = decisions.stop
                break
        return training.end()
