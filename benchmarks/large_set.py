"""How long a run takes to its first step on a data set of COCO's size.

    python -m benchmarks.large_set [--images 118000] [--boxes 848000] [--formats coco yolo voc dota] [--json FILE]

The data set is links to 64 small pictures, with COCO json or with one small file of annotations for each picture.
Measured are whole processes with one thread: ``import torch`` and ``json.load`` of the annotations, or reading of all
files as text (what any program has to do); a run on 64 images; the first start on all images; and a second one, for
which the first has kept what it read. Each run takes one step and evaluates once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from benchmarks.machine import about
from PIL import Image

PICTURES, CLASSES = 64, 80
WIDTH, HEIGHT = 64, 48
STEP = (
    *("--backbone", "test_resnet", "--pretrained", "none", "data.workers=0", "data.batch_per_device=2"),
    *("data.sizes=[[64,64]]", "detector.channels=16", "detector.depth=1", "detector.norm_groups=4"),
    *("engine.steps=1", "engine.eval_every=0", "engine.accelerator=cpu", "engine.progress=false"),
)
BARE = """
import json, pathlib, sys, torch
[json.load(open(file)) if file.suffix == ".json" else file.read_text() for file in pathlib.Path(sys.argv[1]).rglob("*")
 if file.suffix in (".json", ".txt", ".xml") and "train" in str(file)]
"""
FORMATS = ("coco", "yolo", "voc", "dota")


class Cost(NamedTuple):
    """Cost of a process: seconds by the clock and of the processor, and largest memory in MB."""

    wall: float
    processor: float
    memory: float


def write(folder: Path, images: int, boxes: int, kind: str) -> Path:
    """Write the data set: a training split of that many images, and a split to evaluate on of 64."""
    rng = np.random.default_rng(0)
    shots = folder.parent / "shots"
    shots.mkdir(exist_ok=True)
    for number in range(PICTURES):
        noise = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(shots / f"{number}.jpg")
    for split, count in (("train", images), ("val", PICTURES)):
        place = f"{split}/images" if kind == "dota" else f"images/{split}"
        (folder / place).mkdir(parents=True)
        names = [f"{split}{number:012}" for number in range(count)]
        for number, name in enumerate(names):
            os.link(shots / f"{number % PICTURES}.jpg", folder / place / f"{name}.jpg")
        owner = np.sort(rng.integers(0, count, boxes * count // images))
        rows = np.concatenate((rng.uniform(0, 30, (len(owner), 2)), rng.uniform(4, 18, (len(owner), 2))), 1).round(2)
        starts = np.searchsorted(owner, np.arange(count + 1)).tolist()
        if kind == "coco":
            content = {
                "images": [
                    {"id": n, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT}
                    for n, name in enumerate(names)
                ],
                "annotations": [
                    {
                        "id": n,
                        "image_id": i,
                        "category_id": n % CLASSES,
                        "bbox": row,
                        "area": row[2] * row[3],
                        "iscrowd": 0,
                    }
                    for n, (i, row) in enumerate(zip(owner.tolist(), rows.tolist(), strict=True))
                ],
                "categories": [{"id": n, "name": f"class{n}"} for n in range(CLASSES)],
            }
            (folder / f"{split}.json").write_text(json.dumps(content))
            continue
        below, ending, written = SMALL[kind]
        (folder / below.format(split)).mkdir(parents=True)
        for name, start, end in zip(names, starts, starts[1:], strict=False):
            objects = [written(n % CLASSES, *rows[n].tolist()) for n in range(start, end)]
            text = f"<annotation>{''.join(objects)}</annotation>" if kind == "voc" else "".join(objects)
            (folder / below.format(split) / f"{name}.{ending}").write_text(text)
    if kind == "yolo":
        classes = [f"class{number}" for number in range(CLASSES)]
        (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {classes}\n")
    return folder


def yolo_row(label: int, x: float, y: float, w: float, h: float) -> str:
    return f"{label} {(x + w / 2) / WIDTH:.6f} {(y + h / 2) / HEIGHT:.6f} {w / WIDTH:.6f} {h / HEIGHT:.6f}\n"


def voc_row(label: int, x: float, y: float, w: float, h: float) -> str:
    corners = f"<xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w:.2f}</xmax><ymax>{y + h:.2f}</ymax>"
    return f"<object><name>class{label}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"


def dota_row(label: int, x: float, y: float, w: float, h: float) -> str:
    right, low = round(x + w, 2), round(y + h, 2)
    return f"{x} {y} {right} {y} {right} {low} {x} {low} class{label} 0\n"


SMALL = {
    "yolo": ("labels/{}", "txt", yolo_row),
    "voc": ("annotations/{}", "xml", voc_row),
    "dota": ("{}/labelTxt", "txt", dota_row),
}
"""Folder of a split, ending and row of the formats with one file for each picture."""


def cost(home: Path, *command: str) -> Cost:
    """Run a process and measure it.

    Raises:
        SystemExit: It failed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LOCDISTILL_HOME": str(home)}
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{output.read().decode()[-3000:]}")
    return Cost(time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def measure(kind: str, images: int, boxes: int) -> dict[str, object]:
    """Measure a format."""
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(1, get_context("spawn")) as another:
        folder = Path(place)  # another process writes: the largest memory of a process is never less than its parent's
        small = another.submit(write, folder / "small", PICTURES, PICTURES * 7, kind).result()
        large = another.submit(write, folder / "large", images, boxes, kind).result()

        def run(data: Path, name: str) -> Cost:
            train = ("-m", "locdistill", "train", "--data", str(data), "--out", str(folder / name), *STEP)
            return cost(folder / "home", *train)

        measured = {
            "import torch and read": cost(folder / "home", "-c", BARE, str(large)),
            "run on 64 images": run(small, "empty"),
            "first start": run(large, "first"),
            "second start": run(large, "second"),
        }
        files = [path for path in large.rglob("*") if path.suffix in (".json", ".txt", ".xml")]
        size = sum(path.stat().st_size for path in files) / 2**20
    bare, empty = measured["import torch and read"], measured["run on 64 images"]
    print(f"{kind}: {images} images, {boxes} boxes, {size:.0f} MB of annotations; in parentheses above the empty run")
    print(f"{'':24}{'wall (s)':>10}{'processor (s)':>15}{'of the first':>21}{'memory (MB)':>13}{'of the file':>13}")
    for name, row in measured.items():
        ratio, above = row.processor / bare.processor, (row.processor - empty.processor) / bare.processor
        more = (row.memory - empty.memory) / size
        shares = f"{ratio:.2f} ({above:.2f})"
        print(f"{name:24}{row.wall:10.1f}{row.processor:15.1f}{shares:>21}{row.memory:13.0f}{more:13.2f}")
    return {"megabytes": size, "table": {name: row._asdict() for name, row in measured.items()}}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=848_000)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["coco"])
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    given = parser.parse_args()
    formats = {kind: measure(kind, given.images, given.boxes) for kind in given.formats}
    if given.json is not None:
        content = {"about": about(), "images": given.images, "boxes": given.boxes, "formats": formats}
        given.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
