"""How fast a detector is in PyTorch and in exported files, in one interleaved run.

    locdistill export runs/student --out student.onnx
    locdistill export runs/student --int8 --data path/to/data --out int8.onnx
    python -m benchmarks.deployed runs/student student.onnx int8.onnx --images folder/ [--compiled] [--json FILE]

From pictures in memory, resized, to boxes: one picture at a time, in float32 and bf16 by PyTorch (``--compiled``: by
``torch.compile`` too, which takes a minute), and by each file. In each round every way detects in the same pictures;
medians over the rounds of the mean milliseconds a picture, and their ratios to PyTorch in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from itertools import islice
from pathlib import Path

import torch
from benchmarks.machine import about

from locdistill.annotations.files import images_below
from locdistill.images import pad_together
from locdistill.inference.benchmark.engines import See, compiled, eager, in_file
from locdistill.inference.benchmark.measure import ImagesInMemory, look
from locdistill.models.detector import Detector
from locdistill.models.exported import ExportedDetector
from locdistill.models.hub import find


def in_memory(detector: Detector, files: list[Path]) -> list[ImagesInMemory]:
    """Return each picture as the detector takes it."""
    found = []
    for file in files:
        prepared = detector.prepare(file)
        height, width = prepared.padded[0]
        images = pad_together([prepared.images[0]], height=height, width=width)
        sizes, originals = torch.tensor([prepared.images[0].shape[-2:]]), torch.tensor([prepared.original])
        found.append(ImagesInMemory(images, sizes, originals))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pictures = list(islice(images_below(args.images), args.count))
    own = Detector.load(find(args.weights))
    ways: dict[str, tuple[Detector, See]] = {
        "PyTorch, float32": (own, eager(own, "32", print)),
        "PyTorch, bf16": (own, eager(own, "bf16", print)),
    }
    if args.compiled:
        ways["torch.compile, float32"] = (own, compiled(own, "32", print))
    for file in args.files:
        exported = ExportedDetector(file)
        ways[f"{file.name}, {file.stat().st_size / 1e6:.1f} MB"] = (exported, in_file(exported, "32", print))
    ready = {name: in_memory(detector, pictures) for name, (detector, _) in ways.items()}
    times: dict[str, list[float]] = defaultdict(list)
    for number in range(args.rounds + 1):
        for name, (detector, see) in ways.items():
            began = time.perf_counter()
            for one in ready[name]:
                look(detector, see, one)
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - began) / len(pictures) * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = medians["PyTorch, float32"]
    facts = about()
    print(f"{facts['machine']}, {facts['threads']} threads, torch {facts['torch']}, commit {facts['commit']}")
    for name, value in medians.items():
        print(f"{name:36}{value:8.2f} ms{first / value:8.2f} times as fast")
    if args.json:
        args.json.write_text(json.dumps(facts | {"milliseconds": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
