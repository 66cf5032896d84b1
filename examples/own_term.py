"""A divergence of one's own, in training: ``python examples/own_term.py``.

A recipe names it by its dotted path, and so does the command line::

    cd examples
    locdistill distill --teacher runs/teacher --data path/to/data \
      'terms.edges={of: {own_term.EdgeDistance: {power: 2}}, on: positives, norm: per_image}'

The steps behind it, with a region, an adapter and a test, are in ``docs/own_method.md``.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

import locdistill
from locdistill.data.shapes import ShapesSettings, write_shapes
from locdistill.engine.log import read_metrics
from locdistill.objective.scene import Scene
from locdistill.objective.term import Divergence, Need
from locdistill.settings import Positive


@dataclass(frozen=True, kw_only=True)
class EdgeDistance(Divergence):
    """How far the student's edges are from the teacher's, in strides: their means, not their distributions.

    Attributes:
        power: Exponent of the distance.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.TEACHER, Need.LOCAL})
    power: Positive = 1.0

    def __call__(self, scene: Scene) -> Tensor:
        """A value per location; the region decides where it counts."""
        assert scene.teacher is not None
        student, teacher = (scene.bins.expect(dense.edge_logits) for dense in (scene.student, scene.teacher))
        return (student - teacher.detach()).abs().pow(self.power).mean(-1)


SMALL = (
    *("detector.channels=32", "detector.depth=1", "detector.norm_groups=8", "data.sizes=[[96, 96]]", "data.workers=0"),
    *("engine.steps=20", "engine.warmup_steps=0", "engine.accelerator=cpu", "engine.progress=false"),
)
TERM = "terms.edges={of: own_term.EdgeDistance, on: {positives: {by: iou}}, norm: per_image}"


def main(folder: Path) -> None:
    """Train a small teacher and its student, the new term among its losses, on drawn shapes."""
    data = write_shapes(folder / "shapes", ShapesSettings(train=24, val=8, size=96))
    words = {"data": data, "backbone": "test_resnet", "pretrained": False}
    teacher = locdistill.train(**words, out=folder / "teacher", overrides=SMALL)
    student = locdistill.distill(
        teacher.last, **words, out=folder / "student", preflight=None, overrides=(*SMALL, TERM, "terms.ld_vlr=null")
    )
    for row in read_metrics(student.out / "metrics.csv"):
        if "train/edges" in row:
            print(f"step {row['step']:.0f}: edges {row['train/edges']:.3f}, all terms {row['train/total']:.3f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
