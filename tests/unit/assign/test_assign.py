"""Assignments that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from locdistill.assign.atss import ATSS, adaptive_thresholds
from locdistill.assign.fcos import FCOSPoints
from locdistill.assign.max_iou import MaxIoU
from locdistill.geometry.grid import Grid
from locdistill.recipe.vocabulary import ASSIGNERS
from locdistill.types import Instances
from tests.scenes import instances_of


def _ignored(boxes: list[list[float]], extent: tuple[int, int]) -> Instances:
    """One image whose boxes are all crowds."""
    instances = instances_of([boxes], [[0] * len(boxes)], [extent])
    return instances._replace(present=instances.ignored, ignored=instances.present)


def test_atss_counts_only_candidates_that_exist():
    """The one cell of the coarse level leaves two of three candidates empty; they are no location, nor the first one.

    The candidates' IoU are 1/6, 1/6, 0 (fine), 1/9, 1/15, 0 (middle) and 0 (coarse): threshold 0.1502. The first
    location has IoU 1/6 too and lies in the object, but is the fourth nearest.
    """
    grid = Grid.build(((4, 4), (2, 2), (1, 1)), (8, 16, 32), anchor_scale=0.5, offset=0.5)
    instances = instances_of([[[1.0, 2, 25, 6]]], [[0]], [(32, 32)])
    overlaps = torch.tensor([1 / 6, 1 / 6, 0, 16 / 144, 10 / 150, 0, 0])
    got = ATSS(topk=3)(grid, instances)
    assert float(got.thresholds) == pytest.approx(float(overlaps.mean() + overlaps.std()))
    assert got.positive[0].nonzero().flatten().tolist() == [1, 2]
    assert float(adaptive_thresholds(grid, instances, topk=3)) == float(got.thresholds)


def test_fcos_takes_the_points_near_the_centre_on_the_level_of_the_size():
    grid = Grid.build(((8, 8), (4, 4)), (8, 16), offset=0.5)
    # Centre (30, 30), sides 40: farthest edges 20 to 40 pixels away, within 64. Points 20 and 28, 36 of each axis lie
    # within 12 pixels of the centre, strictly.
    got = FCOSPoints()(grid, instances_of([[[10.0, 10, 50, 50]]], [[3]], [(64, 64)]))
    columns = (2, 3, 4)
    assert got.positive[0].nonzero().flatten().tolist() == [8 * y + x for y in columns for x in columns]
    assert got.labels[0][got.positive[0]].unique().tolist() == [3]
    assert got.boxes[0, 18].tolist() == [10, 10, 50, 50]
    assert bool(got.counted.all())
    assert math.isinf(float(got.thresholds))


def test_fcos_ranges_reach_from_level_to_level():
    grid = Grid.build(((8, 8), (4, 4), (2, 2)), (8, 16, 32), offset=0.5)
    levels = {}
    for longest in (0.5, 1.0, 4.0):
        # A box of 24 pixels around the point (28, 28), whose farthest edges are 12 pixels away.
        got = FCOSPoints(longest=longest, radius=0.5)(grid, instances_of([[[16.0, 16, 40, 40]]], [[0]], [(64, 64)]))
        levels[longest] = grid.levels[got.positive[0]].tolist()
    # Ranges: to 4, to 8, above; to 8, 8 to 16, above; to 32. Levels 1 and 2 have no point within half a stride of 28
    # but (24, 24), four pixels off, whose farthest edge is 16 pixels away, and (16, 16), which lies on the box's edge.
    assert levels == {0.5: [], 1.0: [1], 4.0: [0]}


def test_fcos_gives_a_contested_point_to_the_smaller_object():
    grid = Grid.build(((8, 8),), (8,), offset=0.5)
    boxes = [[4.0, 4, 52, 52], [20, 20, 36, 36], [0, 0, 56, 56]]
    got = FCOSPoints()(grid, instances_of([boxes], [[0, 1, 2]], [(64, 64)]))
    assert int(got.gt_index[0, 8 * 3 + 3]) == 1
    assert int(got.gt_index[0, 8 * 2 + 2]) == 0  # on the edge of the smaller one, so not in it


def test_fcos_leaves_out_the_points_of_crowds_if_asked():
    grid = Grid.build(((4, 4),), (8,), offset=0.5)
    instances = _ignored([[0.0, 0, 12, 20]], (32, 32))
    assert bool(FCOSPoints()(grid, instances).counted.all())
    got = FCOSPoints().ignoring()(grid, instances)
    assert (~got.counted[0]).nonzero().flatten().tolist() == [0, 4]  # (12, 4) lies on the edge


def _row() -> Grid:
    """Five anchors of 8 x 8 whose left edges are at -4, 4, 12, 20, 28."""
    return Grid.build(((1, 5),), (8,), anchor_scale=1.0)


def test_max_iou_has_positives_background_and_neither():
    # Against the box 4..12 wide IoU is 1 at the second anchor; against 12..28 it is 1/2 at the third and fourth.
    instances = instances_of([[[4.0, -4, 12, 4], [12, -4, 28, 4]]], [[5, 6]], [(8, 40)])
    got = MaxIoU(low_quality=False)(_row(), instances)
    assert got.gt_index.tolist() == [[-1, 0, 1, 1, -1]]
    assert got.labels.tolist() == [[0, 5, 6, 6, 0]]
    assert got.overlaps.tolist() == [[0, 1, 0.5, 0.5, 0]]
    assert bool(got.counted.all())
    got = MaxIoU(low_quality=False, positive=0.75)(_row(), instances)
    assert got.gt_index.tolist() == [[-1, 0, -1, -1, -1]]
    assert got.counted.tolist() == [[True, True, False, False, True]]
    assert bool(MaxIoU(low_quality=False, positive=0.75, negative=0.6)(_row(), instances).counted.all())
    assert got.thresholds.isinf().all()


def test_max_iou_gives_every_object_its_best_anchors():
    # 2 x 8 inside the third anchor (IoU 1/4), 4 x 8 shared by the first two (1/2 of each object at most).
    instances = instances_of([[[14.0, -4, 16, 4], [0, -4, 8, 4]]], [[0, 0]], [(8, 40)])
    got = MaxIoU()(_row(), instances)
    assert got.gt_index.tolist() == [[1, 1, 0, -1, -1]]
    assert MaxIoU(min_positive=0.3)(_row(), instances).gt_index.tolist() == [[1, 1, -1, -1, -1]]
    assert MaxIoU(low_quality=False)(_row(), instances).gt_index.tolist() == [[-1] * 5]


def test_max_iou_lets_the_last_of_several_objects_have_a_contested_anchor():
    """Even where the first fits better, as in the reference."""
    instances = instances_of([[[4.0, -4, 12, 4], [6, -4, 8, 4]]], [[0, 1]], [(8, 40)])
    assert MaxIoU()(_row(), instances).gt_index.tolist() == [[-1, 1, -1, -1, -1]]


def test_max_iou_gives_nothing_to_an_object_that_no_anchor_touches():
    """The reference would give it every anchor: all are equal to its highest IoU, 0."""
    instances = instances_of([[[4.0, 100, 12, 110]]], [[0]], [(8, 40)])
    got = MaxIoU()(_row(), instances)
    assert not got.positive.any()
    assert got.counted.all()


def test_max_iou_leaves_out_crowds_if_asked():
    instances = _ignored([[12.0, -4, 25, 4]], (8, 40))
    assert bool(MaxIoU()(_row(), instances).counted.all())
    assert MaxIoU().ignoring()(_row(), instances).counted.tolist() == [[True, True, False, False, True]]


@pytest.mark.parametrize("name", ASSIGNERS)
def test_ignoring_keeps_what_is_set(name):
    plain = ASSIGNERS[name]()
    assert plain.ignoring() != plain
    assert plain.ignoring().ignoring() == plain.ignoring()
    assert type(plain.ignoring()) is type(plain)


def test_ignoring_keeps_its_own_share():
    assert ATSS(ignore_iof=0.7, topk=5).ignoring() == ATSS(ignore_iof=0.7, topk=5)
    assert MaxIoU(ignore_iof=0.2).ignoring().ignore_iof == 0.2
    assert FCOSPoints(radius=2.0).ignoring() == FCOSPoints(radius=2.0, leave_ignored=True)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ATSS(topk=0), "expected topk >= 1, got 0"),
        (lambda: ATSS(ignore_iof=1.5), "expected 0 < ignore_iof < 1, got 1.5"),
        (lambda: MaxIoU(ignore_iof=0.0), "expected 0 < ignore_iof < 1, got 0.0"),
        (lambda: MaxIoU(negative=0.6), "expected 0 < negative <= positive <= 1, got 0.6 and 0.5"),
        (lambda: FCOSPoints(radius=0.0), "expected radius and longest > 0"),
    ],
)
def test_impossible_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
