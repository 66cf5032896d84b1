"""Small vectors of the executed reference, kept in the repository so that a lone clone checks the formulas."""

from __future__ import annotations

import pytest
import torch

from locdistill.assign.atss import ATSS
from locdistill.distillation.regions import ValuableLocations
from locdistill.geometry.bins import Bins
from locdistill.geometry.boxes import paired_iof, paired_iou
from locdistill.losses.distribution import softened_kl
from locdistill.losses.overlap import overlap_loss
from locdistill.objective.scene import Scene
from tests.scenes import dense_of, grid_of, instances_of, per_level, published_terms, seq, wave_maps

pytestmark = pytest.mark.golden
GTS = [(30, 40, 150, 200), (160, 60, 300, 140), (20, 20, 60, 50)]
LABELS = [1, 3, 0]


def _scene(images: int = 1, extents: list[tuple[int, int]] | None = None) -> Scene:
    def maps(phase: float, channels: int, amplitude: float, shift: float = 0.0) -> list[torch.Tensor]:
        pages = [wave_maps(phase, channels, amplitude, image=i) for i in range(images)]
        return [torch.cat(levels) + shift for levels in zip(*pages, strict=True)]

    student = dense_of(maps(0.1, 4, 1.5, -2), maps(0.2, 68, 1.0))
    teacher = dense_of(maps(0.5, 4, 1.5, -2), maps(0.7, 68, 1.2))
    boxes, labels = [GTS, [(50, 30, 120, 110)]][:images], [LABELS, [2]][:images]
    instances = instances_of(boxes, labels, extents or [(256, 320)])
    grid = grid_of(maps(0.1, 1, 1.0))
    return Scene.build(student, teacher, grid=grid, instances=instances, assigner=ATSS(), bins=Bins())


def test_atss_positives_and_anchors():
    scene = _scene()
    anchors, gt_index = scene.grid.anchors(), scene.assignment.gt_index[0]
    assert anchors[0].tolist() == [-32, -32, 32, 32]
    assert anchors[1279].tolist() == [280, 216, 344, 280]
    want = {
        3: [124, 125, 164, 165, 166, 204, 205, 206, 245],
        2: [1394, 1395, 1413, 1414, 1415, 1416, 1433, 1434, 1435],
        1: [1406, 1425, 1426, 1427, 1445, 1446, 1447, 1465, 1466],
    }
    for slot, locations in want.items():
        assert (gt_index == slot - 1).nonzero().flatten().tolist() == locations
    assert int((gt_index >= 0).sum()) == 27


def test_valuable_region_of_the_published_code():
    scene = _scene()
    region = ValuableLocations()(scene)
    counts = per_level((region > 0).float(), scene.grid)
    assert counts.tolist() == [285, 139, 53, 0, 0]
    torch.testing.assert_close(
        per_level(region, scene.grid), torch.tensor([30.15005, 33.00660, 12.15921, 0, 0]), rtol=1e-5, atol=1e-5
    )
    both = per_level(((region > 0) & scene.assignment.positive).float(), scene.grid)
    assert both.tolist()[:3] == [4, 0, 0]


ONE_IMAGE = {
    "cls": (2.9316709, 0.72888237, 0.18392885, 0.045130078, 0.017453266),
    "bbox": (0.60009629, 1.0199144, 0, 0, 0),
    "dfl": (0.25761184, 0.51268518, 0, 0, 0),
    "ld": (0.0035506426, 0.0074654897, 0, 0, 0),
    "ld_vlr": (0.009198837, 0.010107412, 0.0026544025, 0, 0),
    "kd": (0.19072431, 0.18852206, 0, 0, 0),
}
TWO_IMAGES = {
    "cls": (3.9405458, 0.98605686, 0.24568051, 0.07046786, 0.024993824),
    "bbox": (0.77483869, 0.76123405, 0, 0, 0),
    "dfl": (0.39925206, 0.38265312, 0, 0, 0),
    "ld": (0.0071739289, 0.0074654897, 0, 0, 0),
    "ld_vlr": (0.01428585, 0.013778613, 0.0026544025, 0, 0),
    "kd": (0.1605363, 0.18852206, 0, 0, 0),
}


@pytest.mark.parametrize("name", ONE_IMAGE)
def test_published_losses_per_level(name):
    scene = _scene()
    got = per_level(published_terms()[name].per_location(scene), scene.grid)
    torch.testing.assert_close(got, torch.tensor(ONE_IMAGE[name]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TWO_IMAGES)
def test_published_losses_of_two_images_of_different_size(name):
    scene = _scene(2, [(256, 320), (224, 288)])
    assert int(scene.assignment.positive.sum(-1).clamp(min=1).sum()) == 36
    assert int((~scene.assignment.inside[1, :1280]).sum()) == 272
    got = per_level(published_terms()[name].per_location(scene), scene.grid)
    torch.testing.assert_close(got, torch.tensor(TWO_IMAGES[name]), rtol=1e-5, atol=1e-6)


def test_published_ld_grows_with_the_batch_and_ours_does_not():
    """The defect that the reference's author confirms: twice the images, twice the term (0.011016 -> 0.022032)."""
    scene = _scene()
    term = published_terms()["ld"]
    assert float(term(scene)) == pytest.approx(0.011016, rel=1e-4)


def test_softened_kl():
    values = softened_kl(seq((6, 17), 2, 0.37, 0.1), seq((6, 17), 2, 0.29, 0.5), temperature=10)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert float((values * weights).sum() / 4 * 0.25) == pytest.approx(0.0111952713, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("giou", (0.37333333, 1.6018519)),
        ("diou", (0.33410257, 1.2988889)),
        ("ciou", (0.33492708, 1.3005784)),
    ],
)
def test_overlap_losses(kind, want):
    boxes = torch.tensor([[1.0, 2, 11, 14], [0, 0, 5, 5]])
    targets = torch.tensor([[2.0, 1, 10, 16], [6, 6, 9, 12]])
    torch.testing.assert_close(overlap_loss(boxes, targets, kind=kind), torch.tensor(want), rtol=1e-6, atol=1e-6)


def test_iou_and_iof_of_an_anchor_in_a_large_object():
    anchor, box = torch.tensor([[100.0, 100, 164, 164]]), torch.tensor([[90.0, 95, 400, 300]])
    assert float(paired_iou(anchor, box)[0]) == pytest.approx(0.0644532, abs=1e-7)
    assert float(paired_iof(anchor, box)[0]) == 1.0
