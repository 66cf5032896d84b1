"""Progress of a run, and the weights learned by its terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from locdistill.objective.balance import Balance
from locdistill.types import Dense


class Learned(nn.Module):
    """Weights and state of the terms: trained with the student, saved in checkpoints, but in no weights file.

    Attributes:
        terms: Weights of the terms that have any; see ``of``.
        balance: Gradient statistics of the balanced terms; None without balanced terms.
        cross: Adapters from the student's maps inside the head to the width of the teacher's head, which processes
            them; shared by all terms that use the resulting predictions. None where not needed.
    """

    def __init__(
        self, terms: Mapping[str, nn.Module], balance: Balance | None = None, cross: nn.ModuleList | None = None
    ) -> None:
        super().__init__()
        # With a prefix, because `nn.ModuleDict` refuses the names of its own attributes.
        self.terms = nn.ModuleDict({f"of_{name}": own for name, own in terms.items()})
        self.balance = balance
        self.cross = cross

    def of(self, term: str) -> nn.Module | None:
        """Return the weights of a term; None if it has none."""
        return dict(self.terms.items()).get(f"of_{term}")

    def crossing(self, student: Dense) -> Dense:
        """Return the student's predictions, with its maps inside the head adapted to the teacher's width."""
        if self.cross is None:
            return student
        return student._replace(towers=tuple(adapter(m) for adapter, m in zip(self.cross, student.towers, strict=True)))


def adapters(
    student: Sequence[Float[Tensor, "_ _ _ _"]],
    teacher: Sequence[Float[Tensor, "_ _ _ _"]],
    *,
    always: bool = False,
    kernel: int = 1,
) -> nn.ModuleList | None:
    """Build convolutions from the width of each map of the student to that of the teacher's corresponding map.

    Args:
        student: Maps of the student, of which only the widths are used.
        teacher: Maps of the teacher, as many.
        always: Whether to build them for equal widths too; otherwise the result is then None.
        kernel: Height and width of the convolutions, an odd number.
    """
    widths = [(mine.shape[1], its.shape[1]) for mine, its in zip(student, teacher, strict=True)]
    if not always and all(mine == its for mine, its in widths):
        return None
    return nn.ModuleList(nn.Conv2d(mine, its, kernel, padding=kernel // 2) for mine, its in widths)


class TrainingProgress(NamedTuple):
    """Progress of a run, and the weights learned by its terms.

    Attributes:
        done: Share of the run's optimiser steps that are done, a Python number, so that nothing waits for the device.
        learned: Weights and state of the terms; None where they have none, or outside a run.
    """

    done: float = 0.0
    learned: Learned | None = None


NO_RUN = TrainingProgress()
"""Progress of a scene that belongs to no run: its beginning, with nothing learned."""
