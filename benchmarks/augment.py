"""Milliseconds per image of none, light and strong augmentation: ``python -m benchmarks.augment [FOLDER] [--json]``.

One process with one thread reads, transforms and collates batches of eight images at 320 pixels, as a worker does.
The strengths take turns on every batch, so that a machine that gets slower does so for all; numbers are medians of
processor time over the batches. Each is measured from files and from decoded images in memory (``data.cache``): a
mosaic reads four files. Without FOLDER, JPEG pictures of 480 x 640 are drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from benchmarks.machine import about
from PIL import Image

from locdistill.data.cache import PictureCache
from locdistill.data.loader import Pictures, training_plan
from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset
from locdistill.data.samplers import Draw
from locdistill.data.settings import DataSettings

SIDE, BATCH, IMAGES = 320, 8, 64
STRENGTHS = ("none", "light", "strong")


def draw_pictures(folder: Path) -> None:
    """Draw smooth noise with ten squares in each picture."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    for i in range(IMAGES):
        coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((640, 480))
        coarse.save(folder / "images" / f"{i}.jpg", quality=90)
        images.append({"id": i + 1, "file_name": f"{i}.jpg", "width": 640, "height": 480})
        for x, y in random.integers(0, 400, (10, 2)).tolist():
            box = {"id": len(annotations) + 1, "image_id": i + 1, "category_id": 1, "bbox": [x, y, 60, 60]}
            annotations.append(box)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "train.json").write_text(json.dumps(content))


def measure(dataset: Dataset, rounds: int) -> dict[str, float]:
    """Return milliseconds per image of each strength, from files and from memory."""
    pictures: dict[str, Pictures] = {}
    whole = [(record.height, record.width) for record in dataset.records]
    for strength in STRENGTHS:
        plan = training_plan(DataSettings(augment=strength, sizes=((SIDE, SIDE),)), 0, len(dataset))
        cache = None if plan.fixed_size else PictureCache(whole, limit=10**10)
        pictures[strength] = Pictures(dataset, plan)
        pictures[f"{strength}, in memory"] = Pictures(dataset, plan, cache or _resized(whole))
    seconds = defaultdict(list)
    count = min(IMAGES, len(dataset))
    for epoch in range(rounds + 1):
        for start in range(0, count - BATCH + 1, BATCH):
            draws = [Draw(image, epoch) for image in range(start, start + BATCH)]
            for name, images in pictures.items():
                begun = time.process_time()
                images[draws]
                if epoch:  # the first pass fills the memory
                    seconds[name].append((time.process_time() - begun) / BATCH)
    return {name: 1000 * statistics.median(each) for name, each in seconds.items()}


def _resized(whole: list[tuple[int, int]]) -> PictureCache:
    from locdistill.images import keep_ratio_size  # noqa: PLC0415 - for one strength only

    return PictureCache([keep_ratio_size(h, w, short=SIDE, long=SIDE) for h, w in whole], limit=10**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", nargs="?", help="a data set; pictures are drawn without one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as drawn:
        if arguments.folder is None:
            draw_pictures(Path(drawn))
        dataset = open_dataset(DataSettings(path=arguments.folder or drawn), "train")
        found = measure(dataset, arguments.rounds)
    if arguments.json:
        print(json.dumps({"machine": about(), "ms_per_image": found}, indent=1))
        return
    for name, ms in found.items():
        print(f"{name:20} {ms:7.2f} ms   {ms / found['none']:5.2f} x none")


if __name__ == "__main__":
    main()
