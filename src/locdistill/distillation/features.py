"""Feature imitation: how far the student's feature maps are from the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.errors import TeacherError
from locdistill.objective.scene import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureL2:
    """Squared difference of the student's and the teacher's pyramid features, the mean over channels.

    The divergence of FitNets (Romero et al. 2015) and of the methods after it, which differ in the *region* where they
    imitate; see :mod:`locdistill.distillation.imitation`. Nothing adapts one width to another, as in the reference,
    where both pyramids have 256 channels. Locations of one cell share its feature: with the nine anchors of a RetinaNet
    cell, a region weighs the cell by the number of its anchors that lie in the region.
    """

    needs_teacher: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Zero where both features agree; without gradient to the teacher.

        Raises:
            TeacherError: The two pyramids do not have the same maps.
        """
        assert scene.teacher is not None, "the objective checks that a teacher is there"
        student, teacher = scene.student.features, scene.teacher.features
        check_maps([tuple(m.shape[1:]) for m in student], [tuple(m.shape[1:]) for m in teacher])
        # In float32, level by level: under mixed precision no whole pyramid is converted at once.
        levels = [(s.float() - t.detach().float()).square().mean(1) for s, t in zip(student, teacher, strict=True)]
        return torch.cat([level.flatten(1) for level in levels], 1).repeat_interleave(scene.grid.per_cell, 1)


def check_maps(student: Sequence[tuple[int, ...]], teacher: Sequence[tuple[int, ...]]) -> None:
    """Both pyramids must consist of maps of the same channels, height and width, given finest first.

    Raises:
        TeacherError: They do not, or one of them was not handed out; the message shows both.
    """
    for who, maps in (("student", student), ("teacher", teacher)):
        if not maps:
            raise TeacherError(
                f"feature imitation compares feature maps, and the predictions of the {who} hold none; ask "
                f"its detector for them with detector(images, features=True)"
            )
    if list(student) != list(teacher):
        raise TeacherError(
            f"feature imitation compares feature maps of equal channels, height and width, finest level first: the "
            f"student has {_listed(student)}, the teacher {_listed(teacher)}; take a teacher with the student's "
            f"detector.channels and detector.levels, or leave the terms of feature_l2 out"
        )


def _listed(maps: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(str(size) for size in shape) for shape in maps)
