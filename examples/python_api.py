"""Train a teacher, distil a student, compare, and look at a picture: ``python examples/python_api.py DATA OUT``."""

from __future__ import annotations

import sys
from pathlib import Path

import locdistill


def main(data: str, out: Path) -> None:
    """Run everything into sub-folders of ``out``."""
    teacher = locdistill.train(data, backbone="resnet50", epochs=12, out=out / "teacher")
    alone = locdistill.train(data, backbone="resnet18", epochs=12, out=out / "alone")
    student = locdistill.distill(teacher.best, data, backbone="resnet18", epochs=12, out=out / "student")
    for run in (teacher, alone, student):
        best = run.metrics["best"]
        print(f"{run.out.name:10s} AP {100 * best['AP']:.1f}  AP75 {100 * best['AP75']:.1f}")

    detector = locdistill.Detector.load(student.best)
    picture = next(path for path in sorted(Path(data).rglob("*")) if path.suffix.lower() in (".jpg", ".png"))
    (detections,) = detector.detect(picture)
    for box, score, label in zip(*detections, strict=True):
        if score > 0.3:
            print(detector.settings.classes[label], f"{score:.2f}", [round(v, 1) for v in box.tolist()])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
