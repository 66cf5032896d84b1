"""The terms of the paper's rows, as data (LD, Zheng et al. 2022, and the reference's configurations)."""

from __future__ import annotations

from dataclasses import dataclass

from locdistill.distillation.logits import ClassKL, EdgeKL
from locdistill.distillation.regions import ValuableLocations
from locdistill.losses.overlap import OverlapKind
from locdistill.models.kinds import KINDS
from locdistill.objective.normalisers import ImageLevelMean, PerImage, PositiveCount, WeightSum
from locdistill.objective.regions import Counted, InsideBoxes, Positives
from locdistill.objective.supervised import Centerness, DistributionFocal, Focal, Overlap, QualityFocal
from locdistill.objective.term import Region, Term

BY_CONFIDENCE = Positives(by="student_confidence")
VALUABLE = ValuableLocations()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Published:
    """Localization distillation of one kind of detector, as the reference has it.

    Attributes:
        weight: Of main LD.
        divisor: Of main LD per edge. RetinaNet's published divergence is joint and its divisor 4; a joint value is
            about a quarter of the mean of the edges, so that 16 gives the edges the published strength.
        region: Of LD beside the positives.
        factor: Of its weight, relative to main LD.
        region_divisor: Of LD beside the positives, likewise per edge.
        kd_temperature: Of class distillation.
        images: Per process, for which the weights were tuned.
    """

    weight: float = 0.25
    divisor: float = 1.0
    region: Region = VALUABLE
    factor: float = 1.0
    region_divisor: float = 1.0
    kd_temperature: float = 2.0
    images: float = 2.0


_GFL = _Published(region_divisor=4.0, images=3.0)
_PUBLISHED = {
    "gfl": _GFL,
    "gflv2": _GFL,
    "atss": _Published(factor=0.15),
    "fcos": _Published(region=InsideBoxes(by="student_confidence"), factor=0.25),
    "retinanet": _Published(
        weight=5.0,
        divisor=16.0,
        region=ValuableLocations(threshold="adaptive", positives=False),
        factor=0.03,
        region_divisor=16.0,
        kd_temperature=8.0,
    ),
}
# The published Rotated-LD has one region and weights of its own (see its recipes); what is chosen where no recipe is
# named are the regions and weights of the same detector with upright boxes.
_PUBLISHED |= {f"rotated_{model}": _PUBLISHED[model] for model in ("gfl", "retinanet")}


def overlap_of(model: str) -> OverlapKind:
    """How the boxes of a kind of detector are compared."""
    return "gwd" if KINDS[model].rotated else "giou"


def supervised(model: str = "gfl", *, overlap: OverlapKind | None = None) -> dict[str, Term]:
    """The loss of a kind of detector without a teacher.

    GFL and GFL v2 share theirs: quality focal loss, which for v2 acts on the product of class score and quality. ATSS,
    FCOS and RetinaNet have no loss on the edge distributions themselves, only on the boxes that they make. Detectors of
    rotated boxes have the loss of their kind, with the distance of Gaussians (GWD) in the place of GIoU; RetinaNet with
    the weight of the published Rotated-LD.

    Args:
        model: ``gfl``, ``gflv2``, ``atss``, ``fcos``, ``retinanet``, ``rotated_gfl`` or ``rotated_retinanet``.
        overlap: Similarity of boxes; None is that of the kind of detector.
    """
    _published(model)
    overlap = overlap or overlap_of(model)
    loss = KINDS[model].loss
    if loss == "gfl":
        return {
            "cls": Term(of=QualityFocal(), on=Counted(), norm=PositiveCount(), weight=1.0),
            "bbox": Term(of=Overlap(kind=overlap), on=BY_CONFIDENCE, norm=WeightSum(), weight=2.0),
            "dfl": Term(of=DistributionFocal(), on=BY_CONFIDENCE, norm=WeightSum(), weight=0.25),
        }
    count = PositiveCount(one_per_image=model != "fcos")
    cls = Term(of=Focal(), on=Counted(), norm=count, weight=1.0)
    if loss == "retina":
        weight = 5.0 if KINDS[model].rotated else 2.0
        return {"cls": cls, "bbox": Term(of=Overlap(kind=overlap), on=Positives(), norm=count, weight=weight)}
    weight = 1.0 if model == "fcos" else 2.0
    return {
        "cls": cls,
        "bbox": Term(of=Overlap(kind=overlap), on=Positives(by="centerness"), norm=WeightSum(), weight=weight),
        "centerness": Term(of=Centerness(), on=Positives(), norm=count, weight=1.0),
    }


def ld_main(
    model: str = "gfl",
    *,
    weight: float | None = None,
    reference_batch: float | None = None,
    temperature: float = 10.0,
    joint: bool = False,
) -> dict[str, Term]:
    """Localization distillation on the main region only.

    Args:
        model: Kind of the student: ``gfl``, ``gflv2``, ``atss``, ``fcos`` or ``retinanet``, or of rotated boxes
            ``rotated_gfl`` or ``rotated_retinanet``, which have the settings of ``gfl`` and ``retinanet``.
        weight: Of the term; the published one (0.25, for RetinaNet 5) where it is None.
        reference_batch: Images per process for which the weight is meant; the published ones (3 for GFL and GFL v2, 2
            for the others) where it is None.
        temperature: Softening of the edge distributions.
        joint: One softmax over all edges, as published for RetinaNet. Its divisor is a quarter, for equal strength.
    """
    published = _published(model)
    return {
        "ld": Term(
            of=EdgeKL(temperature=temperature, joint=joint),
            on=BY_CONFIDENCE,
            norm=_per_image(published, reference_batch, published.divisor, joint),
            weight=published.weight if weight is None else weight,
        )
    }


def ld_full(
    model: str = "gfl",
    *,
    weight: float | None = None,
    reference_batch: float | None = None,
    temperature: float = 10.0,
    kd_weight: float = 10.0,
    joint: bool = False,
) -> dict[str, Term]:
    """Main LD, LD beside the positives, and class distillation on the main region.

    Beside the positives means on the valuable region; for FCOS, which has no anchors, on all of the objects' boxes.
    ``weight`` is that of main LD, to which the other's stands as published: equal for GFL and GFL v2, 0.15 for ATSS,
    0.25 for FCOS, 0.03 for RetinaNet. The other arguments are those of :func:`ld_main`.
    """
    published = _published(model)
    main = ld_main(model, weight=weight, reference_batch=reference_batch, temperature=temperature, joint=joint)
    kd = ClassKL(temperature=published.kd_temperature)
    return main | {
        "ld_vlr": Term(
            of=main["ld"].of,
            on=published.region,
            norm=_per_image(published, reference_batch, published.region_divisor, joint),
            weight=main["ld"].weight * published.factor,
        ),
        "kd": Term(of=kd, on=Positives(), norm=ImageLevelMean(), weight=kd_weight),
    }


def ld_sharp(model: str = "gfl") -> dict[str, Term]:
    """What measured best for GFL on the data sets of ``docs/results.md``: the default where no recipe is named.

    Both regions at temperature 1 and sixteen times the published weight, and no class distillation. The published
    temperature of 10 weighs all bins of an edge alike, and its softmax over classes takes the absolute score from a
    detector whose score is to tell the quality of its box; in short schedules both cost more than they bring. The other
    kinds of detectors take over the idea, each with its own region and weights.
    """
    terms = ld_full(model, weight=16 * _published(model).weight, temperature=1.0)
    return {name: terms[name] for name in ("ld", "ld_vlr")}


def _published(model: str) -> _Published:
    if model not in _PUBLISHED:
        raise ValueError(f"the kinds of detectors are {', '.join(_PUBLISHED)}; came {model!r}")
    return _PUBLISHED[model]


def _per_image(published: _Published, images: float | None, divisor: float, joint: bool) -> PerImage:
    return PerImage(
        reference_batch=published.images if images is None else images, divisor=divisor / 4 if joint else divisor
    )
