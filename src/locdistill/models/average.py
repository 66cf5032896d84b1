"""Running average of the weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of a model's parameters and buffers.

    ``average <- d * average + (1 - d) * weights`` after each optimiser step ``k`` from 0, where
    ``d = min(decay, (1 + k) / (10 + k))``: early weights, far from the final ones, are forgotten quickly (the warm-up
    of TensorFlow's moving average). Floating-point buffers, such as the statistics of batch normalisation, are averaged
    too, since they belong to the weights; other buffers are copied.

    Lightning's ``WeightAveraging`` is not used: it copies the whole module with its teacher, has no warm-up of the
    decay, and stores the average in place of the raw weights in the checkpoint.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the model's present weights."""
        # Parameters and persistent buffers, in a fixed order.
        tensors = (each.state_dict(keep_vars=True).values() for each in (self.model, model))
        pairs: list[tuple[Tensor, Tensor]] = list(zip(*tensors, strict=True))
        averaged = [(ours, new) for ours, new in pairs if ours.is_floating_point()]
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_([ours for ours, _ in averaged], [new for _, new in averaged], 1 - decay)
        for ours, new in pairs:
            if not ours.is_floating_point():
                ours.copy_(new)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed to resume averaging."""
        return {"updates": self.updates, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved average."""
        self.updates = state["updates"]
        self.model.load_state_dict(state["model"])
