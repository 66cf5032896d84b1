"""Focal and global distillation (FGD, Yang et al. 2022): attention-weighted features and their global context.

The published loss is the sum of four terms: :class:`AttentiveL2` on :class:`ObjectCells`, the same on
:class:`BackgroundCells`, :class:`AttentionL1`, and :class:`ContextL2`. Each of them is a sum over the positions of all
levels, averaged over images. The published sum over channels is replaced by their mean, so that weights do not depend
on the width. Attention is computed over the image's own part of a map, without the padding of its batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from locdistill.distillation.adapters import OfMaps, inside_maps, per_location, shares
from locdistill.geometry.objects import in_turn
from locdistill.objective.scene import Scene
from locdistill.objective.term import NOTHING, Need, Region
from locdistill.settings import Positive


class Attention(NamedTuple):
    """Spatial and channel attention of a map, both with mean 1.

    Attributes:
        places: ``places softmax(mean_c |x| / T)`` over the image's positions; 0 in the padding.
        channels: ``channels softmax(mean_p |x| / T)``, the mean over the image's positions.
    """

    places: Float[Tensor, "b 1 h w"]
    channels: Float[Tensor, "b c 1 1"]

    @classmethod
    def of(cls, x: Float[Tensor, "b c h w"], inside: Bool[Tensor, "b 1 h w"], temperature: float) -> Attention:
        """Compute the attention of a map (FGD, equations 3 and 4)."""
        strength, count = x.abs(), inside.sum((2, 3), keepdim=True).clamp(min=1)
        spread = (strength.mean(1, keepdim=True) / temperature).masked_fill(~inside, -torch.inf)
        mean = (strength * inside).sum((2, 3), keepdim=True) / count
        return cls(spread.flatten(2).softmax(-1).view_as(spread) * count, (mean / temperature).softmax(1) * x.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentiveL2(OfMaps):
    """Squared difference of features, weighted by the teacher's spatial and channel attention.

    ``mean_c A_place A_c (t_c - s_c)^2`` with the teacher's attention (FGD, equation 7).

    Attributes:
        temperature: Softening of the attention (0.5 in the paper).
    """

    temperature: Positive = 0.5

    def __call__(self, scene: Scene, own: nn.Module | None = None) -> Float[Tensor, "b l"]:
        """Return the loss of each location; zero where both features agree."""
        levels = []
        for pair in self.pairs(scene, own):
            attention = Attention.of(pair.teacher, pair.inside, self.temperature)
            difference = (pair.student - pair.teacher).square()
            levels.append((attention.channels * difference).mean(1, keepdim=True) * attention.places)
        return shares(levels, scene.grid)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionL1(OfMaps):
    """Absolute difference of the student's and the teacher's attention (FGD, equation 8).

    The spatial part belongs to each location. The channel part, one number per image and level, is divided among the
    positions of the level, so that the sum over the level is the published value.

    Attributes:
        temperature: Softening of the attention (0.5 in the paper).
    """

    temperature: Positive = 0.5

    def __call__(self, scene: Scene, own: nn.Module | None = None) -> Float[Tensor, "b l"]:
        """Return the loss of each location; zero where both have the same attention."""
        levels = []
        for pair in self.pairs(scene, own):
            student = Attention.of(pair.student, pair.inside, self.temperature)
            teacher = Attention.of(pair.teacher, pair.inside, self.temperature)
            count = pair.inside.sum((2, 3), keepdim=True).clamp(min=1)
            channels = (student.channels - teacher.channels).abs().sum(1, keepdim=True) / count
            levels.append((student.places - teacher.places).abs() + channels * pair.inside)
        return shares(levels, scene.grid)


class Context(nn.Module):
    """A global context block (GCNet, Cao et al. 2019): one vector of the whole map, added at each position.

    ``x + W2 relu(norm(W1 sum_p softmax_p(k x) x_p))``. The last convolution is initialised to zero, so that the block
    starts as the identity.

    Args:
        channels: Width of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.key = nn.Conv2d(channels, 1, 1)
        self.add = nn.Sequential(
            nn.Linear(channels, inner), nn.LayerNorm(inner), nn.ReLU(inplace=True), nn.Linear(inner, channels)
        )
        last = self.add[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Float[Tensor, "b c h w"], inside: Bool[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h w"]:
        """Return the map with its context, computed over the positions inside the image."""
        attention = self.key(x).masked_fill(~inside, -torch.inf).flatten(2).softmax(-1)
        vector = (x.flatten(2) @ attention.transpose(1, 2))[..., 0]
        out: Tensor = x + self.add(vector)[..., None, None]
        return out


class BothContexts(nn.Module):
    """Learned modules of a level: an adapter where widths differ, and a context block each for student and teacher.

    Args:
        student: Width of the student's map.
        teacher: Width of the teacher's.
        adapt: Whether to use the adapter for equal widths too.
    """

    def __init__(self, student: int, teacher: int, *, adapt: bool) -> None:
        super().__init__()
        self.adapter = nn.Conv2d(student, teacher, 1) if adapt or student != teacher else nn.Identity()
        self.student, self.teacher = Context(teacher), Context(teacher)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextL2(OfMaps):
    """Squared difference of both maps with their contexts, averaged over channels (FGD, equation 10).

    Student and teacher each have a context block that is trained with the student and discarded after training; the
    teacher's own weights get no gradient. At the start the blocks are identities and equal maps give zero.
    """

    block = BothContexts

    def __call__(self, scene: Scene, own: nn.Module | None = None) -> Float[Tensor, "b l"]:
        """Return the loss of each location; zero where both maps with their contexts agree."""
        assert isinstance(own, nn.ModuleList), (
            "contexts need their blocks: Objective.learned, in TrainingProgress.learned"
        )
        blocks = [both for both in own if isinstance(both, BothContexts)]
        pairs = self.pairs(scene, nn.ModuleList(both.adapter for both in blocks))
        levels = []
        for pair, both in zip(pairs, blocks, strict=True):
            student: Tensor = both.student(pair.student, pair.inside)
            teacher: Tensor = both.teacher(pair.teacher, pair.inside)
            levels.append((student - teacher).square().mean(1, keepdim=True))
        return shares(levels, scene.grid)


def _touched(scene: Scene) -> Iterator[tuple[Bool[Tensor, "b 1 h w"], Iterator[Bool[Tensor, "b k h w"]]]]:
    """Yield for each level the image's cells and, a few objects at a time, the cells that each box overlaps."""
    grid, instances = scene.grid, scene.instances
    for (height, width), stride, inside in zip(grid.shapes, grid.level_strides, inside_maps(scene), strict=True):
        x, y = (torch.arange(n, device=inside.device) * stride for n in (width, height))
        yield (
            inside,
            (
                _cells(x, y, stride, boxes) & present[..., None, None] & inside
                for boxes, present in in_turn(inside.flatten(), instances.boxes, instances.present)
            ),
        )


def _cells(
    x: Int[Tensor, " w"], y: Int[Tensor, " h"], stride: int, boxes: Float[Tensor, "b k 4"]
) -> Bool[Tensor, "b k h w"]:
    """Return a mask of the cells, starting at these positions, that each box overlaps."""
    x1, y1, x2, y2 = (side[..., None] for side in boxes.unbind(-1))
    columns, rows = (x + stride > x1) & (x < x2), (y + stride > y1) & (y < y2)
    return rows[..., :, None] & columns[..., None, :]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectCells(Region):
    """Cells that an object's box overlaps, with a total weight of 1 per object and level (FGD, equation 5).

    If several objects share a cell, the one with the fewest cells is used. In the published code, a box covers one more
    row and column of cells at its bottom and right end.
    """

    needs: ClassVar[frozenset[Need]] = NOTHING

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return one over the number of the object's cells on the level."""
        levels = []
        for inside, parts in _touched(scene):
            highest = torch.zeros_like(inside, dtype=scene.confidence.dtype)
            for touched in parts:
                count = touched.sum((2, 3), keepdim=True).clamp(min=1)
                highest = torch.maximum(highest, (touched / count).amax(1, keepdim=True))
            levels.append(highest)
        return per_location(levels, scene.grid).to(scene.confidence.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundCells(Region):
    """Cells of the image that no object's box overlaps, with a total weight of 1 per level."""

    needs: ClassVar[frozenset[Need]] = NOTHING

    def __call__(self, scene: Scene) -> Float[Tensor, "b l"]:
        """Return one over the number of such cells on the level."""
        levels = []
        for inside, parts in _touched(scene):
            free = inside
            for touched in parts:
                free = free & ~touched.any(1, keepdim=True)
            levels.append(free / free.sum((2, 3), keepdim=True).clamp(min=1))
        return per_location(levels, scene.grid).to(scene.confidence.dtype)
