"""Losses on rotated boxes as normal distributions."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from locdistill.geometry.gaussian import gwd, hellinger, kld

GaussianKind = Literal["gwd", "kld", "probiou"]


def gaussian_loss(
    boxes: Float[Tensor, "*batch 5"], targets: Float[Tensor, "*batch 5"], *, kind: GaussianKind
) -> Float[Tensor, "*batch"]:
    """Distance of predicted and true boxes ``cx, cy, w, h, theta``, in pixels and radians, as it is published.

    * ``gwd``: ``ln(1 + D)`` with the normalised Wasserstein distance ``D``: MMRotate with ``tau = 0``, which the
      reference implementation (Rotated-LD) trains with. The paper (Yang et al. 2021) has ``1 - 1 / (tau + f(D^2))``.
    * ``kld``: ``1 - 1 / (1 + ln(1 + K))``, with ``K`` twice the divergence of the prediction from the truth (Yang et
      al. 2021; MMRotate with ``tau = 1``, whose ``K`` is at least 1e-6; here it may be 0).
    * ``probiou``: the Hellinger distance, the loss ``L1`` of Llerena et al. (2021).
    """
    if kind == "gwd":
        return gwd(boxes, targets).log1p()
    if kind == "kld":
        return 1 - 1 / (1 + kld(boxes, targets).log1p())
    return hellinger(boxes, targets)
