"""The sum of terms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from locdistill.distillation.logits import EdgeKL
from locdistill.distillation.presets import ld_full, supervised
from locdistill.objective.objective import Objective
from locdistill.objective.scene import Scene
from locdistill.types import Dense
from tests.scenes import grid_of_kind, instances_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted(EdgeKL):
    """Counts how often it is worked out."""

    calls: ClassVar[list[float]] = []

    def __call__(self, scene: Scene) -> torch.Tensor:
        self.calls.append(self.temperature)
        return EdgeKL(temperature=self.temperature)(scene)


def test_a_divergence_of_several_terms_is_worked_out_once() -> None:
    grid = grid_of_kind("gfl", ((8, 10), (4, 5)))
    generator = torch.Generator().manual_seed(0)

    def dense(*, learns: bool) -> Dense:
        shape = (2, len(grid.points))
        cls, edges = (torch.randn(*shape, *more, generator=generator) for more in ((3,), (4, 17)))
        return Dense(cls.requires_grad_(learns), edges.requires_grad_(learns))

    student, teacher = dense(learns=True), dense(learns=False)
    instances = instances_of([[[4, 4, 40, 44]], [[10, 8, 60, 50]]], [[0], [2]], [(64, 80)] * 2)
    full = supervised() | ld_full()
    other = replace(full["ld"], of=Counted(temperature=3.0))
    terms = (
        full | {name: replace(full[name], of=Counted(temperature=10.0)) for name in ("ld", "ld_vlr")} | {"more": other}
    )
    losses = Objective(terms=terms)(student, teacher, grid=grid, instances=instances)
    assert Counted.calls == [10.0, 3.0]
    apart = Objective(terms=full | {"more": other})(student, teacher, grid=grid, instances=instances)
    assert {name: value.item() for name, value in losses.items()} == {name: v.item() for name, v in apart.items()}
    (gradient,) = torch.autograd.grad(sum(losses.values()), student.edge_logits)
    (expected,) = torch.autograd.grad(sum(apart.values()), student.edge_logits)
    torch.testing.assert_close(gradient, expected)
    assert Objective(terms=full) == Objective(terms=dict(full))
