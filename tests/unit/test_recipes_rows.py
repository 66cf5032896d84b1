"""The recipes that come with the package carry the published settings."""

from __future__ import annotations

import pytest

from locdistill.distillation.logits import ClassKL, EdgeKL
from locdistill.distillation.presets import supervised
from locdistill.distillation.regions import ValuableLocations
from locdistill.objective.normalisers import ImageLevelMean, PerImage
from locdistill.objective.regions import Positives
from locdistill.objective.term import Term
from locdistill.recipes.load import load_recipe, recipe_names
from locdistill.recipes.recipe import Recipe
from locdistill.recipes.summary import recipe_summaries

COCO_1X = {"gfl_r18_1x": 35.8, "gfl_r34_1x": 38.9, "gfl_r50_1x": 40.1, "gfl_r101_1x": None}
COCO_2X = {"gfl_r18_2x": None, "gfl_r34_2x": None, "gfl_r50_2x": 42.9, "gfl_r101_2x": 44.6}
# name: backbone, images per device of the published run, AP, AP of the student alone, main region only
LD = {
    "ld_r18_from_r101_main": ("resnet18.tv_in1k", 3, 36.5, 35.8, True),
    "ld_r34_from_r101_main": ("resnet34.tv_in1k", 3, 39.8, 38.9, True),
    "ld_r50_from_r101_main": ("resnet50.tv_in1k", 2, 41.1, 40.1, True),
    "ld_r18_from_r101": ("resnet18.tv_in1k", 3, 37.5, 35.8, False),
    "ld_r34_from_r101": ("resnet34.tv_in1k", 3, 41.0, 38.9, False),
    "ld_r50_from_r101": ("resnet50.tv_in1k", 2, 42.1, 40.1, False),
    "self_ld_r18": ("resnet18.tv_in1k", 3, 36.1, 35.8, True),
    "self_ld_r50": ("resnet50.tv_in1k", 2, 40.6, 40.1, True),
    "ld_r18_from_r101_voc_main": ("resnet18.tv_in1k", 3, 53.0, 51.8, True),
    "ld_r18_from_r101_voc": ("resnet18.tv_in1k", 3, 54.0, 51.8, False),
}


def terms(recipe: Recipe) -> dict[str, Term]:
    return {name: term.build() for name, term in recipe.terms.items()}


def test_there_is_a_recipe_for_each_row() -> None:
    assert set(recipe_names()) == {*COCO_1X, *COCO_2X, *LD, "gfl_r18_voc"}


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
    expected = supervised(overlap="ciou" if "voc" in name else "giou")
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
        expected["kd"] = Term(of=ClassKL(temperature=2.0), on=Positives(), norm=ImageLevelMean(), weight=10.0)
    assert terms(recipe) == expected


@pytest.mark.parametrize("name", ["gfl_r18_voc", "ld_r18_from_r101_voc", "ld_r18_from_r101_voc_main"])
def test_voc(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.engine.epochs, recipe.engine.milestones) == (4, (3,))
    assert (recipe.data.format, recipe.data.repeat, recipe.data.batch_per_device) == ("voc", 3, 3)
    assert recipe.data.sizes == ((1333, 800),)
    assert terms(recipe)["bbox"] == supervised(overlap="ciou")["bbox"]


def test_settings_of_the_teacher_must_be_completed() -> None:
    assert load_recipe("ld_r50_from_r101").teacher is not None
    assert load_recipe("ld_r50_from_r101", ["teacher.weights=runs/r101"]).teacher.weights == "runs/r101"  # type: ignore[union-attr]


def test_summaries_hold_what_the_list_prints() -> None:
    summaries = {summary["name"]: summary for summary in recipe_summaries()}
    assert set(summaries) == set(recipe_names())
    row = summaries["ld_r50_from_r101"]
    assert row["published_ap"] == 42.1
    assert row["terms"]["ld"] == {
        "divergence": {"edge_kl": {"temperature": 10.0}},
        "region": {"positives": {"by": "student_confidence"}},
        "normaliser": {"per_image": {"reference_batch": 2.0, "divisor": 1.0}},
        "weight": 0.25,
    }
    assert row["detector"] == {"model": "gfl", "backbone": "resnet50.tv_in1k"}
    assert row["schedule"]["epochs"] == 12
    assert summaries["gfl_r101_1x"]["published_ap"] is None
    assert summaries["gfl_r50_1x"]["teacher"] is None
