"""Batches of made-up predictions for tests: the golden recipes and random ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from locdistill.distillation.presets import ld_full, supervised
from locdistill.geometry import rotated
from locdistill.geometry.bins import Bins
from locdistill.geometry.coding import Coding
from locdistill.geometry.grid import Grid
from locdistill.models import meaning
from locdistill.models.kinds import KINDS
from locdistill.models.settings import DetectorSettings
from locdistill.objective.normalisers import Constant, ImageLevelMean, LevelMean, Normaliser, PerImage
from locdistill.objective.scene import Scene
from locdistill.objective.term import Term
from locdistill.types import Dense, Instances

STRIDES = (8, 16, 32, 64, 128)
ASSIGNER_OF = {"gfl": "atss", "gflv2": "atss", "atss": "atss", "fcos": "fcos", "retinanet": "max_iou"}
ROTATED_ASSIGNER_OF = {"rotated_gfl": "atss", "rotated_retinanet": "max_iou"}


def settings_of(model: str) -> DetectorSettings:
    """A detector of a kind, with its own bins."""
    return DetectorSettings(model=model, classes=("a",), pretrained=False)


def meaning_of(model: str) -> tuple[Coding, Bins]:
    """What the numbers mean that it predicts, and their bins."""
    return meaning.meaning_of(settings_of(model))


def turned(instances: Instances, model: str, seed: int = 0) -> Instances:
    """The objects as a kind of detector is to find them: for rotated boxes each is turned about its middle."""
    settings, boxes = settings_of(model), instances.boxes
    if not settings.rotated:
        return instances
    rng = torch.Generator().manual_seed(seed)
    angles = (torch.rand(boxes.shape[:2], generator=rng) * 6 - 3) * instances.present
    upright = rotated.canonical(
        torch.cat(((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2], angles[..., None]), -1),
        settings.angles,
    )
    oriented = upright * (instances.present | instances.ignored)[..., None]
    return instances._replace(boxes=rotated.hull(oriented), oriented=oriented)


def published_terms(model: str = "gfl") -> dict[str, Term]:
    """The reference's LD heads: sums over the process where our default is a mean over images, RetinaNet's joint KL."""
    terms = supervised(model) | ld_full(model, joint=model.endswith("retinanet"))
    return {name: replace(term, norm=_published_norm(term.norm)) for name, term in terms.items()}


def _published_norm(norm: Normaliser) -> Normaliser:
    if isinstance(norm, PerImage):
        return Constant(divisor=norm.divisor)
    return LevelMean() if isinstance(norm, ImageLevelMean) else norm


def flatten(maps: Sequence[Tensor]) -> Tensor:
    """Maps ``(b, k, h, w)`` of all levels to ``(b, l, k)``."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)


def dense_of(cls_maps: Sequence[Tensor], edge_maps: Sequence[Tensor]) -> Dense:
    """Predictions from the maps of a head with four edges."""
    edges = flatten(edge_maps)
    return Dense(flatten(cls_maps), edges.unflatten(-1, (4, -1)))


def in_double(scene: Scene) -> Scene:
    """The scene with predictions in float64, of which all losses follow: they are then the same on every machine."""
    student, teacher = (
        None if dense is None else Dense(*(v.double() if torch.is_tensor(v) else v for v in dense))
        for dense in (scene.student, scene.teacher)
    )
    assert student is not None
    return replace(scene, student=student, teacher=teacher, boxes=scene.boxes_of(student))


def grid_of(maps: Sequence[Tensor]) -> Grid:
    """The grid of a pyramid from stride 8 upwards."""
    return Grid.build(tuple((m.shape[-2], m.shape[-1]) for m in maps), STRIDES[: len(maps)])


def grid_of_kind(model: str, shapes: tuple[tuple[int, int], ...], *, anchor_scale: float | None = None) -> Grid:
    """The grid of a kind of detector, with its own anchors unless their scale is given."""
    kind, scale = KINDS[model], settings_of(model).anchor_scale
    return Grid.build(
        shapes,
        STRIDES[: len(shapes)],
        anchor_scale=anchor_scale or scale,
        offset=kind.offset,
        octaves=kind.octaves,
        ratios=kind.ratios,
    )


def instances_of(
    boxes: Sequence[Sequence[Sequence[float]] | np.ndarray],
    labels: Sequence[Sequence[int] | np.ndarray],
    extents: Sequence[tuple[int, int]],
    slots: int | None = None,
) -> Instances:
    """Pad lists of boxes and labels to the longest."""
    count = max([len(b) for b in boxes] + [slots or 0])
    padded, tags = torch.zeros(len(boxes), count, 4), torch.zeros(len(boxes), count, dtype=torch.long)
    present = torch.zeros(len(boxes), count, dtype=torch.bool)
    for i, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        n = len(box)
        padded[i, :n] = torch.as_tensor(np.asarray(box, np.float32).reshape(-1, 4))
        tags[i, :n] = torch.as_tensor(np.asarray(label, np.int64))
        present[i, :n] = True
    return Instances(padded, tags, present, torch.zeros_like(present), torch.tensor(extents))


def per_level(values: Tensor, grid: Grid) -> Tensor:
    """Sums of ``(b, l)`` values over each level."""
    return torch.zeros(len(grid.shapes), dtype=values.dtype).index_add(0, grid.levels, values.sum(0))


def seq(shape: Sequence[int], a: float, f: float, ph: float) -> Tensor:
    """The reference vectors' generator: ``a sin(f n + ph + 0.001 (n mod 97))``."""
    n = np.arange(math.prod(shape), dtype=np.float64)
    return torch.from_numpy((a * np.sin(f * n + ph + 0.001 * (n % 97))).astype(np.float32).reshape(shape))


def wave_maps(phase: float, channels: int, amplitude: float, *, image: int = 0) -> list[Tensor]:
    """Maps of a 256 x 320 image on five levels, made of ``seq``."""
    base, phase = (0.37, phase) if image == 0 else (0.41, phase + 0.3)
    sizes = ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3))
    return [seq((1, channels, h, w), amplitude, base + 0.01 * i, phase) for i, (h, w) in enumerate(sizes)]
