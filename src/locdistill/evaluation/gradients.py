"""Which term of a loss pulls how hard at a student."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Targets = Mapping[str, Sequence[Tensor]]
"""What is pulled at, by name: tensors of the graph that the losses were computed from."""


@dataclass(frozen=True)
class Pull:
    """The gradient of a term.

    Attributes:
        norm: Its Euclidean norm.
        cosine: How far it points where the labels' terms together point, from -1 to 1; NaN where one of both is 0.
    """

    norm: float
    cosine: float


def pulls(terms: Mapping[str, Tensor], targets: Targets, *, labels: Collection[str]) -> dict[str, dict[str, Pull]]:
    """The gradient of each term at each target.

    Args:
        terms: Values of the terms, weights included. Their graph is kept.
        targets: What the gradients are taken at; a term that does not depend on a target has gradient 0 there.
        labels: Names of the terms that learn from labels, whose sum the others are compared with.

    Returns:
        By target, then by term.
    """
    reference = _gradients(sum(terms[name] for name in labels if name in terms), targets)
    found: dict[str, dict[str, Pull]] = {name: {} for name in targets}
    for term, value in terms.items():
        for target, gradient in _gradients(value, targets).items():
            length, other = gradient.norm(), reference[target].norm()
            # Not divided first: where one is 0, the cosine is undefined, and 0 / 0 says so.
            cosine = (gradient @ reference[target]) / (length * other)
            found[target][term] = Pull(float(length), float(cosine))
    return found


def _gradients(value: Tensor | int, targets: Targets) -> dict[str, Tensor]:
    """The gradient at each target, flat; zeros where the value does not depend on it."""
    flat = [tensor for tensors in targets.values() for tensor in tensors]
    given: Sequence[Tensor | None] = [None] * len(flat)
    if isinstance(value, Tensor) and value.requires_grad:
        given = torch.autograd.grad(value, flat, retain_graph=True, allow_unused=True)
    left = iter(zip(flat, given, strict=True))
    parts = {name: [next(left) for _ in tensors] for name, tensors in targets.items()}
    return {
        name: torch.cat([(torch.zeros_like(t) if g is None else g).detach().float().flatten() for t, g in pairs])
        for name, pairs in parts.items()
    }


def shares(norms: Mapping[str, float]) -> dict[str, float]:
    """Each norm as a part of their sum; they sum to 1, or are all NaN where every norm is 0.

    Norms, not vectors, are added: terms that pull against each other both count in full.
    """
    total = math.fsum(norms.values())
    return {name: value / total if total else math.nan for name, value in norms.items()}
