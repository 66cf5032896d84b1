"""A run in progress: its state, its checkpoint, and the operations between steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from locdistill.dist import is_distributed, quiet
from locdistill.engine.checkpoint import (
    gathered,
    load_checkpoint,
    random_state,
    restore_random_state,
    seed_everything,
    write_checkpoint,
)
from locdistill.engine.log import MetricsFile, Row, Terminal, duration
from locdistill.engine.meter import Meter, Ratios
from locdistill.engine.module import Losses, TrainingModule
from locdistill.engine.optim import average_decay, laid_out, scaled_lr, schedule, warmup_length
from locdistill.engine.plan import Plan
from locdistill.engine.profile import Profile
from locdistill.engine.result import RunState
from locdistill.engine.signals import StopSignals
from locdistill.engine.speed import own_backends, set_backends
from locdistill.engine.stream import Stream
from locdistill.engine.validation import Evaluate, evaluate_together
from locdistill.errors import NonFiniteLossError, RunError
from locdistill.models.average import Average
from locdistill.models.detector import Detector
from locdistill.types import Batch

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

MakeLoader = Callable[[int, int], Any]
Enough = Callable[[Mapping[str, float]], bool]
"""Function that returns whether a run may end with these metrics."""
MONITOR = "AP"
CHECKPOINT = "last.ckpt"
WARM_STEPS = 10
"""Steps after which the pace of a run is measured."""


@dataclass(slots=True)
class Stopwatch:
    """Clock of the seconds spent training; paused during evaluation and saving."""

    seconds: float = 0.0
    _since: float | None = None

    def start(self) -> None:
        """Start or resume the clock."""
        self._since = time.monotonic()

    def stop(self, device: torch.device | None = None) -> None:
        """Pause the clock, after synchronisation with a device."""
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        self.seconds, self._since = self.read(), None

    def read(self) -> float:
        """Return the seconds until now."""
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """Inputs of a run besides the module: data, evaluation, folder, and the metrics at which it ends early."""

    make_train_loader: MakeLoader
    make_val_loader: MakeLoader | None
    evaluate: Evaluate | None
    out: Path
    enough: Enough | None = None


@dataclass(frozen=True, slots=True)
class Decisions:
    """Decisions shared by all processes after a step.

    Attributes:
        stop: The signal that requested a stop; 0 for none.
        save: Whether a checkpoint is due by time.
        time_is_up: Whether the time limit is reached.
    """

    stop: int = 0
    save: bool = False
    time_is_up: bool = False


class End(NamedTuple):
    """End of a run.

    Attributes:
        interrupted: The signal that stopped it early; 0 for none.
        step: Optimiser steps done.
        total: Optimiser steps of the whole run.
    """

    interrupted: int
    step: int
    total: int


class Training:
    """A run in progress, in one of its processes; :func:`locdistill.engine.loop.train` runs its steps.

    Args:
        fabric: The device and the other processes.
        module: Student, teacher and objective.
        around: Data, evaluation and folder.
    """

    def __init__(self, fabric: Fabric, module: TrainingModule, around: Surroundings) -> None:
        self.fabric, self.module, self.around = fabric, module, around
        self.settings = settings = module.settings
        module.arrange()
        loader = around.make_train_loader(fabric.global_rank, fabric.world_size)
        self.plan = Plan.of(loader, settings, fabric.world_size)
        self.state = RunState()
        module.plan, module.progress = self.plan, self.state
        self.stream = Stream(loader, 0, self.plan.total_steps * self.plan.accumulate)
        self.lr = scaled_lr(settings, self.plan.images_per_step)
        self.factor = schedule(settings, self.plan)
        self.meter, self.watched, self.watched_since_evaluation = Meter(), Ratios(), Ratios()
        self.clock, self.signals = Stopwatch(), StopSignals()
        self.teacher = module.guidance.teacher
        self.student = module.detector
        decay = average_decay(settings, self.plan.total_steps)
        self.average = None if decay is None else Average(self.student, decay)
        # The student with the weights to evaluate and publish.
        self.published = self.student if self.average is None else cast(Detector, self.average.model)
        self.terminal = Terminal(self.plan.total_steps, settings.progress and fabric.is_global_zero and not quiet())
        self.profile: Profile | None = None
        self._val_loader = None
        if around.make_val_loader is not None and around.evaluate is not None:
            self._val_loader = around.make_val_loader(fabric.global_rank, fabric.world_size)
        self._table: MetricsFile | None = None
        self._board: SummaryWriter | None = None
        self._purged: int | None = None  # TensorBoard hides the rows of an earlier part of the run from this step on
        # Steps between two calls of `agree`, which synchronises with the device.
        self.agrees_every = 1 if fabric.device.type == "cpu" and not is_distributed() else settings.log_every
        self._saved_at, self._saved_time = -1, 0.0
        self._window = (0.0, 0)
        self._estimates = True

    # ---------------------------------------------------------------------------------------------- begin and resume

    def set_up(self) -> tuple[Any, Any]:
        """Move everything to the device, and resume from the checkpoint if there is one.

        Returns:
            Module and optimiser, set up for the device, the precision and the other processes.
        """
        saved = load_checkpoint(path) if (path := self.around.out / CHECKPOINT).exists() else None
        if saved is not None:
            self._check_same(saved)
            self.module.load_state_dict(saved["state_dict"])
        model, optimizer = self.fabric.setup(self.module, self.module.optimizer())
        if self.average is not None:
            self.average.model.to(self.fabric.device)
        self.module.speed_up(self.fabric.device)
        self.optimizer = optimizer
        if saved is not None:
            optimizer.load_state_dict(saved["optimizer"])
            laid_out(optimizer.optimizer)
            self.fabric.strategy.precision.load_state_dict(saved["precision"])
            self._load(saved["run"])
        self.student.train()  # a student loaded from a file is in evaluation mode
        seed_everything(self.settings.seed, self.fabric.global_rank)
        if saved is not None:
            restore_random_state(saved["run"]["random"][self.fabric.global_rank])
        self._start()
        return model, optimizer

    def _check_same(self, saved: dict[str, Any]) -> None:
        """Raise an error if the checkpoint is of a different run.

        Raises:
            RunError: The data, the processes or the settings differ from those of the saved run.
        """
        run = saved.get("run")
        if run is None:
            raise RunError(
                f"{self.around.out / CHECKPOINT} was written by an older version and cannot be resumed. Start a new "
                "run in another folder; --start takes the weights of this one"
            )
        ours, theirs = self.plan.fingerprint(self.settings.seed), run["fingerprint"]
        differs = [
            f"{name}: {theirs.get(name)} then, {ours[name]} now" for name in ours if theirs.get(name) != ours[name]
        ]
        if (self.average is None) != (run["average"] is None):
            differs.append(f"ema: {'on' if run['average'] else 'off'} then, {self.settings.ema} now")
        follows = {True: "follows the student", False: "frozen"}
        then, now = bool(run["teacher"]), self.teacher is not None and bool(self.teacher.state_dict())
        if then != now:
            differs.append(f"teacher: {follows[then]} then, {follows[now]} now")
        if differs:
            raise RunError(
                f"{self.around.out} cannot be resumed with other data, processes or settings ({'; '.join(differs)}). "
                "Use the same ones, or start a new run from its weights"
            )

    def _load(self, run: dict[str, Any]) -> None:
        """Restore the state of a run that is resumed."""
        self.state = self.module.progress = RunState(**run["state"])
        self.clock.seconds = run["seconds"]
        self.meter.load_state_dict(run["meter"])
        self.watched.load_state_dict(run["watched"])
        self.watched_since_evaluation.load_state_dict(run["watched_since_evaluation"])
        if self.average is not None:
            self.average.load_state_dict(run["average"])
        if self.teacher is not None and run["teacher"]:
            self.teacher.load_state_dict(run["teacher"])
        # check whether the saved run is still over: it continues if it now has more steps, time or patience
        limit, patience = self.settings.time_limit_seconds, self.settings.patience
        is_over = {
            "": False,
            "enough": True,
            "finished": self.state.step >= self.plan.total_steps,
            "time": limit is not None and self.clock.seconds >= limit,
            "patience": patience is not None and self.state.bad_evaluations >= patience,
        }[self.state.stopped]
        if not is_over:
            self.state.stopped = ""
        self.stream.start = self.stream.end if self.state.stopped else self.state.step * self.plan.accumulate
        self._saved_at = self.state.step

    def _start(self) -> None:
        """Open the logs, install the signal handlers, and start the clock."""
        done = self.state.step
        if self.fabric.is_global_zero:
            self._table = MetricsFile(self.around.out / "metrics.csv", done)
            self._purged = done + 1 if done else None
        self.terminal.start(done)
        plan, settings, world = self.plan, self.settings, self.fabric.world_size
        where = f"resuming after step {done} of" if done else "training"
        self.terminal.line(
            f"{where} {plan.total_steps} steps of {plan.images_per_step} images "
            f"({plan.total_steps * plan.accumulate / plan.batches_per_epoch:.4g} epochs, {world} "
            f"process{'es' if world > 1 else ''}), learning rate {self.lr:.4g}"
        )
        warmup = warmup_length(settings, plan.total_steps)
        if warmup < settings.warmup_steps and settings.warmup_steps >= 1:
            self.terminal.line(
                f"warm-up shortened from {settings.warmup_steps} to {warmup} steps, a fifth of this short run"
            )
        self.terminal.line(f"speed: {self.module.speed.words(settings.optimizer)}")
        self.signals.listen()
        if settings.profile:
            self.profile = Profile(self)
        self._saved_time, self._window = time.monotonic(), (self.clock.seconds, done)
        self.clock.start()

    # ------------------------------------------------------------------------------------------------ after each step

    def note(self, losses: Losses, batch: Batch) -> None:
        """Add the losses of a batch, without synchronisation."""
        self.meter.add(losses.names, losses.terms, step=self.state.step, image_ids=batch.image_ids)
        self.watched.add(losses.watched)
        self.watched_since_evaluation.add(losses.watched)

    def agree(self) -> Decisions:
        """Share decisions requested by any process with all; raise an error if any loss was not finite.

        Called at every step on a single CPU process, else every ``log_every`` steps and before anything is saved,
        because it synchronises with the device.

        Raises:
            NonFiniteLossError: Some term became NaN or infinite.
        """
        every, limit = self.settings.checkpoint_every_minutes, self.settings.time_limit_seconds
        broken = self.meter.any_broken()
        votes = torch.tensor(
            [
                float(self.signals.received or 0),
                float(every is not None and time.monotonic() - self._saved_time >= every * 60),
                float(limit is not None and self.clock.read() >= limit),
                0.0,
            ],
            device=self.fabric.device,
        )
        if broken is not None:
            votes[3] = broken
        if is_distributed():
            dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        stop, save, time_is_up, any_broken = votes.tolist()
        if any_broken:
            raise self._non_finite()
        self.meter.forget()
        return Decisions(stop=int(stop), save=bool(save), time_is_up=bool(time_is_up))

    def _non_finite(self) -> NonFiniteLossError:
        """Return the error about losses that are not finite; every process must call this."""
        found = next(found for found in gathered(self.meter.broken()) if found is not None)
        names, step, image_ids = found
        rate, settings = self.lr * self.factor(step), self.settings
        terms = " and ".join(repr(name) for name in names)
        last = self.around.out / CHECKPOINT
        message = (
            f"loss term{'s' if len(names) > 1 else ''} {terms} became NaN or infinite at optimiser step {step + 1} of "
            f"{self.plan.total_steps}, at learning rate {rate:.3g}, on the images with ids {image_ids}. "
            f"Lower engine.lr ({settings.lr:g}), lengthen engine.warmup_steps, clip gradients "
            f"(engine.clip_norm={settings.clip_norm or 10:g}"
            f"{' or less' if settings.clip_norm else ''}), or use engine.precision=32 or bf16 "
            f"(now {self.module.speed.precision}); 'locdistill data check' looks for broken boxes. "
            + (f"The last checkpoint before it is {last}" if last.exists() else "No checkpoint was written before it")
        )
        return NonFiniteLossError(message, tuple(names), step + 1)

    def log(self) -> None:
        """Write a row of the log: means since the last row."""
        terms, watched, now = self.meter.take_means(), self.watched.take_means(), self.clock.read()
        seconds, steps = now - self._window[0], self.state.step - self._window[1]
        self._window = (now, self.state.step)
        row = {
            "lr": self.lr * self.factor(self.state.step - 1),
            "images_per_second": steps * self.plan.images_per_step / seconds if seconds > 0 else math.nan,
            **{f"train/{name}": value for name, value in terms.items()},
            "train/total": sum(terms.values()),
        }
        self.terminal.losses(self._write(now, row | watched))
        if self._estimates and steps > 0 and self.state.step > WARM_STEPS:
            self._estimates = False
            rest = (self.plan.total_steps - self.state.step) * seconds / steps
            self.terminal.line(f"about {duration(rest)} for the other steps at this pace, evaluations not counted")

    def _write(self, seconds: float, values: Mapping[str, float]) -> Row:
        """Write a row of the log, and TensorBoard's scalars; return the row with its first columns."""
        step = self.state.step
        epoch = step * self.plan.accumulate / self.plan.batches_per_epoch
        row = {"step": step, "epoch": epoch, "seconds": seconds, **values}
        if self._table is not None:
            self._table.write(row)
            if self._board is None:
                from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - slow: not before the first step

                self._board = SummaryWriter(str(self.around.out / "logs"), purge_step=self._purged)
            for name, value in row.items():
                if name not in ("step", "seconds"):
                    self._board.add_scalar(name, value, step)
        return row

    def evaluate(self) -> None:
        """Evaluate, save the best weights, and check whether patience is exhausted."""
        if self._val_loader is None or self.around.evaluate is None:
            return
        self.clock.stop(self.fabric.device)
        with own_backends():
            set_backends(tf32=False, cudnn_benchmark=False)
            metrics = evaluate_together(self.published, self._val_loader, self.around.evaluate, self.fabric.device)
        if MONITOR not in metrics:
            raise RunError(
                f"the evaluation returned {sorted(metrics)} without {MONITOR!r}, which selects the best weights"
            )
        watched = self.watched_since_evaluation.take_means()
        row = self._write(self.clock.seconds, {f"val/{name}": value for name, value in metrics.items()})
        if self.state.note(row["epoch"], metrics | watched) and self.fabric.is_global_zero:
            self.published.save(self.around.out / "best.safetensors")
        shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in ("AP", "AP50", "AP75", "AP90") if name in metrics)
        marker = "  (best)" if self.state.bad_evaluations == 0 else ""
        self.terminal.line(f"evaluation after step {self.state.step}, epoch {row['epoch']:.4g}: {shown}{marker}")
        if self.around.enough is not None and not self.state.stopped and self.around.enough(metrics):
            self.state.stopped = "enough"
        patience = self.settings.patience
        if patience is not None and self.state.bad_evaluations >= patience and not self.state.stopped:
            self.state.stopped = "patience"
            self.terminal.line(f"{MONITOR} has not improved in {patience} evaluations: stopping")
        self.clock.start()

    def save(self, *, weights: bool) -> None:
        """Write the checkpoint with the complete state; with ``weights``, also the student's weights."""
        if self._saved_at == self.state.step:
            return
        self.clock.stop(self.fabric.device)
        random, out = gathered(random_state()), self.around.out
        if weights and self.fabric.is_global_zero:
            self.published.save(out / "last.safetensors")
            if self.plan.completes(self.state.step, self.settings.save_every):
                self.published.save(out / f"epoch-{self.plan.epochs_done(self.state.step):03d}.safetensors")
            self.state.write(out / "metrics.json", self.clock.seconds)
        content = {
            "state_dict": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "run": {
                "fingerprint": self.plan.fingerprint(self.settings.seed),
                "state": self.state.state_dict(),
                "seconds": self.clock.seconds,
                "meter": self.meter.state_dict(),
                "watched": self.watched.state_dict(),
                "watched_since_evaluation": self.watched_since_evaluation.state_dict(),
                "teacher": {} if self.teacher is None else self.teacher.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "random": random,
            },
        }
        if self.fabric.is_global_zero:
            write_checkpoint(content, out / CHECKPOINT)
        self.fabric.barrier()
        self._saved_at, self._saved_time = self.state.step, time.monotonic()
        self.clock.start()

    # ------------------------------------------------------------------------------------------------------- the end

    def end(self) -> End:
        """Write the profile, and return the end of the run."""
        if self.profile is not None:
            self.profile.write()
        return End(0 if self.state.stopped else self.state.interrupted, self.state.step, self.plan.total_steps)

    def close(self) -> None:
        """Release the terminal, the signal handlers and the files, however the run ended."""
        self.clock.stop()
        if self.profile is not None:
            self.profile.stop()
        self.terminal.stop()
        self.signals.restore()
        if self._board is not None:
            self._board.close()
            self._board = None
