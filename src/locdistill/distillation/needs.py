"""Requirements of terms on a teacher."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from locdistill.objective.term import MAPS, Need, Term


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Requirements of a recipe's terms on a teacher.

    Attributes:
        predictions: Predictions at each location, not only maps.
        features: Maps of its pyramid or head, for comparison with the student's; unequal widths are bridged by the
            terms.
        cross: Its head, for application to the student's features; unequal widths are bridged likewise.
        distributions: Distributions over the positions of edges, not only boxes.
    """

    predictions: bool = True
    features: bool = False
    cross: bool = False
    distributions: bool = False

    @classmethod
    def of(cls, terms: Iterable[Term]) -> Needs:
        """Return the requirements of these terms."""
        terms = tuple(terms)
        return cls(
            predictions=any(term.needs_predictions for term in terms),
            features=any(term.needs & MAPS for term in terms),
            cross=any(Need.CROSS in term.needs for term in terms),
            distributions=any(Need.DISTRIBUTIONS in term.needs for term in terms),
        )


PREDICTIONS = Needs()
"""Requirements of terms that compare only predictions, which may be boxes."""
