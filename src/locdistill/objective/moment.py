"""Where a run is, and what its terms have learned until then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from locdistill.objective.balance import Balance


class Learned(nn.Module):
    """What the terms of an objective own: trained with the student, in the run's checkpoint, and in no weights file.

    Attributes:
        terms: Weights by the name of the term that they belong to; terms without weights have no entry.
        balance: Gradients of the terms that are balanced; None where none is.
    """

    def __init__(self, terms: Mapping[str, nn.Module], balance: Balance | None = None) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.balance = balance

    def of(self, term: str) -> nn.Module | None:
        """The weights of a term; None if it has none."""
        return dict(self.terms.items()).get(term)


class Moment(NamedTuple):
    """Where a run is, and what its terms have learned until then.

    Attributes:
        progress: Share of the run's optimiser steps that are done, as a plain number: nothing waits for the device.
        learned: What the terms own; None where they own nothing, or outside a run.
    """

    progress: float = 0.0
    learned: Learned | None = None


NO_RUN = Moment()
"""The moment of a scene that belongs to no run: its beginning, and nothing learned."""
