"""How a detector is trained: optimiser, schedule, precision, evaluation, devices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from locdistill.settings import Settings

BASE_IMAGES_PER_STEP = 16
"""Images per optimiser step that ``EngineSettings.lr`` is written for."""


class EngineSettings(Settings):
    """One group of settings for everything that turns a model and data into trained weights.

    The defaults are those of the 1x schedule of the reference implementation (HikariTJU/LD): SGD, 0.01 for 16 images
    per step, 12 epochs with decay at the start of epochs 8 and 11 (counted from 0), 500 warm-up steps.

    Attributes:
        epochs: Passes over the training images.
        steps: Optimiser steps to take instead of ``epochs``; the schedule of ``epochs`` is then stretched over them.
        time_limit_seconds: Stop after this much training time (evaluation and saving excluded). The schedule does not
            know of it: to compare at equal time, choose ``steps`` from a measured speed and keep this as a fence.
        optimizer: ``sgd`` or ``adamw``.
        lr: Learning rate for 16 images per optimiser step.
        scale_lr: Multiply ``lr`` by (images per step) / 16, over all processes and accumulated batches.
        momentum: Of SGD.
        weight_decay: Of SGD and AdamW.
        norm_bias_decay: Whether biases, norm weights and scalars decay too (they do in the reference).
        bias_decay: Whether the biases of convolutions and linear layers decay, if ``norm_bias_decay`` lets them (they
            do not in FCOS).
        bias_lr_factor: Learning rate of these biases relative to the rest (2 in FCOS).
        backbone_lr_factor: Learning rate of the backbone relative to the rest.
        warmup_steps: Optimiser steps of linear warm-up; at most a fifth of the run is used.
        warmup_ratio: Factor of the learning rate at the first step.
        schedule: ``step`` decays by ``gamma`` at each milestone; ``cosine`` falls to zero at the end of the run.
        milestones: Epochs, counted from 0, at whose start the rate decays; a number below 1 is a share of the run.
        gamma: Factor of each decay.
        accumulate: Batches per optimiser step on each process.
        clip_norm: Largest norm of the gradient; None does not clip.
        precision: ``32``, ``bf16`` or ``fp16`` (mixed). Losses are computed in float32 always. PyTorch has no fp16
            training on CPU: bf16 is used there.
        ema: Decay of the running average of the weights, evaluated and published in their place; None for no average.
        patience: Evaluations without a better AP after which training stops; None never stops early.
        eval_every: Epochs between evaluations; 0 evaluates at the end only. The end is evaluated always.
        checkpoint_every_steps: Optimiser steps between checkpoints within an epoch (each epoch ends with one anyway).
        checkpoint_every_minutes: Minutes between checkpoints within an epoch.
        seed: Of the order of images, their augmentation and dropout. Weights are drawn before the engine comes in.
        devices: ``auto`` is one device, or as many as torchrun or SLURM started processes; else a number of devices
            (of processes, on CPU) or a list of device indices.
        nodes: Machines that train together.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        launch: How processes are started when there are several: ``subprocess`` runs the same command line once per
            device, ``spawn`` and ``fork`` start from this process (spawn needs picklable arguments). ``auto`` is
            ``subprocess``, but ``fork`` in a notebook or an interactive session.
        log_every: Optimiser steps between rows of the log, which hold means over those steps.
        deterministic: Use deterministic operations where PyTorch has them, and warn where it has none.
        progress: Show progress on the terminal.
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
    warmup_steps: NonNegativeInt = 500
    warmup_ratio: Annotated[float, Field(gt=0, le=1)] = 0.001
    schedule: Literal["step", "cosine"] = "step"
    milestones: tuple[PositiveFloat, ...] = (8, 11)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    accumulate: PositiveInt = 1
    clip_norm: PositiveFloat | None = None
    precision: Literal["32", "bf16", "fp16"] = "32"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    patience: PositiveInt | None = None
    eval_every: NonNegativeInt = 1
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

    @model_validator(mode="after")
    def _milestones_rise(self) -> EngineSettings:
        shares = [m for m in self.milestones if m < 1]
        if shares and len(shares) < len(self.milestones):
            raise ValueError(
                f"milestones {self.milestones} mix epochs (1 and more) with shares of the run (below 1): use one kind"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {self.milestones} must rise: write the epochs in the order they come")
        return self

    @model_validator(mode="after")
    def _patience_has_evaluations(self) -> EngineSettings:
        if self.patience is not None and self.eval_every == 0:
            raise ValueError(
                f"patience {self.patience} counts evaluations, but eval_every 0 evaluates at the end only: "
                "set eval_every to 1 or more, or patience to null"
            )
        return self

    @model_validator(mode="after")
    def _devices_named(self) -> EngineSettings:
        if self.devices == ():
            raise ValueError("devices is an empty list: name at least one device, or use 'auto'")
        return self
