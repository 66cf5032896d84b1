"""Pairs of feature maps of student and teacher, for any widths, strides and numbers of levels.

Widths are bridged by a learned 1x1 convolution of the student's map, one per level, that is trained with the student
and discarded after training. Levels are paired by stride; where a teacher has no level of a stride, the nearest one is
resized to the student's map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from locdistill.errors import TeacherError
from locdistill.geometry.grid import Grid
from locdistill.objective.learned import adapters
from locdistill.objective.scene import Scene
from locdistill.objective.term import Learner, Need
from locdistill.types import Dense


class Pair(NamedTuple):
    """Maps of student and teacher at one level, in float32.

    Attributes:
        student: The student's map.
        teacher: The teacher's, of the same shape, without gradient.
        inside: Mask of the cells that belong to the image, not to the padding of the batch.
        groups: Number of predictions per cell in these maps, each with an equal share of the channels; 1 where a cell
            has one feature.
    """

    student: Float[Tensor, "b c h w"]
    teacher: Float[Tensor, "b c h w"]
    inside: Bool[Tensor, "b 1 h w"]
    groups: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class OfMaps(Learner):
    """Base class of divergences between feature maps.

    Attributes:
        maps: Maps to compare: those of the ``pyramid``, or those inside the head, of its ``cls_tower`` or ``reg_tower``
            before the last convolution.
        adapt: Whether to apply a learned 1x1 convolution even where both maps have the same width. Where their widths
            differ, it is always applied.
        block: Learned module of a level, made from the widths of both maps and ``adapt``; None for the 1x1 convolution
            alone.
    """

    block: ClassVar[Callable[..., nn.Module] | None] = None
    maps: Literal["pyramid", "cls_tower", "reg_tower"] = "pyramid"
    adapt: bool = False

    @property
    def needs(self) -> frozenset[Need]:
        """The maps of both, and learned adapters where they differ in width."""
        return frozenset({Need.TEACHER, Need.FEATURES if self.maps == "pyramid" else Need.TOWERS, Need.WEIGHTS})

    def levels(self, student: Dense, teacher: Dense) -> list[tuple[Tensor, Tensor]]:
        """Return the maps of student and teacher, paired by stride.

        Raises:
            TeacherError: The student or the teacher provides no maps.
        """
        if self.maps == "pyramid":
            return paired(student.features, teacher.features)
        first = 0 if self.maps == "cls_tower" else 1  # the towers take turns
        return paired(student.towers[first::2], teacher.towers[first::2])

    def parts(self, student: Dense, teacher: Dense) -> nn.Module | None:
        """Create a block for each of the student's levels, or an adapter; None if all are as wide as the teacher's.

        Raises:
            TeacherError: The student or the teacher provides no maps.
        """
        mine, its = zip(*self.levels(student, teacher), strict=True)
        make = type(self).block
        if make is None:
            return adapters(mine, its, always=self.adapt)
        return nn.ModuleList(make(s.shape[1], t.shape[1], adapt=self.adapt) for s, t in zip(mine, its, strict=True))

    def pairs(self, scene: Scene, own: nn.Module | None = None) -> list[Pair]:
        """Return the levels of both: the student's after its adapters, the teacher's resized to the student's.

        Raises:
            TeacherError: The student or the teacher provides no maps, or their widths differ and no adapters are given.
        """
        assert scene.teacher is not None, "the objective checks that a teacher is there"
        levels = self.levels(scene.student, scene.teacher)
        ours, theirs = ([level.shape[1] for level in maps] for maps in zip(*levels, strict=True))
        if own is None and ours != theirs:
            raise TeacherError(
                f"feature imitation without adapters needs feature maps of equal width: the student's have {ours} "
                f"channels, the teacher's {theirs}; pass the adapters (Objective.learned) in TrainingProgress.learned, "
                "as a training run does, or use a teacher with the student's detector.channels"
            )
        # Converted to float32 level by level, so that under mixed precision no whole pyramid is converted at once.
        mine = [student.float() for student, _ in levels]
        if own is not None:
            assert isinstance(own, nn.ModuleList)
            mine = [adapter(student) for adapter, student in zip(own, mine, strict=True)]
        return [
            Pair(student, resized(teacher.detach().float(), student), inside)
            for student, (_, teacher), inside in zip(mine, levels, inside_maps(scene), strict=True)
        ]


def grouped(values: Float[Tensor, "b c h w"], groups: int) -> Float[Tensor, "b g k h w"]:
    """Split the channels into those of each prediction of a cell."""
    b, _, h, w = values.shape
    return values.reshape(b, groups, -1, h, w)


def paired(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pair each of the student's maps with the teacher's map of the same stride, or of the nearest stride.

    The maps of a pyramid halve in size from level to level. The number of octaves between the finest maps follows from
    their sizes.

    Raises:
        TeacherError: The student or the teacher provides no maps.
    """
    for who, maps in (("student", student), ("teacher", teacher)):
        if not maps:
            raise TeacherError(
                f"feature imitation needs feature maps, and the predictions of the {who} have none; call its detector "
                "with features=True, or with towers=True for the maps inside the head, or use a teacher with feature "
                "maps"
            )
    areas = [math.prod(maps[0].shape[-2:]) for maps in (student, teacher)]
    ahead = round(math.log2(areas[0] / areas[1]) / 2)
    last = len(teacher) - 1
    return [(level, teacher[min(max(index - ahead, 0), last)]) for index, level in enumerate(student)]


def resized(teacher: Float[Tensor, "b c i j"], student: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h w"]:
    """Resize the teacher's map to the size of the student's: bilinear, with averaging where it shrinks."""
    size = student.shape[-2:]
    if teacher.shape[-2:] == size:
        return teacher
    return F.interpolate(teacher, size=size, mode="bilinear", antialias=True)


def inside_maps(scene: Scene) -> list[Bool[Tensor, "b 1 h w"]]:
    """Return a mask per level of the cells that belong to the image; all locations of a cell share one position."""
    return [level[:, :1] for level in as_maps(scene.assignment.inside[..., None], scene.grid)]


def as_maps(values: Tensor, grid: Grid) -> list[Tensor]:
    """Reshape values ``(b, l, k)`` of all locations to maps ``(b, p k, h, w)``, with ``p`` locations per cell."""
    levels = torch.split(values, list(grid.level_sizes), 1)
    return [
        level.reshape(len(level), h, w, -1).permute(0, 3, 1, 2)
        for level, (h, w) in zip(levels, grid.shapes, strict=True)
    ]


def per_location(values: Sequence[Float[Tensor, "b _ _ _"]], grid: Grid) -> Float[Tensor, "b l"]:
    """Return a value per location, from maps with one value per cell (shared by its locations) or per location."""
    flat = [level.permute(0, 2, 3, 1) for level in values]
    return torch.cat([level.expand(-1, -1, -1, grid.per_cell).flatten(1) for level in flat], 1)


def shares(values: Sequence[Float[Tensor, "b _ _ _"]], grid: Grid) -> Float[Tensor, "b l"]:
    """Return :func:`per_location` over the locations per cell, so that they sum to the cell's (mean) value."""
    return per_location(values, grid) / grid.per_cell
