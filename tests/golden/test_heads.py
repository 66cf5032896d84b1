"""Whole objectives, per-level losses and gradients, against the executed reference's heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from locdistill.assign.atss import ATSS
from locdistill.distillation.regions import ValuableLocations
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.objective.objective import Objective
from locdistill.objective.scene import Scene
from locdistill.types import Dense, Instances
from tests.scenes import dense_of, grid_of, instances_of, per_level, published_terms

pytestmark = pytest.mark.golden
RTOL, ATOL = 1e-5, 1e-6
LOSSES = {
    "cls": "loss_cls",
    "bbox": "loss_bbox",
    "dfl": "loss_dfl",
    "ld": "loss_ld",
    "ld_vlr": "loss_ld_vlr",
    "kd": "loss_kd",
}
CASES = ("typical2", "padded2", "huge1", "tiny1", "nopos1", "ignore2", "empty1of2", "multi1", "empty1")


def _inputs(arrays, case: str) -> tuple[list[torch.Tensor], list[torch.Tensor], Dense, Grid, Instances]:
    cls_maps, box_maps, t_cls, t_box = (
        [torch.from_numpy(arrays[f"{case}/{kind}{level}"]) for level in range(5)]
        for kind in ("s_cls", "s_box", "t_cls", "t_box")
    )
    images = range(len(cls_maps[0]))
    instances = instances_of(
        [arrays[f"{case}/img{i}/gt"] for i in images],
        [arrays[f"{case}/img{i}/lab"] for i in images],
        [tuple(int(v) for v in arrays[f"{case}/img{i}/pad_shape"]) for i in images],
    )
    crowd = [torch.from_numpy(arrays[f"{case}/img{i}/ign"]).float().reshape(-1, 4) for i in images]
    slots = max(len(c) for c in crowd)
    boxes = torch.stack([torch.cat((c, torch.zeros(slots - len(c), 4))) for c in crowd])
    ignored = torch.stack([torch.arange(slots) < len(c) for c in crowd])
    instances = Instances(
        torch.cat((instances.boxes, boxes), 1),
        torch.cat((instances.labels, torch.zeros(len(crowd), slots, dtype=torch.long)), 1),
        torch.cat((instances.present, torch.zeros_like(ignored)), 1),
        torch.cat((torch.zeros_like(instances.ignored), ignored), 1),
        instances.extents,
    )
    for m in (*cls_maps, *box_maps):
        m.requires_grad_()
    return cls_maps, box_maps, dense_of(t_cls, t_box), grid_of(cls_maps), instances


def _scene(arrays, case: str, assigner: ATSS | None = None):
    cls_maps, box_maps, teacher, grid, instances = _inputs(arrays, case)
    scene = Scene.build(
        dense_of(cls_maps, box_maps),
        teacher,
        grid=grid,
        instances=instances,
        assigner=assigner or ATSS(),
        bins=Bins(),
    )
    return scene, (cls_maps, box_maps)


def _check_gradients(arrays, prefix: str, total: torch.Tensor, maps) -> None:
    grads = torch.autograd.grad(total, [*maps[0], *maps[1]])
    for i, grad in enumerate(grads):
        want = arrays[f"{prefix}/grad_{'cls' if i < 5 else 'box'}{i % 5}"]
        np.testing.assert_allclose(grad.numpy(), want, rtol=RTOL, atol=ATOL * max(1.0, float(np.abs(want).max())))


@pytest.mark.parametrize("case", CASES)
def test_ld_head_of_the_fork(golden, case):
    """Six terms with the published settings; images without objects crash the fork and are checked elsewhere."""
    arrays, want = golden("c_inputs"), golden("c_loss_fork")
    if f"{case}/gibox/loss_cls" not in want:
        assert case in ("empty1of2", "empty1")
        return
    scene, maps = _scene(arrays, case)
    terms = published_terms()
    total = torch.zeros(())
    for name, key in LOSSES.items():
        values = terms[name].per_location(scene)
        got = per_level(values, scene.grid)
        np.testing.assert_allclose(
            got.detach().numpy(), want[f"{case}/gibox/{key}"], rtol=RTOL, atol=ATOL, err_msg=name
        )
        total = total + values.sum()
    _check_gradients(want, f"{case}/gibox", total, maps)


@pytest.mark.parametrize("case", [*CASES, "ignore2@iof0.5"])
def test_ld_head_of_mmdet(golden, case):
    """Main LD only, images without objects included."""
    arrays, want = golden("c_inputs"), golden("c_loss_mmdet33")
    assigner = ATSS(ignore_iof=0.5) if "@" in case else ATSS()
    scene, maps = _scene(arrays, case.split("@")[0], assigner)
    terms = published_terms()
    total = torch.zeros(())
    for name in ("cls", "bbox", "dfl", "ld"):
        values = terms[name].per_location(scene)
        got = per_level(values, scene.grid).detach().numpy()
        np.testing.assert_allclose(got, want[f"{case}/LDHead/{LOSSES[name]}"], rtol=RTOL, atol=ATOL, err_msg=name)
        total = total + values.sum()
    np.testing.assert_allclose(float(total.detach()), want[f"{case}/LDHead/total"], rtol=RTOL)
    _check_gradients(want, f"{case}/LDHead", total, maps)


@pytest.mark.parametrize("case", CASES)
def test_targets(golden, case):
    arrays, want = golden("c_inputs"), golden("c_loss_fork")
    if f"{case}/targets/labels" not in want:
        assert case in ("empty1of2", "empty1")
        return
    scene, _ = _scene(arrays, case)
    got = scene.assignment
    labels = torch.where(got.positive, got.labels, 80).numpy()
    np.testing.assert_array_equal(labels, want[f"{case}/targets/labels"])
    np.testing.assert_array_equal(got.counted.float().numpy(), want[f"{case}/targets/label_weights"])
    np.testing.assert_array_equal(got.boxes.numpy(), want[f"{case}/targets/bbox_targets"])
    assert int(got.positive.sum(-1).clamp(min=1).sum()) == int(want[f"{case}/targets/num_total_pos"])
    np.testing.assert_allclose(
        ValuableLocations()(scene).numpy(), want[f"{case}/targets/vlr_region"], rtol=RTOL, atol=ATOL
    )


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        (case, "throff")
        for case in ("typical", "many", "one_small", "huge", "tiny", "nopos", "nested", "outside", "crowd", "crowd_all")
    ]
    + [("crowd", "thr0.5"), ("crowd_all", "thr0.5")],
)
def test_valuable_region(golden, case, rule):
    arrays, want = golden("b_assign"), golden("b_regions_fork")
    boxes = np.concatenate((arrays[f"{case}/gt_bboxes"], arrays[f"{case}/gt_ignore"].reshape(-1, 4)))
    count = len(arrays[f"{case}/gt_bboxes"])
    instances = instances_of([boxes], [np.zeros(len(boxes))], [(320, 416)])
    instances.present[:, count:] = False
    instances.ignored[:, count:] = True
    grid = Grid.build(((40, 52), (20, 26), (10, 13), (5, 7), (3, 4)), (8, 16, 32, 64, 128))
    empty = Dense(torch.zeros(1, 2777, 1), torch.zeros(1, 2777, 4, 17))
    assigner = ATSS(ignore_iof=None if rule == "throff" else 0.5)
    scene = Scene.build(empty, None, grid=grid, instances=instances, assigner=assigner, bins=Bins())
    got = ValuableLocations()(scene)[0].numpy()
    np.testing.assert_allclose(got, want[f"{case}/{rule}/vlr_region"], rtol=RTOL, atol=ATOL)


def test_objective_is_the_sum_of_its_terms(golden):
    arrays, want = golden("c_inputs"), golden("c_loss_mmdet33")
    cls_maps, box_maps, teacher, grid, instances = _inputs(arrays, "typical2")
    terms = {name: term for name, term in published_terms().items() if name in ("cls", "bbox", "dfl", "ld")}
    losses = Objective(terms=terms)(dense_of(cls_maps, box_maps), teacher, grid=grid, instances=instances)
    np.testing.assert_allclose(float(sum(losses.values())), want["typical2/LDHead/total"], rtol=RTOL)
