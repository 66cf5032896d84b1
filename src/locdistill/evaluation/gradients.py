"""Gradients of the terms of a loss."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Targets = Mapping[str, Sequence[Tensor]]
"""Points at which gradients are computed, by name: tensors in the graph of the losses."""


@dataclass(frozen=True)
class Pull:
    """The gradient of a term.

    Attributes:
        norm: Its Euclidean norm.
        cosine: Cosine of its angle to the total gradient of the labels' terms, from -1 to 1; NaN if either gradient is
            0.
    """

    norm: float
    cosine: float


def pulls(terms: Mapping[str, Tensor], targets: Targets, *, labels: Collection[str]) -> dict[str, dict[str, Pull]]:
    """Compute the gradient of each term at each target.

    Args:
        terms: Values of the terms, weights included. Their graph is kept.
        targets: Tensors at which gradients are computed; a term that does not depend on a target has gradient 0 there.
        labels: Names of the terms that learn from labels; other terms are compared with their sum.

    Returns:
        Gradients by target, then by term.
    """
    reference = _gradients(sum(terms[name] for name in labels if name in terms), targets)
    found: dict[str, dict[str, Pull]] = {name: {} for name in targets}
    for term, value in terms.items():
        for target, gradient in _gradients(value, targets).items():
            length, other = gradient.norm(), reference[target].norm()
            # Divided last: if either norm is 0, the cosine is undefined, and 0 / 0 gives NaN.
            cosine = (gradient @ reference[target]) / (length * other)
            found[target][term] = Pull(float(length), float(cosine))
    return found


def _gradients(value: Tensor | int, targets: Targets) -> dict[str, Tensor]:
    """Compute the flattened gradient at each target; zeros where the value does not depend on it."""
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
    """Divide each norm by their sum; the results sum to 1, or are all NaN if every norm is 0.

    Norms, not vectors, are added: opposite gradients do not cancel.
    """
    total = math.fsum(norms.values())
    return {name: value / total if total else math.nan for name, value in norms.items()}
