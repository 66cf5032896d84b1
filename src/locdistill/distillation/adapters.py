"""Feature maps of student and teacher side by side, whatever their widths, strides and numbers of levels.

Widths are bridged by a learned 1x1 convolution of the student's map, one per level, that is trained with the student
and thrown away. Levels are paired by stride; where a teacher has no level of a stride, the nearest one is resized to
the student's map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

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
    """A level of both, in float32.

    Attributes:
        student: The student's map.
        teacher: The teacher's, of the same shape, without gradient.
        inside: Which cells belong to the image, not to the padding that its batch adds.
        groups: Number of predictions that a cell has in these maps, each with an equal share of the channels; 1 where
            a cell has one feature.
    """

    student: Float[Tensor, "b c h w"]
    teacher: Float[Tensor, "b c h w"]
    inside: Bool[Tensor, "b 1 h w"]
    groups: int = 1

    def channel_mean(self, values: Float[Tensor, "b c h w"]) -> Float[Tensor, "b g h w"]:
        """The mean over the channels of each prediction of a cell."""
        return grouped(values, self.groups).mean(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfMaps(Learner):
    """What compares feature maps.

    Attributes:
        maps: Which ones: those of the ``pyramid``, or inside the head those of its ``cls_tower`` or ``reg_tower``,
            before the last convolution.
        adapt: Whether a learned 1x1 convolution stands before the comparison even where both maps have one width; where
            their widths differ, one stands there always.
    """

    maps: Literal["pyramid", "cls_tower", "reg_tower"] = "pyramid"
    adapt: bool = False

    @property
    def needs(self) -> frozenset[Need]:
        """The maps of both, and weights of its own where they differ in width."""
        return needs_of(self.maps)

    def levels(self, student: Dense, teacher: Dense) -> list[tuple[Tensor, Tensor]]:
        """The maps of both, paired by stride.

        Raises:
            TeacherError: One of the two hands out no maps.
        """
        return paired(*(self._maps_of(dense) for dense in (student, teacher)))

    def _maps_of(self, dense: Dense) -> tuple[Tensor, ...]:
        return {"pyramid": dense.features, "cls_tower": dense.towers[::2], "reg_tower": dense.towers[1::2]}[self.maps]

    def parts(self, student: Dense, teacher: Dense) -> nn.Module | None:
        """An adapter for each of the student's levels; none where all are as wide as the teacher's.

        Raises:
            TeacherError: One of the two hands out no maps.
        """
        mine, its = zip(*self.levels(student, teacher), strict=True)
        return adapters(mine, its, always=self.adapt)

    def pairs(self, scene: Scene, own: nn.Module | None = None) -> list[Pair]:
        """The levels of both, the student's through its adapters, the teacher's resized to the student's.

        Raises:
            TeacherError: One of the two hands out no maps, or their widths differ and no adapters are given.
        """
        assert scene.teacher is not None, "the objective checks that a teacher is there"
        levels = self.levels(scene.student, scene.teacher)
        if own is None:
            check_widths(levels)
        # In float32, level by level: under mixed precision no whole pyramid is converted at once.
        mine = [student.float() for student, _ in levels]
        if own is not None:
            assert isinstance(own, nn.ModuleList)
            mine = [adapter(student) for adapter, student in zip(own, mine, strict=True)]
        return [
            Pair(student, resized(teacher.detach().float(), student), inside)
            for student, (_, teacher), inside in zip(mine, levels, inside_maps(scene), strict=True)
        ]


def needs_of(maps: str) -> frozenset[Need]:
    """Return what a comparison of these maps needs: the maps of both, and adapters where they differ in width."""
    return frozenset({Need.TEACHER, Need.FEATURES if maps == "pyramid" else Need.TOWERS, Need.WEIGHTS})


def grouped(values: Float[Tensor, "b c h w"], groups: int) -> Float[Tensor, "b g k h w"]:
    """The channels of each prediction of a cell."""
    b, _, h, w = values.shape
    return values.reshape(b, groups, -1, h, w)


def paired(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each of the student's maps with the teacher's of the same stride, or of the nearest.

    The maps of a pyramid halve from level to level; how many octaves the finest ones are apart is read off their sizes.

    Raises:
        TeacherError: One of the two hands out no maps.
    """
    for who, maps in (("student", student), ("teacher", teacher)):
        if not maps:
            raise TeacherError(
                f"feature imitation compares feature maps, and the predictions of the {who} hold none; ask "
                f"its detector for them with detector(images, features=True), or towers=True for those inside the "
                f"head, or take a teacher that has them"
            )
    areas = [math.prod(maps[0].shape[-2:]) for maps in (student, teacher)]
    ahead = round(math.log2(areas[0] / areas[1]) / 2)
    last = len(teacher) - 1
    return [(level, teacher[min(max(index - ahead, 0), last)]) for index, level in enumerate(student)]


def check_widths(levels: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Maps that are compared as they are must have equal widths.

    Raises:
        TeacherError: They do not; the message shows both.
    """
    if any(mine.shape[1] != its.shape[1] for mine, its in levels):
        raise TeacherError(
            f"feature imitation without adapters compares feature maps of equal width: the student has "
            f"{_listed([mine for mine, _ in levels])}, the teacher {_listed([its for _, its in levels])}; give the "
            f"objective what it learns (Objective.learned, in Moment.learned), as a training run does, or take a "
            f"teacher with the student's detector.channels"
        )


def resized(teacher: Float[Tensor, "b c i j"], student: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c h w"]:
    """The teacher's map at the size of the student's: bilinear, and averaged where it shrinks."""
    size = student.shape[-2:]
    if teacher.shape[-2:] == size:
        return teacher
    return F.interpolate(teacher, size=size, mode="bilinear", antialias=True)


def inside_maps(scene: Scene) -> list[Bool[Tensor, "b 1 h w"]]:
    """Cells of each level that belong to the image; all locations of a cell share one place."""
    return [level[:, :1] for level in as_maps(scene.assignment.inside[..., None], scene.grid)]


def as_maps(values: Tensor, grid: Grid) -> list[Tensor]:
    """Values ``(b, l, k)`` of all locations as maps ``(b, p k, h, w)``, with those of a cell's ``p`` locations."""
    levels = torch.split(values, list(grid.level_sizes), 1)
    return [
        level.reshape(len(level), h, w, -1).permute(0, 3, 1, 2)
        for level, (h, w) in zip(levels, grid.shapes, strict=True)
    ]


def per_location(values: Sequence[Float[Tensor, "b _ _ _"]], grid: Grid) -> Float[Tensor, "b l"]:
    """A value for every location, from maps of one for every cell (which its locations share) or every location."""
    flat = [level.permute(0, 2, 3, 1) for level in values]
    return torch.cat([level.expand(-1, -1, -1, grid.per_cell).flatten(1) for level in flat], 1)


def shares(values: Sequence[Float[Tensor, "b _ _ _"]], grid: Grid) -> Float[Tensor, "b l"]:
    """As :func:`per_location`, divided by the locations of a cell: their sum is the cell's value, or mean value."""
    return per_location(values, grid) / grid.per_cell


def _listed(maps: Sequence[Tensor]) -> str:
    return ", ".join("x".join(str(size) for size in level.shape[1:]) for level in maps)
