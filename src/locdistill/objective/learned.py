"""Where a run is, and what its terms have learned until then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from locdistill.objective.balance import Balance
from locdistill.types import Dense


class Learned(nn.Module):
    """What the terms of an objective own: trained with the student, in the run's checkpoint, and in no weights file.

    Attributes:
        terms: Weights of the terms that have some; see ``of``.
        balance: Gradients of the terms that are balanced; None where none is.
        cross: Adapters of the student's maps inside the head, which go through that of a teacher of another width;
            shared by all terms that look at what it makes of them. None where there is no need.
    """

    def __init__(
        self, terms: Mapping[str, nn.Module], balance: Balance | None = None, cross: nn.ModuleList | None = None
    ) -> None:
        super().__init__()
        self.terms = nn.ModuleDict({_key(name): own for name, own in terms.items()})
        self.balance = balance
        self.cross = cross

    def of(self, term: str) -> nn.Module | None:
        """The weights of a term; None if it has none."""
        return dict(self.terms.items()).get(_key(term))

    def crossing(self, student: Dense) -> Dense:
        """The student's predictions, with its maps inside the head as wide as the teacher's head takes them."""
        if self.cross is None:
            return student
        return student._replace(towers=tuple(adapter(m) for adapter, m in zip(self.cross, student.towers, strict=True)))


def _key(term: str) -> str:
    """A name that no attribute of ``nn.ModuleDict`` has, whatever a recipe calls its term."""
    return f"of_{term}"


def adapters(
    student: Sequence[Float[Tensor, "_ _ _ _"]], teacher: Sequence[Float[Tensor, "_ _ _ _"]], *, always: bool = False
) -> nn.ModuleList | None:
    """New 1x1 convolutions from the width of each of the student's maps to that of the teacher's beside it.

    Args:
        student: Maps, of which only the widths count.
        teacher: As many.
        always: Whether they are there for equal widths too; None otherwise.
    """
    widths = [(mine.shape[1], its.shape[1]) for mine, its in zip(student, teacher, strict=True)]
    if not always and all(mine == its for mine, its in widths):
        return None
    return nn.ModuleList(nn.Conv2d(mine, its, 1) for mine, its in widths)


class TrainingProgress(NamedTuple):
    """Where a run is, and what its terms have learned until then.

    Attributes:
        done: Share of the run's optimiser steps that are done, as a plain number: nothing waits for the device.
        learned: What the terms own; None where they own nothing, or outside a run.
    """

    done: float = 0.0
    learned: Learned | None = None


NO_RUN = TrainingProgress()
"""The progress of a scene that belongs to no run: its beginning, and nothing learned."""
