"""Suppression within classes, plain and voting: hand-computed overlaps, ties, empty input, many boxes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from locdistill.geometry import nms
from locdistill.geometry.boxes import pairwise_iou
from locdistill.geometry.nms import class_nms, pairwise_closeness, voting_nms


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


# Score-voting Cluster-DIoU-NMS.


def vote(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None, **values: int) -> Tensor:
    found = torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(scores), torch.tensor(labels or [0] * len(scores))
    voted, kept = voting_nms(*found, threshold=0.6, limit=values.get("limit", 100))
    assert (found[1][kept].diff() <= 0).all()
    return voted


def test_closeness_by_hand() -> None:
    # Overlap 80 of 120; centres 2 apart, enclosing box 12 x 10.
    closeness = pairwise_closeness(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[2.0, 0, 12, 10]]))
    assert float(closeness) == pytest.approx(80 / 120 - (4 / 244) ** 0.8)


def test_a_box_moves_to_the_mean_of_those_it_stands_for() -> None:
    closeness = 9 / 11 - (1 / (121 + 100)) ** 0.8
    weight = 0.5 * math.exp(-((1 - closeness) ** 2) / 0.025)
    (voted,) = vote([[1, 0, 11, 10], [0, 0, 10, 10]], [0.5, 0.8])
    shift = weight / (0.8 + weight)
    assert voted.tolist() == pytest.approx([shift, 0, 10 + shift, 10])


def test_only_close_boxes_of_the_class_that_score_less_vote() -> None:
    # The second is suppressed (0.667 - 0.037 = 0.629 > 0.6) but no voter (< 0.7); the third is of another class.
    voted = vote([[0, 0, 10, 10], [2, 0, 12, 10], [0.5, 0, 10.5, 10]], [0.9, 0.8, 0.7], [0, 0, 1])
    assert voted.tolist() == [[0, 0, 10, 10], [0.5, 0, 10.5, 10]]
    # A box that is suppressed neither suppresses nor moves: the third is too far from the first.
    voted = vote([[0, 0, 10, 10], [2, 0, 12, 10], [3, 0, 13, 10]], [0.9, 0.8, 0.7])
    assert voted.tolist() == [[0, 0, 10, 10], [3, 0, 13, 10]]


def test_boxes_without_area_stand_for_themselves() -> None:
    point, line = [5.0, 5, 5, 5], [0.0, 3, 9, 3]
    voted = vote([point, line, point, [0, 0, 10, 10]], [0.9, 0.8, 0.7, 0.6])
    assert voted.tolist() == [point, line, point, [0, 0, 10, 10]]


def test_a_wide_image_does_not_mix_its_classes() -> None:
    """In the reference a box at x 4000 of class 0 meets one at x 0 of class 1."""
    voted = vote([[4000, 4000, 4010, 4010], [0, 0, 10, 10]], [0.9, 0.8], [0, 1])
    assert voted.tolist() == [[4000, 4000, 4010, 4010], [0, 0, 10, 10]]


def test_what_is_not_finite_stays_alone() -> None:
    nan = math.nan
    voted = vote([[0, 0, 10, 10], [nan, nan, nan, nan], [0, 0, 10, 10]], [0.9, 0.8, 0.0])
    assert voted[0].tolist() == [0, 0, 10, 10]
    assert voted[1].isnan().all()
    assert len(voted) == 2
    assert vote([[0, 0, 10, 10]], [0.0]).tolist() == [[0, 0, 10, 10]]  # no vote weighs anything


def test_voting_about_nothing() -> None:
    voted, kept = voting_nms(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), threshold=0.6, limit=9
    )
    assert (voted.shape, kept.shape, kept.dtype) == ((0, 4), (0,), torch.long)


def test_the_best_boxes_have_the_votes_of_all() -> None:
    """A limit changes the number of boxes, not the boxes."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(800, 2, generator=generator) * 120
    boxes = torch.cat((corners, corners + 20 + 5 * torch.rand(800, 2, generator=generator)), 1)
    scores, labels = torch.rand(800, generator=generator), torch.randint(3, (800,), generator=generator)
    all_voted, all_kept = voting_nms(boxes, scores, labels, threshold=0.6, limit=800)
    voted, kept = voting_nms(boxes, scores, labels, threshold=0.6, limit=7)
    assert len(all_kept) > 7
    assert kept.tolist() == all_kept[:7].tolist()
    torch.testing.assert_close(voted, all_voted[:7])


def test_thousands_of_candidates_are_never_compared_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def watched(a: Tensor, b: Tensor) -> Tensor:
        asked.append(len(a) * len(b))
        return pairwise_closeness(a, b)

    monkeypatch.setattr(nms, "pairwise_closeness", watched)
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(12, (30_000, 2), generator=generator) * 100.0
    boxes = torch.cat((corners, corners + 50), 1) + torch.rand(30_000, 4, generator=generator)
    labels = torch.zeros(30_000, dtype=torch.long)
    _, kept = voting_nms(boxes, torch.rand(30_000, generator=generator), labels, threshold=0.6, limit=1000)
    assert len(kept) == 144
    assert max(asked) <= nms.PAIRS
    assert sum(asked) < 30_000**2 / 50
