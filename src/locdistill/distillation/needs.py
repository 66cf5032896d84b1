"""What terms ask of a teacher."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from locdistill.objective.term import MAPS, Need, Term


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the terms of a recipe ask of a teacher.

    Attributes:
        predictions: What it says at each location, and not its maps alone.
        features: Maps of its pyramid or head, to compare with the student's; unequal widths are bridged by the terms.
        cross: Its head, to send the student's features through; unequal widths are bridged likewise.
        distributions: Distributions over the positions of edges, and not only boxes.
    """

    predictions: bool = True
    features: bool = False
    cross: bool = False
    distributions: bool = False

    @classmethod
    def of(cls, terms: Iterable[Term]) -> Needs:
        """What these terms ask for."""
        terms = tuple(terms)
        return cls(
            predictions=any(term.needs_predictions for term in terms),
            features=any(term.needs & MAPS for term in terms),
            cross=any(Need.CROSS in term.needs for term in terms),
            distributions=any(Need.DISTRIBUTIONS in term.needs for term in terms),
        )


PREDICTIONS = Needs()
"""Of terms that compare predictions alone, which may be boxes."""
