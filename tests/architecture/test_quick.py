"""What each verb imports before it needs it. Names only: how long it takes is for ``benchmarks/startup.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from locdistill.data.shapes import ShapesSettings, write_shapes
from locdistill.geometry import constant

HEAVY = {
    *("lightning_fabric", "torchvision", "timm", "torch._dynamo", "sympy", "matplotlib", "lmdb", "tensorboard"),
    *("onnx", "onnxruntime", "optuna", "huggingface_hub", "torchmetrics", "faster_coco_eval"),
}
TINY = (
    *("data.workers=0", "data.sizes=[[128, 128]]", "data.batch_per_device=2", "detector.pretrained=false"),
    *("detector.backbone=test_resnet", "detector.channels=16", "detector.depth=1", "detector.norm_groups=4"),
    *("engine.steps=1", "engine.accelerator=cpu", "engine.progress=false"),
)
RUN = """
import contextlib, io, json, sys
from locdistill.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(json.loads(sys.argv[1]))
print(json.dumps(sorted(sys.modules)))
"""
# Where torchmetrics is, Fabric imports it to see its version, and it draws; it is no dependency of this package.
FIRST_STEP = """
import contextlib, io, json, sys
sys.modules["torchmetrics"] = None
from torch.optim.optimizer import register_optimizer_step_post_hook
from locdistill.cli import main
seen = []
register_optimizer_step_post_hook(lambda *_: seen.append(sorted(sys.modules)))
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(json.loads(sys.argv[1]))
print(json.dumps(seen[0]))
"""


def _imported(script: str, *words: str) -> set[str]:
    """Return the names of all modules that a new process has after a verb, or when the script looked."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(words)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_and_version_import_nothing_heavy():
    for words in (["--help"], ["--version"]):
        imported = _imported(RUN, *words)
        assert "locdistill.cli" in imported
        assert not imported & {"torch", "numpy", "pydantic", "yaml", "PIL"}, words
    assert not _imported(RUN, "train", "--help") & {"torch", "numpy", "yaml", "PIL"}  # Typer itself asks for pydantic


def test_the_monitor_starts_without_networks_and_arrays(tmp_path: Path):
    imported = _imported(RUN, "monitor", str(tmp_path), "--json")
    assert "locdistill.monitor.server" in imported
    assert not imported & (HEAVY | {"torch", "numpy", "PIL"})


def test_the_catalogue_imports_torch_at_most():
    for verb, home in (("recipes", "load"), ("methods", "catalogue")):
        imported = _imported(RUN, verb)
        assert f"locdistill.recipe.{home}" in imported
        assert not imported & HEAVY, verb


def test_a_recipe_is_resolved_without_networks():
    imported = _imported(RUN, "config", "ld_r18_from_r101")
    assert "locdistill.recipe.defaults" in imported
    assert not imported & HEAVY
    assert not {name for name in imported if name.startswith("locdistill.models.detector")}


def test_data_are_checked_without_networks(tmp_path: Path):
    data = write_shapes(tmp_path / "shapes", ShapesSettings(train=2, val=2, size=64))
    imported = _imported(RUN, "data", "check", str(data))
    assert "locdistill.data.check" in imported
    assert not imported & HEAVY


def test_the_first_step_imports_nothing_to_draw_or_export(tmp_path: Path):
    """timm brings huggingface_hub, and torchvision the compiler; what is left out is what only other verbs need."""
    data = write_shapes(tmp_path / "shapes", ShapesSettings(train=2, val=2, size=128))
    imported = _imported(FIRST_STEP, "train", "--data", str(data), "--out", str(tmp_path / "run"), *TINY)
    assert "locdistill.engine.loop" in imported
    assert not imported & {"matplotlib", "onnx", "onnxruntime", "optuna", "locdistill.models.exporting.writing"}


def test_constants_are_marked_as_pytorch_marks_them():
    def plain() -> None:
        """Nothing."""

    marked = torch.compiler.assume_constant_result(plain)
    assert marked is plain
    assert vars(plain)
    assert vars(plain).items() <= vars(constant._sent).items()
