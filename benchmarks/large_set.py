"""How long a run takes to its first step on a data set of COCO's size.

    python -m benchmarks.large_set [--images 118000] [--boxes 848000] [--json FILE]

The data set is COCO json over links to 64 small pictures. Measured are whole processes with one thread: ``import
torch`` and ``json.load`` of the annotations (what any program has to do), a run on 64 images, the first start on all
images, and a second one, for which the first has kept what it read. Each run takes one step and evaluates once.
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
STEP = (
    *("--backbone", "test_resnet", "--pretrained", "none", "data.workers=0", "data.batch_per_device=2"),
    *("data.sizes=[[64,64]]", "detector.channels=16", "detector.depth=1", "detector.norm_groups=4"),
    *("engine.steps=1", "engine.eval_every=0", "engine.accelerator=cpu", "engine.progress=false"),
)
BARE = "import json, sys, torch; json.load(open(sys.argv[1]))"


class Cost(NamedTuple):
    """Cost of a process: seconds by the clock and of the processor, and largest memory in MB."""

    wall: float
    processor: float
    memory: float


def write(folder: Path, images: int, boxes: int) -> Path:
    """Write the data set: a training split of that many images, and a split to evaluate on of 64."""
    rng = np.random.default_rng(0)
    pictures = folder / "images"
    pictures.mkdir(parents=True)
    for number in range(PICTURES):
        noise = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 48)).save(folder / f"{number}.jpg")
    for split, count in (("train", images), ("val", PICTURES)):
        names = [f"{split}{number:012}.jpg" for number in range(count)]
        for number, name in enumerate(names):
            os.link(folder / f"{number % PICTURES}.jpg", pictures / name)
        owner = np.sort(rng.integers(0, count, boxes * count // images))
        corners, sides = rng.uniform(0, 30, (len(owner), 2)), rng.uniform(4, 18, (len(owner), 2))
        rows = np.concatenate((corners, sides), axis=1).round(2).tolist()
        content = {
            "images": [{"id": i, "file_name": n, "width": 64, "height": 48} for i, n in enumerate(names)],
            "annotations": [
                {"id": n, "image_id": i, "category_id": n % CLASSES, "bbox": row, "area": row[2] * row[3], "iscrowd": 0}
                for n, (i, row) in enumerate(zip(owner.tolist(), rows, strict=True))
            ],
            "categories": [{"id": n, "name": f"class {n}"} for n in range(CLASSES)],
        }
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=848_000)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(1, get_context("spawn")) as another:
        folder = Path(place)  # another process writes: the largest memory of a process is never less than its parent's
        small = another.submit(write, folder / "small", PICTURES, PICTURES * 7).result()
        large = another.submit(write, folder / "large", given.images, given.boxes).result()
        file = large / "train.json"

        def run(data: Path, name: str) -> Cost:
            train = ("-m", "locdistill", "train", "--data", str(data), "--out", str(folder / name), *STEP)
            return cost(folder / "home", *train)

        measured = {
            "import torch, json.load": cost(folder / "home", "-c", BARE, str(file)),
            "run on 64 images": run(small, "empty"),
            "first start": run(large, "first"),
            "second start": run(large, "second"),
        }
        size = file.stat().st_size / 2**20
    bare, empty = measured["import torch, json.load"], measured["run on 64 images"]
    print(f"{given.images} images, {given.boxes} boxes, {size:.0f} MB of annotations")
    print(f"{'':26}{'wall (s)':>10}{'processor (s)':>15}{'of the first':>14}{'memory (MB)':>13}{'of the file':>13}")
    for name, row in measured.items():
        more = (row.memory - empty.memory) / size
        ratio = row.processor / bare.processor
        print(f"{name:26}{row.wall:10.1f}{row.processor:15.1f}{ratio:14.2f}{row.memory:13.0f}{more:13.2f}")
    if given.json is not None:
        table = {name: row._asdict() for name, row in measured.items()}
        numbers = {"images": given.images, "boxes": given.boxes, "megabytes": size}
        given.json.write_text(json.dumps({"about": about(), **numbers, "table": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
