"""What `locdistill predict` costs beside its network: ``python -m benchmarks.predict WEIGHTS IMAGES [--rounds 3]``.

In each round the network alone detects in the pictures, which lie in memory, resized; then ``predict`` reads, detects,
and with ``--save`` draws and writes them. Medians over the rounds, in pictures a second, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import torch
from benchmarks.machine import about

from locdistill.annotations.files import images_below
from locdistill.images import read_image, resize_keep_ratio
from locdistill.inference.predict import predict
from locdistill.models.detector import Detector
from locdistill.models.hub import find


def copies(images: Path, folder: Path, count: int) -> Path:
    """Copy pictures of a folder, repeated as needed."""
    for number, file in enumerate(islice(cycle(images_below(images)), count)):
        shutil.copy(file, folder / f"{number:05}{file.suffix}")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    detector = Detector.load(find(args.weights), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    limits = detector.settings.input
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        folder.mkdir()
        copies(args.images, folder, args.count)
        small = [resize_keep_ratio(read_image(f), short=limits.short, long=limits.long) for f in images_below(folder)]
        ways: dict[str, Callable[[], object]] = {
            "network": lambda: detector.detect(small, batch=args.batch),
            "predict": lambda: predict(detector, folder, batch=args.batch),
            "predict --save": lambda: predict(detector, folder, batch=args.batch, save=Path(name) / "out"),
        }
        detector.detect(small[: 2 * args.batch], batch=args.batch)
        for _ in range(args.rounds):
            for way, call in ways.items():
                began = time.perf_counter()
                call()
                seconds[way].append(time.perf_counter() - began)
    rates = {way: args.count / statistics.median(values) for way, values in seconds.items()}
    for way, rate in rates.items():
        print(f"{way:16}{rate:8.1f} pictures a second{rate / rates['network']:8.2f} of the network alone")
    if args.json:
        args.json.write_text(json.dumps(about() | {"pictures_a_second": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
