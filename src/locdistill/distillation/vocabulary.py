"""The parts of all terms, supervised and distilling, by the names that recipes use."""

from __future__ import annotations

from locdistill.distillation.logits import ClassKL, EdgeKL
from locdistill.distillation.regions import ValuableLocations
from locdistill.objective import vocabulary as supervised

DIVERGENCES: dict[str, type] = supervised.DIVERGENCES | {"edge_kl": EdgeKL, "class_kl": ClassKL}
REGIONS: dict[str, type] = supervised.REGIONS | {"valuable_locations": ValuableLocations}
NORMALISERS: dict[str, type] = dict(supervised.NORMALISERS)
