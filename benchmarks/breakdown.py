"""Where the time of one distillation step goes: ``python benchmarks/breakdown.py [--json]``.

A ResNet-18 GFL student learns from a ResNet-101 GFL teacher at 2 x 320 x 416, with random weights (speed does not
depend on them) and drawn 480 x 624 JPEG pictures of five objects each. Every part is timed inside the same steps, one
after the other, so that the parts can be compared; the median over the steps is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from locdistill.assign.atss import ATSS
from locdistill.data.loader import training_loader
from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.distillation.presets import ld_full, supervised
from locdistill.distillation.teacher import LiveTeacher
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.objective.scene import Scene

PARTS = ("data", "student forward", "teacher", "assignment", "losses", "losses backward", "student backward", "update")


class Clock:
    """Collects the seconds of named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start = time.perf_counter()
        yield
        self.seconds[name].append(time.perf_counter() - start)


def write_pictures(folder: Path, count: int = 16, size: tuple[int, int] = (480, 624)) -> None:
    """Draw a COCO folder of smooth noise with five rectangles on each picture."""
    rng = np.random.default_rng(0)
    height, width = size
    images, annotations = [], []
    (folder / "images").mkdir()
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8))
        pixels = np.array(coarse.resize((width, height)))
        for _ in range(5):
            w, h = (int(v) for v in rng.integers(30, 200, 2))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            pixels[y : y + h, x : x + w] = rng.integers(0, 255, 3)
            category = int(rng.integers(1, 81))
            entry = {"id": len(annotations) + 1, "image_id": i, "category_id": category, "bbox": [x, y, w, h]}
            annotations.append(entry | {"area": w * h, "iscrowd": 0})
        name = f"{i:03d}.jpg"
        Image.fromarray(pixels).save(folder / "images" / name, quality=90)
        images.append({"id": i, "file_name": name, "width": width, "height": height})
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(80)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))


def step(clock: Clock, batches, student: Detector, teacher: LiveTeacher, terms, optimizer, autocast) -> None:
    """One training step, its parts timed; the backward pass is cut at the predictions to tell losses from network."""
    with clock.part("data"):
        batch = next(batches)
    with autocast():
        with clock.part("student forward"):
            dense = student(student.normalise(batch.images, batch.sizes))
        with clock.part("teacher"):
            soft = teacher(batch)
    grid = student.grid_for(tuple(batch.images.shape[-2:]))
    assigner = ATSS()
    with clock.part("assignment"):
        assignment = assigner(grid, batch.instances)
    leaf = dense._replace(
        cls_logits=dense.cls_logits.detach().requires_grad_(), edge_logits=dense.edge_logits.detach().requires_grad_()
    )
    with clock.part("losses"):
        scene = Scene.build(
            leaf, soft, grid=grid, instances=batch.instances, assigner=lambda *_: assignment, bins=student.bins
        )
        loss = torch.stack([term(scene) for term in terms.values()]).sum()
    with clock.part("losses backward"):
        loss.backward()
    with clock.part("student backward"):
        torch.autograd.backward([dense.cls_logits, dense.edge_logits], [leaf.cls_logits.grad, leaf.edge_logits.grad])
    with clock.part("update"):
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def measure(steps: int, precision: str, image: tuple[int, int], images: int) -> dict[str, float]:
    """Median seconds of each part."""
    classes = tuple(f"class {i}" for i in range(80))
    student = Detector(DetectorSettings(backbone="resnet18", pretrained=False, classes=classes))
    teacher = LiveTeacher(Detector(DetectorSettings(backbone="resnet101", pretrained=False, classes=classes)))
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], 1e-6, momentum=0.9)
    terms, clock = supervised() | ld_full(), Clock()

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        settings = DataSettings(path=folder, sizes=((max(image), min(image)),), batch_per_device=images, workers=0)
        loader = training_loader(open_dataset(settings, "train"), settings, seed=0)
        batches = (batch for _ in iter(int, 1) for batch in loader)
        for _ in range(2):
            step(Clock(), batches, student, teacher, terms, optimizer, autocast)
        for _ in range(steps):
            step(clock, batches, student, teacher, terms, optimizer, autocast)
    return {name: statistics.median(clock.seconds[name]) for name in PARTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", choices=("32", "bf16"), default="32")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 416), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    parts = measure(args.steps, args.precision, tuple(args.size), args.images)
    total = sum(parts.values())
    share = (parts["assignment"] + parts["losses"] + parts["losses backward"]) / total
    report = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "precision": args.precision,
        "seconds": parts,
        "total": total,
        "assignment_and_losses_share": share,
    }
    if args.json:
        print(json.dumps(report, indent=2))
        return
    for name, seconds in parts.items():
        print(f"{name:18} {seconds * 1e3:9.1f} ms {seconds / total:7.1%}")
    print(f"{'total':18} {total * 1e3:9.1f} ms   assignment and losses: {share:.1%}")


if __name__ == "__main__":
    main()
