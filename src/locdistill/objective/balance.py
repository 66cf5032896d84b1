"""Weighting of terms by their gradients instead of their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from locdistill.dist import reduce_mean, world_size
from locdistill.types import Dense

MOMENTUM = 0.98
LARGEST = 1e4
LEAST_SHARE = 0.05
"""Smallest share of the supervised terms in a Pareto weight: distillation weighs at most 19 times as much."""
GROUPS = ("edges", "classes", "features")
"""Groups of terms that are weighted together by `PARETO`: by where their gradient enters the network."""
PARETO: Literal["pareto"] = "pareto"
Balancing: TypeAlias = float | Literal["pareto"]
"""Ratio of a term's gradient norm to the supervised terms', or weights by the angle between the two."""
Gradients: TypeAlias = list[Tensor | None]
_EDGES = 1
"""Place of the edge logits among the outputs that gradients are measured on."""


class Balance(nn.Module):
    """Scaling of terms by their gradients, measured where they enter the network.

    That is on the logits of the head or, for terms that use feature maps, on the maps of the pyramid, and costs one
    more backward pass through the head per term. Only those logits are compared on which the term has a gradient:
    localization distillation is compared with the supervised gradient on the edge logits. What is measured is averaged
    over steps (an exponential mean with bias correction) and over processes, so that all processes scale alike; the
    means are buffers, saved in the run's checkpoint.

    A **ratio** keeps the norm of the term's gradient at this multiple of the supervised one. The method is weighting by
    gradient norms (GradNorm, Chen et al. 2018; per-term ratios to one reference as in RT-DETRv4's GAM), here in closed
    form and without learning rates of its own.

    **Pareto** weights distillation against labels by the angle between their gradients too: of the logarithms of both
    losses, with gradients ``g1`` (labels) and ``g2``, the combination ``pi g1 + (1 - pi) g2`` is shortest for ``pi =
    (g22 - g12) / (g11 + g22 - 2 g12)``, limited to 0 to 1, where ``gij`` are inner products; to follow it makes
    neither loss worse (multiple-gradient descent, Desideri 2012; for distillation as in DTO-KD, 2026). The supervised
    terms keep their weight here, so that learning rates keep their meaning: distillation is multiplied by ``(1 - pi) /
    pi`` times the ratio of the two losses. Terms are weighted in groups: on edge logits, on other logits, on maps.

    In fp16 the measured gradients of feature maps are not scaled as those of the training step are, and may vanish;
    bf16 has no such limit.

    Args:
        terms: By the name of a term, its ratio, or ``pareto``.

    Attributes:
        squares: Running means per term with a ratio: squared norm of the supervised gradient, and of the term's own.
        sums: Running means per group: squared norms of the supervised gradient and of the group's own, their inner
            product, the supervised loss and the group's own.
        share: Total weight of the batches in the mean, ``1 - momentum ** batches``.
    """

    squares: Tensor
    sums: Tensor
    share: Tensor
    wanted: Tensor

    def __init__(self, terms: Mapping[str, Balancing]) -> None:
        super().__init__()
        self.ratios = {name: how for name, how in terms.items() if how != PARETO}
        self.names = tuple(terms)
        self.group_of: dict[str, int] = {}
        self.register_buffer("wanted", torch.tensor([float(how) for how in self.ratios.values()]), persistent=False)
        self.register_buffer("squares", torch.zeros(len(self.ratios), 2))
        self.register_buffer("sums", torch.zeros(len(GROUPS), 5), persistent=len(self.ratios) < len(terms))
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
        factors, (_, shared) = self.factors(), self.pareto()
        scaled = {name: values[name] * factors[k] for k, name in enumerate(self.ratios)}
        for name in self.names:
            if name not in self.ratios:
                scaled[name] = values[name] * shared[self.group_of.get(name, 0)]
        return scaled

    @torch.no_grad()
    def factors(self) -> Float[Tensor, " k"]:
        """Return the present factor of each term with a ratio; 1 before the first batch, bounded for tiny gradients.

        A gradient below a ten-thousandth of the supervised one (such as for a teacher equal to the student) counts as a
        ten-thousandth.
        """
        theirs, own = self.squares.unbind(-1)
        floor = (theirs / LARGEST**2).clamp(min=torch.finfo(own.dtype).tiny)
        return torch.where(self.share > 0, self.wanted * (theirs / own.maximum(floor)).sqrt(), 1.0)

    @torch.no_grad()
    def pareto(self) -> tuple[Float[Tensor, " g"], Float[Tensor, " g"]]:
        """Compute the shares ``pi`` of the supervised terms and the factors of the groups of terms at present.

        Shares are at least `LEAST_SHARE`; factors are 1 where nothing was measured.
        """
        theirs, own, product, labels, value = self.sums.unbind(-1)
        tiny = torch.finfo(self.sums.dtype).tiny
        measured = (labels > 0) & (value > 0)
        one, other = labels.clamp(min=tiny), value.clamp(min=tiny)
        g11, g22, g12 = theirs / one.square(), own / other.square(), product / one / other
        apart = g11 + g22 - 2 * g12  # |g1 - g2|^2
        pi = (g22 - g12) / apart.clamp(min=tiny)
        pi = torch.where(apart > tiny, pi.clamp(LEAST_SHARE, 1.0), 0.5)
        factor = (1 - pi) / pi * labels / other
        return pi, torch.where(measured, factor.clamp(max=LARGEST), 1.0)

    @torch.no_grad()
    def watched(self) -> dict[str, Float[Tensor, " 2"]]:
        """Return cosine of the gradients and share of the supervised terms by group, each with the divisor 1."""
        theirs, own, product = self.sums[:, :3].unbind(-1)
        cosine = product / (theirs * own).sqrt().clamp(min=torch.finfo(own.dtype).tiny)
        pairs = {"cosine": cosine, "labels": self.pareto()[0]}
        used = sorted(set(self.group_of.values()))
        one = torch.ones_like(cosine[0])
        return {
            f"balance/{GROUPS[group]}_{what}": torch.stack((values[group], one))
            for what, values in pairs.items()
            for group in used
        }

    @torch.no_grad()
    def _measure(
        self, values: Mapping[str, Tensor], supervised: Tensor, student: Dense, with_features: Sequence[str]
    ) -> None:
        """Update the running means of squared norms, inner products and losses."""
        outputs = [x for x in (student.cls_logits, student.edge_logits, student.quality_logits) if x is not None]
        alone = _gradients(supervised, outputs) if set(self.names) - set(with_features) else []
        below = _gradients(supervised, student.features) if with_features else []
        zero = supervised.detach().float().new_zeros(())
        rows, groups = [], dict[int, tuple[Gradients, Gradients, Tensor]]()
        for name in self.names:
            inputs, theirs = (student.features, below) if name in with_features else (outputs, alone)
            own = _gradients(values[name], inputs)
            if name in self.ratios:
                pairs = [(a, b) for a, b in zip(theirs, own, strict=True) if b is not None]
                rows += [_inner([(a, a) for a, _ in pairs], zero), _inner([(b, b) for _, b in pairs], zero)]
                continue
            mapped = name in with_features
            if name not in self.group_of and (mapped or any(gradient is not None for gradient in own)):
                # The group that is found first stays: edges, if the term has a gradient on the edge logits.
                where = "features" if mapped else "classes" if own[_EDGES] is None else "edges"
                self.group_of[name] = GROUPS.index(where)
            group = self.group_of.get(name, 0)
            before = groups.get(group, (theirs, [None] * len(own), zero))
            summed = [b if a is None else a if b is None else a + b for a, b in zip(before[1], own, strict=True)]
            groups[group] = (theirs, summed, before[2] + values[name].detach().float())
        sums = [torch.stack((zero, zero, zero, zero, zero))] * len(GROUPS)
        for group, (theirs, own, value) in groups.items():
            here = [(a, b) for a, b in zip(theirs, own, strict=True) if b is not None]
            both = (
                _inner([(a, a) for a, _ in here], zero),
                _inner([(b, b) for _, b in here], zero),
                _inner(here, zero),
            )
            sums[group] = torch.stack((*both, supervised.detach().float(), value))
        # Each process has its own images, and the gradients of all are averaged: inner products over processes squared.
        flat = torch.cat((torch.stack(sums).flatten(), torch.stack(rows) if rows else zero.new_zeros(0)))
        new = reduce_mean(flat).to(self.sums.dtype)
        share = self.share * MOMENTUM + (1 - MOMENTUM)
        step = (1 - MOMENTUM) / share
        of_groups, of_terms = (
            new[: self.sums.numel()].view_as(self.sums),
            new[self.sums.numel() :].view_as(self.squares),
        )
        products = torch.ones_like(of_groups)
        products[:, :3] /= world_size()
        self.sums.lerp_(of_groups * products, step)
        self.squares.lerp_(of_terms / world_size(), step)
        self.share.copy_(share)


def _gradients(value: Tensor, inputs: Sequence[Tensor]) -> Gradients:
    """Compute a value's gradient on each input; None where the value does not depend on it."""
    if not value.requires_grad:
        return [None] * len(inputs)
    found = torch.autograd.grad(value, list(inputs), retain_graph=True, allow_unused=True)
    return [None if gradient is None else gradient.detach().float() for gradient in found]


def _inner(pairs: Sequence[tuple[Tensor | None, Tensor | None]], zero: Tensor) -> Float[Tensor, ""]:
    """Return the sum of the inner products of pairs; 0 for a pair with None."""
    return sum(((a * b).sum() for a, b in pairs if a is not None and b is not None), zero)
