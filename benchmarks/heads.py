"""Does localization distillation work with every kind of head? A short run of each on photographs of blood cells.

    python -m benchmarks.heads
    python -m benchmarks.heads --kinds atss fcos --teacher-steps 500 --steps 300 --out runs/heads

For each kind of detector a teacher is trained and then a student with it, with the terms that ``locdistill distill``
uses where no recipe is named. Read off the student's log: does the loss fall, and does the student come closer to its
teacher (divergence of the edge distributions, overlap of the boxes, both at the positive locations)? Writes
``heads.json``, ``heads.md`` and ``heads.png`` into ``--out``; a run that is there already is not repeated.

One seed and a short schedule: the AP tell that the detectors learn, not which kind is better.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.real import pretrained

from locdistill.data.settings import DataSettings
from locdistill.distillation import presets
from locdistill.distillation.settings import TeacherSettings
from locdistill.evaluation.tables import Table
from locdistill.models.kinds import KINDS
from locdistill.models.settings import DetectorSettings
from locdistill.recipe.recipe import Recipe, supervised_terms
from locdistill.recipe.terms import TermSettings
from locdistill.study.demo import short_run
from locdistill.training.train import run
from locdistill.viz.curves import compare_agreement, read_metrics

PARTS = 10
"""The beginning and the end of a run are means over a tenth of its steps."""


def detector(kind: str, backbone: str, head: int, options: argparse.Namespace) -> DetectorSettings:
    """A small detector of a kind; RetinaNet keeps its head without normalisation and its own anchors."""
    plain = pretrained(backbone, options.weights, head, (options.long, options.short), "bccd").model_dump()
    own = {"norm_groups": 0} if kind == "retinanet" else {}
    return DetectorSettings.model_validate(plain | {"model": kind} | own)


def recipe(kind: str, role: str, options: argparse.Namespace, teacher: Path | None = None) -> Recipe:
    """How teacher or student of a kind is trained."""
    backbone, head = {"teacher": ("tf_efficientnet_lite1", 96), "student": ("tf_efficientnet_lite0", 48)}[role]
    taught = {} if teacher is None else {n: TermSettings.of_term(t) for n, t in presets.ld_sharp(kind).items()}
    engine = short_run(options.teacher_steps if role == "teacher" else options.steps, lr=1e-3)
    return Recipe(
        name=f"{kind}-{role}",
        detector=detector(kind, backbone, head, options),
        data=DataSettings(
            path=str(options.data_root / "bccd"),
            sizes=((options.long, options.short),),
            batch_per_device=8,
            workers=0,
            cache=True,
        ),
        # Losses of heads without normalisation need gradients that are held in check.
        engine=engine.model_copy(update={"log_every": 1, "clip_norm": 10.0, "seed": options.seed}),
        teacher=None if teacher is None else TeacherSettings(weights=str(teacher)),
        terms=supervised_terms(kind) | taught,
    )


def train(kind: str, role: str, options: argparse.Namespace, teacher: Path | None = None) -> dict[str, Any]:
    """Train, or take what is there."""
    out = options.out / f"{kind}-{role}"
    done = out / "metrics.json"
    if done.is_file() and json.loads(done.read_text())["stopped"] == "finished":
        metrics = json.loads(done.read_text())
    else:
        print(f"{kind}: the {role} ...", flush=True)
        made = recipe(kind, role, options, teacher)
        metrics = run(made, out, resume=(out / "last.ckpt").is_file()).metrics
    return {"folder": out, "ap": 100 * metrics["last"]["AP"], "seconds": metrics["train_seconds"]}


def tenths(values: np.ndarray) -> tuple[float, float]:
    """Means over the first and the last tenth."""
    count = max(1, len(values) // PARTS)
    return float(values[:count].mean()), float(values[-count:].mean())


def report(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train both of a kind and read the student's log."""
    teacher = train(kind, "teacher", options)
    student = train(kind, "student", options, teacher["folder"] / "last.safetensors")
    curves = read_metrics(student["folder"] / "metrics.csv")
    names = ("train/total", "train/ld", "train/ld_vlr", "agree/edge_kl", "agree/box_iou")
    return {
        "kind": kind,
        "teacher_ap": teacher["ap"],
        "student_ap": student["ap"],
        "seconds": teacher["seconds"] + student["seconds"],
        "finite": all(math.isfinite(value) for name in names for value in curves[name][1]),
        "steps": len(curves["train/total"][0]),
        **{name: tenths(curves[name][1]) for name in names},
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """What the page shows."""

    def fall(row: dict[str, Any], name: str) -> str:
        before, after = row[name]
        return f"{before:.3g} to {after:.3g}"

    return Table(
        title="LD with each kind of head, bccd",
        header=("head", "teacher AP", "student AP", "loss", "LD main", "LD beside", "edge KL", "box IoU"),
        rows=tuple(
            (
                row["kind"],
                f"{row['teacher_ap']:.1f}",
                f"{row['student_ap']:.1f}",
                *(fall(row, n) for n in ("train/total", "train/ld", "train/ld_vlr", "agree/edge_kl", "agree/box_iou")),
            )
            for row in rows
        ),
    )


def parse() -> argparse.Namespace:
    """The command line."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), default=list(KINDS))
    parser.add_argument("--data-root", type=Path, default=os.environ.get("LOCDISTILL_DATA", beside / "data"))
    parser.add_argument("--weights", type=Path, default=os.environ.get("LOCDISTILL_WEIGHTS", beside / "weights"))
    parser.add_argument("--long", type=int, default=224)
    parser.add_argument("--short", type=int, default=160)
    parser.add_argument("--teacher-steps", type=int, default=160)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/heads"))
    return parser.parse_args()


def main() -> None:
    options = parse()
    rows = [report(kind, options) for kind in options.kinds]
    shown = table(rows)
    words = {key: value for key, value in vars(options).items() if isinstance(value, int)}
    facts = {"torch": torch.__version__, "machine": platform.processor() or platform.machine(), "settings": words}
    (options.out / "heads.json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
    (options.out / "heads.md").write_text(shown.markdown() + "\n")
    logs = {kind: options.out / f"{kind}-student" / "metrics.csv" for kind in options.kinds}
    compare_agreement(logs, options.out / "heads.png")
    print(f"\n{shown.text(140)}\n\n{options.out / 'heads.png'}")


if __name__ == "__main__":
    main()
