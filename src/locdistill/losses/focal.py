"""Focal losses on class logits."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def quality_focal_loss(
    logits: Float[Tensor, "*batch c"], targets: Float[Tensor, "*batch c"], *, beta: float = 2.0
) -> Float[Tensor, "*batch"]:
    """Compute cross-entropy to a soft quality, scaled by the distance to it, summed over classes (GFL, equation 5).

    ``sum_c |y_c - p_c|^beta * BCE(p_c, y_c)`` with ``p = sigmoid(logits)`` and ``y`` the quality at the object's class,
    zero elsewhere. The gradient flows through the scaling factor too, as in the reference.
    """
    scale = (targets - logits.sigmoid()).abs().pow(beta)
    return (scale * binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum(-1)


def focal_loss(
    logits: Float[Tensor, "*batch c"],
    targets: Float[Tensor, "*batch c"],
    *,
    gamma: float = 2.0,
    alpha: float = 0.25,
) -> Float[Tensor, "*batch"]:
    """Compute cross-entropy to hard labels, scaled by the error, summed over classes (Lin et al. 2017, equation 5)."""
    probs = logits.sigmoid()
    error = targets * (1 - probs) + (1 - targets) * probs
    scale = (targets * alpha + (1 - targets) * (1 - alpha)) * error.pow(gamma)
    return (scale * binary_cross_entropy_with_logits(logits, targets, reduction="none")).sum(-1)
