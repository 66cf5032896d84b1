"""A new divergence is a frozen dataclass; as a term it joins the others: ``python examples/own_term.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from locdistill.assign.atss import ATSS
from locdistill.distillation.presets import ld_main, supervised
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.objective.normalisers import PerImage
from locdistill.objective.objective import Objective
from locdistill.objective.regions import Positives
from locdistill.objective.scene import Scene
from locdistill.objective.term import Term
from locdistill.types import Dense, Instances


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeDistance:
    """How far the student's edges are from the teacher's, in strides: their means, not their distributions."""

    needs_teacher: ClassVar[bool] = True

    def __call__(self, scene: Scene) -> Tensor:
        """A value per location; the region decides where it counts."""
        assert scene.teacher is not None
        student, teacher = (scene.bins.expect(dense.edge_logits) for dense in (scene.student, scene.teacher))
        return (student - teacher).abs().mean(-1)


def main() -> None:
    """Evaluate the terms, the new one among them, on random predictions."""
    torch.manual_seed(0)
    grid = Grid.build(((8, 8), (4, 4)), (8, 16), anchor_scale=4.0)
    terms = supervised() | ld_main() | {"edges": Term(of=EdgeDistance(), on=Positives(by="iou"), norm=PerImage())}
    objective = Objective(terms=terms, assigner=ATSS(), bins=Bins())
    locations = len(grid.points)
    student = Dense(
        torch.randn(2, locations, 3, requires_grad=True), torch.randn(2, locations, 4, 17, requires_grad=True)
    )
    teacher = Dense(torch.randn(2, locations, 3), torch.randn(2, locations, 4, 17))
    instances = Instances(
        boxes=torch.tensor([[[8.0, 8, 44, 40]], [[0.0, 0, 0, 0]]]),  # the second image has no object
        labels=torch.zeros(2, 1, dtype=torch.long),
        present=torch.tensor([[True], [False]]),
        ignored=torch.zeros(2, 1, dtype=torch.bool),
        extents=torch.tensor([[64, 64], [64, 64]]),
    )
    losses = objective(student, teacher, grid=grid, instances=instances)
    torch.stack(list(losses.values())).sum().backward()
    for name, value in losses.items():
        print(f"{name:6s} {value.item():.4f}")


if __name__ == "__main__":
    main()
