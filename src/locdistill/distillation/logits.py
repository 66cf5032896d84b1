"""Divergences of the student's distributions from the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from locdistill.losses.distribution import softened_kl
from locdistill.objective.scene import Scene
from locdistill.types import Dense


def _teacher(scene: Scene) -> Dense:
    assert scene.teacher is not None, "the objective checks that a teacher is there"
    return scene.teacher


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeKL:
    """Localization distillation: the softened divergence of each edge distribution, the mean over four edges.

    Zheng et al. 2022, equation 4; the reference divides its sum over edges by 4 in the normaliser instead.

    Attributes:
        temperature: Softening of both distributions (10 in the paper).
    """

    needs_teacher: ClassVar[bool] = True
    temperature: float = 10.0

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Zero where student and teacher agree, up to a constant added to an edge's logits."""
        teacher = _teacher(scene).edge_logits
        return softened_kl(scene.student.edge_logits, teacher, temperature=self.temperature).mean(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassKL:
    """Class distillation: the softened divergence of a softmax over class logits, as in the reference.

    Attributes:
        temperature: Softening of both distributions (2 in the published recipes).
    """

    needs_teacher: ClassVar[bool] = True
    temperature: float = 2.0

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Zero where student and teacher agree, up to a constant added to all classes' logits."""
        return softened_kl(scene.student.cls_logits, _teacher(scene).cls_logits, temperature=self.temperature)
