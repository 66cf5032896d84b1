"""How closely a student follows its teacher, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from locdistill.assign.atss import ATSS
from locdistill.evaluation.agreement import agreement
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.models.kinds import KINDS
from locdistill.objective.scene import Scene
from locdistill.types import Dense, Instances
from tests.scenes import instances_of

BINS = Bins(4)


def peaked(*places: int) -> Tensor:
    """Edge distributions that are sure of a bin each."""
    return 50 * torch.nn.functional.one_hot(torch.tensor(places), BINS.count).float()


def scene_of(student: Tensor, teacher: Tensor | None, *, per_cell: dict[str, object] | None = None) -> Scene:
    """One image of 32 x 32 pixels on stride 8, with one object that reaches over all of it."""
    grid = Grid.build(((4, 4),), (8,), anchor_scale=4, **(per_cell or {}))  # type: ignore[arg-type]
    count = len(grid.points)

    def dense(edges: Tensor, quality: bool) -> Dense:
        logits = edges.expand(1, count, 4, BINS.count)
        return Dense(torch.zeros(1, count, 2), logits, torch.zeros(1, count) if quality else None, (), quality)

    instances = instances_of([[[0.0, 0.0, 32.0, 32.0]]], [[0]], [(32, 32)])
    return Scene.build(
        dense(student, False),
        None if teacher is None else dense(teacher, True),  # of another kind: it has a quality, the student has none
        grid=grid,
        instances=instances,
        assigner=ATSS(),
        bins=BINS,
    )


def means(scene: Scene) -> dict[str, float]:
    return {name: float(pair[0] / pair[1]) for name, pair in agreement(scene).items()}


def test_a_student_agrees_with_itself() -> None:
    logits = torch.randn(4, BINS.count, generator=torch.Generator().manual_seed(0))
    scene = scene_of(logits, logits + 3)  # a constant changes no distribution
    assert means(scene) == pytest.approx({"agree/edge_kl": 0.0, "agree/box_iou": 1.0}, abs=1e-6)
    positives = int(scene.assignment.positive.sum())
    assert positives > 0
    assert {name: int(pair[1]) for name, pair in agreement(scene).items()} == dict.fromkeys(agreement(scene), positives)


def test_boxes_by_hand() -> None:
    found = means(scene_of(peaked(1, 1, 1, 1), peaked(2, 2, 1, 1)))  # 2 x 2 strides inside 3 x 3
    assert found["agree/box_iou"] == pytest.approx(4 / 9, rel=1e-5)
    assert found["agree/edge_kl"] == pytest.approx(50 / 2, rel=1e-5)  # two edges of four differ, by 50 nats each


def test_the_divergence_is_summed_over_bins_and_is_the_teachers_from_the_students() -> None:
    p, q = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2]), torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1])
    expected = sum(float(b) * math.log(float(b / a)) for a, b in zip(p, q, strict=True))
    assert means(scene_of(p.log(), q.log()))["agree/edge_kl"] == pytest.approx(expected, rel=1e-5)


def test_only_positives_count() -> None:
    scene = scene_of(peaked(1, 1, 1, 1), peaked(1, 1, 1, 1))
    negative = ~scene.assignment.positive
    assert scene.teacher is not None
    assert negative.any()
    scene.teacher.edge_logits.data = scene.teacher.edge_logits + 30 * negative[..., None, None] * torch.arange(5.0)
    assert means(scene) == pytest.approx({"agree/edge_kl": 0.0, "agree/box_iou": 1.0}, abs=1e-6)


def test_nothing_without_a_teacher_or_without_objects() -> None:
    assert agreement(scene_of(peaked(1, 1, 1, 1), None)) == {}
    full = scene_of(peaked(1, 1, 1, 1), peaked(2, 1, 1, 1))
    empty = Instances(*(torch.zeros_like(part) for part in full.instances[:4]), full.instances.extents)
    without = Scene.build(full.student, full.teacher, grid=full.grid, instances=empty, assigner=ATSS(), bins=BINS)
    assert [pair.tolist() for pair in agreement(without).values()] == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("model", ["fcos", "retinanet"])
def test_grids_of_other_kinds(model: str) -> None:
    kind = KINDS[model]
    scene = scene_of(
        peaked(1, 1, 1, 1),
        peaked(2, 2, 1, 1),
        per_cell={"offset": kind.offset, "octaves": kind.octaves, "ratios": kind.ratios},
    )
    assert means(scene)["agree/box_iou"] == pytest.approx(4 / 9, rel=1e-5)


def test_no_gradient_and_no_change_of_the_predictions() -> None:
    logits = torch.zeros(4, BINS.count, requires_grad=True)
    scene = scene_of(logits, peaked(1, 1, 1, 1))
    assert not any(pair.requires_grad for pair in agreement(scene).values())
    assert np.isfinite(list(means(scene).values())).all()


def test_the_measure_falls_as_the_student_comes_closer() -> None:
    student, teacher = peaked(1, 2, 3, 1) / 10, peaked(2, 2, 2, 2) / 10
    mixed: Callable[[float], Tensor] = lambda share: (1 - share) * student + share * teacher  # noqa: E731
    course = [means(scene_of(mixed(share), teacher)) for share in (0.0, 0.3, 0.6, 0.9)]
    divergences, overlaps = ([m[name] for m in course] for name in ("agree/edge_kl", "agree/box_iou"))
    assert divergences == sorted(divergences, reverse=True)
    assert overlaps == sorted(overlaps)
