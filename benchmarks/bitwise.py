"""Ten steps of many kinds of runs, to the last bit: ``python -m benchmarks.bitwise OUT.json [--against OLDER.json]``.

A change of structure must not change a number. Each case below trains on drawn pictures, on one thread in float32, and
leaves the losses of its steps, written in full, and a digest of its final weights. The files of two versions, made on
the same machine, are equal; where they are not, the cases that differ are named and the exit code is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.machine import about
from safetensors.torch import load_file

import locdistill
from locdistill.data.shapes import CLASSES, ShapesSettings, write_shapes
from locdistill.distillation.methods import METHODS
from locdistill.engine.log import read_metrics

SIDE = 96
STEPS = 10
RUN = (
    *(f"engine.steps={STEPS}", "engine.log_every=1", "engine.progress=false", "engine.accelerator=cpu"),
    *("engine.precision=32", f"data.sizes=[[{SIDE}, {SIDE}]]", "data.batch_per_device=2", "data.workers=0"),
    *("detector.pretrained=false", "engine.epochs=2", "engine.eval_every=0"),
)
SMALL = ("detector.channels=16", "detector.depth=1", "detector.norm_groups=4", "detector.backbone=test_resnet")
HABITS: dict[str, tuple[str, ...]] = {
    "accumulated": ("engine.accumulate=2",),
    "averaged": ("engine.ema=0.9",),
    "adamw_clipped_cosine": ("engine.optimizer=adamw", "engine.clip_norm=1", "engine.schedule=cosine"),
    "balanced": ("balance=0.1",),
    "taught_by_itself": ("teacher.weights=ema",),
    "bf16": ("engine.precision=bf16",),
    "evaluated": ("engine.eval_every=1", "engine.checkpoint_every_steps=3"),
}
"""Ways to train ``distill`` runs beside the usual one."""
FORMER = (
    *("engine.optimizer=sgd", "engine.lr=0.01", "engine.scale_lr=true", "engine.weight_decay=0.0001"),
    *("engine.norm_bias_decay=true", "engine.clip_norm=null", "engine.warmup_steps=500", "engine.schedule=step"),
    *("engine.ema=null", "engine.patience=null", "data.augment=none", "data.filter_empty=true"),
    f"engine.milestones=[{2 / 3!r}, {11 / 12!r}]",
)
"""The settings of a run without a recipe before they were fitted to the data, with which older results were made."""
ALL_LEVELS = ("detector.levels=[3,4,5,6,7]", "detector.anchor_scale=8")


def small_teacher(folder: Path, model: str = "gfl") -> Path:
    """Weights of a teacher that knows nothing, but tells places apart."""
    torch.manual_seed(3)
    settings = locdistill.DetectorSettings(
        model=model, backbone="test_resnet", channels=32, depth=1, norm_groups=4, classes=CLASSES, pretrained=False
    )
    detector = locdistill.Detector(settings)
    for predictor in (detector.head.cls, detector.head.reg):
        torch.nn.init.normal_(predictor.weight, std=0.2)
    return detector.save(folder / f"teacher_{model}.safetensors")


def write_rotated(shapes: Path, folder: Path) -> Path:
    """The pictures of a COCO folder as a DOTA folder, each box turned by a third of a right angle."""
    turn = np.array([[math.cos(math.pi / 6), -math.sin(math.pi / 6)], [math.sin(math.pi / 6), math.cos(math.pi / 6)]])
    for split in ("train", "val"):
        (folder / split / "labelTxt").mkdir(parents=True)
        (folder / split / "images").symlink_to((shapes / "images").resolve())
        content = json.loads((shapes / f"{split}.json").read_text())
        for image in content["images"]:
            lines = []
            for annotation in content["annotations"]:
                if annotation["image_id"] == image["id"]:
                    x, y, w, h = annotation["bbox"]
                    corners = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2 @ turn.T + (x + w / 2, y + h / 2)
                    lines.append(f"{' '.join(f'{v:.1f}' for v in corners.ravel())} plane 0")
            name = Path(image["file_name"]).stem
            (folder / split / "labelTxt" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def result_of(out: Path) -> dict[str, Any]:
    """What a run computed: its losses step by step, and a digest of its weights."""
    rows = [row for row in read_metrics(out / "metrics.csv") if "lr" in row]
    assert len(rows) == STEPS, out
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(out / "last.safetensors").items()):
        digest.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    losses = {name: [row[name] for row in rows] for name in rows[0] if name.startswith(("train/", "agree/", "lr"))}
    return {"losses": losses, "weights": digest.hexdigest()}


def measure(folder: Path, only: str) -> dict[str, Any]:
    """Run the cases whose names hold a text, and return their results by name."""
    shapes = write_shapes(folder / "shapes", ShapesSettings(train=12, val=4, size=SIDE))
    rotated = write_rotated(shapes, folder / "rotated")
    teacher, found = small_teacher(folder), {}

    def keep(name: str, run: Callable[[], Any]) -> None:
        if only not in name:
            return
        found[name] = result_of(run().out)
        print(f"{name:24} {found[name]['losses']['train/total'][-1]:.6f}  {found[name]['weights'][:12]}", flush=True)

    big = locdistill.load_recipe("gfl_r101_2x").detector.model_copy(update={"classes": CLASSES, "pretrained": False})
    torch.manual_seed(0)
    weights = locdistill.Detector(big).save(folder / "r101.safetensors")
    own = (*RUN, f"data.path={shapes}", "data.format=coco", f"teacher.weights={weights}")
    recipe = locdistill.load_recipe("ld_r18_from_r101", own)
    keep("ld_r18_from_r101", partial(locdistill.run, recipe, folder / "published"))
    own = (*RUN, f"data.path={rotated}", "data.format=dota")
    recipe = locdistill.load_recipe("rotated_gfl_r18_1x", own)
    keep("rotated_gfl_r18_1x", partial(locdistill.run, recipe, folder / "turned"))
    for method in METHODS:
        words = {"methods": (method,), "out": folder / f"method_{method}", "overrides": (*FORMER, *RUN, *SMALL)}
        keep(method, partial(locdistill.distill, teacher, shapes, **words))
    for name, habits in HABITS.items():
        words = {"out": folder / name, "overrides": (*FORMER, *RUN, *SMALL, *habits)}
        keep(name, partial(locdistill.distill, teacher, shapes, **words))
    for model in ("gflv2", "atss", "fcos", "retinanet"):
        more = ALL_LEVELS if model in ("gflv2", "atss") else ()
        words = {"model": model, "out": folder / model, "overrides": (*FORMER, *more, *RUN, *SMALL)}
        keep(model, partial(locdistill.train, shapes, **words))
    return found


def main() -> int:
    """Measure, write, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--against", type=Path, help="file of another version to compare with")
    parser.add_argument("--only", default="", help="run the cases whose names hold this text")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.only)
    arguments.out.write_text(json.dumps({"about": about(), "cases": found}, indent=1) + "\n")
    if arguments.against is None:
        return 0
    before = json.loads(arguments.against.read_text())["cases"]
    names = {name for name in before.keys() | found.keys() if arguments.only in name}
    differ = sorted(name for name in names if before.get(name) != found.get(name))
    print(f"{len(names) - len(differ)} of {len(names)} cases are equal to the last bit")
    if differ:
        print("different:", ", ".join(differ))
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())
