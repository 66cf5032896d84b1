"""What a step of distillation costs beside one of plain training: ``python -m benchmarks.step [--json]``.

A GFL student learns from a GFL teacher with the whole recipe's terms (``ld_full``), through the same `TrainingModule`
as in a run: forward, objective, backward, optimiser. Weights are random (speed does not depend on them), pictures are
drawn JPEG files with five objects each; reading them is not timed. The arms are

- ``plain``: the student alone, supervised terms;
- ``live``: the same student with a live teacher;
- ``cached``: the same with a teacher that has seen all images and is not run; reading the cache is part of the step
  here, though in a run the workers do it;
- ``teacher``: a forward pass of that teacher and nothing else;
- ``uncompiled`` (with ``--compile``): ``live`` with all of ``engine.speed`` but that;
- ``eager`` (on CUDA): ``live`` in plain eager float32 with TF32, ``engine.speed=off``.

In every round each arm takes one step on the same batch, in an order that moves on from round to round. Seconds are
medians over the rounds, ratios medians of the ratios within a round: what slows the machine down for a while slows all
of them. Beside them stand the losses of the first step, when all arms have the same weights, and how far ``live`` is
from itself with ``engine.speed=off`` in the same precision and in float32.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.breakdown import write_pictures
from benchmarks.machine import about
from lightning_fabric.utilities.apply_func import move_data_to_device
from torch import Tensor

from locdistill.data.loader import training_loader
from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset
from locdistill.data.settings import DataSettings
from locdistill.distillation.cache.open import contents
from locdistill.distillation.cache.record import Layout
from locdistill.distillation.cache.store import Store
from locdistill.distillation.cache.teacher import CachedTeacher, Keeping, Recall
from locdistill.distillation.presets import ld_full, supervised
from locdistill.distillation.teacher import FrozenTeacher, LiveTeacher
from locdistill.engine.module import TrainingModule
from locdistill.engine.plan import Plan
from locdistill.engine.settings import EngineSettings
from locdistill.engine.speed import own_backends, set_backends
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.objective.objective import Objective
from locdistill.types import Batch

CLASSES = tuple(f"class {i}" for i in range(80))
DRAWN_LARGER = 1.5
"""Sides of the files, in sides of what the network sees."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured: networks, size of the batch, device."""

    student: Detector
    teacher: Detector
    size: tuple[int, int]
    images: int
    device: torch.device
    compile: bool

    def module(self, precision: str, *, distils: bool, off: bool = False, cache: Path | None = None) -> TrainingModule:
        """A module that could train, its weights those of all arms; what its teacher says may be kept in a folder."""
        settings = EngineSettings(
            precision=precision,
            speed="off" if off else {"compile": True} if self.compile else "auto",
            accelerator=self.device.type,
            lr=1e-6,
            scale_lr=False,
        )
        student = copy.deepcopy(self.student)
        terms = supervised() | (ld_full() if distils else {})
        objective = Objective(terms=terms, bins=student.bins)
        teacher: FrozenTeacher | None = LiveTeacher(copy.deepcopy(self.teacher)) if distils else None
        if teacher is not None and cache is not None:
            keeping = Keeping.of(objective, layout(student), comparable=True)
            teacher = CachedTeacher(teacher, Store(cache), keeping, student.grid_for)
        module = TrainingModule(student, objective, teacher, settings)
        module.plan = Plan(
            batches_per_epoch=1000, accumulate=1, batch_per_device=self.images, world=1, total_steps=1000
        )
        module.arrange()
        module.to(self.device)
        module.speed_up(self.device)
        return module


Arm = Callable[[Batch], Tensor | None]
"""Takes one step on a batch, and gives its loss, where there is one; whoever times it waits for the device."""


def training(module: TrainingModule) -> Arm:
    """Steps of a module."""
    optimizer = module.optimizer()
    speed = module.speed

    def step(batch: Batch) -> Tensor | None:
        set_backends(tf32=speed.tf32, cudnn_benchmark=speed.cudnn_benchmark)
        with autocast(module):
            loss = module(batch).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def remembering(module: TrainingModule, memory: Recall) -> Arm:
    """Steps of a module whose teacher is remembered; each begins with reading what is."""
    step = training(module)

    def from_cache(batch: Batch) -> Tensor | None:
        sizes = [(int(h), int(w)) for h, w in batch.sizes.tolist()]
        found = memory.recall(batch.image_ids.tolist(), sizes, [False] * len(sizes))
        return step(batch._replace(from_cache=move_data_to_device(found, module.device)))

    return from_cache


def layout(student: Detector) -> Layout:
    """How a student's locations follow each other."""
    grid = student.grid_for((64, 64))
    return Layout(strides=grid.level_strides, per_cell=grid.per_cell, pad_to=32)


def looking(module: TrainingModule) -> Arm:
    """Forward passes of a module's teacher."""
    teacher = module.guidance.teacher
    assert teacher is not None

    def step(batch: Batch) -> Tensor | None:
        with autocast(module):
            teacher(batch)
        return None

    return step


def eager(setting: Setting) -> Arm:
    """Plain PyTorch, with TF32 as the one thing that everybody switches on."""
    step = training(setting.module("32", distils=True, off=True))

    def with_tf32(batch: Batch) -> Tensor | None:
        with own_backends():
            torch.set_float32_matmul_precision("high")
            return step(batch)

    return with_tf32


def autocast(module: TrainingModule) -> torch.autocast:
    """The precision of a module, as the trainer gives it."""
    dtype = module.speed.dtype
    return torch.autocast(module.detector.device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def arms(setting: Setting, precision: str, dataset: Dataset, folder: Path) -> dict[str, Arm]:
    """The arms of one precision."""
    live = setting.module(precision, distils=True)
    store = Store(folder / f"cache-{precision}")
    memory = Recall(store, contents(dataset, store, keep_ignored=False), layout(setting.student))
    found = {
        "plain": training(setting.module(precision, distils=False)),
        "live": training(live),
        "cached": remembering(setting.module(precision, distils=True, cache=store.path), memory),
        "teacher": looking(live),
    }
    if setting.compile:
        found["uncompiled"] = training(replace(setting, compile=False).module(precision, distils=True))
    return {f"{name} {precision}": arm for name, arm in found.items()}


def drawn(folder: Path, size: tuple[int, int], images: int) -> DataSettings:
    """Drawn pictures, and how they are looked at."""
    height, width = (round(side * DRAWN_LARGER) for side in size)
    write_pictures(folder, max(16, images), (height, width))
    sizes = ((max(size), min(size)),)
    return DataSettings(path=str(folder), sizes=sizes, flip=0, batch_per_device=images, workers=0)


def measure(setting: Setting, precisions: tuple[str, ...], rounds: int, warm_up: int) -> dict[str, Any]:
    """Seconds, ratios and losses."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = drawn(folder, setting.size, setting.images)
        dataset = open_dataset(settings, "train")
        loader = training_loader(dataset, settings, seed=0)
        steps: dict[str, Arm] = {}
        for precision in precisions:
            steps |= arms(setting, precision, dataset, folder)
        for batch in loader:  # the teacher looks at all images
            for arm in (arm for name, arm in steps.items() if name.startswith("cached")):
                arm(move_data_to_device(batch, setting.device))
        return compared(setting, precisions, steps, loader, rounds=rounds, warm_up=warm_up)


def compared(
    setting: Setting,
    precisions: tuple[str, ...],
    steps: dict[str, Arm],
    loader: Iterable[Batch],
    *,
    rounds: int,
    warm_up: int,
) -> dict[str, Any]:
    """The arms side by side."""
    stream = (batch for _ in iter(int, 1) for batch in loader)
    if setting.device.type == "cuda":
        steps["eager 32"] = eager(setting)
    first = move_data_to_device(next(stream), setting.device)
    losses = {name: float(step(first)) for name, step in steps.items() if not name.startswith("teacher")}
    for precision in dict.fromkeys((*precisions, "32")):
        losses[f"live {precision} off"] = float(training(setting.module(precision, distils=True, off=True))(first))
    seconds: dict[str, list[float]] = defaultdict(list)
    names = list(steps)
    for turn in range(warm_up + rounds):
        batch = move_data_to_device(next(stream), setting.device)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            took = timed(steps[name], batch, setting.device)
            if turn >= warm_up:
                seconds[name].append(took)
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratios": ratios(seconds, precisions),
        "losses": losses,
        "difference": {
            f"{p} auto against {other} off": abs(losses[f"live {p}"] / losses[f"live {other} off"] - 1)
            for p in precisions
            for other in dict.fromkeys((p, "32"))
        }
        | {f"{p} cached against live": abs(losses[f"cached {p}"] / losses[f"live {p}"] - 1) for p in precisions},
    }


def timed(arm: Arm, batch: Batch, device: torch.device) -> float:
    """Seconds of a step, all of it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    arm(batch)
    wait()
    return time.perf_counter() - begun


def ratios(seconds: dict[str, list[float]], precisions: tuple[str, ...]) -> dict[str, float]:
    """What the issue of cost comes down to: medians over the rounds."""

    def median(above: str, *below: str) -> float:
        rounds = zip(seconds[above], *(seconds[name] for name in below), strict=True)
        return statistics.median(mine / sum(others) for mine, *others in rounds)

    found = {}
    for p in precisions:
        found[f"live / plain, {p}"] = median(f"live {p}", f"plain {p}")
        found[f"cached / plain, {p}"] = median(f"cached {p}", f"plain {p}")
        found[f"live / (plain + teacher), {p}"] = median(f"live {p}", f"plain {p}", f"teacher {p}")
        if f"uncompiled {p}" in seconds:
            found[f"uncompiled / live, {p}"] = median(f"uncompiled {p}", f"live {p}")
    if {"32", "bf16"} <= set(precisions):
        found["live 32 / live bf16"] = median("live 32", "live bf16")
    if "eager 32" in seconds:
        found |= {f"eager 32 / live {p}": median("eager 32", f"live {p}") for p in precisions}
    return found


def detector(backbone: str) -> Detector:
    torch.manual_seed(0)
    return Detector(DetectorSettings(backbone=backbone, pretrained=False, classes=CLASSES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher", default="resnet101")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 416), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--precision", choices=("32", "bf16", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="compile, which auto does only in long runs on CUDA")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    setting = Setting(
        student=detector(args.student),
        teacher=detector(args.teacher),
        size=tuple(args.size),
        images=args.images,
        device=torch.device(args.device),
        compile=args.compile,
    )
    precisions = ("32", "bf16") if args.precision == "both" else (args.precision,)
    with own_backends():
        found = measure(setting, precisions, args.rounds, args.warm_up)
        chosen = {p: asdict(setting.module(p, distils=False).speed) for p in precisions}
    asked = {name: getattr(args, name) for name in ("student", "teacher", "size", "images", "device", "rounds")}
    if args.json:
        print(json.dumps(about() | asked | found | {"speed": chosen}, indent=2))
        return
    print(f"{about()['machine']}: {args.student} from {args.teacher}, {args.images} x {args.size[0]} x {args.size[1]}")
    for name, value in found["seconds"].items():
        print(f"{name:34} {value * 1e3:9.1f} ms")
    for name, value in found["ratios"].items():
        print(f"{name:34} {value:9.3f}")
    for name, value in found["losses"].items():
        print(f"loss, {name:28} {value:12.6f}")
    for name, value in found["difference"].items():
        print(f"loss, {name:28} {value:12.1e}")


if __name__ == "__main__":
    main()
