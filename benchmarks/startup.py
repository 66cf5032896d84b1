"""What a verb costs before it does anything: ``python -m benchmarks.startup [--rounds 5] [--json FILE]``.

Processor time of whole processes, which other programs disturb less than the clock, each divided by that of
``import torch`` in the same round; medians over the rounds. Everything runs on one thread. Compiled Python files are
kept between rounds, in a folder of their own, as they are on a user's machine whatever this environment says.

``train, first step`` ends behind the first optimiser step. ``import timm`` is what it costs at least: timm imports
torchvision and, with it, ``torch._dynamo``. ``train, one step`` is the whole process: it also evaluates, draws and
writes the run's folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import about

from locdistill.data.shapes import ShapesSettings, write_shapes

COMMAND = (sys.executable, "-m", "locdistill")
TORCH = "import torch"
FIRST_STEP = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
from locdistill.cli import main
register_optimizer_step_post_hook(lambda *_: os._exit(0))
main(sys.argv[1:])
"""
TINY = (
    *("data.workers=0", "data.sizes=[[128, 128]]", "data.batch_per_device=2", "detector.pretrained=false"),
    *("detector.backbone=test_resnet", "detector.channels=16", "detector.depth=1", "detector.norm_groups=4"),
    *("engine.steps=1", "engine.accelerator=cpu", "engine.progress=false"),
)


def cases(data: Path, folder: Path) -> dict[str, tuple[str, ...]]:
    """Command lines by name."""
    train = ("train", "--data", str(data), *TINY)
    return {
        TORCH: (sys.executable, "-c", TORCH),
        "import timm": (sys.executable, "-c", "import timm"),
        "--version": (*COMMAND, "--version"),
        "--help": (*COMMAND, "--help"),
        "recipes": (*COMMAND, "recipes"),
        "methods": (*COMMAND, "methods"),
        "config": (*COMMAND, "config", "ld_r18_from_r101"),
        "data check": (*COMMAND, "data", "check", str(data)),
        "train, first step": (sys.executable, "-c", FIRST_STEP, *train, "--out", str(folder / "first")),
        "train, one step": (*COMMAND, *train, "--out", str(folder / "run")),
    }


def seconds(command: tuple[str, ...], folder: Path) -> float:
    """Processor time of a process, system time included."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(folder / 'output.txt').read_text()}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    arguments = parser.parse_args()
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = write_shapes(folder / "shapes", ShapesSettings(train=8, val=4, size=128))
        for number in range(arguments.rounds + 1):  # the first one fills the caches of files
            for name, command in cases(data, folder / f"round{number}").items():
                measured.setdefault(name, []).append(seconds(command, folder))
    rounds = {name: values[1:] for name, values in measured.items()}
    table = {
        name: {
            "seconds": statistics.median(values),
            "of_torch": statistics.median(v / t for v, t in zip(values, rounds[TORCH], strict=True)),
        }
        for name, values in rounds.items()
    }
    print(f"{'':18}{'seconds':>9}{'of import torch':>17}")
    for name, row in table.items():
        print(f"{name:18}{row['seconds']:9.2f}{row['of_torch']:17.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"about": about(), "table": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
