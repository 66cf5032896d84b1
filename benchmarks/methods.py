"""Logit mimicking against feature imitation: the methods side by side on real images, one teacher, one student.

    python -m benchmarks.methods deeppcb --seeds 1
    python -m benchmarks.methods coco --arms alone,ld_main,ld_main_vlr,bckd,pkd --out runs/methods/coco
    python -m benchmarks.methods coco --teacher nanodet_m.onnx --classes person,chair,car --arms alone,ld_sharp,bckd

Trains a teacher, unless one is named, then for every seed the student alone and with each of the methods, with their
published weights (in normalisations that do not depend on how a batch is split) and, under names that end in
``_balanced``, with terms that are balanced by their gradients instead. ``locdistill.compare`` does the comparison: it
goes on where it was interrupted, and seeds and arms can be added later. Tables, intervals and pictures lie in ``--out``
(``compare.md``, ``compare.json``, ``report.html``).

Teacher and student have heads of the same width, as in the published comparisons. Data lie in ``--data-root`` (or in
``LOCDISTILL_DATA``), ImageNet backbones in ``--weights`` (or in ``LOCDISTILL_WEIGHTS``) as ``timm_<name>.pth``.

Scales: ``small`` is made for a core and one to two hours, at reduced size; ``large`` for a GPU; ``smoke`` takes two
steps of each run and shows only that everything works.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.real import Scale, pretrained, small_detector

from locdistill.data.settings import DataSettings
from locdistill.distillation import presets
from locdistill.distillation.methods import METHODS
from locdistill.distillation.settings import TeacherSettings
from locdistill.models.settings import DetectorSettings
from locdistill.objective.term import Term
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.terms import TermSettings
from locdistill.study.arms import Arm, train_arms
from locdistill.study.compare.compare import compare
from locdistill.study.compare.result import difference_table, summary_table
from locdistill.study.demo import Role, short_run
from locdistill.training.separately import run_apart

WIDTH = 64
"""Of all heads."""
SCALES = {
    "deeppcb": {
        "smoke": Scale((128, 128), 4, 2, 2),
        "small": Scale((320, 320), 8, 1200, 400),
        "large": Scale((640, 640), 16, 6000, 3000),
    },
    "coco": {
        "smoke": Scale((128, 96), 4, 2, 2),
        "small": Scale((320, 320), 8, 1200, 300),
        "large": Scale((320, 320), 16, 6000, 3000),
    },
}
FOLDERS = {"deeppcb": "deeppcb", "coco": "coco-val2017-2.8k-320"}


def _terms(*methods: str) -> dict[str, Term]:
    return {name: term for method in methods for name, term in METHODS[method]("gfl").items()}


def _ld_main_vlr() -> dict[str, Term]:
    full = presets.ld_full()
    return {name: full[name] for name in ("ld", "ld_vlr")}


def _balanced(terms: Mapping[str, Term]) -> dict[str, Term]:
    """Together as strong as the supervised loss."""
    return {name: replace(term, weight=1.0, balance=1 / len(terms)) for name, term in terms.items()}


ARMS: dict[str, Callable[[], dict[str, Term]]] = {
    "alone": dict,
    "ld_main": presets.ld_main,
    "ld_main_vlr": _ld_main_vlr,
    "ld_full": presets.ld_full,
    "ld_sharp": presets.ld_sharp,
    "kd": lambda: _terms("kd"),
    "ld_sharp_kd": lambda: presets.ld_sharp() | _terms("kd"),
    "gi": lambda: _terms("gi"),
    "ld_full_gi": lambda: presets.ld_full() | _terms("gi"),
    "bckd": lambda: _terms("bckd"),
    "pkd": lambda: _terms("pkd"),
    "crosskd": lambda: _terms("crosskd"),
    "crosskd_pkd": lambda: _terms("crosskd", "pkd"),
    "fitnets": lambda: _terms("fitnets"),
    "inside_gt": lambda: _terms("inside_gt"),
    "main_region": lambda: _terms("main_region"),
    "fine_grained": lambda: _terms("fine_grained"),
    "defeat": lambda: _terms("defeat"),
    "ld_balanced": lambda: _balanced(_ld_main_vlr()),
    "ld_pkd_balanced": lambda: _balanced(_ld_main_vlr() | _terms("pkd")),
}


def detector(pack: str, role: Role, weights: Path, size: tuple[int, int]) -> DetectorSettings:
    """Teacher or student of a data set."""
    if pack == "deeppcb":
        return small_detector(role, size=size).model_copy(update={"channels": WIDTH})
    return pretrained(
        {"teacher": "tf_efficientnet_lite1", "student": "tf_efficientnet_lite0"}[role], weights, WIDTH, size, pack
    )


def recipe(name: str, role: Role, options: argparse.Namespace, scale: Scale) -> Recipe:
    """How one of the two is trained alone."""
    pack, steps = options.pack, scale.teacher_steps if role == "teacher" else scale.student_steps
    return Recipe(
        name=name,
        detector=detector(pack, role, options.weights, scale.size),
        data=DataSettings(
            path=str(options.data_root / FOLDERS[pack]),
            val="test" if pack == "deeppcb" else None,
            classes=tuple(options.classes.split(",")) if options.classes else None,
            sizes=(scale.size,),
            batch_per_device=scale.batch,
            workers=0,
            cache=True,
        ),
        engine=short_run(steps, lr=2e-3 if pack == "deeppcb" else 1e-3),
    )


def arm(name: str, teacher: Path, options: argparse.Namespace, scale: Scale) -> Recipe:
    """The student with a method."""
    alone = recipe(name, "student", options, scale)
    terms = {key: TermSettings.of_term(term) for key, term in ARMS[name]().items()}
    if not terms:
        return alone
    return alone.model_copy(update={"terms": alone.terms | terms, "teacher": TeacherSettings(weights=str(teacher))})


def train_teacher(options: argparse.Namespace, scale: Scale, out: Path) -> Path:
    """The teacher's weights, trained unless they are there."""
    if options.teacher is not None:
        return Path(options.teacher)
    plan = recipe(f"{options.pack}-teacher", "teacher", options, scale)
    one = Arm("teacher", "teacher", plan, (plan.engine.seed,), {plan.engine.seed: out / "teacher"})
    return train_arms([one], out, train=run_apart, tell=say)[0].weights


def say(line: str) -> None:
    """Progress, at once."""
    print(line, flush=True)


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("pack", choices=sorted(SCALES))
    parser.add_argument("--data-root", type=Path, default=os.environ.get("LOCDISTILL_DATA", beside / "data"))
    parser.add_argument("--weights", type=Path, default=os.environ.get("LOCDISTILL_WEIGHTS", beside / "weights"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", choices=("smoke", "small", "large"), default="small")
    parser.add_argument("--arms", default=",".join(ARMS), help="some of them, the one to compare with first")
    parser.add_argument("--steps", type=int, help="of each student, instead of the scale's")
    parser.add_argument("--teacher-steps", type=int, help="likewise of the teacher")
    parser.add_argument("--classes", help="some of the data set's, separated by commas; the others are background")
    parser.add_argument("--teacher", help="weights, run folder or ONNX file of one, which is then not trained")
    parser.add_argument("--equal-time", action="store_true", help="train the first arm also as long as each other took")
    parser.add_argument("--out", type=Path, help="folder of the comparison; default: runs/methods/PACK-SCALE")
    options = parser.parse_args(words)
    if unknown := [name for name in options.arms.split(",") if name not in ARMS]:
        parser.error(f"no arm is called {', '.join(unknown)}; there are {', '.join(ARMS)}")
    options.words = words
    return options


def main(words: list[str]) -> None:
    options = parse(words)
    scale = SCALES[options.pack][options.scale]
    scale = replace(
        scale,
        teacher_steps=options.teacher_steps or scale.teacher_steps,
        student_steps=options.steps or scale.student_steps,
    )
    data = options.data_root / FOLDERS[options.pack]
    if not data.is_dir():
        sys.exit(f"{data} is not there; name the folder of the data sets with --data-root or LOCDISTILL_DATA")
    out = options.out or Path("runs") / "methods" / f"{options.pack}-{options.scale}"
    out.mkdir(parents=True, exist_ok=True)
    teacher = train_teacher(options, scale, out)
    result = compare(
        *(arm(name, teacher, options, scale) for name in options.arms.split(",")),
        seeds=options.seeds,
        out=out,
        equal_time=options.equal_time,
        command=shlex.join(["python", "-m", "benchmarks.methods", *options.words]),
        tell=say,
    )
    for table in (summary_table(result), difference_table(result)):
        print(f"\n{table.text()}")
    for sentence in result.verdicts.values():
        print(f"\n{sentence}")


if __name__ == "__main__":
    main(sys.argv[1:])
