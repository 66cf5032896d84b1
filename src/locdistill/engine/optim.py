"""Parameter groups, optimiser, and learning rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from locdistill.engine.plan import Plan
from locdistill.engine.settings import BASE_IMAGES_PER_STEP, EngineSettings
from locdistill.errors import RecipeError
from locdistill.models.detector import Detector

BACKBONE_PREFIX = "backbone."
LARGEST_WARMUP_SHARE = 0.2
AVERAGED_SHARE = 0.02


def scaled_lr(settings: EngineSettings, images_per_step: int) -> float:
    """Return the rate after warm-up: linear in the images per step, from a base of 16 (Goyal et al., 2017)."""
    if not settings.scale_lr:
        return settings.lr
    return settings.lr * images_per_step / BASE_IMAGES_PER_STEP


def parameter_groups(
    student: Detector, settings: EngineSettings, lr: float, learned: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning rate and decay; frozen ones are left out.

    Parameters of the objective's terms (``learned``) are treated like those of the detector outside its backbone.

    A parameter with at most one axis (bias, norm weight, scale) decays only with ``norm_bias_decay``; the bias of a
    convolution or a linear layer has additional settings.

    Raises:
        RecipeError: No parameter is trainable.
    """
    groups: dict[str, dict[str, Any]] = {}
    parameters = dict(student.named_parameters())
    if learned is not None:
        parameters |= dict(learned.named_parameters(prefix="learned"))
    axes = {name: parameter.ndim for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        in_backbone = name.startswith(BACKBONE_PREFIX)
        if not parameter.requires_grad or (in_backbone and settings.backbone_lr_factor == 0):
            continue
        # The weight that accompanies the bias of a normalisation has one axis.
        is_bias = name.endswith(".bias") and axes.get(f"{name.removesuffix('bias')}weight", 0) > 1
        decays = parameter.ndim > 1 or (settings.norm_bias_decay and (settings.bias_decay or not is_bias))
        factor = settings.backbone_lr_factor if in_backbone else 1.0
        own_rate = is_bias and settings.bias_lr_factor != 1
        key = ("backbone" if in_backbone else "rest") + ("_bias" if own_rate else "") + ("" if decays else "_no_decay")
        group = groups.setdefault(
            key,
            {
                "params": [],
                "name": key,
                "lr": (rate := lr * factor * (settings.bias_lr_factor if own_rate else 1.0)),
                "full_lr": rate,
                "weight_decay": settings.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise RecipeError("no parameter of the detector is trained: all are frozen. Lower detector.frozen_stages")
    return list(groups.values())


def build_optimizer(
    groups: list[dict[str, Any]], settings: EngineSettings, *, fused: bool = False
) -> torch.optim.Optimizer:
    """Create SGD with momentum, or AdamW, over groups with their own rate and decay.

    With ``fused`` all weights are updated in one operation, otherwise by PyTorch's default: on CUDA in a few
    operations, elsewhere one after the other. The results are equal up to rounding.
    """
    how = True if fused else None
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, fused=how)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=how)


def laid_out(optimizer: torch.optim.Optimizer) -> None:
    """Convert an optimiser's state to the memory layout of its weights, on which a fused update relies.

    A checkpoint keeps the layout of the run that wrote it.
    """
    for weight, state in optimizer.state.items():
        for name, kept in state.items():
            if isinstance(kept, Tensor) and kept.shape == weight.shape and kept.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=kept.dtype).copy_(kept)


def warmup_length(settings: EngineSettings, total_steps: int) -> int:
    """Return the steps of warm-up: as set, but at most a fifth of the run, so that short runs reach their full rate."""
    wanted = settings.warmup_steps
    steps = round(wanted * total_steps) if 0 < wanted < 1 else int(wanted)
    return min(steps, int(total_steps * LARGEST_WARMUP_SHARE))


def average_decay(settings: EngineSettings, total_steps: int) -> float | None:
    """Return the decay of the running average of the weights; None for no average.

    An average with decay ``d`` covers about ``1 / (1 - d)`` steps.
    """
    if settings.ema != "auto":
        return settings.ema
    return 1 - 1 / min(max(total_steps * AVERAGED_SHARE, 10), 2000)


def schedule(settings: EngineSettings, plan: Plan) -> Callable[[int], float]:
    """Return the function from optimiser step ``k``, counted from 0, to the factor of the learning rate.

    Warm-up multiplies the schedule by ``1 - (1 - k / warmup_steps) * (1 - warmup_ratio)``, as in the reference
    implementation; ``cosine`` is ``(1 + cos(pi * k / total)) / 2`` (Loshchilov and Hutter, 2017, without restarts).

    Epoch milestones are starts of epochs. Fractions are fractions of the total steps. In a run with its length given in
    steps, epoch milestones are the fraction ``milestone / epochs`` of the total too.
    """
    total, warmup, ratio = plan.total_steps, warmup_length(settings, plan.total_steps), settings.warmup_ratio
    decays = []
    for milestone in settings.milestones:
        if milestone < 1:
            decays.append(round(milestone * total))
        elif settings.steps is not None:
            decays.append(round(milestone / settings.epochs * total))
        else:
            decays.append(math.ceil(milestone * plan.batches_per_epoch / plan.accumulate))

    def factor(step: int) -> float:
        warm = 1.0 if step >= warmup else 1 - (1 - step / warmup) * (1 - ratio)
        if settings.schedule == "cosine":
            return warm * 0.5 * (1 + math.cos(math.pi * min(step, total) / total))
        return warm * settings.gamma ** sum(step >= at for at in decays)

    return factor
