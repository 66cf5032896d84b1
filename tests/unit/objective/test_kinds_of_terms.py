"""Terms, regions and normalisers on scenes that can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from locdistill.assign.atss import ATSS, adaptive_thresholds
from locdistill.assign.fcos import FCOSPoints
from locdistill.assign.max_iou import MaxIoU
from locdistill.distillation.logits import ClassKL, EdgeKL
from locdistill.distillation.presets import ld_full, ld_main, ld_sharp, supervised
from locdistill.distillation.regions import ValuableLocations
from locdistill.errors import RecipeError
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.losses.centerness import centerness
from locdistill.losses.distribution import softened_kl
from locdistill.objective.normalisers import PerImage, PositiveCount
from locdistill.objective.objective import Objective
from locdistill.objective.regions import Counted, InsideBoxes, Positives
from locdistill.objective.scene import Scene
from locdistill.objective.supervised import Centerness, Focal
from locdistill.objective.term import Need
from locdistill.types import Dense, Instances
from tests.scenes import ASSIGNER_OF, instances_of

GRID = Grid.build(((4, 4),), (8,), offset=0.5)
BOX = [4.0, 2, 24, 14]  # holds the points (12, 4), (20, 4), (12, 12), (20, 12); (4, ...) lies on its edge
INSTANCES = instances_of([[BOX], []], [[1], []], [(32, 32), (32, 24)])


def _dense(cls: float = 0.0, quality: float | None = None, classes: int = 2) -> Dense:
    logits = None if quality is None else torch.full((2, 16), quality)
    return Dense(torch.full((2, 16, classes), cls), torch.zeros(2, 16, 4, 17), logits)


def _scene(student: Dense, teacher: Dense | None = None, instances: Instances = INSTANCES) -> Scene:
    return Scene.build(student, teacher, grid=GRID, instances=instances, assigner=FCOSPoints(radius=0.6), bins=Bins())


def test_centerness():
    distances = torch.tensor([[3.0, 5, 3, 5], [1, 2, 4, 2], [1, 3, 9, 27], [0, 4, 2, 4], [-1, 4, 2, 4], [0, 0, 0, 0]])
    torch.testing.assert_close(centerness(distances), torch.tensor([1, 0.5, 1 / 9, 0, 0, 0]))


def test_centerness_of_a_scene():
    """The centre is (14, 8): (12, 12) and (12, 4) lie within 0.6 strides of it; the edges are 8, 12, 2, 10 px off."""
    scene = _scene(_dense(quality=math.log(3)))
    assert scene.assignment.positive[0].nonzero().flatten().tolist() == [1, 5]
    want = math.sqrt(8 / 12 * 2 / 10)
    assert scene.centerness[0, [0, 1, 5]].tolist() == pytest.approx([0, want, want])
    torch.testing.assert_close(Positives(by="centerness")(scene), scene.centerness)
    loss = Centerness()(scene)[0, 1]  # probability 3/4
    assert float(loss) == pytest.approx(-want * math.log(0.75) - (1 - want) * math.log(0.25), rel=1e-5)
    assert not scene.centerness[1].any()


def test_centerness_is_not_limited_by_the_bins():
    """Seen from (12, 4) and (12, 12), edges are more than 16 strides away; clamped they would all be equal."""
    box = [-200.0, -180, 224, 196]
    scene = _scene(_dense(), instances=instances_of([[box], []], [[1], []], [(32, 32), (32, 24)]))
    want = math.sqrt(212 / 212 * 184 / 192)
    assert float(scene.centerness[0, 1]) == pytest.approx(want)


def test_focal():
    """At probability 1/2: 0.25 ln 2 / 4 for the object's class, 0.75 ln 2 / 4 for any other."""
    values = Focal()(_scene(_dense()))
    quarter = math.log(2) / 4
    assert float(values[0, 1]) == pytest.approx(quarter * (0.25 + 0.75))
    assert float(values[0, 0]) == pytest.approx(quarter * 1.5)
    sharp = Focal(gamma=0.0, alpha=0.5)(_scene(_dense()))
    assert float(sharp[0, 1]) == pytest.approx(math.log(2))


def test_inside_boxes():
    scene = _scene(_dense(cls=math.log(3)))
    region = InsideBoxes()(scene)
    assert region[0].nonzero().flatten().tolist() == [2, 6]
    assert region[0, 2] == 1
    assert not region[1].any()
    assert InsideBoxes(by="student_confidence")(scene)[0, [1, 2, 6]].tolist() == pytest.approx([0, 0.75, 0.75])
    crowd = INSTANCES._replace(present=INSTANCES.ignored, ignored=INSTANCES.present)
    assert not InsideBoxes()(_scene(_dense(), instances=crowd)).any()


def test_positive_count():
    """Two positives on the first image, none on the second."""
    scene = _scene(_dense())
    weights = Counted()(scene)
    assert PositiveCount()(weights, scene).tolist() == [[3]]
    assert PositiveCount(one_per_image=False)(weights, scene).tolist() == [[2]]
    empty = _scene(_dense(), instances=INSTANCES._replace(present=INSTANCES.ignored))
    assert PositiveCount()(weights, empty).tolist() == [[2]]
    assert PositiveCount(one_per_image=False)(weights, empty).tolist() == [[1]]


def test_class_distillation_compares_the_common_channels():
    """A background channel of either is left out; with equal channels all take part."""
    rng = torch.Generator().manual_seed(0)
    few, many = torch.randn(2, 16, 2, generator=rng), torch.randn(2, 16, 3, generator=rng)
    edges = torch.zeros(2, 16, 4, 17)
    want = softened_kl(few, many[..., :2], temperature=2.0)
    torch.testing.assert_close(ClassKL()(_scene(Dense(few, edges), Dense(many, edges))), want)
    back = softened_kl(many[..., :2], few, temperature=2.0)
    torch.testing.assert_close(ClassKL()(_scene(Dense(many, edges), Dense(few, edges))), back)
    whole = ClassKL()(_scene(Dense(many, edges), Dense(many.flip(-1), edges)))
    torch.testing.assert_close(whole, softened_kl(many, many.flip(-1), temperature=2.0))


def test_joint_edges():
    """One softmax over all four edges sees a constant added to a single one; the edges' own do not."""
    student, teacher = _dense(), _dense()
    teacher.edge_logits[:, :, 0] = 3.0
    scene = _scene(student, teacher)
    assert float(EdgeKL(temperature=1.0)(scene).abs().max()) < 1e-6
    # Teacher: probability e^3 / (17 (e^3 + 3)) in the first edge and 1 / (17 (e^3 + 3)) in the others; student: 1 / 68.
    first, rest = math.exp(3) / (math.exp(3) + 3), 3 / (math.exp(3) + 3)
    kl = first * math.log(4 * first) + rest * math.log(4 * rest / 3)
    torch.testing.assert_close(EdgeKL(temperature=1.0, joint=True)(scene), torch.full((2, 16), kl / 68))


def test_valuable_locations_with_thresholds_of_their_own():
    """The assigner's thresholds are infinite: nothing nearly reaches them."""
    grid = Grid.build(((8, 8), (4, 4)), (8, 16), anchor_scale=4.0, octaves=3, ratios=(0.5, 1.0, 2.0))
    instances = instances_of([[[10.0, 12, 40, 50], [30, 5, 60, 25]]], [[0, 1]], [(64, 64)])
    empty = Dense(torch.zeros(1, 720, 2), torch.zeros(1, 720, 4, 17))
    scene = Scene.build(empty, None, grid=grid, instances=instances, assigner=MaxIoU(), bins=Bins())
    assert not ValuableLocations()(scene).any()
    with_positives = ValuableLocations(threshold="adaptive")(scene)
    without = ValuableLocations(threshold="adaptive", positives=False)(scene)
    assert (with_positives[scene.assignment.positive] > 0).any()
    assert not without[scene.assignment.positive].any()
    ignored = scene.assignment.inside & ~scene.assignment.counted
    assert (without[ignored] > 0).any()  # neither positive nor background: these stay
    by_hand = replace(
        scene, assignment=scene.assignment._replace(thresholds=adaptive_thresholds(grid, instances, topk=9))
    )
    torch.testing.assert_close(ValuableLocations()(by_hand), with_positives)


def test_terms_that_the_detector_or_assigner_cannot_serve_are_refused():
    terms = supervised("atss") | ld_full("atss")
    with pytest.raises(RecipeError, match="terms centerness train a quality"):
        Objective(terms=supervised("atss"))(_dense(), grid=GRID, instances=INSTANCES)
    Objective(terms=supervised("atss"))(_dense(quality=0.0), grid=GRID, instances=INSTANCES)
    with pytest.raises(RecipeError, match=r"terms ld_vlr take each object's threshold .* FCOSPoints has none"):
        Objective(terms=terms, assigner=FCOSPoints())
    Objective(terms=terms, assigner=ATSS())
    for model in ("fcos", "retinanet"):
        Objective(terms=ld_full(model), assigner=MaxIoU())


WEIGHTS = {
    # main LD, beside the positives, their divisors, images per process; strength relative to a mean over four edges
    "gfl": (0.25, 0.25, 1, 4, 3),
    "gflv2": (0.25, 0.25, 1, 4, 3),
    "atss": (0.25, 0.25 * 0.15, 1, 1, 2),
    "fcos": (0.25, 0.25 * 0.25, 1, 1, 2),
    "retinanet": (5, 5 * 0.03, 16, 16, 2),
}


@pytest.mark.parametrize("model", ASSIGNER_OF)
def test_published_weights(model):
    main, beside, divisor, beside_divisor, images = WEIGHTS[model]
    terms = ld_full(model)
    assert (terms["ld"].weight, terms["ld_vlr"].weight) == pytest.approx((main, beside))
    assert terms["ld"].norm == PerImage(reference_batch=images, divisor=divisor)
    assert terms["ld_vlr"].norm == PerImage(reference_batch=images, divisor=beside_divisor)
    assert terms["kd"].of == ClassKL(temperature=8.0 if model == "retinanet" else 2.0)
    assert terms["ld"] == ld_main(model)["ld"]
    assert ld_full(model, weight=2 * main)["ld_vlr"].weight == pytest.approx(2 * beside)
    sharp = ld_sharp(model)
    assert set(sharp) == {"ld", "ld_vlr"}
    assert sharp["ld"].weight == pytest.approx(16 * main)
    assert sharp["ld_vlr"].weight == pytest.approx(16 * beside)
    assert sharp["ld"].of == sharp["ld_vlr"].of == EdgeKL(temperature=1.0)
    assert sharp["ld_vlr"].on == terms["ld_vlr"].on


def test_joint_distillation_of_retinanet_is_the_published_one():
    terms = ld_full("retinanet", joint=True)
    assert terms["ld"].of == EdgeKL(joint=True)
    assert terms["ld"].norm == PerImage(reference_batch=2, divisor=4)
    assert terms["ld_vlr"].norm == PerImage(reference_batch=2, divisor=4)


def test_needs():
    terms = supervised("atss") | ld_full("atss")
    assert terms["centerness"].needs == {Need.QUALITY, Need.DISTANCES}
    assert terms["ld_vlr"].needs == {Need.TEACHER, Need.LOCAL, Need.DISTRIBUTIONS, Need.THRESHOLDS}
    assert Need.THRESHOLDS not in ld_full("retinanet")["ld_vlr"].needs


def test_an_unknown_kind_is_named():
    for preset in (supervised, ld_main, ld_full, ld_sharp):
        with pytest.raises(
            ValueError, match="gfl, gflv2, atss, fcos, retinanet, rotated_gfl, rotated_retinanet; came 'yolo'"
        ):
            preset("yolo")
