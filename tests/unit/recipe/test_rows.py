"""The recipes that come with the package carry the published settings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from locdistill.assign.atss import ATSS
from locdistill.assign.max_iou import MaxIoU
from locdistill.distillation.compatible import check_teacher
from locdistill.distillation.imitation import (
    Everywhere,
    FeatureL2,
    FineGrained,
    GatedLevelMean,
    GeneralInstances,
    OutsideBoxes,
)
from locdistill.distillation.logits import ClassKL, EdgeKL
from locdistill.distillation.methods import METHODS
from locdistill.distillation.patterns import Correlation
from locdistill.distillation.presets import ld_full, ld_sharp, supervised
from locdistill.distillation.regions import ValuableLocations
from locdistill.evaluation.rotated import published_sum
from locdistill.evaluation.voc import VocResult
from locdistill.geometry.grid import Grid
from locdistill.losses.overlap import OverlapKind
from locdistill.models.kinds import KINDS
from locdistill.models.meaning import meaning_of
from locdistill.objective.normalisers import ImageLevelMean, LevelMean, Normaliser, PerImage, PositiveCount, WeightSum
from locdistill.objective.regions import Counted, Positives
from locdistill.objective.schedules import Linear
from locdistill.objective.supervised import Overlap, ValueL1
from locdistill.objective.term import Term
from locdistill.recipe.catalogue import published_aps, recipe_summary
from locdistill.recipe.load import load_recipe, recipe_names
from locdistill.recipe.recipe import Published, Recipe
from locdistill.recipe.terms import build_component
from locdistill.recipe.vocabulary import ASSIGNERS

COCO_1X = {"gfl_r18_1x": 35.8, "gfl_r34_1x": 38.9, "gfl_r50_1x": 40.1, "gfl_r101_1x": None}
COCO_2X = {"gfl_r18_2x": None, "gfl_r34_2x": None, "gfl_r50_2x": 42.9, "gfl_r101_2x": 44.6}
# name: backbone, images per device of the published run, AP, AP of the student alone, main region only
LD = {
    "ld_r18_from_r101_main": ("resnet18.tv_in1k", 3, 36.5, 35.8, True),
    "ld_r34_from_r101_main": ("resnet34.tv_in1k", 3, 39.8, 38.9, True),
    "ld_r50_from_r101_main": ("resnet50.tv_in1k", 3, 41.1, 40.1, True),
    "ld_r18_from_r101": ("resnet18.tv_in1k", 3, 37.5, 35.8, False),
    "ld_r34_from_r101": ("resnet34.tv_in1k", 3, 41.0, 38.9, False),
    "ld_r50_from_r101": ("resnet50.tv_in1k", 2, 42.1, 40.1, False),
    "self_ld_r18": ("resnet18.tv_in1k", 3, 36.1, 35.8, True),
    "self_ld_r50": ("resnet50.tv_in1k", 3, 40.6, 40.1, True),
    "ld_r18_from_r101_voc_main": ("resnet18.tv_in1k", 3, 53.0, 51.8, True),
    "ld_r18_from_r101_voc": ("resnet18.tv_in1k", 3, 54.0, 51.8, False),
}


def terms(recipe: Recipe) -> dict[str, Term]:
    return {name: term.build() for name, term in recipe.terms.items()}


def as_published(distilling: dict[str, Term]) -> dict[str, Term]:
    """Terms of LD, with class distillation over the images of a process."""
    return distilling | {"kd": replace(distilling["kd"], norm=LevelMean())}


# name: AP, AP of the student alone; None where the literature has no number
OTHERS: dict[str, tuple[float | None, float | None]] = {
    "gfl_r101dcn_2x": (47.1, None),
    "gfl_x101_2x": (45.9, None),
    "gfl_x101dcn_1x": (46.9, None),
    "gfl_x101dcn_2x": (48.1, None),
    "gfl_r18_voc": (51.8, None),
    "gfl_r34_voc": (55.7, None),
    "gfl_r50_voc": (55.8, None),
    "gfl_r101_voc": (None, None),
    "gfl_r101_voc_4epochs": (57.6, None),
    "gfl_r101dcn_voc": (None, None),
    "gflv2_r50_1x": (41.0, None),
    "gflv2_r50_2x": (43.9, None),
    "gflv2_r101_2x": (45.8, None),
    "gflv2_r101_voc": (None, None),
    "gflv2_r101dcn_2x": (48.0, None),
    "gflv2_r2n101dcn_2x": (49.9, None),
    "gflv2_x101dcn_1x": (None, None),
    "gflv2_x101_64x4d_2x": (None, None),
    "atss_r50_1x": (None, None),
    "atss_r101_2x": (None, None),
    "fcos_r50_1x": (None, None),
    "fcos_r101_2x": (None, None),
    "retinanet_r50_1x": (None, None),
    "retinanet_r101_2x": (None, None),
    "ld_r101_from_r101dcn_2x_main": (45.4, 44.6),
    "ld_r101_from_r101dcn_2x": (None, None),
    "ld_gi_r50_from_r101": (42.4, 40.1),
    "ld_fine_grained_r50_from_r101": (None, None),
    "self_ld_x101dcn": (47.5, 46.9),
    "ld_r34_from_r101dcn_voc_main": (56.7, 55.7),
    "ld_r50_from_r101_voc_main": (56.1, 55.8),
    "ld_r101_from_r101dcn_voc_main": (58.4, 57.6),
    "ld_gi_r18_from_r101_voc": (54.4, 51.8),
    "self_ld_r18_voc": (None, None),
    "ld_atss_r50_from_r101": (None, None),
    "ld_fcos_r50_from_r101": (None, None),
    "ld_retinanet_r50_from_r101": (None, None),
    "ld_retinanet_r50_from_r101_joint": (None, None),
    "ld_gflv2_r50_from_r101": (42.7, 41.0),
    "ld_gflv2_r50_from_r101_no_dfl": (None, None),
    "ld_gflv2_r101_from_r101dcn_2x": (47.1, 46.0),
    "ld_gflv2_r101_from_r2n101dcn_2x": (None, None),
    "ld_gflv2_x101dcn_from_r2n101dcn_2x": (50.5, 49.0),
    "self_ld_gflv2_r2n101dcn_2x": (51.0, 50.5),
    "self_ld_gflv2_r2n101dcn_2x_kd10": (None, None),
    "ld_gflv2_r18_from_r101_voc": (None, None),
    "fitnets_r18_from_r101": (None, None),
    "fitnets_r50_from_r101": (40.7, 40.1),
    "fitnets_r18_from_r101_voc": (None, None),
    "inside_gt_r50_from_r101": (40.7, 40.1),
    "main_region_r50_from_r101": (41.1, 40.1),
    "fine_grained_r50_from_r101": (41.1, 40.1),
    "defeat_r50_from_r101": (40.8, 40.1),
    "gi_r50_from_r101": (41.5, 40.1),
    "frs_r50_from_r101": (43.6, 40.2),
    "pkd_r50_from_r101": (None, None),
    "ld_pkd_r50_from_r101": (None, None),
    "bckd_r50_from_r101": (43.2, 40.1),
    "crosskd_r50_from_r101": (43.7, 40.2),
    "crosskd_pkd_r50_from_r101": (43.9, 40.2),
    "cwd_r50_from_r101": (41.9, 40.2),
    "mgd_r50_from_r101": (None, None),
    "fgd_r50_from_r101": (43.5, 40.2),
    "dist_r50_from_r101": (None, None),
}
# Rows of methods: the recipe, its methods, and the normaliser of the published row where a batch's split changes it.
METHOD_ROWS: dict[str, tuple[tuple[str, ...], Normaliser | None]] = {
    **{f"{name}_r50_from_r101": ((name,), GatedLevelMean()) for name in ("inside_gt", "main_region", "fine_grained")},
    **{f"{name}_r50_from_r101": ((name,), None) for name in ("pkd", "cwd", "mgd", "fgd", "dist")},
    "bckd_r50_from_r101": (("bckd",), PositiveCount()),
    "defeat_r50_from_r101": (("defeat",), GatedLevelMean()),
    "gi_r50_from_r101": (("gi",), GatedLevelMean()),
}
# Rotated boxes, reported and corrected: AP, AP50, AP alone, AP corrected, AP alone corrected; None where there is none
ROTATED: dict[str, tuple[float | None, float | None, float | None, float | None, float | None]] = {
    "rotated_retinanet_gwd_r18_1x": (37.1, 63.1, None, 34.6, None),
    "rotated_retinanet_kld_r18_1x": (33.7, 58.0, None, 31.5, None),
    "rotated_ld_gwd_r18_from_r34": (40.2, 66.4, 37.1, 37.5, 34.6),
    "rotated_ld_kld_r18_from_r34": (39.1, 63.8, 33.7, 36.5, 31.5),
    "rotated_retinanet_jdet_r18_1x": (None, 68.5, None, None, None),
    "rotated_ld_jdet_r18_from_r50": (None, 69.8, None, None, None),
    **dict.fromkeys(
        (
            *("rotated_retinanet_gwd_r34_2x", "rotated_retinanet_gwd_r50_2x", "rotated_retinanet_kld_r34_2x"),
            *("rotated_ld_gwd_r18_from_r50", "rotated_retinanet_jdet_r50_1x"),
            *("rotated_gfl_r18_1x", "rotated_gfl_r50_2x", "rotated_ld_gfl_r18_from_r50"),
        ),
        (None, None, None, None, None),
    ),
}
# Published terms of the other heads: name, kind, one softmax over all edges
HEADS = (
    ("ld_atss_r50_from_r101", "atss", False),
    ("ld_fcos_r50_from_r101", "fcos", False),
    ("ld_retinanet_r50_from_r101", "retinanet", False),
    ("ld_retinanet_r50_from_r101_joint", "retinanet", True),
)


@pytest.mark.parametrize("name", METHOD_ROWS)
def test_rows_of_methods(name: str) -> None:
    """A row has the terms of its methods by name, in the published normalisation."""
    methods, norm = METHOD_ROWS[name]
    expected = supervised() | {key: term for method in methods for key, term in METHODS[method]("gfl").items()}
    for key, term in expected.items():
        if term.needs_teacher and norm is not None:
            expected[key] = replace(term, norm=norm)
    if name == "gi_r50_from_r101":
        expected["gi"] = replace(expected["gi"], on=GeneralInstances(per="batch"))
    if name == "defeat_r50_from_r101":
        expected["defeat_background"] = replace(expected["defeat_background"], on=OutsideBoxes(padding=True))
    assert terms(load_recipe(name)) == expected


def test_rows_of_combined_methods() -> None:
    crossed = METHODS["crosskd"]("gfl")
    expected = supervised() | {
        "cross_cls": replace(crossed["cross_cls"], norm=PositiveCount()),
        "cross_edges": replace(crossed["cross_edges"], norm=WeightSum()),
    }
    assert terms(load_recipe("crosskd_r50_from_r101")) == expected
    pkd = replace(METHODS["pkd"]("gfl")["pkd"], of=Correlation(per="batch"), on=Everywhere(padding=True))
    assert terms(load_recipe("crosskd_pkd_r50_from_r101")) == expected | {"pkd": pkd}
    assert terms(load_recipe("ld_pkd_r50_from_r101")) == terms(load_recipe("ld_r50_from_r101")) | METHODS["pkd"]("gfl")


def test_the_row_of_feature_richness() -> None:
    """Over the images of a process, with the learned convolutions and the growth of the published configuration."""
    grows = Linear(first=0, last=1, end=0.0057)
    expected = {name: replace(term, norm=LevelMean(), schedule=grows) for name, term in METHODS["frs"]("gfl").items()}
    expected["frs_features"] = replace(expected["frs_features"], of=FeatureL2(adapt=True, kernel=3))
    assert terms(load_recipe("frs_r50_from_r101")) == supervised() | expected


def test_every_method_has_a_row() -> None:
    shown = {method for methods, _ in METHOD_ROWS.values() for method in methods} | {
        "ld",
        "kd",
        "fitnets",
        "crosskd",
        "frs",
    }
    assert shown == set(METHODS)


def test_there_is_a_recipe_for_each_row() -> None:
    assert set(recipe_names()) == {*COCO_1X, *COCO_2X, *LD, *OTHERS, *ROTATED}


@pytest.mark.parametrize("name", OTHERS)
def test_published_numbers(name: str) -> None:
    recipe, (ap, alone) = load_recipe(name), OTHERS[name]
    published = recipe.published
    assert (published.ap if published else None, published.baseline if published else None) == (ap, alone)
    assert published is None or published.source
    assert published is not None or "no published number is known" in recipe.description
    assert (recipe.teacher is None) == ("_from_" not in name and not name.startswith("self_"))


@pytest.mark.parametrize("kind", ["gflv2", "atss", "fcos", "retinanet"])
def test_losses_of_other_kinds(kind: str) -> None:
    assert terms(load_recipe(f"{kind}_r50_1x")) == supervised(kind)


@pytest.mark.parametrize(("name", "kind", "joint"), HEADS)
def test_distillation_of_other_kinds(name: str, kind: str, joint: bool) -> None:
    recipe = load_recipe(name)
    assert terms(recipe) == supervised(kind) | as_published(ld_full(kind, joint=joint))
    assert build_component("assigner", recipe.assigner) == ASSIGNERS[KINDS[kind].assigner]()


def test_imitation_of_the_published_rows() -> None:
    found = terms(load_recipe("ld_gflv2_x101dcn_from_r2n101dcn_2x"))
    plain = supervised("gflv2") | as_published(ld_full("gflv2", reference_batch=2, kd_weight=5))
    instances = GeneralInstances(top=10, nms_iou=0.3, per="batch")
    im = Term(of=FeatureL2(), on=instances, norm=GatedLevelMean(), weight=1.0)
    assert found == {name: term for name, term in plain.items() if name != "dfl"} | {"im": im}
    whole = terms(load_recipe("fitnets_r50_from_r101"))
    assert set(whole) == {"cls", "bbox", "im"}
    assert (whole["im"].on, whole["im"].weight) == (Everywhere(padding=True), 2.0)


@pytest.mark.parametrize(
    ("name", "backbone", "deformable"),
    [
        ("gfl_x101dcn_2x", "resnext101_32x4d.gluon_in1k", (3, 4)),
        ("ld_gflv2_r101_from_r101dcn_2x", "resnet101.tv_in1k", ()),
        ("gflv2_r2n101dcn_2x", "res2net101d.in1k", (3, 4)),
        ("gfl_r101dcn_2x", "resnet101.tv_in1k", (2, 3, 4)),
    ],
)
def test_backbones(name: str, backbone: str, deformable: tuple[int, ...]) -> None:
    detector = load_recipe(name).detector
    assert (detector.backbone, detector.deformable) == (backbone, deformable)


@pytest.mark.parametrize("name", [*COCO_1X, *COCO_2X])
def test_baselines(name: str) -> None:
    recipe, ap = load_recipe(name), (COCO_1X | COCO_2X)[name]
    assert recipe.teacher is None
    assert recipe.detector.backbone == f"resnet{name.split('_')[1][1:]}.tv_in1k"
    assert (recipe.published.ap if recipe.published else None) == ap
    assert terms(recipe) == supervised()
    engine, data = recipe.engine, recipe.data
    assert (engine.optimizer, engine.lr, engine.momentum, engine.weight_decay) == ("sgd", 0.01, 0.9, 1e-4)
    assert (engine.warmup_steps, engine.warmup_ratio, engine.schedule, engine.gamma) == (500, 0.001, "step", 0.1)
    assert engine.scale_lr
    assert engine.norm_bias_decay
    if name in COCO_1X:
        assert (engine.epochs, engine.milestones) == (12, (8, 11))
        assert (data.sizes, data.size_mode) == (((1333, 800),), "value")
    else:
        assert (engine.epochs, engine.milestones) == (24, (16, 22))
        assert (data.sizes, data.size_mode) == (((1333, 480), (1333, 800)), "range")
    assert data.flip == 0.5
    assert data.repeat == 1


@pytest.mark.parametrize("name", LD)
def test_distillation(name: str) -> None:
    backbone, batch, ap, alone, main_only = LD[name]
    recipe = load_recipe(name)
    assert recipe.detector.backbone == backbone
    assert recipe.data.batch_per_device == batch
    assert recipe.teacher is not None
    assert recipe.teacher.where
    assert recipe.published is not None
    assert (recipe.published.ap, recipe.published.baseline) == (ap, alone)
    assert recipe.published.source
    expected = supervised(overlap="ciou" if name == "ld_r18_from_r101_voc" else "giou")
    expected["ld"] = Term(
        of=EdgeKL(temperature=10.0),
        on=Positives(by="student_confidence"),
        norm=PerImage(reference_batch=batch, divisor=1.0),
        weight=0.25,
    )
    if not main_only:
        expected["ld_vlr"] = Term(
            of=EdgeKL(temperature=10.0),
            on=ValuableLocations(gamma=0.25, metric="iof_diou", by="iou"),
            norm=PerImage(reference_batch=batch, divisor=4.0),
            weight=0.25,
        )
        expected["kd"] = Term(of=ClassKL(temperature=2.0), on=Positives(), norm=LevelMean(), weight=10.0)
    assert terms(recipe) == expected


@pytest.mark.parametrize("name", ["gfl_r18_voc", "ld_r18_from_r101_voc", "ld_r18_from_r101_voc_main"])
def test_voc(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.engine.epochs, recipe.engine.milestones) == (4, (3,))
    assert (recipe.data.format, recipe.data.repeat, recipe.data.batch_per_device) == ("voc", 3, 3)
    assert recipe.data.sizes == ((1333, 800),)
    overlap: OverlapKind = "ciou" if name == "ld_r18_from_r101_voc" else "giou"
    assert terms(recipe)["bbox"] == supervised(overlap=overlap)["bbox"]


def test_settings_of_the_teacher_must_be_completed() -> None:
    assert load_recipe("ld_r50_from_r101").teacher is not None
    assert load_recipe("ld_r50_from_r101", ["teacher.weights=runs/r101"]).teacher.weights == "runs/r101"  # type: ignore[union-attr]


def test_summaries_hold_what_the_list_prints() -> None:
    summaries = {name: recipe_summary(load_recipe(name)) for name in recipe_names()}
    assert set(summaries) == set(recipe_names())
    row = summaries["ld_r50_from_r101"]
    assert row["published_ap"] == 42.1
    assert row["terms"]["ld"] == {
        "divergence": "edge_kl",
        "region": {"positives": {"by": "student_confidence"}},
        "normaliser": {"per_image": {"reference_batch": 2.0}},
        "weight": 0.25,
    }
    assert row["detector"] == {"model": "gfl", "backbone": "resnet50.tv_in1k"}
    assert row["schedule"]["epochs"] == 12
    assert summaries["gfl_r101_1x"]["published_ap"] is None
    assert summaries["gfl_r50_1x"]["teacher"] is None


def test_a_summary_says_schedule_and_balance() -> None:
    changes = ("terms.kd.schedule={linear: {start: 0.5}}", "terms.ld.balance=0.5", "terms.ld.of.edge_kl.temperature=1")
    found = recipe_summary(load_recipe("ld_r50_from_r101", changes))["terms"]
    assert found["kd"]["schedule"] == {"linear": {"start": 0.5}}
    assert "balance" not in found["kd"]
    assert found["ld"]["divergence"] == {"edge_kl": {"temperature": 1.0}}
    assert found["ld"]["balance"] == 0.5
    assert "schedule" not in found["ld"]


# -- rotated boxes


def rotated_names(word: str) -> list[str]:
    return [name for name in ROTATED if word in name]


@pytest.mark.parametrize("name", ROTATED)
def test_published_numbers_of_rotated_boxes(name: str) -> None:
    recipe = load_recipe(name)
    published = recipe.published
    found = published or Published()
    assert (found.ap, found.ap50, found.baseline, found.corrected, found.corrected_baseline) == ROTATED[name]
    assert published is None or "DOTA-v1.0 train to val" in published.source
    assert (recipe.teacher is None) == ("_from_" not in name)
    assert published is not None or recipe.teacher is None or "no published number is known" in recipe.description


def corrected(reported: float, at_95: float) -> float:
    """AP of which the published evaluator makes another: its sum is not reset, ``r_t = true_t + r_(t-1) / 15``."""
    return reported - (10 * reported - at_95) / 150


def numbers() -> Iterator[tuple[str, float, float, float]]:
    """Reported AP, the corrected one, and the reported AP at 0.9, which stands in the note."""
    for name, (ap, _, _, better, _) in ROTATED.items():
        published = load_recipe(name).published
        if ap is not None and better is not None and published is not None:
            (at_90,) = re.findall(r"AP90 (\d+\.\d)", published.note)
            yield name, ap, better, float(at_90)


def test_corrected_numbers_follow_from_those_reported() -> None:
    """To the last digit that is printed, whatever is reported at 0.95, which is not known but below that at 0.9."""
    rows = list(numbers())
    assert [name for name, *_ in rows] == [name for name in ROTATED if ROTATED[name][3] is not None]
    for name, ap, better, at_90 in rows:
        for at_95 in (0.0, at_90):
            assert abs(corrected(ap, at_95) - better) < 0.1, name
    alone = {ROTATED[name][0]: ROTATED[name][3] for name in rotated_names("1x")}
    for name in ("rotated_ld_gwd_r18_from_r34", "rotated_ld_kld_r18_from_r34"):
        _, _, before, _, before_corrected = ROTATED[name]
        assert alone[before] == before_corrected


def test_the_correction_undoes_the_published_sum() -> None:
    """Of curves as any, through our own imitation of that evaluator."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        ap = np.sort(rng.random((10, 15)), 0)[::-1]
        result = VocResult(("x",) * 15, ap, ap, np.ones(15, np.int64), np.ones(15, np.int64), eleven_point=True)
        said = published_sum(result)
        assert said["AP"] is not None
        assert said["AP95"] is not None
        assert corrected(said["AP"], said["AP95"]) == pytest.approx(ap.mean(), abs=1e-12)


@pytest.mark.parametrize("name", ROTATED)
def test_detectors_of_rotated_boxes(name: str) -> None:
    detector, ours, jdet = load_recipe(name).detector, "_gfl_" in name, "jdet" in name
    student = re.search(r"_r(18|34|50)_", name)
    assert student is not None
    assert detector.backbone == f"resnet{student[1]}.tv_in1k"
    assert (detector.frozen_stages, detector.norm_eval, detector.norm_frozen) == (1, True, False)
    assert (detector.channels, detector.depth, detector.levels) == (256, 4, (3, 4, 5, 6, 7))
    found = detector.detections
    assert (found.score_threshold, found.candidates, found.nms, found.nms_iou) == (0.05, 2000, "plain", 0.1)
    assert found.max_detections == 2000
    if ours:
        assert (detector.model, detector.reg_max, detector.norm_groups) == ("rotated_gfl", 16, 32)
        assert (detector.angles, detector.angle_bins, detector.anchor_scale) == ("le135", "circular", 8.0)
        return
    assert (detector.model, detector.reg_max, detector.norm_groups) == ("rotated_retinanet", 8, 0)
    assert detector.angle_bins == "linear"
    assert (detector.angles, detector.predictor) == (("le135", 1) if jdet else ("oc", 3))
    assert detector.angle_unit == (math.pi if jdet else 1.0)
    coding, bins = meaning_of(detector)
    expected = torch.stack([*4 * [torch.linspace(-2, 2, 9)], torch.linspace(-5, 2, 9)])
    torch.testing.assert_close(bins.positions(expected), expected)
    assert coding.names == ("dx", "dy", "dw", "dh", "angle")


def test_anchors_of_the_published_rotated_retinanet() -> None:
    """Ratio by ratio, square ones first, and of each ratio three sizes from four strides up; in the cell's corner."""
    recipe = load_recipe("rotated_retinanet_gwd_r18_1x")
    kind = KINDS[recipe.detector.model]
    grid = Grid.build(
        ((2, 3),),
        (8,),
        anchor_scale=recipe.detector.anchor_scale,
        offset=kind.offset,
        octaves=kind.octaves,
        ratios=kind.ratios,
    )
    sides = [
        (4 * 2 ** (octave / 3) / ratio**0.5, 4 * 2 ** (octave / 3) * ratio**0.5)
        for ratio in (1.0, 0.5, 2.0)
        for octave in range(3)
    ]
    torch.testing.assert_close(grid.anchor_shapes, torch.tensor(sides))
    assert grid.points[::9].tolist() == [[8 * x, 8 * y] for y in range(2) for x in range(3)]


@pytest.mark.parametrize("name", ROTATED)
def test_schedules_of_rotated_boxes(name: str) -> None:
    recipe = load_recipe(name)
    engine, data = recipe.engine, recipe.data
    assert (engine.optimizer, engine.momentum, engine.weight_decay, engine.clip_norm) == ("sgd", 0.9, 1e-4, 35)
    assert engine.scale_lr
    assert engine.lr * 2 / 16 == 0.0025  # 2 images
    assert (engine.schedule, engine.gamma, engine.warmup_steps, engine.warmup_ratio) == ("step", 0.1, 500, 1 / 3)
    milestones = (7, 10) if "jdet" in name else (16, 22) if "2x" in name else (8, 11)
    assert (engine.epochs, engine.milestones) == (24 if "2x" in name else 12, milestones)
    assert (data.sizes, data.pad_to, data.filter_empty) == (((1024, 1024),), 32, True)
    # Each half of the time, which gives a quarter each of none, one, the other, and both.
    assert (data.flip, data.flip_vertical, data.turns, data.rotate) == (0.5, 0.5, False, 0)
    assert data.batch_per_device == (2 if "jdet" in name else 1)
    assert data.crowd == ("ignore" if "_gfl_" in name else "background" if "jdet" in name else "objects")
    assert data.min_box_side == (1 if "_gfl_" in name or "jdet" in name else 2)
    assert (recipe.detector.input.short, recipe.detector.input.long) == (1024, 1024)
    box = "own" if "jdet" in name else "circumscribed"
    expected = ATSS() if "_gfl_" in name else MaxIoU(positive=0.5, negative=0.4, box=box)  # type: ignore[arg-type]
    assert build_component("assigner", recipe.assigner) == expected


def published_loss(kind: OverlapKind) -> dict[str, Term]:
    """Focal loss and the distance of Gaussians: GWD over all positives, KLD the mean of each level."""
    by_level = {"gwd": (PositiveCount(), 5.0), "kld": (ImageLevelMean(), 1.0)}
    norm, weight = by_level[kind]
    box = Term(of=Overlap(kind=kind), on=Positives(), norm=norm, weight=weight)
    return {"cls": supervised("rotated_retinanet")["cls"], "bbox": box}


def published_distillation(ld: float, kd: float) -> dict[str, Term]:
    """One region for both, without an upper bound, by IoU with angles forgotten; means over its locations.

    The five variables are summed there, and here their mean is taken: five times the published weight.
    """
    where = ValuableLocations(
        gamma=0.25, metric="iou", by="iou", threshold="adaptive", topk=9, ring=False, positives=True, box="unturned"
    )
    mean = ImageLevelMean(over="locations")
    return {
        "ld": Term(of=EdgeKL(temperature=5.0), on=where, norm=mean, weight=5 * ld),
        "kd": Term(of=ClassKL(temperature=5.0), on=where, norm=mean, weight=kd),
    }


def test_losses_of_rotated_boxes() -> None:
    for kind in ("gwd", "kld"):
        for name in rotated_names(f"rotated_retinanet_{kind}"):
            assert terms(load_recipe(name)) == published_loss(kind)  # type: ignore[arg-type]
    for name in rotated_names("rotated_gfl"):
        assert terms(load_recipe(name)) == supervised("rotated_gfl")
    plain = Term(of=ValueL1(), on=Positives(), norm=PositiveCount(), weight=1.0)
    for name in rotated_names("rotated_retinanet_jdet"):
        assert terms(load_recipe(name)) == published_loss("gwd") | {"bbox": plain}


@pytest.mark.parametrize(
    ("name", "kind", "ld", "kd"),
    [
        ("rotated_ld_gwd_r18_from_r34", "gwd", 10, 20),
        ("rotated_ld_gwd_r18_from_r50", "gwd", 30, 30),
        ("rotated_ld_kld_r18_from_r34", "kld", 15, 15),
    ],
)
def test_distillation_of_rotated_boxes(name: str, kind: OverlapKind, ld: float, kd: float) -> None:
    expected = published_loss(kind) | published_distillation(ld, kd)
    if "r50" in name:
        expected["im"] = Term(of=FeatureL2(), on=FineGrained(part=0.5), norm=ImageLevelMean(), weight=2.0)
    recipe = load_recipe(name)
    assert terms(recipe) == expected
    assert recipe.teacher is not None
    assert f"rotated_retinanet_{kind}_{name[-3:]}_2x" in recipe.teacher.where


def test_distillation_of_jdet() -> None:
    """At positives, means of all elements: there the weight is as published."""
    expected = terms(load_recipe("rotated_retinanet_jdet_r18_1x")) | {
        "ld": Term(of=EdgeKL(temperature=10.0), on=Positives(), norm=LevelMean(), weight=10.0),
        "kd": Term(of=ClassKL(temperature=2.0), on=Counted(), norm=LevelMean(), weight=10.0),
    }
    assert terms(load_recipe("rotated_ld_jdet_r18_from_r50")) == expected


def test_distillation_of_our_own_rotated_boxes() -> None:
    recipe = load_recipe("rotated_ld_gfl_r18_from_r50")
    assert terms(recipe) == supervised("rotated_gfl") | ld_sharp("rotated_gfl")


@pytest.mark.parametrize("name", rotated_names("_from_"))
def test_teachers_of_rotated_recipes_go_with_their_students(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.teacher is not None
    named = re.search(r"locdistill train (\w+)", recipe.teacher.where)
    assert named is not None
    teacher = load_recipe(named[1])
    assert teacher.teacher is None
    assert f"_{name[-3:]}_" in teacher.name
    both = (r.detector.model_copy(update={"classes": ("a",)}) for r in (recipe, teacher))
    assert check_teacher(*both, where="t").steps == ()


def test_published_numbers_in_words() -> None:
    rows = {name: published_aps(recipe_summary(load_recipe(name))["published"]) for name in ROTATED}
    assert rows["rotated_ld_gwd_r18_from_r34"] == ("40.2 (37.5)", "37.1 (34.6)")
    assert rows["rotated_retinanet_kld_r18_1x"] == ("33.7 (31.5)", "")
    assert rows["rotated_ld_jdet_r18_from_r50"] == ("AP50 69.8", "AP50 68.5")
    assert rows["rotated_retinanet_jdet_r18_1x"] == ("AP50 68.5", "")
    assert rows["rotated_gfl_r18_1x"] == ("", "")
    assert published_aps(recipe_summary(load_recipe("ld_r50_from_r101"))["published"]) == ("42.1", "40.1")
    assert recipe_summary(load_recipe("rotated_ld_jdet_r18_from_r50"))["published_ap"] is None
