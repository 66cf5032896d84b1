"""The two pictures of the README: ``python -m benchmarks.pictures [DEMO]``, after ``locdistill demo``.

Writes into ``docs/pictures``: ``detections.png``, the same images by the demo's students without and with LD, and
``gains.png``, the difference of AP in every comparison of ``docs/results`` that has several seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.images import read_image
from locdistill.inference.evaluation_files import truth_layer
from locdistill.models.detector import Detector
from locdistill.training.pictures import THRESHOLD, spread
from locdistill.viz.draw import draw_detections
from locdistill.viz.figures import new_figure, tidy, to_image
from locdistill.viz.mosaic import mosaic
from locdistill.viz.style import MUTED, STUDENT, TEACHER, hexadecimal

DOCS = Path(__file__).resolve().parents[1] / "docs"
IMAGES, CELL, COLOURS = 5, 192, 128
ROWS = {
    "bccd-60-epochs": "blood cells, 60 epochs, sharp",
    "demo": "drawn shapes, sharp",
    "bccd-sharp": "blood cells, sharp",
    "hit-uav-upright": "aerial, axis-aligned, sharp",
    "hit-uav": "aerial, rotated, sharp",
    "deeppcb-sharp": "circuit boards, sharp",
    "bccd-published-without-kd": "blood cells, published\nwithout class distillation",
    "bccd-published": "blood cells, published",
    "deeppcb-published": "circuit boards, published",
}
COMPARED = {"alone": ("at equal steps", TEACHER), "alone_longer": ("at equal time", STUDENT)}


def detections(demo: Path) -> Image.Image:
    """Draw images spread evenly over the validation split: a row for the student alone, one for the student with LD."""
    dataset = open_dataset(DataSettings(path=str(demo / "shapes")), "val")
    records = spread(dataset.records, IMAGES)
    images, truths = [read_image(record.path) for record in records], [truth_layer(record) for record in records]
    cells, captions = [], []
    for arm, caption in (("alone-0", "student alone"), ("distilled-0", "student + LD")):
        detector = Detector.load(demo / arm / "last.safetensors")
        found = detector.detect([record.path for record in records])
        cells += [
            draw_detections(image, each, classes=dataset.classes, threshold=THRESHOLD, truth=truth, min_side=CELL)
            for image, each, truth in zip(images, found, truths, strict=True)
        ]
        captions += [caption] * IMAGES
    return mosaic(cells, captions, columns=IMAGES, cell=CELL)


def gains(results: Path) -> Image.Image:
    """Chart AP with LD less AP alone, with 95 % intervals over seeds."""
    found = {label: _differences(results / f"{name}.json") for name, label in ROWS.items()}
    figure = new_figure(820, 60 + 40 * len(found))
    axes = tidy(figure.subplots(), "AP of the student with LD less AP of the student alone, 95 % intervals")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    axes.axvline(0, color=hexadecimal(MUTED), linewidth=1)
    for offset, (name, (label, colour)) in zip((-0.13, 0.13), COMPARED.items(), strict=True):
        rows = [(y + offset, each[name]["AP"]) for y, each in enumerate(found.values()) if name in each]
        places = [y for y, _ in rows]
        axes.hlines(
            places, [v["low"] for _, v in rows], [v["high"] for _, v in rows], color=hexadecimal(colour), linewidth=2
        )
        axes.scatter([v["mean"] for _, v in rows], places, color=hexadecimal(colour), s=34, zorder=3, label=label)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    return to_image(figure)


def _differences(file: Path) -> dict[str, Any]:
    """Return the differences at equal steps and at equal time, by the names of `COMPARED`, of an old or a new file."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["differences"]
    if "alone" in found:
        return found
    (arm,) = found.values()
    names = {"alone": "as_trained", "alone_longer": "equal_time"}
    return {name: arm[key] for name, key in names.items() if key in arm}


def main(demo: Path) -> None:
    """Write both, in few colours, which keeps the files small."""
    for name, picture in (("detections", detections(demo)), ("gains", gains(DOCS / "results"))):
        path = DOCS / "pictures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1e3:.0f} KB, {picture.width} x {picture.height}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
