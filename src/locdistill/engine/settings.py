"""Settings of training: optimiser, schedule, precision, evaluation, devices."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from locdistill.settings import Settings

BASE_IMAGES_PER_STEP = 16
"""Images per optimiser step for which ``EngineSettings.lr`` is given."""


Switch = Literal["auto"] | bool


class SpeedSettings(Settings):
    """Speed options. Each part is on, off, or chosen for the machine (see :mod:`engine.speed`).

    They change results only by rounding.

    Attributes:
        channels_last: Store images, weights and maps of student and teacher with the channels innermost (NHWC).
        teacher: Fold the batch normalisation of a frozen teacher into its convolutions, and store their weights in the
            run's precision.
        fused: Update all weights in one operation (SGD or AdamW).
        compile: Compile the student, a teacher that is a detector, and the objective. If compilation fails, True raises
            an error; ``auto`` continues without.
        cuda_graphs: Record compiled functions as CUDA graphs, which takes memory for each size of images. ``auto`` is
            off.
        checkpointing: Recompute the maps inside the student's backbone in the backward pass instead of keeping them:
            less memory, more time. ``auto`` is off.
        tf32: Multiply float32 matrices in TF32 on CUDA. Evaluation never does.
        cudnn_benchmark: Let cuDNN try its algorithms for each new size of images. Evaluation never does.
    """

    channels_last: Switch = "auto"
    teacher: Switch = "auto"
    fused: Switch = "auto"
    compile: Switch = "auto"
    cuda_graphs: Switch = "auto"
    checkpointing: Switch = "auto"
    tf32: Switch = "auto"
    cudnn_benchmark: Switch = "auto"

    @model_validator(mode="after")
    def _graphs_are_compiled(self) -> SpeedSettings:
        if self.cuda_graphs is True and self.compile is False:
            raise ValueError("cuda_graphs record compiled functions, but compile is false: set only one of the two")
        return self


def spelled_out(speed: Any) -> Any:
    """Convert ``auto`` and ``off`` to groups of parts; return a group unchanged.

    Raises:
        ValueError: It is neither.
    """
    if speed == "auto":
        return {}
    if speed == "off":
        return dict.fromkeys(SpeedSettings.model_fields, False)
    if not isinstance(speed, dict | SpeedSettings):
        raise ValueError(f"expected auto, off, or a group of {', '.join(SpeedSettings.model_fields)}, came {speed!r}")
    return speed


class EngineSettings(Settings):
    """Settings of training.

    The defaults are those of the 1x schedule of the reference implementation (HikariTJU/LD): SGD, 0.01 for 16 images
    per step, 12 epochs with decay at the start of epochs 8 and 11 (counted from 0), 500 warm-up steps.

    Attributes:
        epochs: Passes over the training images.
        steps: Optimiser steps to take instead of ``epochs``; the schedule of ``epochs`` is then stretched over them.
        time_limit_seconds: Stop after this much training time (evaluation and saving excluded). The schedule does not
            depend on it: to compare at equal time, choose ``steps`` from a measured speed and use this as an upper
            limit.
        optimizer: ``sgd`` or ``adamw``.
        lr: Learning rate for 16 images per optimiser step.
        scale_lr: Multiply ``lr`` by (images per step) / 16, over all processes and accumulated batches.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD and AdamW.
        norm_bias_decay: Whether weight decay includes biases, norm weights and scalars (it does in the reference).
        bias_decay: Whether weight decay includes the biases of convolutions and linear layers, if ``norm_bias_decay``
            is set (it does not in FCOS).
        bias_lr_factor: Learning rate of these biases relative to the rest (2 in FCOS).
        backbone_lr_factor: Learning rate of the backbone relative to the rest.
        warmup_steps: Optimiser steps of linear warm-up, or their share of the run if below 1; at most a fifth of the
            run is used.
        warmup_ratio: Factor of the learning rate at the first step.
        schedule: ``step`` decays by ``gamma`` at each milestone; ``cosine`` falls to zero at the end of the run.
        milestones: Epochs, counted from 0, at whose start the rate decays; a number below 1 is a fraction of the run.
        gamma: Factor of each decay.
        accumulate: Batches per optimiser step on each process.
        clip_norm: Largest norm of the gradient; None does not clip.
        precision: ``32``, ``bf16`` or ``fp16`` (mixed). ``auto`` is bf16 where the device supports its multiplication,
            else 32, and 32 where ``speed`` is ``off``; the recipe in the run's folder records the choice. Losses and
            evaluation are always computed in float32. PyTorch has no fp16 training on CPU: bf16 is used there.
        speed: ``auto``, ``off`` (plain eager PyTorch), or a group that sets parts: see `SpeedSettings`.
        ema: Decay of the running average of the weights, evaluated and published in place of the weights. ``auto``
            averages over about a fiftieth of the run (10 to 2000 steps); None for no average.
        patience: Evaluations without a better AP after which training stops; None for no early stopping.
        eval_every: Epochs between evaluations; 0 evaluates at the end only. The end is always evaluated.
        save_every: Epochs between weights that are kept as ``epoch-012.safetensors``; None keeps best and last alone.
        checkpoint_every_steps: Optimiser steps between checkpoints within an epoch (each epoch ends with one anyway).
        checkpoint_every_minutes: Minutes between checkpoints within an epoch.
        seed: Seed of the order of images, their augmentation and dropout. Weights are initialised before the engine is
            used.
        devices: ``auto`` is one device, or one per process started by torchrun or SLURM; else a number of devices (of
            processes, on CPU) or a list of device indices.
        nodes: Number of machines.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        launch: Method of starting several processes: ``subprocess`` runs the same command line once per device,
            ``spawn`` and ``fork`` start from this process (spawn needs picklable arguments). ``auto`` is
            ``subprocess``, or ``fork`` in a notebook or an interactive session.
        log_every: Optimiser steps between rows of the log, which are means over those steps.
        deterministic: Use deterministic operations where PyTorch has them, and warn otherwise.
        progress: Show progress on the terminal.
        profile: Measure the time spent waiting for the loader and in each part of a step: ``profile.txt`` and, for
            Chrome or Perfetto, ``profile.json`` in the run's folder.
    """

    epochs: PositiveInt = 12
    steps: PositiveInt | None = None
    time_limit_seconds: PositiveFloat | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: PositiveFloat = 0.01
    scale_lr: bool = True
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 1e-4
    norm_bias_decay: bool = True
    bias_decay: bool = True
    bias_lr_factor: NonNegativeFloat = 1.0
    backbone_lr_factor: NonNegativeFloat = 1.0
    warmup_steps: NonNegativeInt | Annotated[float, Field(gt=0, lt=1)] = 500
    warmup_ratio: Annotated[float, Field(gt=0, le=1)] = 0.001
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[PositiveFloat, ...] = (8, 11)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    accumulate: PositiveInt = 1
    clip_norm: PositiveFloat | None = None
    precision: Literal["auto", "32", "bf16", "fp16"] = "auto"
    speed: Annotated[SpeedSettings, BeforeValidator(spelled_out)] = SpeedSettings()
    ema: Literal["auto"] | Annotated[float, Field(gt=0, lt=1)] | None = None
    patience: PositiveInt | None = None
    eval_every: NonNegativeInt = 1
    save_every: PositiveInt | None = None
    checkpoint_every_steps: PositiveInt | None = None
    checkpoint_every_minutes: PositiveFloat | None = None
    seed: NonNegativeInt = 0
    devices: Literal["auto"] | PositiveInt | tuple[NonNegativeInt, ...] = "auto"
    nodes: PositiveInt = 1
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    launch: Literal["auto", "subprocess", "spawn", "fork"] = "auto"
    log_every: PositiveInt = 10
    deterministic: bool = False
    progress: bool = True
    profile: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> EngineSettings:
        shares = [m for m in self.milestones if m < 1]
        if shares and len(shares) < len(self.milestones):
            raise ValueError(
                f"milestones {self.milestones} mix epochs (1 and more) with shares of the run (below 1): use one kind"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {self.milestones} must rise: list them in ascending order, each once")
        if self.patience is not None and self.eval_every == 0:
            raise ValueError(
                f"patience {self.patience} counts evaluations, but eval_every 0 evaluates at the end only: "
                "set eval_every to 1 or more, or patience to null"
            )
        if self.speed.fused is True and self.precision == "fp16" and self.clip_norm is not None:
            raise ValueError(
                "clip_norm does not work with a fused optimiser in fp16, which unscales the gradients only after they "
                "would be clipped: set speed.fused to false, precision to bf16, or clip_norm to null"
            )
        if self.devices == ():
            raise ValueError("devices is an empty list: name at least one device, or use 'auto'")
        return self
