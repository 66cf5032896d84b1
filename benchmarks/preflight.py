"""Pairs that do not match: three steps of each from the command line, and what is said before the first one.

Writes ``docs/preflight-examples.md``. A teacher with 256 channels is trained for 60 steps first, so that there is
one worth listening to; it is no good detector.

    python benchmarks/preflight.py --data DATA --weights WEIGHTS --out runs/preflight

DATA holds ``bccd`` and ``coco-val2017-2.8k-320``, WEIGHTS ``nanodet_m.onnx`` and ``timm_tf_efficientnet_lite0.pth``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "preflight-examples.md"
STUDENT = "--backbone tf_efficientnet_lite0 --pretrained WEIGHTS/timm_tf_efficientnet_lite0.pth"
FEW = "engine.steps=3 engine.log_every=1 engine.progress=false data.workers=0"
LOOK = "--preflight-images 100"
TEACHER = (
    f"train --data DATA/bccd {STUDENT} --out OUT/teacher --batch 4 data.sizes=[[192,144]] "
    "detector.channels=256 detector.depth=1 detector.levels=[3,4,5] detector.anchor_scale=4 engine.optimizer=adamw "
    "engine.lr=0.002 engine.scale_lr=false engine.warmup_steps=5 engine.steps=60 engine.progress=false data.workers=0"
)
COCO = (
    f"distill --teacher WEIGHTS/nanodet_m.onnx --data DATA/coco-val2017-2.8k-320 {STUDENT} --batch 4 {LOOK} "
    "detector.channels=64"
)
PAIRS = {
    "A teacher of 8 bins, in an ONNX file, and a student of 17": f"{COCO} detector.reg_max=16 {FEW}",
    "A teacher of 80 classes, and a student of three of them": f"{COCO} data.classes=[person,car,dog] {FEW}",
    "A teacher of 256 channels, and a student of 64, compared by their features": (
        f"distill --teacher OUT/teacher --data DATA/bccd {STUDENT} --batch 4 {LOOK} --method pkd "
        f"detector.channels=64 {FEW}"
    ),
}
WRONG = {
    "The same ONNX file, given red for blue": f"{COCO} --dry-run teacher.onnx.bgr=false "
    "teacher.onnx.mean=[123.675,116.28,103.53] teacher.onnx.std=[58.395,57.12,57.375]",
    "The same ONNX file, its images divided by 1 and not by their deviation": f"{COCO} --dry-run "
    "teacher.onnx.std=[1,1,1]",
    "A teacher of other classes": f"distill --teacher WEIGHTS/nanodet_m.onnx --data DATA/bccd {STUDENT} --dry-run",
}
HEAD = """# Pre-flight: examples

Pairs that do not match, and their reports. Written by `python benchmarks/preflight.py`, which runs each command and
copies its output: three steps of pairs that can be bridged, then pairs that cannot work as they are. DATA, WEIGHTS and
OUT stand for folders. See [pre-flight](preflight.md).
"""


def main() -> None:
    """Train the teacher unless it is there, run the pairs, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "weights", "out"):
        parser.add_argument(f"--{name}", required=True)
    places = {name.upper(): value for name, value in vars(parser.parse_args()).items()}
    if not Path(places["OUT"], "teacher", "best.safetensors").is_file():
        run(TEACHER, places)
    page = [HEAD, "The teacher of 256 channels is made by", "", "```sh", f"locdistill {TEACHER}", "```"]
    for number, (heading, command) in enumerate(PAIRS.items()):
        run(f"{command} --out OUT/pair-{number}", places)
        report = Path(places["OUT"], f"pair-{number}", "preflight.txt").read_text(encoding="utf-8")
        page += section(heading, command, report, places)
    for heading, command in WRONG.items():
        page += section(heading, command, run(command, places, stops=True), places)
    PAGE.write_text("\n".join(page) + "\n", encoding="utf-8")


def run(command: str, places: dict[str, str], *, stops: bool = False) -> str:
    """Run the command line; what it printed."""
    words = [place(word, places) for word in command.split()]
    print("locdistill", command, flush=True)
    done = subprocess.run([sys.executable, "-m", "locdistill", *words], capture_output=True, text=True, check=False)
    if done.returncode not in ((0, 1) if stops else (0,)):
        raise SystemExit(done.stderr)
    return done.stdout


def place(word: str, places: dict[str, str]) -> str:
    """A word with the folders that its capitals stand for."""
    head, slash, rest = word.partition("/")
    return places[head] + slash + rest if head in places else word


def section(heading: str, command: str, report: str, places: dict[str, str]) -> list[str]:
    """A command and its report, without the names of this machine's folders."""
    for name, folder in places.items():
        report = report.replace(folder, name)
    text = "\n".join(line.rstrip() for line in report.strip().splitlines())
    return ["", f"## {heading}", "", "```sh", f"locdistill {command}", "```", "", "```", text, "```"]


if __name__ == "__main__":
    main()
