"""What happens after every optimiser step, in order."""
# ruff: noqa: ARG002 (the signatures of hooks are Lightning's)

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from locdistill.dist import is_distributed
from locdistill.engine.checkpoint import (
    gathered,
    random_state,
    restore_random_state,
    seed_everything,
)
from locdistill.engine.log import MetricsFile, Row, TensorBoard, Terminal
from locdistill.engine.meter import Meter, Ratios
from locdistill.engine.module import TrainingModule, as_module
from locdistill.engine.optim import scaled_lr, schedule, warmup_length
from locdistill.engine.plan import Plan
from locdistill.engine.result import RunState
from locdistill.engine.roles import Student, Teacher
from locdistill.engine.settings import EngineSettings
from locdistill.engine.signals import StopSignals
from locdistill.engine.speed import own_backends, set_backends
from locdistill.engine.stream import Stream
from locdistill.engine.validation import Evaluate, evaluate_together
from locdistill.errors import NonFiniteLossError, RunError
from locdistill.models.average import Average

MakeLoader = Callable[[int, int], Any]
MONITOR = "AP"


@dataclass(slots=True)
class Stopwatch:
    """Seconds that were spent training; stopped during evaluation and saving."""

    seconds: float = 0.0
    _since: float | None = None

    def start(self) -> None:
        """Go on."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Pause."""
        self.seconds, self._since = self.read(), None

    def read(self) -> float:
        """Seconds until now."""
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """What a run is given besides the module: its data, its judge, its folder."""

    make_train_loader: MakeLoader
    make_val_loader: MakeLoader | None
    evaluate: Evaluate | None
    out: Path


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the processes agreed on: the signal that asked to stop (0: none), a checkpoint, the end of the time."""

    stop: int = 0
    save: bool = False
    time_is_up: bool = False


class Conductor(pl.Callback):
    """Counts optimiser steps, and after each does what is due, always in this order.

    1. the average of the weights and a teacher that follows them, 2. the watch for losses that are not finite, 3. a row
    of the log, 4. evaluation and the best weights, 5. the checkpoint, 6. the question whether to stop.

    One callback instead of several, because the order is what makes a resumed run equal to one that never stopped:
    a checkpoint holds all that came before it, and nothing that comes after.
    """

    def __init__(self, settings: EngineSettings, around: Surroundings) -> None:
        self.settings = settings
        self.around = around
        self.progress = RunState()
        self.meter = Meter()
        self.watched = Ratios()
        self.watched_since_evaluation = Ratios()
        self.teacher: Teacher | None = None
        self.clock = Stopwatch()
        self.signals = StopSignals()
        self.average: Average | None = None
        self.saved_at = -1
        self._random: list[dict[str, Any]] | None = None
        self._resumed: list[dict[str, Any]] | None = None
        self._table: MetricsFile | None = None
        self._board: TensorBoard | None = None

    # ---------------------------------------------------------------------------------------------- begin and resume

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Open the data and count the steps, once the processes know each other."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.arrange()
        loader = self.around.make_train_loader(trainer.global_rank, trainer.world_size)
        self.plan = Plan.of(loader, self.settings, trainer.world_size)
        self._lr = scaled_lr(self.settings, self.plan.images_per_step)
        self._factor = schedule(self.settings, self.plan)
        self.stream = Stream(loader, 0, self.plan.total_steps * self.plan.accumulate)
        pl_module.plan, pl_module.stream, pl_module.progress = self.plan, self.stream, self.progress
        self._precision = pl_module.speed.precision
        self.teacher = pl_module.guidance.teacher
        if self.settings.ema is not None:
            self.average = Average(as_module(pl_module.detector), self.settings.ema)
        self._val_loader = None
        if self.around.make_val_loader is not None and self.around.evaluate is not None:
            self._val_loader = self.around.make_val_loader(trainer.global_rank, trainer.world_size)
        self.terminal = Terminal(self.plan.total_steps, show=self.settings.progress and trainer.is_global_zero)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs and that Lightning does not save itself."""
        return {
            "fingerprint": self.plan.fingerprint(self.settings.seed),
            "progress": self.progress.state_dict(),
            "seconds": self.clock.seconds,
            "meter": self.meter.state_dict(),
            "watched": self.watched.state_dict(),
            "watched_since_evaluation": self.watched_since_evaluation.state_dict(),
            "teacher": self._learned(),
            "average": None if self.average is None else self.average.state_dict(),
            "random": self._random,
        }

    def _learned(self) -> dict[str, Any]:
        return {} if self.teacher is None else self.teacher.state_dict()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the file tell the steps of the whole run; Lightning counts those since the last resume."""
        checkpoint["global_step"] = self.progress.step
        checkpoint["epoch"] = self.plan.epochs_done(self.progress.step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            RunError: The data, the processes or the settings are not those of the run that was saved.
        """
        ours, theirs = self.plan.fingerprint(self.settings.seed), state_dict["fingerprint"]
        changed = [name for name in ours if theirs.get(name) != ours[name]]
        differs = [f"{name}: {theirs.get(name)} then, {ours[name]} now" for name in changed]
        if (self.average is None) != (state_dict["average"] is None):
            differs.append(f"ema: {'on' if state_dict['average'] else 'off'} then, {self.settings.ema} now")
        learned = state_dict.get("teacher", {})  # not in checkpoints of earlier versions, as what is watched
        if bool(learned) != bool(self._learned()):
            kinds = {True: "follows the student", False: "frozen"}
            differs.append(f"teacher: {kinds[bool(learned)]} then, {kinds[not learned]} now")
        if differs:
            raise RunError(
                f"{self.around.out} cannot be resumed, because the run is no longer the same ({'; '.join(differs)}). "
                "Use the same data, processes and settings, or start a new run from its weights"
            )
        self.progress.load_state_dict(state_dict["progress"])
        self.clock.seconds = state_dict["seconds"]
        self.meter.load_state_dict(state_dict["meter"])
        self.watched.load_state_dict(state_dict.get("watched", {}))
        self.watched_since_evaluation.load_state_dict(state_dict.get("watched_since_evaluation", {}))
        if self.average is not None:
            self.average.load_state_dict(state_dict["average"])
        if self.teacher is not None and learned:
            self.teacher.load_state_dict(learned)
        self._resumed = state_dict["random"]
        if not self._is_over():
            self.progress.stopped = ""
        self.stream.start = self.stream.end if self.progress.stopped else self.progress.step * self.plan.accumulate
        self.saved_at = self.progress.step

    def _is_over(self) -> bool:
        """Whether what ended the saved run still holds: it goes on if it is now given more steps, time or patience."""
        limit, patience = self.settings.time_limit_seconds, self.settings.patience
        return {
            "": False,
            "finished": self.progress.step >= self.plan.total_steps,
            "time": limit is not None and self.clock.seconds >= limit,
            "patience": patience is not None and self.progress.bad_evaluations >= patience,
        }[self.progress.stopped]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put random generators, log and signals in order, and let the time run."""
        assert isinstance(pl_module, TrainingModule)
        pl_module.detector.train()  # it may come from a file, in evaluation mode
        if self.average is not None:
            self.average.to(pl_module.device)
        if self._resumed is None:
            seed_everything(self.settings.seed, trainer.global_rank)
        else:
            restore_random_state(self._resumed[trainer.global_rank])
            self._resumed = None
        done = self.progress.step
        if trainer.is_global_zero:
            self._table = MetricsFile(self.around.out / "metrics.csv")
            self._table.start(done)
            self._board = TensorBoard(self.around.out / "logs", done)
        self.terminal.start(done)
        self._announce(done, trainer.world_size)
        self.terminal.line(f"speed: {pl_module.speed.words(self.settings.optimizer)}")
        self.signals.listen()
        self._check_every = 1 if pl_module.device.type == "cpu" and not is_distributed() else self.settings.log_every
        self._saved_time = time.monotonic()
        self._window = (self.clock.seconds, done)
        self.clock.start()

    def _announce(self, done: int, world: int) -> None:
        plan, settings = self.plan, self.settings
        where = f"resuming after step {done} of" if done else "training"
        self.terminal.line(
            f"{where} {plan.total_steps} steps of {plan.images_per_step} images "
            f"({plan.total_steps * plan.accumulate / plan.batches_per_epoch:.4g} epochs, {world} "
            f"process{'es' if world > 1 else ''}), learning rate {self._lr:.4g}"
        )
        warmup = warmup_length(settings, plan.total_steps)
        if warmup < settings.warmup_steps:
            self.terminal.line(
                f"warm-up shortened from {settings.warmup_steps} to {warmup} steps, a fifth of this short run"
            )

    # ------------------------------------------------------------------------------------------------ after each step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the losses of a batch; do what is due if it completed an optimiser step."""
        assert isinstance(pl_module, TrainingModule)
        self.meter.add(outputs["names"], outputs["terms"], step=self.progress.step, image_ids=batch.image_ids)
        self.watched.add(outputs["watched"])
        self.watched_since_evaluation.add(outputs["watched"])
        if (batch_idx + 1) % self.plan.accumulate:
            return
        self.progress.step += 1
        if self.average is not None:
            self.average.update(as_module(pl_module.detector))
        if self.teacher is not None:
            self.teacher.after_step(as_module(pl_module.detector))
        step = self.progress.step
        ends = step >= self.plan.total_steps
        evaluates = self.plan.evaluates(step, self.settings.eval_every)
        boundary = evaluates or self.plan.ends_epoch(step)
        every = self.settings.checkpoint_every_steps
        due = every is not None and step % every == 0
        wishes = self._agree(pl_module.device) if boundary or due or step % self._check_every == 0 else Wishes()
        if step % self.settings.log_every == 0 or ends:
            self._log()
        self.terminal.advance(step)
        if ends or wishes.time_is_up:
            self.progress.stopped = "finished" if ends else "time"
        if evaluates or self.progress.stopped:
            self._evaluate(pl_module)
        over = bool(self.progress.stopped) or wishes.stop > 0
        if boundary or over or due or wishes.save:
            self._save(trainer, pl_module, weights=boundary or over)
        if over:
            self.progress.interrupted = 0 if self.progress.stopped else wishes.stop
            trainer.should_stop = True

    def _agree(self, device: torch.device) -> Wishes:
        """What at least one process wants, known to all; raises if a loss of any was not finite.

        Asked every step on a lone CPU, else every ``log_every`` steps and before anything is saved, because the answer
        waits for the device.

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
            device=device,
        )
        if broken is not None:
            votes[3] = broken
        if is_distributed():
            dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        stop, save, time_is_up, any_broken = votes.tolist()
        if any_broken:
            raise NonFiniteLossError(self._explain())
        self.meter.forget()
        return Wishes(stop=int(stop), save=bool(save), time_is_up=bool(time_is_up))

    def _explain(self) -> str:
        found = next(found for found in gathered(self.meter.broken()) if found is not None)
        names, step, image_ids = found
        rate = self._lr * self._factor(step)
        terms = " and ".join(repr(name) for name in names)
        last = self.around.out / "last.ckpt"
        return (
            f"loss term{'s' if len(names) > 1 else ''} {terms} became NaN or infinite at optimiser step {step + 1} of "
            f"{self.plan.total_steps}, at learning rate {rate:.3g}, on the images with ids {image_ids}. "
            f"Lower engine.lr ({self.settings.lr:g}), lengthen engine.warmup_steps, clip gradients "
            f"(engine.clip_norm={self.settings.clip_norm or 10:g}"
            f"{' or less' if self.settings.clip_norm else ''}), or use engine.precision=32 or bf16 "
            f"(now {self._precision}); 'locdistill data check' looks for broken boxes. "
            + (f"The last checkpoint before it is {last}" if last.exists() else "No checkpoint was written before it")
        )

    # --------------------------------------------------------------------------------------------------- what is due

    def _row(self) -> Row:
        step = self.progress.step
        epoch = step * self.plan.accumulate / self.plan.batches_per_epoch
        return {"step": step, "epoch": epoch, "seconds": self.clock.read()}

    def _write(self, row: Row) -> None:
        if self._table is not None:
            self._table.write(row)
        if self._board is not None:
            self._board.write(row)

    def _log(self) -> None:
        terms, watched = self.meter.means(), self.watched.means()
        self.meter.reset()
        self.watched.reset()
        row = self._row()
        seconds, steps = row["seconds"] - self._window[0], self.progress.step - self._window[1]
        self._window = (row["seconds"], self.progress.step)
        row["lr"] = self._lr * self._factor(self.progress.step - 1)
        row["images_per_second"] = steps * self.plan.images_per_step / seconds if seconds > 0 else math.nan
        row |= {f"train/{name}": value for name, value in terms.items()} | {"train/total": sum(terms.values())}
        row |= watched
        self._write(row)
        self.terminal.losses(row)

    def published(self, module: TrainingModule) -> Student:
        """The weights that are evaluated and published: the average if there is one."""
        if self.average is None:
            return module.detector
        student = self.average.model
        assert isinstance(student, Student)
        return student

    def _evaluate(self, module: TrainingModule) -> None:
        if self._val_loader is None or self.around.evaluate is None:
            return
        self._pause(module)
        with own_backends():
            set_backends(tf32=False, cudnn_benchmark=False)
            metrics = evaluate_together(self.published(module), self._val_loader, self.around.evaluate, module.device)
        if MONITOR not in metrics:
            raise RunError(f"the evaluation gave {sorted(metrics)}, without {MONITOR!r}, which the best is chosen by")
        row = self._row()
        watched = self.watched_since_evaluation.means()
        self.watched_since_evaluation.reset()
        if self.progress.note(row["epoch"], metrics | watched) and module.trainer.is_global_zero:
            self.published(module).save(self.around.out / "best.safetensors")
        self._write(row | {f"val/{name}": value for name, value in metrics.items()})
        shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in ("AP", "AP50", "AP75", "AP90") if name in metrics)
        marker = "  (best)" if self.progress.bad_evaluations == 0 else ""
        self.terminal.line(f"evaluation after step {self.progress.step}, epoch {row['epoch']:.4g}: {shown}{marker}")
        patience = self.settings.patience
        if patience is not None and self.progress.bad_evaluations >= patience and not self.progress.stopped:
            self.progress.stopped = "patience"
            self.terminal.line(f"no better {MONITOR} in {patience} evaluations: stopping")
        self.clock.start()

    def _save(self, trainer: pl.Trainer, module: TrainingModule, *, weights: bool) -> None:
        if self.saved_at == self.progress.step:
            return
        self._pause(module)
        self._random = gathered(random_state())
        out = self.around.out
        if weights and trainer.is_global_zero:
            self.published(module).save(out / "last.safetensors")
            self.progress.write(out / "metrics.json", self.clock.seconds)
        trainer.save_checkpoint(out / "last.ckpt")
        self._random = None
        self.saved_at = self.progress.step
        self._saved_time = time.monotonic()
        self.clock.start()

    def _pause(self, module: TrainingModule) -> None:
        """Stop the clock once the device has done what it was asked to."""
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        self.clock.stop()

    # ------------------------------------------------------------------------------------------------------- the end

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give back the terminal, the signals and the files, however the run ended."""
        self.clock.stop()
        self.terminal.stop()
        self.signals.restore()
        if self._board is not None:
            self._board.close()
            self._board = None
