"""Suppression within classes: hand-computed overlaps, ties, empty input, many boxes."""

from __future__ import annotations

import pytest
import torch

from locdistill.geometry import nms
from locdistill.geometry.boxes import pairwise_iou
from locdistill.geometry.nms import class_nms, multiclass_nms

LIMITS = {"score_threshold": 0.05, "iou_threshold": 0.6, "max_detections": 100}


def test_a_better_box_of_the_same_class_suppresses() -> None:
    # Shifted by 2 of 10 pixels: IoU 80/120 = 0.667 > 0.6; by 3: 70/130 = 0.538.
    boxes = torch.tensor([[0.0, 0, 10, 10], [2, 0, 12, 10], [3, 0, 13, 10]])
    scores = torch.tensor([0.7, 0.9, 0.8])
    same, other = torch.tensor([0, 0, 0]), torch.tensor([0, 1, 0])
    assert class_nms(boxes, scores, same, 0.6).tolist() == [1]
    assert class_nms(boxes, scores, other, 0.6).tolist() == [1, 2, 0]


def test_an_overlap_equal_to_the_threshold_suppresses_nothing() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 2], [0, 0, 4, 1]])  # IoU exactly 0.5
    scores, labels = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    assert class_nms(boxes, scores, labels, 0.5).tolist() == [0, 1]
    assert class_nms(boxes, scores, labels, 0.499).tolist() == [0]


def test_candidates_are_pairs_of_location_and_class() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    scores = torch.tensor([[0.3, 0.05, 0.6], [0.04, 0.2, 0.0]])
    found, confidence, labels = multiclass_nms(boxes, scores, **LIMITS)
    assert confidence.tolist() == pytest.approx([0.6, 0.3, 0.2])
    assert labels.tolist() == [2, 0, 1]  # 0.05 is not greater than 0.05
    assert found.tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]]


def test_at_most_so_many_detections_the_best_ones() -> None:
    corners = torch.arange(20.0)[:, None] * 30
    boxes = torch.cat((corners, corners, corners + 10, corners + 10), 1)
    scores = torch.linspace(0.1, 0.9, 20)[:, None]
    _, confidence, _ = multiclass_nms(boxes, scores, **(LIMITS | {"max_detections": 3}))
    torch.testing.assert_close(confidence, scores[:, 0].flip(0)[:3])


@pytest.mark.parametrize("locations", [0, 5])
def test_nothing_found_keeps_the_shapes(locations: int) -> None:
    boxes, scores, labels = multiclass_nms(torch.zeros(locations, 4), torch.zeros(locations, 3), **LIMITS)
    assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))
    assert labels.dtype == torch.long


def test_no_detection_comes_of_nan() -> None:
    boxes, scores, _ = multiclass_nms(torch.full((2, 4), torch.nan), torch.full((2, 3), torch.nan), **LIMITS)
    assert len(boxes) == len(scores) == 0


def test_class_by_class_equals_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(600, 2, generator=generator) * 200
    boxes = torch.cat((corners, corners + 5 + 40 * torch.rand(600, 2, generator=generator)), 1)
    scores, labels = torch.rand(600, generator=generator), torch.randint(5, (600,), generator=generator)
    together = class_nms(boxes, scores, labels, 0.6)
    monkeypatch.setattr(nms, "ONE_PASS_LIMIT", 100)
    assert class_nms(boxes, scores, labels, 0.6).tolist() == together.tolist()
    # What is kept does not overlap within a class, and what is not does.
    overlap = pairwise_iou(boxes, boxes) * (labels[:, None] == labels)
    kept = torch.zeros(600, dtype=torch.bool)
    kept[together] = True
    assert overlap[kept][:, kept].fill_diagonal_(0).max() <= 0.6
    assert (overlap[~kept][:, kept].amax(1) > 0.6).all()


def test_more_than_ten_thousand_candidates() -> None:
    """A grid of boxes of one pixel, each twice: the second of a pair goes, whatever the number."""
    side = torch.arange(80.0)
    y, x = torch.meshgrid(side, side, indexing="ij")
    points = torch.stack((x.flatten(), y.flatten()), -1)
    boxes = torch.cat((points, points + 1), 1).repeat(2, 1)
    scores = torch.linspace(0.9, 0.1, 12_800)
    labels = torch.arange(6400).remainder(3).repeat(2)
    assert class_nms(boxes, scores, labels, 0.6).tolist() == list(range(6400))
