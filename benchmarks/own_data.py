"""What the default run is worth on a user's own data, at equal wall time.

    python -m benchmarks.own_data --packs bccd deeppcb --minutes 10 --seeds 0 1 2
    python -m benchmarks.own_data --packs bccd --arms now "now, no average" --minutes 10
    python -m benchmarks.own_data --packs bccd --arms now YOLO11n --yolo ~/yolo/bin/yolo --jobs 1
    python -m benchmarks.own_data --table

Each run is ``locdistill train --data PACK --minutes M`` with the settings of its arm, from random weights, in a process
with one thread; ``--jobs`` of them run at a time. ``before`` is the default run of commit 37eac5f: the schedule and the
network of the published COCO recipes, with the input size rounded to the nearest 32 and four images a step. The other
arms are today's defaults, whole or without a part; those named YOLO11n are another program (:mod:`benchmarks.yolo`) on
the same images, with its best weights, judged by our evaluator. The time of a run is that of its steps and evaluations;
AP is that of the final weights.

Results are added to ``docs/results/own-data.json`` as they come: what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from benchmarks import yolo

from locdistill.data.open import open_dataset
from locdistill.data.settings import DataSettings
from locdistill.engine.log import read_metrics
from locdistill.files import write_text
from locdistill.recipe.load import load_recipe
from locdistill.recipe.overrides import apply_overrides

STATE = Path("docs/results/own-data.json")
PACKS: dict[str, tuple[str, ...]] = {
    "bccd": (),
    "deeppcb": ("data.val=test",),
    "coco-val2017-2.8k-320": (),
    "hit-uav-half": ("data.ignore_classes=[DontCare]", "--model", "gfl"),
}
ARMS: dict[str, tuple[str, ...]] = {
    "before": (),
    "now": (),
    "now, no augmentation": ("data.augment=none",),
    "now, light augmentation": ("data.augment=light",),
    "now, strong augmentation": ("data.augment=strong",),
    "now, no average": ("engine.ema=null",),
    "now, without background images": ("data.filter_empty=true",),
    "now, published optimiser": (
        "engine.optimizer=sgd",
        "engine.lr=0.01",
        "engine.scale_lr=true",
        "engine.clip_norm=null",
    ),
    "now, size of the images": (),
    "now, size s": ("--size", "s"),
    "now, EfficientNet-lite0": ("--backbone", "tf_efficientnet_lite0"),
    "now, ResNet-10": ("--backbone", "resnet10t"),
    "YOLO11n": (),
    "YOLO11n, 640": (),
}
METRICS = ("AP", "AP50", "AP75")
ROW = ("pack", "arm", "seed", "minutes", "weights")


def before(data: Path, more: Sequence[str]) -> list[str]:
    """Return the settings of the former default run."""
    return [
        *("--backbone", "resnet18", "detector.channels=256", "detector.depth=4", "detector.levels=[3,4,5,6,7]"),
        *("engine.optimizer=sgd", "engine.lr=0.01", "engine.scale_lr=true", "engine.weight_decay=0.0001"),
        *("engine.norm_bias_decay=true", "engine.clip_norm=null", "engine.warmup_steps=500", "engine.schedule=step"),
        *("engine.milestones=[0.6667,0.9167]", "engine.ema=null", "engine.patience=null"),
        *("data.filter_empty=true", "data.batch_per_device=4", "data.augment=none", own_size(data, more, whole=False)),
    ]


def own_size(data: Path, more: Sequence[str], *, whole: bool) -> str:
    """Return the setting of the input size: the median image, in multiples of 32, the nearest or the next larger."""
    records = open_dataset(settings_of(data, more), "train").records
    sides = [statistics.median(f(r.width, r.height) for r in records) for f in (max, min)]
    rounded = [max(32, -int(-side // 32) * 32 if whole else int(side / 32 + 0.5) * 32) for side in sides]
    return f"data.sizes=[{rounded}]"


def settings_of(data: Path, more: Sequence[str]) -> DataSettings:
    """Return the settings of a pack's data."""
    words = [word for word in more if word.startswith("data.")]
    return DataSettings.model_validate(apply_overrides({"data": {"path": str(data)}}, words)["data"])


def words_of(arm: str, data: Path, more: Sequence[str]) -> list[str]:
    """Return the options and settings of an arm."""
    if arm == "before":
        return before(data, more)
    if arm == "now, size of the images":
        return [own_size(data, more, whole=True)]
    return list(ARMS[arm])


def folder_of(job: Mapping[str, Any], runs: Path) -> Path:
    """Return the folder of a run."""
    return runs / "-".join(str(job[name]).replace(" ", "_").replace(",", "") for name in ROW)


def train_yolo(job: Mapping[str, Any], data: Path, runs: Path, program: Path) -> dict[str, Any]:
    """Run Ultralytics' YOLO11n, by default at the input size of the run of today's defaults, and return its row."""
    settings, out = settings_of(data, PACKS[job["pack"]]), folder_of(job, runs)
    size = 640
    if not job["arm"].endswith("640"):
        chosen = folder_of({**job, "arm": "now"}, runs) / "recipe.yaml"
        while not chosen.is_file():  # that run may have begun at the same time
            time.sleep(1)
        size = max(load_recipe(chosen).data.sizes[0])
    file = yolo.written(settings, out.with_name(f"{out.name}-data"))
    began = time.monotonic()
    yolo.trained(program, file, out, model="yolo11n", size=size, minutes=job["minutes"], seed=job["seed"])
    seconds = time.monotonic() - began
    metrics = yolo.judged(settings, out / "val" / "predictions.json").metrics
    epochs = len((out / "results.csv").read_text().splitlines()) - 1
    found = {name: round(100 * metrics[name], 2) for name in METRICS}
    return {**job, **found, "seconds": round(seconds, 1), "steps": None, "epochs": epochs, "size": size}


def train(job: Mapping[str, Any], root: Path, runs: Path, weights: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Run one arm on one pack, and return its row."""
    data, more = root / job["pack"], PACKS[job["pack"]]
    out = folder_of(job, runs)
    if (out / "metrics.json").is_file() and not json.loads((out / "metrics.json").read_text()).get("stopped"):
        shutil.rmtree(out)
    words = [*weights[job["weights"]], *words_of(job["arm"], data, more), *more]
    command = [sys.executable, "-m", "locdistill", "train", "--data", str(data), "--minutes", str(job["minutes"])]
    command += ["--seed", str(job["seed"]), "--out", str(out), *words, "engine.progress=false", "data.workers=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    rows = read_metrics(out / "metrics.csv")
    curve = [[row["seconds"], *(100 * row[f"val/{m}"] for m in METRICS)] for row in rows if "val/AP" in row]
    result = dict(zip(METRICS, (round(value, 2) for value in curve[-1][1:]), strict=True))
    size = max(load_recipe(out / "recipe.yaml").data.sizes[0])
    numbers = {"seconds": round(curve[-1][0], 1), "steps": int(rows[-1]["step"]), "epochs": rows[-1]["epoch"]}
    curve = [[round(value, 2) for value in point] for point in curve]
    return {**job, **result, **numbers, "size": size, "curve": curve}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the results as a table: mean over seeds by pack, weights, minutes and arm."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["pack"], row["weights"], row["minutes"], row["arm"]].append(row)
    lines = ["| data | weights | minutes | run | AP | AP50 | AP75 | input | epochs | seeds |", f"|{' --- |' * 10}"]
    for key, found in sorted(groups.items(), key=str):
        means = [statistics.mean(row[name] for row in found) for name in (*METRICS, "size", "epochs")]
        cells = [*map(str, key), *(f"{mean:.1f}" for mean in means[:3]), f"{means[3]:.0f}", f"{means[4]:.3g}"]
        cells.append(str(len(found)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--packs", nargs="+", choices=PACKS, default=list(PACKS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["before", "now"])
    parser.add_argument("--weights", nargs="+", choices=("random", "imagenet"), default=["random"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--jobs", type=int, default=torch.get_num_threads(), help="runs at a time")
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("LOCDISTILL_DATA", "../shared/data")))
    parser.add_argument("--imagenet", default="../shared/weights/timm_tf_efficientnet_lite0.pth", metavar="FILE")
    parser.add_argument("--yolo", type=Path, metavar="PROGRAM", help="Ultralytics' yolo, for the arms of that name")
    parser.add_argument("--runs", type=Path, default=Path("runs/own-data"))
    parser.add_argument("--table", action="store_true", help="print the results, and run nothing")
    given = parser.parse_args()
    state = json.loads(STATE.read_text()) if STATE.is_file() else []
    weights = {
        "random": ("--pretrained", "none"),
        "imagenet": ("--backbone", "tf_efficientnet_lite0", "--pretrained", given.imagenet),
    }
    wanted = [
        dict(zip(ROW, (pack, arm, seed, given.minutes, start), strict=True))
        for seed in given.seeds
        for pack in given.packs
        for start in given.weights
        for arm in given.arms
    ]

    def row_of(job: Mapping[str, Any]) -> dict[str, Any]:
        if not job["arm"].startswith("YOLO"):
            return train(job, given.data_root, given.runs, weights)
        if given.yolo is None:
            raise SystemExit(f"{job['arm']}: name the program with --yolo PROGRAM")
        return train_yolo(job, given.data_root / job["pack"], given.runs, given.yolo)

    there = [{name: row[name] for name in ROW} for row in state]
    jobs = [] if given.table else [job for job in wanted if job not in there]
    with ThreadPoolExecutor(given.jobs) as pool:
        for row in pool.map(row_of, jobs):
            state.append(row)
            write_text(STATE, json.dumps(state, indent=1) + "\n")
            print({name: row[name] for name in (*ROW, *METRICS, "size", "epochs", "seconds")}, flush=True)
    print(table(state))


if __name__ == "__main__":
    main()
