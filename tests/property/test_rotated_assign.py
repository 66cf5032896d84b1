"""Regions and assignment of rotated objects against loops over anchors and objects; overlaps are shapely's."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from locdistill.assign.assignment import Assignment
from locdistill.assign.atss import ATSS
from locdistill.assign.fcos import FCOSPoints
from locdistill.assign.max_iou import MaxIoU
from locdistill.distillation.regions import ValuableLocations
from locdistill.geometry.grid import Grid
from locdistill.geometry.kinds import Rotated
from locdistill.geometry.rotated import canonical, corners, hull
from locdistill.models.kinds import KINDS
from locdistill.models.meaning import meaning_of
from locdistill.models.settings import DetectorSettings
from locdistill.objective.scene import Scene
from locdistill.types import Dense, Instances

SHAPES, STRIDES = ((10, 14), (5, 7), (3, 4)), (8, 16, 32)
EXTENTS = ((80, 112), (48, 96))  # height and width: the second image fills a part of the batch
OBJECTS = 4
CLOSE = 1e-5  # what ours, in float32, may be off by; decisions closer than that may fall either way
seeds = st.integers(0, 2**31 - 1)


class Place(NamedTuple):
    """A location, worked out anew: its level, its point and its anchor."""

    level: int
    x: float
    y: float
    anchor: shapely.Geometry


def places(model: str) -> list[Place]:
    scales, ratios = ([4 * 2 ** (k / 3) for k in range(3)], (1.0, 0.5, 2.0)) if "retina" in model else ([8.0], (1.0,))
    found = []
    for level, ((rows, columns), stride) in enumerate(zip(SHAPES, STRIDES, strict=True)):
        for row, column, ratio, scale in itertools.product(range(rows), range(columns), ratios, scales):
            x, y, side = column * stride, row * stride, scale * stride
            w, h = side / math.sqrt(ratio) / 2, side * math.sqrt(ratio) / 2
            found.append(Place(level, x, y, shapely.box(x - w, y - h, x + w, y + h)))
    return found


PLACES = {model: places(model) for model in ("rotated_retinanet", "rotated_gfl")}


def grid_of(model: str) -> Grid:
    kind = KINDS[model]
    scale = 4.0 if model == "rotated_retinanet" else 8.0
    grid = Grid.build(SHAPES, STRIDES, anchor_scale=scale, octaves=kind.octaves, ratios=kind.ratios)
    assert len(grid.points) == len(PLACES[model])
    return grid


def objects_of(seed: int) -> Instances:
    """Two images with rotated objects of all sizes, some of them partly outside, and empty slots."""
    rng = torch.Generator().manual_seed(seed)
    sides = torch.exp(torch.rand(2, OBJECTS, 2, generator=rng) * 2.2) * 8
    centres = (torch.rand(2, OBJECTS, 2, generator=rng) * 1.1 - 0.05) * torch.tensor([112.0, 80.0])
    angles = torch.rand(2, OBJECTS, 1, generator=rng) * 7 - 3.5
    present = torch.rand(2, OBJECTS, generator=rng) < 0.8
    oriented = canonical(torch.cat((centres, sides, angles), -1), "oc") * present[..., None]
    nothing = torch.zeros_like(present)
    extents = torch.tensor(EXTENTS)
    return Instances(hull(oriented), torch.zeros(2, OBJECTS).long(), present, nothing, extents, oriented)


def shape_of(box: list[float], how: str) -> shapely.Geometry:
    """What stands for a rotated object."""
    x, y, w, h, theta = box
    if how == "unturned":
        return shapely.box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    own = shapely.affinity.rotate(shapely.box(x - w / 2, y - h / 2, x + w / 2, y + h / 2), math.degrees(theta))
    return own if how == "own" else shapely.box(*own.bounds)


def overlaps(model: str, instances: Instances, image: int, how: str) -> np.ndarray:
    """IoU of all anchors and objects; 0 in empty slots, and where the location lies outside the image."""
    anchors = np.array([place.anchor for place in PLACES[model]])
    found = np.zeros((len(anchors), OBJECTS))
    assert instances.oriented is not None
    for slot, box in enumerate(instances.oriented[image].double().tolist()):
        if instances.present[image, slot]:
            shape = shape_of(box, how)
            shared = shapely.area(shapely.intersection(anchors, shape))
            found[:, slot] = shared / (shapely.area(anchors) + shape.area - shared)
    return found * inside(model, image)[:, None]


def inside(model: str, image: int) -> np.ndarray:
    height, width = EXTENTS[image]
    return np.array([place.x < width and place.y < height for place in PLACES[model]])


def nearest(model: str, instances: Instances, image: int, slot: int, count: int) -> list[int]:
    """On each level the locations of the image that are nearest to an object's centre."""
    assert instances.oriented is not None
    x, y = instances.oriented[image, slot, :2].tolist()
    within, chosen = inside(model, image), []
    for level in range(len(SHAPES)):
        own = [k for k, place in enumerate(PLACES[model]) if place.level == level and within[k]]
        own.sort(key=lambda k: math.hypot(PLACES[model][k].x - x, PLACES[model][k].y - y))
        chosen += own[:count]
    return chosen


def threshold(model: str, instances: Instances, image: int, slot: int, iou: np.ndarray) -> float:
    """Mean and unbiased deviation of the overlaps of the candidates: nine on each level."""
    own = iou[nearest(model, instances, image, slot, 9), slot]
    return float(own.mean() + own.std(ddof=1))


def published_region(
    instances: Instances, image: int, how: str, *, ring: bool
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """The weight of each location, which of them are decided by the last digits, and the thresholds."""
    model = "rotated_retinanet"
    iou = overlaps(model, instances, image, how)
    weights, doubtful, thresholds = np.zeros(len(iou)), np.zeros(len(iou), bool), []
    for slot in range(OBJECTS):
        if not instances.present[image, slot]:
            continue
        t = threshold(model, instances, image, slot, iou)
        thresholds.append(t)
        for k in range(len(iou)):
            o = iou[k, slot]
            if o >= 0.25 * t and not (ring and o >= t):
                weights[k] = max(weights[k], o)
            doubtful[k] |= abs(o - 0.25 * t) < CLOSE or (ring and abs(o - t) < CLOSE)
    return weights, doubtful, thresholds


def scene_of(model: str, instances: Instances) -> Scene:
    settings = DetectorSettings(model=model, pretrained=False, angle_bins="linear")  # type: ignore[arg-type]
    coding, bins = meaning_of(settings)
    grid = grid_of(model)
    dense = Dense(torch.zeros(2, len(grid.points), 1), torch.zeros(2, len(grid.points), 5, bins.count))
    return Scene.build(dense, None, grid=grid, instances=instances, assigner=MaxIoU(), bins=bins, coding=coding)


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("how", ["unturned", "circumscribed", "own"])
@settings(max_examples=6)
@given(seeds)
def test_the_region_of_rotated_ld(how, ring, seed):
    """``unturned`` without a ring is the published one: IoU with the angle dropped, where it reaches a quarter of t."""
    instances = objects_of(seed)
    region = ValuableLocations(metric="iou", ring=ring, threshold="adaptive", box=how)
    found = region(scene_of("rotated_retinanet", instances)).double().numpy()
    for image in (0, 1):
        expected, doubtful, _ = published_region(instances, image, how, ring=ring)
        assert doubtful.sum() < 20
        np.testing.assert_allclose(found[image][~doubtful], expected[~doubtful], rtol=0, atol=CLOSE)


def test_the_examples_tell_the_boxes_apart():
    """Regions are not empty, hold positives, and differ with the box that stands for the objects."""
    instances = objects_of(0)
    scene = scene_of("rotated_retinanet", instances)
    hows = ("unturned", "circumscribed", "own")
    maps = [ValuableLocations(metric="iou", ring=False, threshold="adaptive", box=how)(scene) for how in hows]
    assert all((one > 0).sum() > 100 for one in maps)
    assert all(float((one - other).abs().max()) > 0.05 for one, other in itertools.combinations(maps, 2))
    assert bool((maps[1] > 0)[scene.assignment.positive].all())


@settings(max_examples=6)
@given(seeds)
def test_an_upright_object_lies_on_its_side_in_the_published_region(seed):
    """Its angle is a quarter turn in the range ``oc``, and dropped."""
    plain = objects_of(seed)
    assert plain.oriented is not None
    upright = plain.oriented.clone()
    upright[..., 4] = math.pi / 2 * plain.present
    lying = upright[..., [0, 1, 3, 2, 4]]
    one, other = (plain._replace(oriented=boxes, boxes=hull(boxes)) for boxes in (upright, lying))
    published = ValuableLocations(metric="iou", ring=False, threshold="adaptive", box="unturned")
    ours = ValuableLocations(metric="iou", ring=False, threshold="adaptive")
    wrong, right = published(scene_of("rotated_retinanet", one)), ours(scene_of("rotated_retinanet", other))
    torch.testing.assert_close(wrong, right, rtol=0, atol=1e-5)


# -- assignment


def doubtful_of(iou: np.ndarray, image: int, instances: Instances, assigner: MaxIoU) -> np.ndarray:
    """Which locations are decided by the last digits."""
    ordered = np.sort(iou, 1)[:, ::-1]
    best = ordered[:, 0]
    close = (np.abs(best - assigner.positive) < CLOSE) | (np.abs(best - assigner.negative) < CLOSE)
    close |= (best > assigner.negative) & (best - ordered[:, 1] < CLOSE)
    for slot in range(OBJECTS):
        if instances.present[image, slot] and assigner.low_quality:
            close |= (iou[:, slot] > 0) & (iou[:, slot] > iou[:, slot].max() - CLOSE)
    return close


def max_iou(iou: np.ndarray, image: int, instances: Instances, assigner: MaxIoU) -> list[int]:
    """Slot of each location's object; -1 for background, -2 for neither."""
    found = []
    for k, within in enumerate(inside("rotated_retinanet", image)):
        best, slot = 0.0, -1
        for candidate in range(OBJECTS):
            if iou[k, candidate] > best:
                best, slot = iou[k, candidate], candidate
        state = slot if best >= assigner.positive else -1 if best < assigner.negative else -2
        found.append(state if within else -2)
    return found


def said(assignment: Assignment) -> torch.Tensor:
    return torch.where(assignment.counted, assignment.gt_index, -2)


@pytest.mark.parametrize("how", ["own", "circumscribed"])
@settings(max_examples=8)
@given(seeds, st.booleans())
def test_anchors_by_their_overlap_with_rotated_boxes(how, seed, low_quality):
    """``own`` is what is called "obb" assignment, ``circumscribed`` "hbb"."""
    instances, assigner = objects_of(seed), MaxIoU(box=how, low_quality=low_quality)
    got = said(assigner(grid_of("rotated_retinanet"), instances)).numpy()
    for image in (0, 1):
        iou = overlaps("rotated_retinanet", instances, image, how)
        close = doubtful_of(iou, image, instances, assigner)
        expected = np.array(max_iou(iou, image, instances, assigner))
        np.testing.assert_array_equal(got[image][~close], expected[~close])
        for slot in range(OBJECTS) if low_quality else []:
            highest = iou[:, slot].max()
            if highest > 0:  # its best anchors are its own, or of a later object that they are the best for as well
                best = got[image][iou[:, slot] > highest - CLOSE]
                assert (best >= slot).any()


def test_the_examples_hold_every_case_of_assignment():
    """Positives by themselves and as the best of an object, and such that either box would not make positive."""
    counts = dict.fromkeys(("plain", "best", "own alone", "hull alone", "between"), 0)
    for seed in range(6):
        grid, instances = grid_of("rotated_retinanet"), objects_of(seed)
        own, strict = (MaxIoU(box="own", low_quality=low)(grid, instances) for low in (True, False))
        around = MaxIoU(low_quality=False)(grid, instances)
        counts["plain"] += int(strict.positive.sum())
        counts["best"] += int((own.positive & ~strict.positive).sum())
        counts["own alone"] += int((strict.positive & ~around.positive).sum())
        counts["hull alone"] += int((around.positive & ~strict.positive).sum())
        counts["between"] += int((own.inside & ~own.counted).sum())
    assert all(counts.values()), counts


def atss(instances: Instances, image: int) -> tuple[list[int], np.ndarray]:
    """Slot of each location's object, by ATSS with the boxes around the objects; and what the last digits decide."""
    model = "rotated_gfl"
    iou = overlaps(model, instances, image, "circumscribed")
    best, found, close = np.full(len(iou), -1.0), [-1] * len(iou), np.zeros(len(iou), bool)
    assert instances.oriented is not None
    for slot in range(OBJECTS):
        if not instances.present[image, slot]:
            continue
        t = threshold(model, instances, image, slot, iou)
        shape = shape_of(instances.oriented[image, slot].double().tolist(), "own")
        for k in nearest(model, instances, image, slot, 9):
            point = shapely.Point(PLACES[model][k].x, PLACES[model][k].y)
            depth = shape.exterior.distance(point) if shape.contains(point) else 0.0
            o = iou[k, slot]
            close[k] |= abs(o - t) < CLOSE or abs(depth - 0.01) < 1e-4 or abs(o - best[k]) < CLOSE
            if o >= t and depth > 0.01 and o > best[k]:
                best[k], found[k] = o, slot
    return found, close


@settings(max_examples=10)
@given(seeds)
def test_atss_of_rotated_objects(seed):
    """Positives lie within the rotated box, and not only within the box around it."""
    instances = objects_of(seed)
    found = ATSS()(grid_of("rotated_gfl"), instances)
    assert instances.oriented is not None
    outlines = shapely.polygons(corners(instances.oriented.double()).numpy())
    for image, location in found.positive.nonzero().tolist():
        place = PLACES["rotated_gfl"][location]
        outline = outlines[image, int(found.gt_index[image, location])]
        assert outline.contains(shapely.Point(place.x, place.y))
    for image in (0, 1):
        expected, close = atss(instances, image)
        got = found.gt_index[image].numpy()
        np.testing.assert_array_equal(got[~close], np.array(expected)[~close])


def test_the_examples_hold_centres_beside_the_rotated_box():
    """Locations that ATSS would take for the box around the object, and not for the object itself."""
    grid, beside, taken = grid_of("rotated_gfl"), 0, 0
    for seed in range(6):
        instances = objects_of(seed)
        own, around = ATSS()(grid, instances), ATSS()(grid, instances._replace(oriented=None))
        beside += int((around.positive & ~own.positive).sum())
        taken += int(own.positive.sum())
    assert beside > 5
    assert taken > 20


def test_anchors_that_contain_a_small_object_all_claim_it_whatever_its_angle():
    """Their overlaps are equal but for rounding, which has no say in who answers for an object."""
    grid, one = grid_of("rotated_retinanet"), torch.ones(1, 1, dtype=torch.bool)
    counts = []
    for angle in (0.0, 0.3, 1.2):
        box = torch.tensor([[[52.0, 44.0, 3.0, 2.0, angle]]])
        extents, labels = torch.tensor([EXTENTS[0]]), torch.zeros(1, 1, dtype=torch.long)
        instances = Instances(hull(box), labels, one, ~one, extents, box)
        counts.append(int(MaxIoU(box="own")(grid, instances).positive.sum()))
    assert counts == [counts[0]] * 3
    assert counts[0] > 9


def ships(chosen: list[int], ignored: list[int]) -> Instances:
    """Of five objects in one image, three of them long, parallel and oblique, two small beside the middle one."""
    turn, apart = math.pi / 4, 24.0
    aside = [offset * apart * math.sqrt(0.5) for offset in (-1, 0, 1)]
    rows = [[256 - step, 256 + step, 200.0, 20.0, turn] for step in aside]
    rows += [[256.0 + 56, 256.0 - 56, 24, 20, 0], [256.0 - 56, 256.0 + 56, 24, 20, 0]]
    oriented = torch.tensor([rows])
    present, left_out = (torch.zeros(1, 5, dtype=torch.bool) for _ in range(2))
    present[0, chosen], left_out[0, ignored] = True, True
    extents = torch.tensor([[512, 512]])
    return Instances(hull(oriented), torch.zeros(1, 5).long(), present, left_out, extents, oriented)


@pytest.mark.parametrize(
    "assigner", [ATSS(ignore_iof=0.5), MaxIoU(ignore_iof=0.5, box="own", positive=0.3, negative=0.2)]
)
def test_an_ignored_object_takes_only_the_place_that_it_has(assigner: ATSS | MaxIoU):
    """The box around an oblique ship holds its neighbours as well, which are to be found."""
    kind = KINDS["rotated_gfl" if isinstance(assigner, ATSS) else "rotated_retinanet"]
    shapes = ((64, 64), (32, 32), (16, 16))
    grid = Grid.build(shapes, STRIDES, anchor_scale=4.0, octaves=kind.octaves, ratios=kind.ratios)
    others = [0, 2, 3, 4]
    alone, beside = assigner(grid, ships(others, [])), assigner(grid, ships(others, [1]))
    per_object = [[int((a.positive & (a.gt_index == slot)).sum()) for slot in others] for a in (alone, beside)]
    assert min(per_object[0]) > 0
    assert per_object[0] == per_object[1]
    lost = alone.counted & ~beside.counted
    assert int(lost.sum()) > 20
    objects = ships(others, [1]).targets
    assert bool((Rotated().depth(grid.points, objects[:, 1:2]) > 0)[lost].all())


def test_points_of_fcos_lie_in_the_object_itself():
    grid = grid_of("rotated_gfl")
    found, around = 0, 0
    for seed in range(6):
        instances = objects_of(seed)
        own, hulls = FCOSPoints()(grid, instances), FCOSPoints()(grid, instances._replace(oriented=None))
        objects = instances.targets.gather(1, own.gt_index.clamp(min=0)[..., None].expand(-1, -1, 5))
        assert bool((Rotated().depth(grid.points, objects) > 0)[own.positive].all())
        found += int(own.positive.sum())
        around += int(hulls.positive.sum())
    assert 20 < found < around


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"box": "own", "metric": "iou"}, "box: own needs threshold: adaptive"),
        ({"box": "unturned"}, "box: unturned needs threshold: adaptive"),
        ({"box": "own", "threshold": "adaptive"}, "box: own needs metric: iou; iof_diou compares upright boxes"),
    ],
)
def test_closeness_to_one_box_is_not_held_against_the_statistic_of_another(settings: dict[str, str], said: str):
    with pytest.raises(ValueError, match=said):
        ValuableLocations(**settings)  # type: ignore[arg-type]
