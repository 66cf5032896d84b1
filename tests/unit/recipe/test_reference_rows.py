"""Numbers and settings of the published rows, each against its source in the references' files."""

from __future__ import annotations

import re

import pytest
import torch

from locdistill.assign.atss import ATSS
from locdistill.distillation.imitation import FeatureL2
from locdistill.distillation.logits import ClassBinaryKL
from locdistill.distillation.methods import METHODS
from locdistill.distillation.presets import ld_full
from locdistill.geometry.bins import Bins
from locdistill.objective.normalisers import ImageLevelMean
from locdistill.objective.scene import Scene
from locdistill.objective.supervised import Overlap
from locdistill.objective.term import Term
from locdistill.recipe.load import load_recipe, recipe_names
from locdistill.types import Dense
from tests.scenes import grid_of_kind, instances_of
from tests.unit.cli.test_printed_commands import parsed

RECIPES = {name: load_recipe(name) for name in recipe_names()}
LARGER_IN_TRAINING = (
    *("gflv2_r101dcn_2x", "gflv2_r2n101dcn_2x", "gflv2_x101_64x4d_2x", "ld_gflv2_r101_from_r101dcn_2x"),
    *("ld_gflv2_x101dcn_from_r2n101dcn_2x", "self_ld_gflv2_r2n101dcn_2x", "self_ld_gflv2_r2n101dcn_2x_kd10"),
)


def test_everything_is_tested_at_1333_by_800() -> None:
    """HikariTJU/LD, configs/imv2 and configs/_base_/datasets: test pipelines have img_scale (1333, 800) throughout."""
    wider = {name for name, recipe in RECIPES.items() if max(min(size) for size in recipe.data.sizes) == 960}
    assert wider == set(LARGER_IN_TRAINING)
    for name, recipe in RECIPES.items():
        if not recipe.detector.rotated:
            assert (recipe.detector.input.long, recipe.detector.input.short) == (1333, 800), name


# Images of a published process. HikariTJU/LD: configs/ld/readme.md has a mini-batch of 6 on two GPUs for all rows of
# main LD, ResNet-50 among them; configs/ld/ld_r50_gflv1_r101_fpn_coco_1x.py, of the full loss, has samples_per_gpu 2.
IMAGES = {"ld_r50_from_r101_main": 3, "self_ld_r50": 3, "ld_r50_from_r101": 2, "ld_gi_r50_from_r101": 2}


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_a_published_process(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.data.batch_per_device == IMAGES[name]
    for term in ("ld", "ld_vlr"):
        if term in recipe.terms:
            assert recipe.terms[term].norm["per_image"]["reference_batch"] == IMAGES[name]  # type: ignore[index]


def test_box_losses_of_horizontal_gfl() -> None:
    """GIoU, except in the rows that were published after the configuration had CIoU.

    HikariTJU/LD: README at b1ba7549 (2021-02-13) has the VOC rows 51.8 to 58.4; 67020e66 (2021-11-18) puts CIoULoss
    into configs/gfl/gfl_r18_fpn1x_voc.py, configs/ld/ld_r18_gflv1_r101_fpn_voc_1x.py and
    configs/gfl/gfl_r50_fpn_1x_coco.py; 36aad9f5 (2021-12-16) adds 54.0 and 54.4. ld_r18_self_2x_3x_voc and
    im_r101_r18_voc have GIoULoss throughout, as have those of LD on COCO.
    """
    found = {
        name: recipe.terms["bbox"].build().of.kind
        for name, recipe in RECIPES.items()
        if isinstance(recipe.terms["bbox"].build().of, Overlap) and not recipe.detector.rotated
    }
    assert {name for name, kind in found.items() if kind == "ciou"} == {
        "ld_r18_from_r101_voc",
        "ld_gi_r18_from_r101_voc",
    }
    assert set(found.values()) == {"giou", "ciou"}


def test_deformable_stages() -> None:
    """HikariTJU/LD, configs/imv2/gflv2-x101_64x4d_2x_coco.py: stage_with_dcn (False, False, True, True)."""
    assert RECIPES["gflv2_x101_64x4d_2x"].detector.deformable == (3, 4)


def test_difficult_objects_of_jdet() -> None:
    """Jittor/JDet, python/jdet/data/devkits/convert_data_to_mmdet.py: 1 is ignored by no assigner, 2 is dropped."""
    jdet = [name for name in RECIPES if "jdet" in name]
    assert len(jdet) == 3
    assert {RECIPES[name].data.crowd for name in jdet} == {"background"}


# AP, AP50, AP75. HikariTJU/LD, README.md: LD for Lightweight Detectors, Self-LD, Logit Mimicking vs. Feature Imitation,
# PASCAL VOC; README of duzhixing/FRS for its row.
VAL = {
    "gfl_r18_1x": (35.8, 53.1, 38.2),
    "ld_r18_from_r101_main": (36.5, 52.9, 39.3),
    "gfl_r34_1x": (38.9, 56.6, 42.2),
    "ld_r34_from_r101_main": (39.8, 56.6, 43.1),
    "gfl_r50_1x": (40.1, 58.2, 43.1),
    "ld_r50_from_r101_main": (41.1, 58.7, 44.9),
    "gfl_r101_2x": (44.6, 62.9, 48.4),
    "ld_r101_from_r101dcn_2x_main": (45.4, 63.1, 49.5),
    "self_ld_r18": (36.1, 52.9, 38.5),
    "self_ld_r50": (40.6, 58.2, 43.8),
    "gfl_x101dcn_1x": (46.9, 65.4, 51.1),
    "self_ld_x101dcn": (47.5, 65.8, 51.8),
    "fitnets_r50_from_r101": (40.7, 58.6, 44.0),
    "inside_gt_r50_from_r101": (40.7, 58.6, 44.2),
    "main_region_r50_from_r101": (41.1, 58.7, 44.4),
    "fine_grained_r50_from_r101": (41.1, 58.8, 44.8),
    "defeat_r50_from_r101": (40.8, 58.6, 44.2),
    "gi_r50_from_r101": (41.5, 59.6, 45.2),
    "ld_r50_from_r101": (42.1, 60.3, 45.6),
    "gfl_r18_voc": (51.8, 75.8, 56.3),
    "ld_r18_from_r101_voc_main": (53.0, 75.9, 57.6),
    "gfl_r50_voc": (55.8, 79.0, 60.7),
    "ld_r50_from_r101_voc_main": (56.1, 78.5, 61.2),
    "gfl_r34_voc": (55.7, 78.9, 60.6),
    "ld_r34_from_r101dcn_voc_main": (56.7, 78.4, 62.1),
    "gfl_r101_voc_4epochs": (57.6, 80.4, 62.7),
    "ld_r101_from_r101dcn_voc_main": (58.4, 80.2, 63.7),
    "frs_r50_from_r101": (43.6, 61.9, 47.5),
}
# AP of small, medium and large objects, from the same tables.
BY_SIZE = {
    "gfl_r50_1x": (23.3, 44.4, 52.5),
    "fitnets_r50_from_r101": (23.7, 44.4, 53.2),
    "inside_gt_r50_from_r101": (23.1, 44.5, 53.5),
    "main_region_r50_from_r101": (24.1, 44.6, 53.6),
    "fine_grained_r50_from_r101": (23.3, 45.4, 53.1),
    "defeat_r50_from_r101": (24.3, 44.6, 53.7),
    "gi_r50_from_r101": (24.3, 45.7, 53.6),
    "ld_r50_from_r101": (24.5, 46.2, 54.8),
    "frs_r50_from_r101": (25.9, 47.7, 56.4),
}
# AP, AP50, AP75, AR100 of COCO test-dev. HikariTJU/LD, README.md, and of GFL v2 its version before 6c786ecd (of
# 2021-11-25); 41.1 is in the README of implus/GFocalV2, 47.1 and 50.5 under "Pretrained weights" of the first.
TEST_DEV = {
    "gfl_r18_1x": (36.0, 53.4, 38.7, 55.3),
    "ld_r18_from_r101_main": (36.8, 53.5, 39.9, 56.6),
    "gfl_r34_1x": (39.2, 56.9, 42.3, 58.0),
    "ld_r34_from_r101_main": (40.0, 57.1, 43.5, 59.3),
    "gfl_r50_1x": (40.5, 58.8, 43.9, 59.0),
    "ld_r50_from_r101_main": (41.2, 58.8, 44.7, 59.8),
    "gfl_r101_2x": (45.0, 63.6, 48.9, 62.3),
    "ld_r101_from_r101dcn_2x_main": (45.6, 63.7, 49.8, 63.3),
    "gflv2_r50_1x": (41.1, None, None, None),
    "gflv2_r50_2x": (44.4, 62.3, 48.5, 62.4),
    "gflv2_r101_2x": (46.0, 64.1, 50.2, 63.5),
    "gflv2_r101dcn_2x": (48.2, 66.6, 52.6, 64.4),
    "gflv2_r2n101dcn_2x": (50.5, 68.9, 55.1, 66.2),
    "self_ld_gflv2_r2n101dcn_2x": (51.0, 69.1, 55.9, 66.8),
    "ld_gflv2_r101_from_r101dcn_2x": (47.1, None, None, None),
    "ld_gflv2_x101dcn_from_r2n101dcn_2x": (50.5, None, None, None),
}


@pytest.mark.parametrize("name", VAL)
def test_numbers_of_the_tables(name: str) -> None:
    published = RECIPES[name].published
    assert published is not None
    assert (published.ap, published.ap50, published.ap75) == VAL[name]


def test_numbers_by_size_and_of_test_dev() -> None:
    published = {name: recipe.published for name, recipe in RECIPES.items() if recipe.published is not None}
    sizes = {name: (own.ap_small, own.ap_medium, own.ap_large) for name, own in published.items() if own.ap_small}
    assert sizes == BY_SIZE
    hidden = {name: own.test_dev for name, own in published.items() if own.test_dev is not None}
    assert {name: (own.ap, own.ap50, own.ap75, own.ar100) for name, own in hidden.items()} == TEST_DEV


def test_a_baseline_is_the_number_of_its_recipe() -> None:
    """Where the student of a row alone has a recipe that says so; the rows of other papers measured it anew (40.2)."""
    alone = {
        "self_ld_x101dcn": "gfl_x101dcn_1x",
        "ld_r101_from_r101dcn_voc_main": "gfl_r101_voc_4epochs",
        "ld_gflv2_r50_from_r101": "gflv2_r50_1x",
        "ld_r50_from_r101": "gfl_r50_1x",
    }
    for name, student in alone.items():
        both = RECIPES[name].published, RECIPES[student].published
        assert both[0] is not None
        assert both[1] is not None
        assert both[0].baseline == both[1].ap


# -- class distillation: the published mean is over a level's positives of all images of a process


def scene(images: int) -> Scene:
    rng = torch.Generator().manual_seed(0)
    grid = grid_of_kind("gfl", ((8, 8), (4, 4)))
    locations = len(grid.points)
    mine, its = (
        Dense(torch.randn(images, locations, 3, generator=rng), torch.randn(images, locations, 4, 17, generator=rng))
        for _ in range(2)
    )
    boxes = [[[4.0, 4, 60, 52]], [[8.0, 8, 40, 40], [20.0, 20, 50, 44]], []][:images]
    instances = instances_of(boxes, [[0] * len(own) for own in boxes], [(64, 64)] * images, slots=1)
    return Scene.build(mine, its, grid=grid, instances=instances, assigner=ATSS(), bins=Bins())


def published_class_distillation(scene: Scene) -> float:
    """HikariTJU/LD, ld_head.py: of each level 10 T^2 times the mean over positives and classes, levels added."""
    assert scene.teacher is not None
    mine, its = (dense.cls_logits / 2 for dense in (scene.student, scene.teacher))
    values = 4 * (its.softmax(-1) * (its.log_softmax(-1) - mine.log_softmax(-1))).mean(-1)
    positive = scene.assignment.positive
    total = 0.0
    for level in range(2):
        there = positive & (scene.grid.levels == level)
        total += float(values[there].mean()) if there.any() else 0.0
    return 10 * total


@pytest.mark.parametrize("images", [1, 2, 3])
def test_class_distillation_of_a_row_is_the_published_one(images: int) -> None:
    here = scene(images)
    assert scene(images).assignment.positive.any()
    published = published_class_distillation(here)
    assert float(RECIPES["ld_r50_from_r101"].terms["kd"].build()(here)) == pytest.approx(published, rel=1e-5)
    by_image = float(ld_full()["kd"](here))  # of the method by name, which no split of a batch changes
    assert (by_image == pytest.approx(published, rel=1e-5)) == (images == 1)


def test_every_row_with_class_distillation_has_the_published_mean() -> None:
    rows = [
        recipe.terms["kd"].norm for recipe in RECIPES.values() if "kd" in recipe.terms and not recipe.detector.rotated
    ]
    assert len(rows) >= 15
    assert all(norm == {"level_mean": {}} for norm in rows)


# -- feature richness: duzhixing/FRS, detectors/distill_frs_single.py and config/distill_frs


def test_feature_richness_is_weighted_by_the_teachers_scores() -> None:
    """Of each level the sum of the teacher's highest score times the squared distance, over the sum of those scores."""
    rng = torch.Generator().manual_seed(0)
    grid = grid_of_kind("gfl", ((2, 2),))
    student, teacher = (
        Dense(
            torch.randn(1, 4, 3, generator=rng),
            torch.zeros(1, 4, 4, 17),
            features=(torch.randn(1, 5, 2, 2, generator=rng),),
        )
        for _ in range(2)
    )
    instances = instances_of([[]], [[]], [(16, 16)], slots=1)
    here = Scene.build(student, teacher, grid=grid, instances=instances, assigner=ATSS(), bins=Bins())
    found = METHODS["frs"]("gfl")
    p, q = student.cls_logits.sigmoid(), teacher.cls_logits.sigmoid()
    mask = q.amax(-1)
    distance = (student.features[0] - teacher.features[0]).square().sum(1).flatten(1)
    # Published: channels are added, weight 0.1; here their mean over 256.
    features = 0.1 * 256 / 5 * float((distance * mask).sum() / mask.sum())
    assert float(found["frs_features"](here)) == pytest.approx(features, rel=1e-5)
    entropy = -(q * q.log() + (1 - q) * (1 - q).log())
    cross = -(q * p.log() + (1 - q) * (1 - p).log())
    classes = 0.05 * float(((cross - entropy).sum(-1) * mask).sum() / mask.sum())
    assert float(found["frs_classes"](here)) == pytest.approx(classes, rel=1e-4)


def test_weights_of_feature_richness() -> None:
    """RetinaNet's classes of a cell's nine anchors are added in the published loss."""
    published = {"gfl": (0.1, 0.05), "fcos": (0.01, 0.05), "retinanet": (0.005, 9 * 0.02)}
    for kind, (features, classes) in published.items():
        found = METHODS["frs"](kind)
        assert found["frs_features"].weight == pytest.approx(256 * features)
        assert found["frs_classes"].weight == pytest.approx(classes)


def test_binary_divergence_of_certain_scores_is_finite() -> None:
    student = torch.tensor([[[0.0, 2.0]]], requires_grad=True)
    teacher = torch.tensor([[[-torch.inf, 40.0]]])
    grid = grid_of_kind("gfl", ((1, 1),))
    both = [Dense(logits, torch.zeros(1, 1, 4, 17)) for logits in (student, teacher)]
    instances = instances_of([[]], [[]], [(8, 8)], slots=1)
    here = Scene.build(*both, grid=grid, instances=instances, assigner=ATSS(), bins=Bins())
    value = ClassBinaryKL()(here)
    expected = torch.log(torch.tensor(2.0)) + torch.log1p(torch.exp(torch.tensor(-2.0)))
    torch.testing.assert_close(value, expected.reshape(1, 1))
    (gradient,) = torch.autograd.grad(value.sum(), student)
    torch.testing.assert_close(gradient, torch.tensor([[[0.5, float(torch.sigmoid(torch.tensor(2.0))) - 1]]]))


def test_the_learned_convolution_of_feature_richness_sees_neighbours() -> None:
    rng = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 2, 4, 4, generator=rng)]
    dense = Dense(torch.zeros(1, 16, 1), torch.zeros(1, 16, 4, 17), features=tuple(maps))
    divergence = FeatureL2(adapt=True, kernel=3)
    own = divergence.parts(dense, dense)
    assert own is not None
    assert [tuple(weight.shape) for weight in own.parameters()] == [(2, 2, 3, 3), (2,)]
    with torch.no_grad():
        torch.nn.init.dirac_(own[0].weight)  # type: ignore[index]
        torch.nn.init.zeros_(own[0].bias)  # type: ignore[index]
    grid = grid_of_kind("gfl", ((4, 4),))
    instances = instances_of([[]], [[]], [(32, 32)], slots=1)
    here = Scene.build(dense, dense, grid=grid, instances=instances, assigner=ATSS(), bins=Bins())
    term = Term(of=divergence, on=METHODS["frs"]("gfl")["frs_features"].on, norm=ImageLevelMean())
    assert float(term(here, own).detach()) == pytest.approx(0, abs=1e-6)


# -- the input size outside training


@pytest.mark.parametrize("changes", [("data.sizes=[[640,512]]",), ("detector.depth=3", "data.sizes=[[640, 512]]")])
def test_sizes_that_are_changed_change_the_input_too(changes: tuple[str, ...]) -> None:
    """The size at which a recipe is tested belongs to its own sizes of training."""
    found = load_recipe("gflv2_r101dcn_2x", ("data.size_mode=value", *changes)).detector.input
    assert (found.long, found.short) == (640, 512)


@pytest.mark.parametrize("first", [True, False])
def test_an_input_that_is_given_stays(first: bool) -> None:
    both = ["detector.input.short=600", "data.sizes=[[640,512]]", "data.size_mode=value"]
    found = load_recipe("gflv2_r101dcn_2x", both if first else both[::-1]).detector.input
    assert (found.long, found.short, found.pad_to) == (640, 600, 32)


# -- teachers


def test_a_recipe_says_the_command_that_trains_its_teacher() -> None:
    """Behind its name: ``locdistill train RECIPE --data DATA --out RUN``, and then ``--teacher RUN``."""
    shapes = set()
    for name, recipe in RECIPES.items():
        if recipe.teacher is None:
            continue
        (command,) = re.findall(r"'(locdistill train [^']+)'", recipe.teacher.where)
        found = re.fullmatch(r"locdistill train (\w+) --data DATA( --epochs \d+)? --out (\S+)", command)
        assert found, name
        assert RECIPES[found[1]].teacher is None, name
        assert f"--teacher {found[3]}" in recipe.teacher.where, name
        shapes.add(command.replace(found[1], "gfl_r50_1x"))
    for command in shapes:
        verb, words = parsed(command.split()[1:])
        assert (verb, words["words"], words["data"]) == ("train", ["gfl_r50_1x"], "DATA")
