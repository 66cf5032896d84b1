"""Every method teaches a real detector for three steps: by its name on the command line, and all together."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from locdistill.distillation.imitation import Everywhere, FeatureL2
from locdistill.distillation.methods import METHODS
from locdistill.distillation.presets import supervised
from locdistill.distillation.teacher import LiveTeacher
from locdistill.engine.log import read_metrics
from locdistill.engine.module import TrainingModule, blank_batch
from locdistill.engine.plan import Plan
from locdistill.engine.settings import EngineSettings
from locdistill.models.detector import Detector
from locdistill.objective.normalisers import ImageLevelMean
from locdistill.objective.objective import Objective
from locdistill.objective.term import Term
from locdistill.recipe.request import Request
from locdistill.training.resume import resumed_recipe
from tests.conftest import CLASSES, Answer

from .engine_run import distill, small_detector
from .test_resume import told

pytestmark = [pytest.mark.journey, pytest.mark.usefixtures("no_pictures_of_runs")]
NAMES = ("fitnets", "inside_gt", "main_region", "fine_grained", "defeat", "gi", "pkd", "cwd", "mgd", "fgd", "dist")
STEPS = (
    *("engine.steps=3", "engine.log_every=1", "engine.progress=false", "engine.accelerator=cpu"),
    *("data.workers=0", "data.batch_per_device=2", "data.sizes=[[128, 96]]"),
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that knows nothing, and whose head tells features apart all the same."""
    detector = small_detector(CLASSES, 3)
    with torch.no_grad():
        for predictor in (detector.head.cls, detector.head.reg):
            torch.nn.init.normal_(predictor.weight, std=0.2)
    return detector.save(tmp_path_factory.mktemp("teacher") / "best")


SHORT = ("ld", "gi", "mgd", "crosskd")
"""A method on logits, one on regions of features, one with weights of its own, and one through the teacher's head.

The recipes of the others are trained in `test_recipes`.
"""


@pytest.mark.parametrize("method", [pytest.param(m, marks=() if m in SHORT else pytest.mark.long) for m in METHODS])
def test_three_steps_from_the_command_line(
    method: str, teacher: Path, tiny_coco: Path, tmp_path: Path, cli: Callable[..., Answer]
):
    own = ("detector.channels=16", "detector.depth=1", "detector.norm_groups=4")
    words = ("--teacher", teacher, "--data", tiny_coco, "--backbone", "test_resnet", "--pretrained", "none")
    code, _, err = cli("distill", *words, "--method", method, "--out", tmp_path / "run", *own, *STEPS)
    assert code == 0, err
    terms = METHODS[method]("gfl")
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if "lr" in row]
    assert len(rows) == 3
    for name in terms:
        assert all(0 < row[f"train/{name}"] < 1e4 for row in rows), name
    # A run remembers the terms, and its student knows nothing of the teacher or of what the terms learned.
    again = resumed_recipe(Request(methods=(method,)), tmp_path / "run")
    assert {name: term.build() for name, term in again.terms.items()} == supervised() | terms
    student = Detector.load(tmp_path / "run" / "last")
    assert set(load_file(tmp_path / "run" / "last.safetensors")) == set(student.state_dict())


@pytest.mark.parametrize("balance", [None, 0.1])
def test_three_steps_of_all_methods_together(tmp_path: Path, tiny_coco: Path, balance: float | None):
    settings = {"steps": 3, "warmup_steps": 0, "ema": None, "progress": False}
    result = distill(tmp_path / "run", settings, data=str(tiny_coco), batch=4, methods=NAMES, balance=balance)
    rows = [row for row in told(tmp_path / "run") if "lr" in row]
    terms = {name for method in NAMES for name in METHODS[method]("gfl")}
    assert len(rows) == 3
    for row in rows:
        assert all(math.isfinite(row[f"train/{name}"]) for name in terms)
    assert all(row[f"train/{name}"] > 0 for row in rows for name in ("fitnets", "pkd", "cwd", "mgd", "fgd_context"))
    saved = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    owners = {name.split(".")[2].removeprefix("of_") for name in saved if name.startswith("learned.terms.")}
    assert owners == terms - {"cwd", "dist_between", "dist_within"}
    assert not any(name.startswith("learned") for name in load_file(result.last))


def test_maps_inside_the_head_are_handed_out_and_adapted():
    student, teacher = small_detector(("a", "b"), 0), small_detector(("a", "b"), 1, channels=32)
    term = Term(of=FeatureL2(maps="reg_tower"), on=Everywhere(), norm=ImageLevelMean())
    objective = Objective(terms={"im": term}, bins=student.bins)
    module = TrainingModule(student, objective, LiveTeacher(teacher), EngineSettings())
    assert [tuple(m.weight.shape) for m in module.learned.of("im")] == [(32, 16, 1, 1)] * 3
    module.plan = Plan(batches_per_epoch=1, accumulate=1, batch_per_device=1, world=1, total_steps=1)
    batch = blank_batch(torch.device("cpu"))
    dense, _ = module.predictions(batch)
    assert len(dense.towers) == 6
    assert dense.features == ()
    module(batch).total.backward()
    assert module.learned.of("im")[0].weight.grad.abs().sum() > 0
