"""FCOS's and RetinaNet's assignment against loops over images, locations and objects that follow the papers' text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from locdistill.assign.fcos import FCOSPoints
from locdistill.assign.max_iou import MaxIoU
from locdistill.geometry.boxes import paired_iof, pairwise_iou
from locdistill.geometry.grid import Grid
from locdistill.types import Instances

SHAPES, STRIDES = ((10, 14), (5, 7), (3, 4)), (8, 16, 32)
seeds = st.integers(0, 2**31 - 1)


def _instances(seed: int, *, integer: bool = False) -> Instances:
    """Two images with objects, crowds, empty slots, twins and objects far outside; of unequal extent."""
    rng = torch.Generator().manual_seed(seed)
    side = torch.exp(torch.rand(2, 6, 2, generator=rng) * 3) * 6
    centre = (torch.rand(2, 6, 2, generator=rng) * 1.3 - 0.15) * torch.tensor([112.0, 80.0])
    boxes = torch.cat((centre - side / 2, centre + side / 2), -1)
    if integer:
        boxes = (boxes / 4).round() * 4  # many equal distances and overlaps
        boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + 4)
    boxes[:, 4] = boxes[:, 1]
    boxes[1, 0] += 1000
    kind = torch.rand(2, 6, generator=rng)
    present, ignored = kind < 0.7, kind > 0.85
    boxes = boxes * (present | ignored)[..., None]
    return Instances(boxes, torch.arange(6).expand(2, 6), present, ignored, torch.tensor([[80, 112], [48, 96]]))


def _fcos(grid: Grid, instances: Instances, image: int, location: int, assigner: FCOSPoints) -> int:
    """Slot of the object that a location answers for, by the published rules; -1 for none, -2 for not counted."""
    x, y = (np.float32(v) for v in grid.points[location].tolist())
    stride, level = np.float32(grid.strides[location]), int(grid.levels[location])
    height, width = instances.extents[image].tolist()
    if x - grid.offset * stride >= width or y - grid.offset * stride >= height:
        return -2
    best, smallest, in_crowd = -1, np.inf, False
    for slot, box in enumerate(instances.boxes[image].numpy()):
        x1, y1, x2, y2 = box
        if instances.ignored[image, slot] and x1 < x < x2 and y1 < y < y2:
            in_crowd = True
        if not instances.present[image, slot]:
            continue
        cx, cy, reach = (x1 + x2) / np.float32(2), (y1 + y2) / np.float32(2), np.float32(assigner.radius) * stride
        central = max(cx - reach, x1) < x < min(cx + reach, x2) and max(cy - reach, y1) < y < min(cy + reach, y2)
        farthest = max(x - x1, y - y1, x2 - x, y2 - y)
        low = -1 if level == 0 else assigner.longest * STRIDES[level - 1]
        high = np.inf if level == len(STRIDES) - 1 else assigner.longest * STRIDES[level]
        size = (x2 - x1) * (y2 - y1)
        if central and low <= farthest <= high and size < smallest:
            best, smallest = slot, size
    return -2 if best < 0 and in_crowd and assigner.leave_ignored else best


@settings(max_examples=20)
@given(seeds, st.sampled_from([0.0, 0.5]), st.sampled_from([0.5, 1.0, 1.5, 2.7]), st.booleans(), st.booleans())
def test_fcos(seed, offset, radius, ignoring, integer):
    grid = Grid.build(SHAPES, STRIDES, offset=offset)
    instances = _instances(seed, integer=integer)
    assigner = FCOSPoints(radius=radius, longest=2.0)  # ranges up to 16, 32 and from 32 pixels
    assigner = assigner.ignoring() if ignoring else assigner
    got = assigner(grid, instances)
    slots = torch.where(got.counted, got.gt_index, -2)
    want = [[_fcos(grid, instances, i, k, assigner) for k in range(len(grid.points))] for i in (0, 1)]
    assert torch.equal(slots, torch.tensor(want))


def _max_iou(grid: Grid, instances: Instances, image: int, assigner: MaxIoU) -> list[int]:
    """Slot of each location's object, by the reference's steps; -1 for none, -2 for not counted."""
    overlaps = pairwise_iou(grid.anchors(), instances.boxes[image]).numpy()
    crowd = paired_iof(grid.anchors()[:, None], instances.boxes[image]).numpy()
    objects = [slot for slot in range(6) if instances.present[image, slot]]
    crowds = [slot for slot in range(6) if instances.ignored[image, slot] and assigner.ignore_iof is not None]
    found = []
    for location, inside in enumerate(grid.within(instances.extents)[image].tolist()):
        if not inside or any(crowd[location, slot] > assigner.ignore_iof for slot in crowds):
            found.append(-3)
            continue
        best, slot = 0.0, -1
        for candidate in objects:
            if overlaps[location, candidate] > best:
                best, slot = overlaps[location, candidate], candidate
        found.append(slot if best >= assigner.positive else -1 if best < assigner.negative else -2)
    usable = [location for location, slot in enumerate(found) if slot > -3]
    for slot in objects if assigner.low_quality else []:
        highest = max((overlaps[k, slot] for k in usable), default=0.0)
        if highest > 0 and highest >= np.float32(assigner.min_positive):
            for k in usable:
                found[k] = slot if overlaps[k, slot] == highest else found[k]
    return [max(slot, -2) for slot in found]


@settings(max_examples=20)
@given(seeds, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.3]))
def test_max_iou(seed, low_quality, ignoring, integer, min_positive):
    grid = Grid.build(SHAPES, STRIDES, anchor_scale=2.0, octaves=3, ratios=(0.5, 1.0, 2.0))
    instances = _instances(seed, integer=integer)
    assigner = MaxIoU(low_quality=low_quality, min_positive=min_positive)
    assigner = assigner.ignoring() if ignoring else assigner
    got = assigner(grid, instances)
    slots = torch.where(got.counted, got.gt_index, -2)
    assert torch.equal(slots, torch.tensor([_max_iou(grid, instances, i, assigner) for i in (0, 1)]))


@pytest.mark.parametrize("integer", [False, True])
def test_the_examples_hold_every_case(integer):
    """Positives, background, ignored and contested locations do come up."""
    grid = Grid.build(SHAPES, STRIDES, anchor_scale=2.0, octaves=3, ratios=(0.5, 1.0, 2.0))
    found = {"low": 0, "between": 0, "crowd": 0, "twins": 0}
    for seed in range(5):
        instances = _instances(seed, integer=integer)
        plain, strict = MaxIoU()(grid, instances), MaxIoU(low_quality=False)(grid, instances)
        found["low"] += int((plain.positive & ~strict.positive).sum())
        found["between"] += int((plain.inside & ~plain.counted).sum())
        found["crowd"] += int((plain.counted & ~MaxIoU().ignoring()(grid, instances).counted).sum())
        found["twins"] += int((plain.gt_index == 4).sum())
    assert all(found.values()), found
