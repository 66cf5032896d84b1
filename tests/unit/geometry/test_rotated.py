"""Rotated boxes by hand: corners, names, fitted rectangles, overlaps, suppression."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from locdistill.geometry import rotated
from locdistill.geometry.nms import class_nms, rotated_class_nms
from locdistill.geometry.sweep import moved_apart, overlapping_pairs

PI = math.pi


def boxes(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)


def test_a_positive_angle_turns_clockwise_on_screen() -> None:
    (upright,) = rotated.corners(boxes((5, 3, 4, 2, 0)))
    assert upright.tolist() == [[3, 2], [7, 2], [7, 4], [3, 4]]
    # By a quarter: the first corner goes from the upper left to the upper right.
    (turned,) = rotated.corners(boxes((5, 3, 4, 2, PI / 2)))
    torch.testing.assert_close(turned, torch.tensor([[6.0, 1], [6, 5], [4, 5], [4, 1]], dtype=torch.float64))


def test_hull_by_hand() -> None:
    # A square of side 2 on its corner is 2 sqrt(2) wide; 4 x 2 at 30 degrees: 4 cos + 2 sin by 4 sin + 2 cos.
    found = rotated.hull(boxes((10, 20, 2, 2, PI / 4), (0, 0, 4, 2, PI / 6), (0, 0, 4, 2, -PI / 6), (1, 2, 4, 2, 0)))
    across, down = (4 * math.sqrt(3) / 2 + 1) / 2, (2 + 2 * math.sqrt(3) / 2) / 2
    root = math.sqrt(2)
    torch.testing.assert_close(
        found,
        torch.tensor(
            [
                [10 - root, 20 - root, 10 + root, 20 + root],
                [-across, -down, across, down],
                [-across, -down, across, down],
                [-1, 1, 3, 3],
            ],
            dtype=torch.float64,
        ),
    )


@pytest.mark.parametrize(
    ("angles", "given", "expected"),
    [
        # Upright: oc has pi / 2 and never 0.
        ("oc", (4, 2, 0), (2, 4, PI / 2)),
        ("oc", (4, 2, PI / 2), (4, 2, PI / 2)),
        ("oc", (4, 2, -0.1), (2, 4, PI / 2 - 0.1)),
        ("oc", (4, 2, PI + 0.3), (4, 2, 0.3)),
        ("le90", (4, 2, 0), (4, 2, 0)),
        ("le90", (2, 4, 0), (4, 2, -PI / 2)),
        ("le90", (4, 2, PI / 2), (4, 2, -PI / 2)),
        ("le90", (2, 4, 0.3), (4, 2, 0.3 - PI / 2)),
        ("le135", (2, 4, 0), (4, 2, PI / 2)),
        ("le135", (4, 2, 3 * PI / 4), (4, 2, -PI / 4)),
        ("le135", (4, 2, -PI / 2), (4, 2, PI / 2)),
        ("le135", (3, 3, 5 * PI), (3, 3, 0)),
    ],
)
def test_names_by_hand(angles: rotated.AngleRange, given: tuple[float, ...], expected: tuple[float, ...]) -> None:
    found = rotated.canonical(boxes((7, 8, *given)), angles)
    torch.testing.assert_close(found, boxes((7, 8, *expected)), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("quad", "expected"),
    [
        ([[0, 0], [4, 0], [4, 2], [0, 2]], (2, 1, 4, 2, 0)),
        ([[4, 2], [0, 2], [4, 0], [0, 0]], (2, 1, 4, 2, 0)),  # crossed: the same four points
        ([[0, 0], [2, 2], [1, 3], [-1, 1]], (0.5, 1.5, 2 * math.sqrt(2), math.sqrt(2), PI / 4)),
        # Concave: the outline is a triangle with an obtuse angle at 4, 0; its longest side goes from 0, 0 to 6, 1.
        (
            [[0, 0], [4, 0], [10 / 3, 1 / 3], [6, 1]],
            (3 + 2 / 37, 0.5 - 12 / 37, 37**0.5, 4 / 37**0.5, math.atan(1 / 6)),
        ),
        ([[0, 0], [6, 0], [6, 0], [3, 2]], (3, 1, 6, 2, 0)),  # a corner twice
        ([[0, 0], [3, 4], [6, 8], [3, 4]], (3, 4, 10, 0, math.atan2(4, 3))),  # on a line
        ([[5, 6], [5, 6], [5, 6], [5, 6]], (5, 6, 0, 0, 0)),  # a point
    ],
)
def test_smallest_rectangles_by_hand(quad: list[list[float]], expected: tuple[float, ...]) -> None:
    found = rotated.fit(torch.tensor(quad, dtype=torch.float64), "le90")
    torch.testing.assert_close(found, boxes(expected)[0], rtol=0, atol=1e-12)


def test_overlaps_by_hand() -> None:
    square, diamond = boxes((0, 0, 2, 2, 0)), boxes((0, 0, 2, 2, PI / 4))
    # A square and itself turned by 45 degrees share a regular octagon: 4 less four corners of side 2 - sqrt(2).
    shared = 8 * (math.sqrt(2) - 1)
    assert float(rotated.rectangle_polygon_area(square, rotated.corners(diamond))) == pytest.approx(shared, abs=1e-14)
    assert float(rotated.paired_iou(square, diamond)) == pytest.approx(shared / (8 - shared), abs=1e-14)
    # Two bars that cross at right angles share a square of side 2.
    cross = rotated.paired_iou(boxes((5, 5, 10, 2, 0.7)), boxes((5, 5, 10, 2, 0.7 + PI / 2)))
    assert float(cross) == pytest.approx(4 / 36, abs=1e-14)
    # Shifted by half along its own axis.
    shifted = rotated.paired_iou(boxes((0, 0, 4, 2, 1.0)), boxes((2 * math.cos(1), 2 * math.sin(1), 4, 2, 1.0)))
    assert float(shifted) == pytest.approx(1 / 3, abs=1e-14)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0, 0, 4, 2, 0), 1),
        ((0, 0, 4, 2, PI), 1),
        ((0, 0, 2, 4, PI / 2), 1),
        ((0, 0, 2, 4, -PI / 2), 1),
        ((0, 0, 2, 1, 0), 0.25),  # contained
        ((1, 0, 2, 2, 0), 0.5),  # contained, with three sides in common
        ((4, 0, 4, 2, 0), 0),  # abutting
        ((4, 2, 4, 2, 0), 0),  # corner to corner
        ((9, 9, 4, 2, 1.0), 0),
        ((0, 0, 4, 0, 0), 0),  # a line within
        ((0, 0, 0, 0, 0), 0),  # a point within
    ],
)
def test_special_places(other: tuple[float, ...], expected: float) -> None:
    one, two = boxes((0, 0, 4, 2, 0)), boxes(other)
    for first, second in ((one, two), (two, one)):
        assert float(rotated.paired_iou(first, second)) == pytest.approx(expected, abs=1e-15)
        assert float(rotated.paired_polygon_iou(first, rotated.corners(second))) == pytest.approx(expected, abs=1e-15)


def test_polygons_by_hand() -> None:
    # An L of three unit squares, concave, in both directions; the square covers 0.5 + 0.25 + 0.5 of them.
    bent = torch.tensor([[0.0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]], dtype=torch.float64)
    square = torch.tensor([1.5, 1.5, 2, 2, 0], dtype=torch.float64)
    for polygon in (bent, bent.flip(0)):
        assert float(rotated.polygon_area(polygon)) == 3
        assert float(rotated.rectangle_polygon_area(square, polygon)) == 1.25
        assert float(rotated.paired_polygon_iou(square, polygon)) == pytest.approx(1.25 / (3 + 4 - 1.25))
    triangle = torch.tensor([[0.0, 0], [4, 0], [0, 4]])
    assert float(rotated.rectangle_polygon_area(torch.tensor([0.0, 0, 4, 4, 0]), triangle)) == 4
    assert float(rotated.rectangle_polygon_area(torch.tensor([0.0, 0, 4, 4, PI / 4]), triangle)) == pytest.approx(
        4, rel=1e-6
    )


def test_nothing_compared_with_something() -> None:
    none, some = torch.zeros(0, 5), torch.rand(3, 5)
    assert rotated.pairwise_iou(none, some).shape == (0, 3)
    assert rotated.pairwise_iou(some, none).shape == (3, 0)
    assert rotated.pairwise_iou(none, none).shape == (0, 0)
    assert rotated.paired_iou(none, none).shape == (0,)
    assert rotated.paired_iou(none[:, None], some).shape == (0, 3)
    assert rotated.rectangle_polygon_area(none, torch.zeros(0, 4, 2)).shape == (0,)
    assert rotated.corners(none).shape == (0, 4, 2)
    assert rotated.hull(none).shape == (0, 4)
    assert rotated.canonical(none, "oc").shape == (0, 5)
    assert rotated.fit(torch.zeros(0, 4, 2), "oc").shape == (0, 5)
    assert [len(places) for places in overlapping_pairs(torch.zeros(0, 4))] == [0, 0]


def test_pairs_of_a_sweep_by_hand() -> None:
    placed = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [1, 5, 3, 6], [5, 0, 6, 9], [math.nan, 0, 9, 9]])
    i, j = overlapping_pairs(placed)
    assert {tuple(sorted(pair)) for pair in zip(i.tolist(), j.tolist(), strict=True)} == {(0, 1)}
    i, j = overlapping_pairs(placed, torch.tensor([[0.0, 0, 9, 9], [0, 0, math.inf, 9], [1, 1, 2, 2]]))
    assert sorted(zip(i.tolist(), j.tolist(), strict=True)) == [(0, 0), (0, 2), (1, 0), (1, 2), (2, 0), (3, 0)]


def test_groups_are_moved_apart_by_the_largest_coordinate() -> None:
    placed = torch.tensor([[-4.0, 0, 2, 2], [-4, 0, 2, 2], [1, 1, 3, 3], [math.nan, 0, math.inf, 9]])
    apart = moved_apart(placed, torch.tensor([0, 1, 1, 2]))
    assert apart[:3].tolist() == [[-4, 0, 2, 2], [15, 0, 21, 2], [20, 1, 22, 3]]  # by 2 * 9 + 1
    assert {tuple(sorted(pair)) for pair in zip(*(k.tolist() for k in overlapping_pairs(apart)), strict=True)} == {
        (1, 2)
    }
    assert moved_apart(placed[:0], torch.zeros(0, dtype=torch.long)).shape == (0, 4)


# Suppression.


def test_a_better_rotated_box_of_the_same_class_suppresses() -> None:
    found = boxes((10, 10, 8, 4, 0.5), (10, 10, 4, 8, 0.5 + PI / 2), (10, 10, 8, 4, 0.5 + PI / 2), (50, 10, 8, 4, 0))
    scores = torch.tensor([0.7, 0.9, 0.8, 0.95])
    assert rotated_class_nms(found, scores, torch.zeros(4, dtype=torch.long), 0.5).tolist() == [3, 1, 2]
    # The third shares 16 of 48 with the second.
    assert rotated_class_nms(found, scores, torch.zeros(4, dtype=torch.long), 0.3).tolist() == [3, 1]
    assert rotated_class_nms(found, scores, torch.tensor([0, 1, 0, 0]), 0.3).tolist() == [3, 1, 2]


def test_an_overlap_equal_to_the_threshold_suppresses_nothing() -> None:
    found = boxes((2, 1, 4, 2, 0), (2, 0.5, 4, 1, 0))  # IoU exactly 0.5
    scores, labels = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
    assert rotated_class_nms(found, scores, labels, 0.5).tolist() == [0, 1]
    assert rotated_class_nms(found, scores, labels, 0.499).tolist() == [0]


def test_of_equal_scores_the_first_is_the_better_one() -> None:
    found = boxes((0, 0, 4, 2, 0.1), (0, 0, 4, 2, 0.1), (90, 0, 4, 2, 0), (0, 0, 4, 2, 0.1))
    assert rotated_class_nms(found, torch.full((4,), 0.5), torch.zeros(4, dtype=torch.long), 0.1).tolist() == [0, 2]


def test_what_is_suppressed_does_not_suppress() -> None:
    # Each overlaps the next by a third, and no other.
    found = boxes(*((2.0 * k, 0, 4, 2, 0) for k in range(6)))
    scores, labels = torch.linspace(0.9, 0.4, 6), torch.zeros(6, dtype=torch.long)
    assert rotated_class_nms(found, scores, labels, 0.3).tolist() == [0, 2, 4]


def test_suppression_of_none_and_of_one() -> None:
    for count in (0, 1):
        for suppress, numbers in ((class_nms, 4), (rotated_class_nms, 5)):
            kept = suppress(torch.rand(count, numbers), torch.rand(count), torch.zeros(count, dtype=torch.long), 0.5)
            assert kept.tolist() == list(range(count))
            assert kept.dtype == torch.long


def test_what_is_not_finite_stays_and_suppresses_nothing() -> None:
    found = boxes((0, 0, 4, 2, 0), (math.nan, 0, 4, 2, 0), (0, 0, math.inf, 2, 0), (0, 0, 4, 2, 0), (1e30, 0, 4, 2, 0))
    scores = torch.tensor([0.5, 0.9, 0.8, 0.4, 0.1])
    assert rotated_class_nms(found, scores, torch.zeros(5, dtype=torch.long), 0.5).tolist() == [1, 2, 0, 4]
    # One that is very far away does not mix the classes of the others.
    found = boxes((0, 0, 4, 2, 0), (0, 0, 4, 2, 0), (0, 0, 4, 2, 0), (1e30, 0, 4, 2, 0))
    labels = torch.tensor([0, 1, 1, 1])
    assert rotated_class_nms(found, torch.tensor([0.9, 0.8, 0.7, 0.6]), labels, 0.5).tolist() == [0, 1, 3]
