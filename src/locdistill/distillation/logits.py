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
        joint: One softmax over the bins of all edges together, and the mean over them all, in place of one for each
            edge: what the published code does for RetinaNet. Of edge logits that differ by ``d`` the value is about
            ``var(d) / 2n`` per edge and ``var(d) / 8n`` jointly, and it also sees constants added to single edges,
            which change no box.
    """

    needs_teacher: ClassVar[bool] = True
    temperature: float = 10.0
    joint: bool = False

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Zero where student and teacher agree, up to a constant added to an edge's (jointly: to all) logits."""
        student, teacher = scene.student.edge_logits, _teacher(scene).edge_logits
        if self.joint:
            return softened_kl(student.flatten(-2), teacher.flatten(-2), temperature=self.temperature)
        return softened_kl(student, teacher, temperature=self.temperature).mean(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassKL:
    """Class distillation: the softened divergence of a softmax over class logits, as in the reference.

    The logits are those of the classes themselves, without the quality by which GFL v2 multiplies their scores. Where
    only one of the two has the further background channel of the published GFL v2, the common channels are compared.

    Attributes:
        temperature: Softening of both distributions (2 in the published recipes).
    """

    needs_teacher: ClassVar[bool] = True
    temperature: float = 2.0

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Zero where student and teacher agree, up to a constant added to all classes' logits."""
        student, teacher = scene.student.cls_logits, _teacher(scene).cls_logits
        common = min(student.shape[-1], teacher.shape[-1])
        return softened_kl(student[..., :common], teacher[..., :common], temperature=self.temperature)
