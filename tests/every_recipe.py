"""What every recipe has to do: train three steps on photographs, stop in between, go on, and evaluate.

Of the recipes that share student and teacher, and differ in their terms, one is tried as it is, and the others with
backbones of a few channels.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import re
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from locdistill.engine.log import read_metrics
from locdistill.engine.module import TrainingModule
from locdistill.errors import TeacherError
from locdistill.models.detector import Detector
from locdistill.recipes.load import load_recipe, recipe_names
from locdistill.recipes.recipe import Recipe
from locdistill.recipes.run import run

STEPS = 3
FEW_CHANNELS = ("detector.backbone=test_resnet",)
SMALL = (
    *("data.format=coco", "data.sizes=[[96, 64]]", "data.size_mode=value", "data.batch_per_device=2"),
    *("data.workers=0", "data.repeat=1", "detector.pretrained=false", f"engine.steps={STEPS}", "engine.epochs=1"),
    *("engine.milestones=[0.9]", "engine.checkpoint_every_steps=1", "engine.log_every=1", "engine.progress=false"),
)


def names_of(model: str) -> list[str]:
    """Recipes of a kind of detector."""
    return [name for name in recipe_names() if load_recipe(name).detector.model == model]


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
        recipe = load_recipe(name)
        teacher = teacher_recipe(recipe).name if recipe.teacher else ""
        found[name] = first.setdefault(f"{recipe.detector} {teacher}", name)
    return found


def teacher_recipe(recipe: Recipe, settings: Sequence[str] = SMALL) -> Recipe:
    """The recipe that trains the teacher, which the teacher's description names.

    It is also what tells the user, so a description without it is a failure.
    """
    assert recipe.teacher is not None
    named = re.search(r"the recipe (\w+)", recipe.teacher.where)
    assert named, recipe.teacher.where
    return load_recipe(named.group(1), settings)


def teacher_weights(recipe: Recipe, folder: Path, settings: Sequence[str]) -> Path:
    """Untrained weights of the teacher's architecture; made once."""
    classes = ("RBC", "WBC", "Platelets")
    detector = teacher_recipe(recipe, settings).detector.model_copy(update={"classes": classes})
    key = hashlib.sha256(detector.model_dump_json().encode()).hexdigest()
    file = folder / f"{key[:16]}.safetensors"
    return file if file.is_file() else Detector(detector).save(file)


def check(name: str, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build, train, stop after two steps, resume, evaluate; what was written is removed, for it is a gigabyte."""
    try:
        _check(name, data, folder, monkeypatch)
    finally:
        shutil.rmtree(folder / "run", ignore_errors=True)
        gc.collect()


def _check(name: str, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SMALL if pairs()[name] == name else (*SMALL, *FEW_CHANNELS)
    recipe = load_recipe(name, (*settings, f"data.path={data}"))
    if recipe.teacher is not None:
        with pytest.raises(TeacherError, match=r"--teacher(.|\n)*How to get it"):
            run(recipe, folder / "without")
        assert not (folder / "without").exists()
        weights = teacher_weights(recipe, data.parent, settings)
        recipe = load_recipe(name, (*settings, f"data.path={data}", f"teacher.weights={weights}"))
    out = folder / "run"
    step = TrainingModule.training_step

    def stop_at_the_third(self: TrainingModule, batch: object, index: int) -> object:
        if index == STEPS - 1:
            raise InterruptedError
        return step(self, batch, index)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", stop_at_the_third)
        with pytest.raises(InterruptedError):
            run(recipe, out)
    assert (out / "last.ckpt").is_file()
    result = run(load_recipe(out), out, resume=True)
    rows = [row for row in read_metrics(out / "metrics.csv") if "lr" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(math.isfinite(row[f"train/{term}"]) for row in rows for term in recipe.terms)  # type: ignore[arg-type]
    assert 0 <= result.metrics["best"]["AP"] <= 1
