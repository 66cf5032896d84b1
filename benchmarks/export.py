"""Parity table of exported files, as in docs/export.md: every kind of detector, form and format.

    python -m benchmarks.export DATA [RUN...] [--docs docs/export.md]

DATA holds ``bccd`` and ``coco-val2017-2.8k-320``, of which real photographs that are not square are taken. Each kind is
a small detector with random weights that detects something everywhere, which is the hardest case for suppression.
Each RUN is a trained detector of the classes of ``bccd``: its AP, and that of its files, one of 8 bits, are shown.
Formats whose packages are not installed are left out, and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from locdistill.errors import RunError
from locdistill.export.export import ExportPlan, ExportResult, export
from locdistill.images import image_size
from locdistill.models.detector import Detector
from locdistill.models.kinds import KINDS
from locdistill.models.settings import DetectorSettings, InputSettings

BEGIN, END = "<!-- python -m benchmarks.export -->", "<!-- end -->"
FORMATS = {"onnx": "onnxruntime", "openvino": "openvino", "torch": "torch"}
"""Formats, and the package that runs each."""
PHOTOGRAPHS = 6
HEADER = ("detector", "format", "sizes", "raw outputs", "detections", "stray", "boxes (px)", "scores")


def busy(kind: str, deformable: bool = False) -> Detector:
    """Return a small detector with random weights that detects something everywhere."""
    torch.manual_seed(0)
    settings = DetectorSettings(
        model=kind,
        backbone="resnet18" if deformable else "test_resnet",
        deformable=(4,) if deformable else (),
        pretrained=False,
        classes=("a", "b", "c"),
        channels=16,
        depth=1,
        norm_groups=4,
        levels=(3, 4, 5, 6) if deformable else (3, 4),
        input=InputSettings(short=160, long=256),
    )
    built = Detector(settings).eval()
    nn.init.normal_(built.head.cls.weight, std=0.1 if "retina" in built.kind.head else 0.5)
    nn.init.constant_(built.head.cls.bias, -1)
    nn.init.normal_(built.head.reg.weight, std=0.1)
    return built


def photographs(folder: Path) -> list[Path]:
    """Return photographs of different sizes, none of them square."""
    sizes: dict[tuple[int, int], Path] = {}
    for path in sorted((folder / "coco-val2017-2.8k-320" / "images").iterdir()):
        height, width = image_size(path)
        if height != width:
            sizes.setdefault((height, width), path)
        if len(sizes) == PHOTOGRAPHS - 1:
            break
    return [next((folder / "bccd" / "images").iterdir()), *sizes.values()]


def row(name: str, result: ExportResult, format_: str) -> tuple[str, ...]:
    """Return the largest differences of a file over all its checks."""
    checks = result.checks
    return (
        name,
        format_,
        "dynamic" if result.facts.size is None else "fixed",
        f"{max(check.raw for check in checks):.0e}" if result.facts.outputs != "boxes" else "-",
        str(sum(check.detections for check in checks)),
        str(sum(check.stray for check in checks)),
        f"{max(check.pixels for check in checks):.0e}",
        f"{max(check.scores for check in checks):.0e}",
    )


def parity(folder: Path, formats: list[str], work: Path) -> Iterator[tuple[str, ...]]:
    """Export each kind in each form, and yield the rows."""
    pictures = photographs(folder)
    detectors = {name: busy(name) for name in KINDS} | {"gfl, deformable": busy("gfl", deformable=True)}
    for name, detector in detectors.items():
        weights = detector.save(work / "weights")
        for format_ in formats:
            for dynamic in (False, True):
                suffix = {"onnx": "onnx", "openvino": "xml", "torch": "pt2"}[format_]
                plan = ExportPlan(kind=format_, dynamic=dynamic)
                try:
                    yield row(name, export(weights, work / f"x.{suffix}", plan, images=pictures), format_)
                except RunError as error:
                    print(error)
                    yield name, format_, "dynamic" if dynamic else "fixed", "refused", *4 * ("-",)


def trained(run: str, data: Path, formats: list[str], work: Path) -> Iterator[tuple[str, ...]]:
    """Yield AP of a trained detector and of its files."""
    plans = [(f, ExportPlan(kind=f, dynamic=True)) for f in formats]
    plans += [("onnx, fixed", ExportPlan()), ("onnx, fixed, int8", ExportPlan(int8=True))]
    for name, plan in plans:
        suffix = {"onnx": "onnx", "openvino": "xml", "torch": "pt2"}[plan.kind]
        result = export(run, work / f"y.{suffix}", plan, data=data)
        aps = [f"{100 * result.metrics[which][key]:.2f}" for key in ("AP", "AP75") for which in ("detector", "file")]
        yield name, f"{result.megabytes:.1f}", *aps


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--docs", type=Path)
    given = parser.parse_args()
    formats = [name for name, package in FORMATS.items() if importlib.util.find_spec(package)]
    for name, package in FORMATS.items():
        if name not in formats:
            print(f"{name} is left out: {package} is not installed")
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for each in parity(given.data, formats, Path(folder)):
            print(*each, sep="  ", flush=True)
            rows.append(each)
        parts.append(table(HEADER, rows))
        for run in given.runs:
            rows = list(trained(run, given.data / "bccd", formats, Path(folder)))
            parts.append(table(("file", "MB", "AP", "AP of the file", "AP75", "AP75 of the file"), rows))
            print(parts[-1], flush=True)
    if given.docs:
        before, rest = given.docs.read_text(encoding="utf-8").split(BEGIN)
        text = "\n\n".join(parts)
        given.docs.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
