"""Weighting of terms by their gradients instead of their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locdistill.dist import reduce_mean, world_size
from locdistill.types import Dense

MOMENTUM = 0.98
LARGEST = 1e4


class Balance(nn.Module):
    """Scaling of terms so that their gradients have given ratios to that of the supervised terms.

    A gradient is measured where it enters the network: on the logits of the head or, for terms that use feature maps,
    on the maps of the pyramid, which costs one more backward pass through the head per term. Only those logits are
    compared on which the term has a gradient: localization distillation is compared with the supervised gradient on the
    edge logits. Squared norms are averaged over steps (an exponential mean with bias correction) and over processes, so
    that all processes scale alike; the means are buffers, saved in the run's checkpoint.

    The method is weighting by gradient norms (GradNorm, Chen et al. 2018; per-term ratios to one reference as in
    RT-DETRv4's GAM), here in closed form and without learning rates of its own. In fp16 the measured gradients of
    feature maps are not scaled as those of the training step are, and may vanish; bf16 has no such limit.

    Args:
        ratios: By the name of a term, the norm of its gradient in multiples of the supervised one.

    Attributes:
        squares: Running means per term: squared norm of the supervised gradient, and of the term's own.
        share: Total weight of the batches in the mean, ``1 - momentum ** batches``.
    """

    squares: Tensor
    share: Tensor
    wanted: Tensor

    def __init__(self, ratios: Mapping[str, float]) -> None:
        super().__init__()
        self.ratios = dict(ratios)
        self.register_buffer("wanted", torch.tensor(list(self.ratios.values())), persistent=False)
        self.register_buffer("squares", torch.zeros(len(ratios), 2))
        self.register_buffer("share", torch.zeros(()))

    def forward(
        self, values: Mapping[str, Tensor], supervised: Tensor, student: Dense, with_features: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Return the balanced terms of ``values``, each times its factor, by name.

        Without gradients to measure (in evaluation) the factors are those of the last batch that had some.

        Args:
            values: All balanced terms, before scaling.
            supervised: Sum of the terms that need no teacher.
            student: Predictions that the terms were computed from.
            with_features: Names of the terms that use feature maps.
        """
        if torch.is_grad_enabled() and supervised.requires_grad:
            self._measure(values, supervised, student, with_features)
        factors = self.factors()
        return {name: values[name] * factors[k] for k, name in enumerate(self.ratios)}

    @torch.no_grad()
    def factors(self) -> Float[Tensor, " k"]:
        """Return the present factor of each balanced term; 1 before the first batch, bounded for tiny gradients.

        A gradient below a ten-thousandth of the supervised one (such as for a teacher equal to the student) counts as a
        ten-thousandth.
        """
        theirs, own = self.squares.unbind(-1)
        floor = (theirs / LARGEST**2).clamp(min=torch.finfo(own.dtype).tiny)
        return torch.where(self.share > 0, self.wanted * (theirs / own.maximum(floor)).sqrt(), 1.0)

    def _measure(
        self, values: Mapping[str, Tensor], supervised: Tensor, student: Dense, with_features: Sequence[str]
    ) -> None:
        """Update the running means of the squared norms of gradients."""
        outputs = [x for x in (student.cls_logits, student.edge_logits, student.quality_logits) if x is not None]
        alone = _squares(supervised, outputs) if set(self.ratios) - set(with_features) else []
        below = _squares(supervised, student.features) if with_features else []
        rows = []
        for name in self.ratios:
            inputs, theirs = (student.features, below) if name in with_features else (outputs, alone)
            pairs = [(a, b) for a, b in zip(theirs, _squares(values[name], inputs), strict=True) if b is not None]
            zero = supervised.detach().new_zeros(())
            rows.append(
                torch.stack((sum((a for a, _ in pairs if a is not None), zero), sum((b for _, b in pairs), zero)))
            )
        # Each process has its own images, and the gradients of all are averaged: sum of squares over processes squared.
        new = reduce_mean(torch.stack(rows)).to(self.squares.dtype) / world_size()
        share = self.share * MOMENTUM + (1 - MOMENTUM)
        self.squares.lerp_(new, (1 - MOMENTUM) / share)
        self.share.copy_(share)


def _squares(value: Tensor, inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Compute squared norms of a value's gradient on each input; None where the value does not depend on it."""
    if not value.requires_grad:
        return [None] * len(inputs)
    found = torch.autograd.grad(value, list(inputs), retain_graph=True, allow_unused=True)
    return [None if gradient is None else gradient.detach().float().square().sum() for gradient in found]
