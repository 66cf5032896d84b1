"""The terms of the paper's rows, as data (LD, Zheng et al. 2022, and the reference's configurations)."""

from __future__ import annotations

from locdistill.distillation.logits import ClassKL, EdgeKL
from locdistill.distillation.regions import ValuableLocations
from locdistill.losses.overlap import OverlapKind
from locdistill.objective.normalisers import ImageLevelMean, PerImage, PositiveCount, WeightSum
from locdistill.objective.regions import Counted, Positives
from locdistill.objective.supervised import DistributionFocal, Overlap, QualityFocal
from locdistill.objective.term import Term

BY_CONFIDENCE = Positives(by="student_confidence")


def supervised(*, overlap: OverlapKind = "giou") -> dict[str, Term]:
    """GFL without a teacher."""
    return {
        "cls": Term(of=QualityFocal(), on=Counted(), norm=PositiveCount(), weight=1.0),
        "bbox": Term(of=Overlap(kind=overlap), on=BY_CONFIDENCE, norm=WeightSum(), weight=2.0),
        "dfl": Term(of=DistributionFocal(), on=BY_CONFIDENCE, norm=WeightSum(), weight=0.25),
    }


def ld_main(*, weight: float = 0.25, reference_batch: float = 3.0, temperature: float = 10.0) -> dict[str, Term]:
    """Localization distillation on the main region only."""
    norm = PerImage(reference_batch=reference_batch)
    return {"ld": Term(of=EdgeKL(temperature=temperature), on=BY_CONFIDENCE, norm=norm, weight=weight)}


def ld_full(
    *, weight: float = 0.25, reference_batch: float = 3.0, temperature: float = 10.0, kd_weight: float = 10.0
) -> dict[str, Term]:
    """Main LD, LD on the valuable region, and class distillation on the main region."""
    main = ld_main(weight=weight, reference_batch=reference_batch, temperature=temperature)
    norm = PerImage(reference_batch=reference_batch, divisor=4.0)
    return main | {
        "ld_vlr": Term(of=EdgeKL(temperature=temperature), on=ValuableLocations(), norm=norm, weight=weight),
        "kd": Term(of=ClassKL(temperature=2.0), on=Positives(), norm=ImageLevelMean(), weight=kd_weight),
    }


def ld_sharp() -> dict[str, Term]:
    """What measured best on the data sets of ``docs/results.md``: the default where no recipe is named.

    Both regions at temperature 1 and sixteen times the published weight, and no class distillation. The published
    temperature of 10 weighs all bins of an edge alike, and its softmax over classes takes the absolute score from a
    detector whose score is to tell the quality of its box; in short schedules both cost more than they bring.
    """
    terms = ld_full(weight=16 * 0.25, temperature=1.0)
    return {name: terms[name] for name in ("ld", "ld_vlr")}
