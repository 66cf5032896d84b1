"""Read exports that the real programs wrote: classes, images and boxes, without a word from the user.

    python -m benchmarks.exports --environments FOLDER [--json FILE]

``FOLDER`` has a virtual environment for each program (``python -m venv FOLDER/supervision``, then ``pip install
supervision`` in it): datumaro, supervision, label-studio-sdk, fiftyone, labelme; those that are not there are left out.
The pictures are drawn (``locdistill.data.shapes``). Each program writes them in its formats
(``benchmarks/export_writers.py``), and each folder is opened by its path alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.machine import ROOT, about

from locdistill.data.check import check
from locdistill.data.open import open_dataset, with_holdout
from locdistill.data.records import Record
from locdistill.data.settings import DataSettings
from locdistill.data.shapes import CLASSES, ShapesSettings, write_shapes

PROGRAMS = ("datumaro", "supervision", "label-studio-sdk", "fiftyone", "labelme")
SHAPES = ShapesSettings(train=24, val=8, size=160)
TURNED = 25.0
"""Degrees by which boxes are rotated where a format has rotated boxes."""


def draw(folder: Path) -> dict[str, Any]:
    """Draw the pictures; return their files, classes and boxes by split, and an angle for each box."""
    write_shapes(folder, SHAPES)
    splits = {}
    for split in ("train", "val"):
        content = json.loads((folder / f"{split}.json").read_text())
        images = {entry["id"]: entry for entry in content["images"]}
        for entry in images.values():
            entry |= {"path": str(folder / "images" / entry["file_name"]), "labels": [], "boxes": [], "angles": []}
        for entry in content["annotations"]:
            x, y, w, h = entry["bbox"]
            image = images[entry["image_id"]]
            image["labels"].append(entry["category_id"] - 1)
            image["boxes"].append([x, y, x + w, y + h])
            image["angles"].append(TURNED)
        splits[split] = list(images.values())
    return {"classes": CLASSES, "splits": splits}


def compare(folder: Path, truth: dict[str, Any]) -> dict[str, Any]:
    """Open an export by its path alone, and compare it with what was drawn.

    Returns:
        The format; images by split; whether classes and counts are those drawn, of every image; the largest difference
        of an edge in pixels; the notes of the readers; and the problems, for which nothing else is there.
    """
    report = check(folder)
    found: dict[str, Any] = {"format": report.kind, "problems": [str(problem) for problem in report.problems]}
    if report.problems:
        return found
    settings = with_holdout(DataSettings(path=str(folder)))
    datasets = [open_dataset(settings, split, training=False) for split in ("train", "val")]
    records = {record.path.stem: record for dataset in datasets for record in dataset.records}
    drawn = {Path(image["path"]).stem: image for images in truth["splits"].values() for image in images}
    same, error = len(records) == len(drawn) and set(datasets[0].classes) == set(CLASSES), 0.0
    for stem, record in records.items():
        image = next(image for name, image in drawn.items() if stem.endswith(name))
        counts, off = differences(record, datasets[0].classes, image)
        same, error = same and counts, max(error, off)
    return found | {
        "images": {"train": len(datasets[0]), "val": len(datasets[1])},
        "equal": same,
        "largest_difference": round(error, 4),
        "notes": {split.name: split.notes for split in report.splits},
    }


def differences(record: Record, classes: tuple[str, ...], image: dict[str, Any]) -> tuple[bool, float]:
    """Return whether the objects of each class are as many as drawn, and the largest difference of a coordinate."""
    if record.quads is None:
        outlines, wanted = record.boxes, np.array(image["boxes"]).reshape(-1, 4)
    else:
        outlines, wanted = record.quads.reshape(-1, 8), turned(image).reshape(-1, 8)
    names, own = np.array(classes)[record.labels], np.array(CLASSES)[np.array(image["labels"], dtype=int)]
    error = 0.0
    for name in CLASSES:
        some, these = outlines[names == name], wanted[own == name]
        if len(some) != len(these):
            return False, error
        if len(some):
            apart = np.abs(some[:, None] - these).max(-1)
            error = max(error, float(apart.min(0).max()), float(apart.min(1).max()))
    return True, error


def turned(image: dict[str, Any]) -> np.ndarray:
    """Return the corners of the boxes, each turned clockwise around its upper left corner."""
    boxes, angle = np.array(image["boxes"]).reshape(-1, 4), np.deg2rad(TURNED)
    sides = (boxes[:, 2:] - boxes[:, :2])[:, None] * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    corners: np.ndarray = boxes[:, None, :2] + sides @ turn
    return corners


def version(python: Path, program: str) -> str:
    """Return the version of a program in its environment."""
    code = f"import importlib.metadata as m; print(m.version({program!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Write, read and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, required=True, help="folder of virtual environments")
    parser.add_argument("--keep", type=Path, help="folder for the exports; not kept unless given")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    given = parser.parse_args()
    results: dict[str, Any] = {}
    programs: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = given.keep or Path(place)
        truth = draw(folder / "drawn")
        (folder / "truth.json").write_text(json.dumps(truth))
        for program in PROGRAMS:
            python = given.environments / program / "bin" / "python"
            if not python.is_file():
                print(f"{program}: no {python}, left out")
                continue
            programs[program] = version(python, program)
            script = ROOT / "benchmarks" / "export_writers.py"
            subprocess.run([python, script, program, folder / "truth.json", folder / program], check=True)
            for export in sorted(path for path in (folder / program).iterdir() if path.is_dir()):
                results[export.name] = found = compare(export, truth)
                problems = "; ".join(found["problems"])
                equal = "as drawn" if found.get("equal") else "NOT as drawn"
                off = found.get("largest_difference")
                print(f"{export.name:30}{found['format']:9}{problems or f'{equal}, at most {off} px apart'}")
    if given.json is not None:
        content = {"about": about(), "programs": programs, "results": results}
        text = json.dumps(content, indent=1).replace(str(folder), "FOLDER")
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
