"""Objects are looked at a few at a time: how many makes no difference, and neither do empty slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from locdistill.assign.assignment import Assignment
from locdistill.assign.atss import ATSS
from locdistill.assign.fcos import FCOSPoints
from locdistill.assign.ignore import in_ignored
from locdistill.assign.max_iou import MaxIoU
from locdistill.distillation.fgd import BackgroundCells, ObjectCells
from locdistill.distillation.imitation import FineGrained
from locdistill.distillation.methods import METHODS
from locdistill.distillation.presets import supervised
from locdistill.distillation.regions import ValuableLocations
from locdistill.engine.compiled import bucketed
from locdistill.geometry import objects
from locdistill.geometry.bins import Bins
from locdistill.geometry.boxes import centre_offset, paired_iof, pairwise_iou
from locdistill.geometry.grid import Grid
from locdistill.objective.learned import TrainingProgress
from locdistill.objective.objective import Objective
from locdistill.objective.regions import InsideBoxes
from locdistill.objective.scene import Scene
from locdistill.recipe.vocabulary import ASSIGNERS
from locdistill.types import Dense, Instances
from tests.scenes import ASSIGNER_OF, grid_of_kind

SHAPES = ((10, 14), (5, 7), (3, 4))
seeds = st.integers(0, 2**31 - 1)
counts = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 20])


def instances_of(seed: int, count: int) -> Instances:
    """Objects, crowds, empty slots and twins, some of them outside; the second image is smaller."""
    rng = torch.Generator().manual_seed(seed)
    side = torch.exp(torch.rand(2, count, 2, generator=rng) * 2) * 12
    centre = (torch.rand(2, count, 2, generator=rng) * 1.2 - 0.1) * torch.tensor([112.0, 80.0])
    boxes = ((torch.cat((centre - side / 2, centre + side / 2), -1)) / 4).round() * 4  # many are equally near
    boxes[:, 1::5] = boxes[:, :1]
    kind = torch.rand(2, count, generator=rng)
    present, ignored = kind < 0.7, kind > 0.85
    labels = torch.randint(0, 3, (2, count), generator=rng) * present
    return Instances(
        boxes * (present | ignored)[..., None], labels, present, ignored, torch.tensor([[80, 112], [48, 96]])
    )


def dense_of(seed: int, locations: int) -> Dense:
    rng = torch.Generator().manual_seed(seed)
    return Dense(torch.randn(2, locations, 3, generator=rng), torch.randn(2, locations, 4, 17, generator=rng))


def scene_of(model: str, seed: int, count: int) -> Scene:
    grid = grid_of_kind(model, SHAPES, anchor_scale=2.0)
    student, teacher = (dense_of(seed + k, len(grid.points)) for k in (0, 1))
    assigner = ASSIGNERS[ASSIGNER_OF[model]]().ignoring()
    return Scene.build(student, teacher, grid=grid, instances=instances_of(seed, count), assigner=assigner, bins=Bins())


def each_number_at_once(result: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What comes out with one object at a time, with a few, and with all of them."""
    found = []
    for pairs in (1, 3000, 10**9):
        monkeypatch.setitem(objects.PAIRS_AT_ONCE, "cpu", pairs)
        found.append(result())
    return found


def same(a: object, b: object) -> bool:
    if isinstance(a, Assignment) and isinstance(b, Assignment):
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    return torch.equal(a, b)


# ------------------------------------------------------------------------------- any number at once, and the formulas


@pytest.mark.parametrize("model", ["gfl", "retinanet"])
@pytest.mark.parametrize(
    "assigner",
    [ATSS(ignore_iof=0.4), FCOSPoints(longest=2.0).ignoring(), MaxIoU(), MaxIoU(ignore_iof=0.4, min_positive=0.1)],
    ids=["atss", "fcos", "max_iou", "max_iou ignoring"],
)
@settings(max_examples=8)
@given(seeds, counts)
def test_assignment(model: str, assigner: Callable[[Grid, Instances], Assignment], seed: int, count: int):
    grid, instances = grid_of_kind(model, SHAPES, anchor_scale=2.0), instances_of(seed, count)
    with pytest.MonkeyPatch.context() as patch:
        few, some, every = each_number_at_once(lambda: assigner(grid, instances), patch)
    assert same(few, every)
    assert same(some, every)


REGIONS = {
    "iof_diou": ValuableLocations(threshold="adaptive"),
    "diou mask": ValuableLocations(threshold="adaptive", metric="diou", by="mask", positives=False),
    "inside": InsideBoxes(),
    "fine_grained": FineGrained(),
    "object cells": ObjectCells(),
    "background cells": BackgroundCells(),
}


@pytest.mark.parametrize("model", ["gfl", "retinanet"])
@pytest.mark.parametrize("name", REGIONS)
@settings(max_examples=8)
@given(seeds, counts)
def test_regions(name: str, model: str, seed: int, count: int):
    scene = scene_of(model, seed, count)
    with pytest.MonkeyPatch.context() as patch:
        few, some, every = each_number_at_once(lambda: REGIONS[name](scene), patch)
    assert same(few, every)
    assert same(some, every)


@settings(max_examples=20)
@given(seeds, counts)
def test_the_valuable_region_is_the_formula_over_a_whole_table(seed: int, count: int):
    scene = scene_of("gfl", seed, count)
    anchors, instances = scene.grid.anchors()[None], scene.instances
    pairs = anchors[:, :, None], instances.boxes[:, None]
    iou, closeness = pairwise_iou(anchors, instances.boxes), paired_iof(*pairs) - centre_offset(*pairs)
    threshold = scene.assignment.thresholds[:, None]
    band = (closeness >= 0.25 * threshold) & (closeness < threshold) & instances.present[:, None]
    band = band & scene.assignment.inside[..., None]
    want = torch.nn.functional.pad(iou * band, (0, 1)).amax(-1)
    assert torch.equal(ValuableLocations()(scene), want)


@settings(max_examples=20)
@given(seeds, counts)
def test_what_is_inside_boxes_or_ignored_is_the_formula_over_a_whole_table(seed: int, count: int):
    scene = scene_of("gfl", seed, count)
    points, boxes = scene.grid.points[None, :, None], scene.instances.boxes[:, None]
    within = ((points > boxes[..., :2]) & (points < boxes[..., 2:])).all(-1) & scene.instances.present[:, None]
    assert torch.equal(InsideBoxes(positives=True)(scene) > 0, within.any(-1) & scene.assignment.inside)
    part = paired_iof(scene.grid.anchors()[:, None], boxes) > 0.4
    want = (part & scene.instances.ignored[:, None]).any(-1)
    assert torch.equal(in_ignored(scene.grid, scene.instances, 0.4), want)


@settings(max_examples=20)
@given(seeds, counts)
def test_fine_grained_is_the_formula_over_a_whole_table(seed: int, count: int):
    scene = scene_of("retinanet", seed, count)
    usable = scene.instances.present[:, None] & scene.assignment.inside[..., None]
    iou = pairwise_iou(scene.grid.anchors()[None], scene.instances.boxes) * usable
    want = (iou > 0.5 * iou.amax(1, keepdim=True)).any(-1).to(torch.float32)
    assert torch.equal(FineGrained()(scene), want)


# ------------------------------------------------------------------------------------------------------- empty slots


@settings(max_examples=20)
@given(seeds, st.integers(0, 40))
def test_there_are_as_many_slots_as_a_power_of_two(seed: int, count: int):
    before = instances_of(seed, count)
    after = bucketed(before)
    slots = after.boxes.shape[1]
    assert slots == max(8, 2 ** (count - 1).bit_length() if count else 0)
    assert after.extents is before.extents
    for old, new in zip(before[:4], after[:4], strict=True):
        assert new.dtype == old.dtype
        assert torch.equal(new[:, :count], old)
        assert not new[:, count:].any()


@pytest.mark.parametrize("model", ["gfl", "fcos", "retinanet"])
@settings(max_examples=5)
@given(seeds, st.sampled_from([0, 1, 3, 9]))
def test_empty_slots_change_no_loss(model: str, seed: int, count: int):
    """Of any method that needs no maps; what the regions are, is the same bit by bit."""
    methods = ("ld", "kd", "bckd", "dist", "cwd")
    terms = {name: term for method in methods for name, term in METHODS[method](model).items()}
    terms |= {name: replace(term, of=terms["kd"].of) for name, term in METHODS["fine_grained"](model).items()}
    terms |= {name: replace(term, of=terms["kd"].of) for name, term in METHODS["defeat"](model).items()}
    terms["cells"] = replace(terms["kd"], on=ObjectCells())
    assigner = ASSIGNERS[ASSIGNER_OF[model]]()
    objective = Objective(terms=supervised(model) | terms, assigner=assigner)
    grid = grid_of_kind(model, SHAPES, anchor_scale=2.0)
    student, teacher = (dense_of(seed + k, len(grid.points)) for k in (0, 1))
    student = student._replace(quality_logits=student.cls_logits[..., 0])
    instances = instances_of(seed, count)
    want, got = (
        objective.losses(
            objective.scene(student, teacher, grid=grid, instances=given, progress=TrainingProgress(0.0, None))
        )
        for given in (instances, bucketed(instances))
    )
    for name, value in want.items():
        assert torch.equal(got[name], value), name
