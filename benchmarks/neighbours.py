"""What a training step costs beside other programs: ``python -m benchmarks.neighbours [--json]``.

PyTorch's OpenMP threads wait for each other spinning. Alone on a machine that is the quickest way to wait; where
another program wants a core, the threads wait for one that was sent away. In each round a step of plain training is
timed beside no, one and two programs that keep a core busy, in a process of its own for each way of waiting:

- ``spinning``: as PyTorch comes;
- ``short spin``: what the command line of locdistill chooses (see :mod:`locdistill.cli.threads`);
- ``passive``: ``OMP_WAIT_POLICY=PASSIVE``;
- ``one thread``.

Milliseconds are medians over the rounds of the mean over a few seconds of steps; an arm is compared with the same one
beside nobody, and with ``spinning`` beside nobody.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from locdistill.cli.threads import SHORT_SPIN

WAYS: dict[str, dict[str, str]] = {
    "spinning": {},
    "short spin": SHORT_SPIN,
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
NETWORKS = {"small": (192, 192, 4), "resnet18": (192, 256, 1)}
"""Height, width and images of a step: of the demonstration's student, and of GFL with a ResNet-18."""
NEIGHBOURS = (0, 1, 2)
BUSY = "while True: pass"
STEPS = 3
"""Fewest steps that are timed."""


def ask(network: str, way: Mapping[str, str], seconds: float) -> float:
    """Milliseconds of a step in a process that waits in this way."""
    unset = {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | dict(way)
    words = [sys.executable, "-m", "benchmarks.neighbours", "--child", network, "--seconds", str(seconds)]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def answer(network: str, seconds: float) -> float:
    """Milliseconds of a step here."""
    import torch  # noqa: PLC0415 - how its threads wait is decided before
    from benchmarks.real import small_detector  # noqa: PLC0415
    from benchmarks.step import CLASSES, Setting, detector, drawn, training  # noqa: PLC0415

    from locdistill.data.loader import training_loader  # noqa: PLC0415
    from locdistill.data.open import open_dataset  # noqa: PLC0415
    from locdistill.models.detector import Detector  # noqa: PLC0415

    height, width, images = NETWORKS[network]
    if network == "small":
        settings = small_detector("student", size=(width, height))
        student = Detector(settings.model_copy(update={"classes": CLASSES}))
    else:
        student = detector("resnet18")
    setting = Setting(
        student=student,
        teacher=student,
        size=(height, width),
        images=images,
        device=torch.device("cpu"),
        compile=False,
    )
    step = training(setting.module("32", distils=False))
    with tempfile.TemporaryDirectory() as name:
        data = drawn(Path(name), (height, width), images)
        batch = next(iter(training_loader(open_dataset(data, "train"), data, seed=0)))
    for _ in range(2):
        step(batch)
    begun, steps = time.perf_counter(), 0
    while steps < STEPS or time.perf_counter() - begun < seconds:
        step(batch)
        steps += 1
    return (time.perf_counter() - begun) / steps * 1e3


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Programs that keep a core busy each."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def measure(network: str, rounds: int, seconds: float) -> dict[str, dict[int, float]]:
    """Milliseconds of a step by way of waiting and number of neighbours."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(rounds):
        for count in NEIGHBOURS:
            for name, way in WAYS.items():
                with busy(count):
                    found[name][count].append(ask(network, way, seconds))
    return {name: {n: statistics.median(ms) for n, ms in by.items()} for name, by in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(NETWORKS), action="append", help="both unless given")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="of steps that are timed, in each process")
    parser.add_argument("--child", choices=sorted(NETWORKS), help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.child:
        print(answer(args.child, args.seconds))
        return
    from benchmarks.machine import about  # noqa: PLC0415 - imports torch

    found = {name: measure(name, args.rounds, args.seconds) for name in args.network or sorted(NETWORKS)}
    if args.json:
        print(json.dumps(about() | {"milliseconds": found}, indent=2))
        return
    print(f"{about()['machine']}, {about()['cores']} cores, torch {about()['torch']}, commit {about()['commit']}")
    for network, ways in found.items():
        print(f"\n{network:12}" + "".join(f"{f'{count} busy':>12}" for count in NEIGHBOURS) + "   (ms)")
        for name, by in ways.items():
            print(f"{name:12}" + "".join(f"{by[count]:12.0f}" for count in NEIGHBOURS))


if __name__ == "__main__":
    main()
