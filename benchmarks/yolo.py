"""Another trainer on the same images: Ultralytics' command line, run as a program in an environment of its own.

It is AGPL-licensed, not a dependency, and not part of this project; ``benchmarks/own_data.py --yolo PROGRAM`` names it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import yaml

from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.inference.evaluate import EvaluationResult, evaluate


def written(settings: DataSettings, folder: Path) -> Path:
    """Write a data set in the layout of YOLO, with links to the images, and return its YAML file."""
    for split in ("train", "val"):
        dataset = open_dataset(settings, split, training=False)
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for record in dataset.records:
            link = folder / "images" / split / record.path.name
            if not link.is_symlink():
                link.symlink_to(record.path.resolve())
            sides = [record.width, record.height]
            rows = [
                [int(label), *((box[:2] + box[2:]) / 2 / sides), *((box[2:] - box[:2]) / sides)]
                for label, box in zip(record.labels[~record.ignored], record.boxes[~record.ignored], strict=True)
            ]
            text = "".join(" ".join(f"{value:.6g}" for value in row) + "\n" for row in rows)
            (folder / "labels" / split / f"{record.path.stem}.txt").write_text(text)
    content = {"path": str(folder.resolve()), "train": "images/train", "val": "images/val"}
    file = folder / "data.yaml"
    file.write_text(yaml.safe_dump(content | {"names": dict(enumerate(dataset.classes))}))
    return file


def run(program: Path, words: Sequence[str]) -> None:
    """Run the program with one thread.

    Raises:
        SystemExit: It failed.
    """
    alone = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "YOLO_OFFLINE": "1"}
    done = subprocess.run([program, *words], env=os.environ | alone, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{program} {' '.join(words)}\n{(done.stdout + done.stderr)[-3000:]}")


def trained(program: Path, file: Path, out: Path, *, model: str, size: int, minutes: float, seed: int) -> None:
    """Train a model from random weights for some minutes, evaluations included, and detect with its best weights."""
    here = [f"data={file}", f"imgsz={size}", "device=cpu", "workers=0", f"project={out.parent.resolve()}"]
    train = [f"model={model}.yaml", f"time={minutes / 60:.5f}", f"seed={seed}", "exist_ok=true", "plots=false"]
    run(program, ["detect", "train", *train, *here, f"name={out.name}"])
    best = [f"model={out / 'weights' / 'best.pt'}", "save_json=true", "batch=8", "plots=false", "exist_ok=true"]
    run(program, ["detect", "val", *best, *here, f"name={out.name}/val"])


def judged(settings: DataSettings, results: Path) -> EvaluationResult:
    """Evaluate the program's detections, after giving images and classes the data set's own numbers."""
    dataset = open_dataset(settings, "val", training=False)
    images = {record.path.name: record.image_id for record in dataset.records}
    entries = json.loads(results.read_text()) if results.is_file() else []  # it writes none without detections
    for entry in entries:
        entry["image_id"] = images[entry["file_name"]]
        entry["category_id"] = dataset.category_ids[entry["category_id"] - 1]
    results = results.with_name("renumbered.json")
    results.write_text(json.dumps(entries))
    words = settings.model_dump(mode="json", exclude_defaults=True, exclude={"path"})
    return evaluate(results, settings.path, overrides=[(("data", name), value) for name, value in words.items()])
