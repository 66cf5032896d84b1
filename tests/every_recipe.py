"""What every recipe has to do: train three steps on photographs, stop in between, go on, and evaluate.

`make test` trains the recipes of `TRAINED`, with networks of few channels, and stops those of `STOPPED`; the long
tests train every recipe as it is (of those that share student and teacher, and differ in their terms, the first).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from locdistill.engine.log import read_metrics
from locdistill.engine.module import Losses, TrainingModule
from locdistill.errors import TeacherError
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.recipe.load import load_recipe, recipe_names
from locdistill.recipe.recipe import Recipe
from locdistill.training.train import run
from locdistill.types import Batch

STEPS = 3
TRAINED = (
    "atss_r50_1x",
    "bckd_r50_from_r101",
    "crosskd_pkd_r50_from_r101",
    "cwd_r50_from_r101",
    "defeat_r50_from_r101",
    "dist_r50_from_r101",
    "fcos_r50_1x",
    "fgd_r50_from_r101",
    "fine_grained_r50_from_r101",
    "frs_r50_from_r101",
    "fitnets_r18_from_r101",
    "gfl_r101dcn_2x",
    "gfl_r18_1x",
    "gfl_x101_2x",
    "gfl_x101dcn_2x",
    "gflv2_r101dcn_2x",
    "gflv2_r2n101dcn_2x",
    "gflv2_r50_1x",
    "gflv2_x101_64x4d_2x",
    "gflv2_x101dcn_1x",
    "ld_atss_r50_from_r101",
    "ld_fcos_r50_from_r101",
    "ld_gflv2_r101_from_r101dcn_2x",
    "ld_gflv2_r101_from_r2n101dcn_2x",
    "ld_gflv2_r50_from_r101",
    "ld_gflv2_x101dcn_from_r2n101dcn_2x",
    "ld_gi_r18_from_r101_voc",
    "ld_r101_from_r101dcn_2x",
    "ld_retinanet_r50_from_r101",
    "ld_retinanet_r50_from_r101_joint",
    "main_region_r50_from_r101",
    "mgd_r50_from_r101",
    "pkd_r50_from_r101",
    "retinanet_r50_1x",
    "rotated_gfl_r18_1x",
    "rotated_ld_gfl_r18_from_r50",
    "rotated_ld_gwd_r18_from_r50",
    "rotated_ld_jdet_r18_from_r50",
    "rotated_retinanet_jdet_r18_1x",
    "rotated_retinanet_kld_r18_1x",
    "self_ld_gflv2_r2n101dcn_2x",
    "self_ld_x101dcn",
)
"""Recipes in which every part of every recipe occurs (see `parts`)."""
STOPPED = (
    "crosskd_pkd_r50_from_r101",
    "fcos_r50_1x",
    "fgd_r50_from_r101",
    "gflv2_r2n101dcn_2x",
    "ld_gflv2_r50_from_r101",
    "ld_retinanet_r50_from_r101",
    "mgd_r50_from_r101",
    "rotated_ld_gwd_r18_from_r50",
    "self_ld_x101dcn",
)
"""Those of them that are stopped and resumed: of each kind of detector, and of terms with weights of their own."""
SMALL = (
    *("data.format=coco", "data.sizes=[[96, 64]]", "data.size_mode=value", "data.batch_per_device=2"),
    *("data.workers=0", "data.repeat=1", "detector.pretrained=false", f"engine.steps={STEPS}", "engine.epochs=1"),
    *("engine.milestones=[0.9]", "engine.checkpoint_every_steps=1", "engine.log_every=1", "engine.progress=false"),
)
OTHER_BACKBONE = ("detector.backbone=test_resnet",)
FEW_CHANNELS = {
    "resnet": ("resnet26", "{layers: [1, 1, 1, 1], channels: [8, 8, 16, 24]}"),
    "resnext": (
        "resnext50_32x4d",
        "{layers: [1, 1, 1, 1], channels: [16, 16, 32, 32], cardinality: 2, base_width: 32}",
    ),
    "res2net": ("res2net50d", "{layers: [1, 1, 1, 1], channels: [24, 24, 24, 32]}"),
}
"""By family, a backbone of the same blocks, and its arguments."""


@cache
def published(name: str) -> Recipe:
    """A recipe as it comes with the package."""
    return load_recipe(name)


def family(detector: DetectorSettings) -> str:
    """The residual network without its depth: ``resnet``, ``resnext`` or ``res2net``."""
    found = re.match(r"resnext|res2net|resnet", detector.backbone)
    assert found, detector.backbone
    return found.group()


def few_channels(recipe: Recipe) -> tuple[str, ...]:
    """Settings that keep the blocks of a detector's network and leave out its size."""
    backbone, arguments = FEW_CHANNELS[family(recipe.detector)]
    groups = min(recipe.detector.norm_groups, 4)
    head = ("detector.channels=16", "detector.depth=1", f"detector.norm_groups={groups}")
    return (f"detector.backbone={backbone}", f"detector.backbone_args={arguments}", *head)


def named(component: Any) -> str:
    """A component with those of its options that are no numbers: what is computed, not with which strength."""
    ((name, options),) = component.items()
    words = [f"{key}={value}" for key, value in options.items() if isinstance(value, bool | str)]
    return f"{name}({', '.join(words)})"


def looks(detector: DetectorSettings) -> str:
    """The kind of a detector and of its network."""
    how = (detector.predictor, detector.angles, detector.angle_bins) if detector.model.startswith("rotated") else ()
    return " ".join(map(str, (detector.model, family(detector), "deformable"[: 10 * bool(detector.deformable)], *how)))


def parts(name: str) -> set[str]:
    """What a recipe is made of."""
    recipe = published(name)
    student = looks(recipe.detector)
    teacher = looks(teacher_recipe(recipe, ()).detector) if recipe.teacher else "nobody"
    terms = {f"{named(term.of)} on {named(term.on)} by {named(term.norm)}" for term in recipe.terms.values()}
    return {f"{student} taught by {teacher}", recipe.data.format, named(recipe.assigner)} | terms


def photographs(shared: Path, folder: Path) -> Path:
    """A few photographs of blood cells, and their boxes, as a data set of its own."""
    pack = shared / "data" / "bccd"
    if not pack.is_dir():
        pytest.skip(f"no folder {pack}: real data lie beside the project")
    folder.mkdir()
    (folder / "images").symlink_to(pack / "images")
    for split, count in (("train", 6), ("val", 2)):
        content = json.loads((pack / f"{split}.json").read_text())
        images = content["images"][:count]
        ids = {image["id"] for image in images}
        content["images"] = images
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@cache
def pairs() -> dict[str, str]:
    """For each recipe, the first that has the same student and teacher."""
    first: dict[str, str] = {}
    found = {}
    for name in recipe_names():
        recipe = published(name)
        teacher = teacher_recipe(recipe, ()).name if recipe.teacher else ""
        found[name] = first.setdefault(f"{recipe.detector} {teacher}", name)
    return found


def teacher_recipe(recipe: Recipe, settings: Sequence[str] = SMALL) -> Recipe:
    """The recipe that trains the teacher, which the teacher's description names.

    It is also what tells the user, so a description without it is a failure.
    """
    assert recipe.teacher is not None
    named = re.search(r"locdistill train (\w+)", recipe.teacher.where)
    assert named, recipe.teacher.where
    return load_recipe(named.group(1), settings) if settings else published(named.group(1))


def teacher_weights(recipe: Recipe, folder: Path, settings: Sequence[str]) -> Path:
    """Untrained weights of the teacher's architecture; made once."""
    classes = ("RBC", "WBC", "Platelets")
    detector = teacher_recipe(recipe, settings).detector.model_copy(update={"classes": classes})
    key = hashlib.sha256(detector.model_dump_json().encode()).hexdigest()
    file = folder / f"{key[:16]}.safetensors"
    return file if file.is_file() else Detector(detector).save(file)


def as_it_is(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Settings of student and teacher for a short run; of a pair that was trained before, with another backbone."""
    settings = SMALL if pairs()[name] == name else (*SMALL, *OTHER_BACKBONE)
    return settings, settings


def made_small(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Settings of student and teacher for a short run of small networks."""
    recipe = published(name)
    student = (*SMALL, *few_channels(recipe))
    return student, (*SMALL, *few_channels(teacher_recipe(recipe, ()))) if recipe.teacher else ()


def check_refusal(name: str, folder: Path) -> None:
    """A recipe whose teacher is not named says how to get it."""
    with pytest.raises(TeacherError, match=r"--teacher(.|\n)*How to get it"):
        run(published(name), folder)
    assert not folder.exists()


def check(
    name: str,
    settings: tuple[tuple[str, ...], tuple[str, ...]],
    data: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stopped: bool = True,
) -> None:
    """Build, train, stop after two steps, resume, evaluate; what was written is removed, for it can be a gigabyte.

    Where it is not to be stopped, it trains on.
    """
    try:
        _check(name, settings, data, folder, monkeypatch if stopped else None)
    finally:
        shutil.rmtree(folder / "run", ignore_errors=True)


def _check(
    name: str,
    settings: tuple[tuple[str, ...], tuple[str, ...]],
    data: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch | None,
) -> None:
    own = (*settings[0], f"data.path={data}")
    recipe = load_recipe(name, own)
    if recipe.teacher is not None:
        weights = teacher_weights(recipe, data.parent, settings[1])
        recipe = load_recipe(name, (*own, f"teacher.weights={weights}"))
    out = folder / "run"
    if monkeypatch is None:
        result = run(recipe, out)
    else:
        _stop_at_the_third_step(recipe, out, monkeypatch)
        result = run(load_recipe(out), out, resume=True)
    rows = [row for row in read_metrics(out / "metrics.csv") if "lr" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(math.isfinite(row[f"train/{term}"]) for row in rows for term in recipe.terms)  # type: ignore[arg-type]
    assert 0 <= result.metrics["best"]["AP"] <= 1


def _stop_at_the_third_step(recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrainingModule.forward

    def stop(self: TrainingModule, batch: Batch) -> Losses:
        if self.progress.step == STEPS - 1:
            raise InterruptedError
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "forward", stop)
        with pytest.raises(InterruptedError):
            run(recipe, out)
    assert (out / "last.ckpt").is_file()
