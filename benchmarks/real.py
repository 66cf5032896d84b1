"""Does localization distillation help on real images? A comparison on a small public data set.

    python benchmarks/real.py bccd
    python benchmarks/real.py deeppcb --seeds 3 --out runs/real/deeppcb

Trains a teacher and, over several seeds, the student alone, with distillation, and alone for equal time; writes
``compare.md``, ``compare.json`` and ``report.html`` into ``--out``. What was interrupted goes on when it is started
again. Data lie in ``--data-root`` (or in ``LOCDISTILL_DATA``), ImageNet backbones in ``--weights`` (or in
``LOCDISTILL_WEIGHTS``) as ``timm_<name>.pth``.

Scales: ``small`` is made for two cores and 20 to 25 minutes, at reduced size; ``large`` for a GPU, at the size of the
images; ``smoke`` takes two steps of each run and shows only that everything works.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from locdistill.data.settings import DataSettings
from locdistill.distillation import presets
from locdistill.distillation.settings import TeacherSettings
from locdistill.models.settings import DetectorSettings, InputSettings
from locdistill.recipe.recipe import Recipe
from locdistill.recipe.terms import TermSettings
from locdistill.study.arms import Arm
from locdistill.study.compare.compare import ComparisonPlan, carry_out
from locdistill.study.compare.result import difference_table, summary_table
from locdistill.study.demo import Role, short_run


@dataclass(frozen=True)
class Scale:
    """Size of a trial: input limits (long, short), images per step, steps of teacher and student."""

    size: tuple[int, int]
    batch: int
    teacher_steps: int
    student_steps: int


SCALES = {
    "bccd": {
        "smoke": Scale((160, 120), 4, 2, 2),
        "small": Scale((256, 192), 8, 250, 150),
        "large": Scale((640, 480), 16, 1200, 600),
    },
    "deeppcb": {
        "smoke": Scale((128, 128), 4, 2, 2),
        "small": Scale((320, 320), 8, 1200, 300),
        "large": Scale((640, 640), 16, 3000, 1500),
    },
    "hit-uav": {
        "smoke": Scale((160, 128), 4, 2, 2),
        "small": Scale((480, 384), 8, 300, 150),
        "large": Scale((640, 512), 16, 3000, 1500),
    },
}
SCALES["hit-uav-upright"] = SCALES["hit-uav"]
FOLDERS = {"hit-uav": "hit-uav-half", "hit-uav-upright": "hit-uav-half"}
"""Where a pack lies, if not under its name."""
MODELS = {"hit-uav": "rotated_gfl"}
"""Kind of detector, if not GFL."""
_SEEN_FROM_ABOVE = (
    "People and vehicles seen from a drone in thermal infrared: 1007 images to train on, 290 to evaluate on, four "
    "classes; what is marked DontCare is ignored. Backbones begin with ImageNet weights; teacher EfficientNet-lite1 "
    "with a head of 128 channels, student EfficientNet-lite0 with 48."
)
ABOUT = {
    "bccd": (
        "Blood cells under the microscope: 205 images to train on, 87 to evaluate on, three classes. Backbones begin "
        "with ImageNet weights; teacher EfficientNet-lite1 with a head of 128 channels, student EfficientNet-lite0 "
        "with 48."
    ),
    "deeppcb": (
        "Defects of circuit boards: 1000 images to train on, 500 to evaluate on, six classes of small objects. Trained "
        "from random weights; residual networks of one block to a stage, teacher 32 to 256 channels, student 16 to 96."
    ),
    "hit-uav": f"{_SEEN_FROM_ABOVE} Rotated boxes, by a rotated GFL.",
    "hit-uav-upright": f"{_SEEN_FROM_ABOVE} The same images with axis-aligned boxes, by GFL.",
}


def pretrained(name: str, weights: Path, head: int, size: tuple[int, int], pack: str) -> DetectorSettings:
    """An EfficientNet with ImageNet weights from a local file."""
    file = weights / f"timm_{name}.pth"
    if not file.is_file():
        sys.exit(f"{file} is not there; name the folder of ImageNet weights with --weights or LOCDISTILL_WEIGHTS")
    return DetectorSettings(
        model=MODELS.get(pack, "gfl"),
        backbone=name,
        pretrained=str(file),
        channels=head,
        depth=2,
        norm_groups=16,
        levels=(3, 4, 5),
        anchor_scale=2.0 if pack in FOLDERS else 4.0,
        input=InputSettings(short=size[1], long=size[0]),
    )


def small_detector(role: Role, *, size: tuple[int, int]) -> DetectorSettings:
    """Residual networks with one block to a stage: 1.6 million parameters that teach 0.4 million.

    ``size`` is the long and the short limit of the images.
    """
    widths, head = {"teacher": ([32, 64, 128, 256], 64), "student": ([16, 32, 64, 96], 48)}[role]
    return DetectorSettings(
        backbone="resnet18",
        backbone_args={
            "channels": widths,
            "layers": [1, 1, 1, 1],
            "stem_type": "deep",
            "stem_width": 8,
            "replace_stem_pool": True,
            "norm_layer": "groupnorm:8",
        },
        pretrained=False,
        channels=head,
        depth=2,
        norm_groups=16,
        levels=(3, 4, 5),
        anchor_scale=4.0,
        input=InputSettings(short=size[1], long=size[0]),
    )


def detector(pack: str, role: Role, weights: Path, size: tuple[int, int]) -> DetectorSettings:
    """Teacher or student of a data set."""
    if pack == "deeppcb":
        return small_detector(role, size=size)
    name, head = {"teacher": ("tf_efficientnet_lite1", 128), "student": ("tf_efficientnet_lite0", 48)}[role]
    return pretrained(name, weights, head, size, pack)


def recipe(pack: str, role: Role, options: argparse.Namespace, scale: Scale) -> Recipe:
    """How one of the two is trained."""
    steps = scale.teacher_steps if role == "teacher" else scale.student_steps
    return Recipe(
        name=f"{pack}-{role}",
        detector=detector(pack, role, options.weights, scale.size),
        data=DataSettings(
            path=str(options.data_root / FOLDERS.get(pack, pack)),
            val=None if pack == "bccd" else "test",
            ignore_classes=("DontCare",) if pack in FOLDERS else (),
            sizes=(scale.size,),
            batch_per_device=scale.batch,
            workers=0,
            cache=True,
        ),
        engine=short_run(steps, lr=2e-3 if pack == "deeppcb" else 1e-3).model_copy(
            update={"precision": options.precision}
        ),
    )


def ld_terms(options: argparse.Namespace) -> dict[str, TermSettings]:
    """The distillation terms with the weights and the temperature that the command line asks for."""
    terms = presets.ld_full(
        weight=0.25 * options.ld_factor, kd_weight=options.kd_weight, temperature=options.temperature
    )
    return {name: TermSettings.of_term(term) for name, term in terms.items() if term.weight}


def plan(options: argparse.Namespace, out: Path) -> ComparisonPlan:
    """The comparison that the command line asks for."""
    pack, scale = options.pack, SCALES[options.pack][options.scale]
    data = options.data_root / FOLDERS.get(pack, pack)
    if not data.is_dir():
        sys.exit(f"{data} is not there; name the folder of the data sets with --data-root or LOCDISTILL_DATA")
    if options.teacher_steps or options.steps:
        steps = (options.teacher_steps or scale.teacher_steps, options.steps or scale.student_steps)
        scale = replace(scale, teacher_steps=steps[0], student_steps=steps[1])
    teacher = None
    if options.teacher is None:
        teacher = Arm("teacher", "teacher", recipe(pack, "teacher", options, scale), (0,))
    weights = options.teacher or teacher.folder(0, out) / "last.safetensors"
    alone, seeds = recipe(pack, "student", options, scale), tuple(range(options.seeds))
    taught = alone.model_copy(
        update={
            "name": f"{pack}-student-ld",
            "terms": alone.terms | ld_terms(options),
            "teacher": TeacherSettings(weights=str(weights), name=f"{pack}-teacher"),
        }
    )
    size = f"{scale.size[0]} x {scale.size[1]} pixels, {scale.batch} images per step."
    return ComparisonPlan(
        arms=(Arm("alone", "student alone", alone, seeds), Arm("distilled", "student + LD", taught, seeds)),
        out=out,
        teacher=teacher,
        equal_time=not options.equal_steps,
        cache=not options.live,
        jobs=options.jobs,
        title=f"Localization distillation on {pack}",
        about=f"{ABOUT[pack]} Images of {size}",
        command=shlex.join(["python", "benchmarks/real.py", *options.words]),
    )


def parse(words: list[str]) -> argparse.Namespace:
    """The command line."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("pack", choices=sorted(SCALES))
    parser.add_argument("--data-root", type=Path, default=os.environ.get("LOCDISTILL_DATA", beside / "data"))
    parser.add_argument("--weights", type=Path, default=os.environ.get("LOCDISTILL_WEIGHTS", beside / "weights"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scale", choices=("smoke", "small", "large"), default="small")
    parser.add_argument("--steps", type=int, help="of each student at equal steps, instead of the scale's")
    parser.add_argument("--teacher-steps", type=int, help="likewise of the teacher")
    parser.add_argument("--ld-factor", type=float, default=16.0, help="times the published LD weight of 0.25")
    parser.add_argument("--temperature", type=float, default=1.0, help="of LD; published: 10")
    parser.add_argument("--kd-weight", type=float, default=0.0, help="of class distillation; published: 10")
    parser.add_argument("--teacher", help="weights of a finished teacher, which is then not trained")
    parser.add_argument(
        "--beside",
        type=Path,
        help="folder of a comparison with other terms, whose teacher and students alone are taken over",
    )
    parser.add_argument("--precision", choices=("auto", "32", "bf16"), default="auto")
    parser.add_argument("--equal-steps", action="store_true", help="leave out the student alone for equal time")
    parser.add_argument("--live", action="store_true", help="ask the teacher at each step, and keep nothing it says")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--out", type=Path, help="folder of the comparison; default: runs/real/PACK-SCALE")
    options = parser.parse_args(words)
    options.words = words
    return options


def take_over(other: Path, out: Path) -> None:
    """Copy what another comparison trained without the terms; the new one refuses it where its settings are others.

    The steps of equal time are those that were measured there.
    """
    out.mkdir(parents=True, exist_ok=True)
    known = json.loads((other / "arms.json").read_text())
    stamp = out / "arms.json"
    if not stamp.exists():
        stamp.write_text(json.dumps({name: known[name] for name in ("teacher", "alone") if name in known}))
    for folder in (*other.glob("teacher-*"), *other.glob("alone*"), *other.glob("equal_time*.json")):
        target = out / folder.name
        if not target.exists():
            (shutil.copytree if folder.is_dir() else shutil.copy)(folder, target)


def main(words: list[str]) -> None:
    options = parse(words)
    out = options.out or Path("runs") / "real" / f"{options.pack}-{options.scale}"
    asked = plan(options, out)
    if options.beside:
        take_over(options.beside, out)
    result = carry_out(asked, tell=functools.partial(print, flush=True))
    for table in (summary_table(result), difference_table(result)):
        print(f"\n{table.text()}")
    print(f"\n{result.verdict}\n\nThe page: {out / 'report.html'}; the tables: {out / 'compare.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
