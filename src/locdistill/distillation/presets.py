"""The terms of the rows in the paper's tables, as data (LD, Zheng et al. 2022, and the reference's configurations)."""

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
    """Published settings of localization distillation for one kind of detector, as in the reference.

    Attributes:
        weight: Weight of main LD.
        divisor: Divisor of main LD per edge. RetinaNet's published divergence is joint with a divisor of 4. A joint
            value is about a quarter of the mean over the edges, so that 16 gives the published strength.
        region: Region of LD outside the positives.
        factor: Factor of the region's weight, relative to main LD.
        region_divisor: Divisor of LD outside the positives, likewise per edge.
        kd_temperature: Temperature of class distillation.
        images: Images per process for which the weights were tuned.
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


def supervised(model: str = "gfl", *, overlap: OverlapKind | None = None) -> dict[str, Term]:
    """Return the loss of a kind of detector without a teacher.

    GFL and GFL v2 share theirs: quality focal loss, which for v2 acts on the product of class score and quality. ATSS,
    FCOS and RetinaNet have no loss on the edge distributions themselves, only on the resulting boxes. Detectors of
    rotated boxes have the loss of their kind, with the distance of Gaussians (GWD) in place of GIoU; rotated RetinaNet
    has the weight of the published Rotated-LD.

    Args:
        model: ``gfl``, ``gflv2``, ``atss``, ``fcos``, ``retinanet``, ``rotated_gfl`` or ``rotated_retinanet``.
        overlap: Similarity of boxes; None for that of the kind of detector.
    """
    _published(model)
    overlap = overlap or ("gwd" if KINDS[model].rotated else "giou")
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
    """Return the terms of localization distillation on the main region only.

    Args:
        model: Kind of the student: ``gfl``, ``gflv2``, ``atss``, ``fcos`` or ``retinanet``, or of rotated boxes
            ``rotated_gfl`` or ``rotated_retinanet``, which have the settings of ``gfl`` and ``retinanet``.
        weight: Weight of the term; None for the published one (0.25, for RetinaNet 5).
        reference_batch: Images per process for which the weight is meant; None for the published number (3 for GFL and
            GFL v2, 2 for the others).
        temperature: Softening of the edge distributions.
        joint: Whether to use one softmax over all edges, as published for RetinaNet. Its divisor is a quarter, for
            equal strength.
    """
    terms = ld_full(model, weight=weight, reference_batch=reference_batch, temperature=temperature, joint=joint)
    return {"ld": terms["ld"]}


def ld_full(
    model: str = "gfl",
    *,
    weight: float | None = None,
    reference_batch: float | None = None,
    temperature: float = 10.0,
    kd_weight: float = 10.0,
    joint: bool = False,
) -> dict[str, Term]:
    """Return the terms of main LD, LD outside the positives, and class distillation on the main region.

    LD outside the positives uses the valuable region; for FCOS, which has no anchors, all of the objects' boxes.
    ``weight`` is that of main LD; the ratio of the other weight to it is the published one: equal for GFL and GFL v2,
    0.15 for ATSS, 0.25 for FCOS, 0.03 for RetinaNet. The other arguments are those of :func:`ld_main`.
    """
    published = _published(model)
    edges = EdgeKL(temperature=temperature, joint=joint)
    batch = published.images if reference_batch is None else reference_batch
    main, outside = (
        PerImage(reference_batch=batch, divisor=divisor / 4 if joint else divisor)
        for divisor in (published.divisor, published.region_divisor)
    )
    weight = published.weight if weight is None else weight
    kd = ClassKL(temperature=published.kd_temperature)
    return {
        "ld": Term(of=edges, on=BY_CONFIDENCE, norm=main, weight=weight),
        "ld_vlr": Term(of=edges, on=published.region, norm=outside, weight=weight * published.factor),
        "kd": Term(of=kd, on=Positives(), norm=ImageLevelMean(), weight=kd_weight),
    }


def ld_sharp(model: str = "gfl") -> dict[str, Term]:
    """Return the terms with the best results for GFL in ``docs/results.md``: the default if no recipe is given.

    Both regions have temperature 1 and sixteen times the published weight, and there is no class distillation. The
    published temperature of 10 weighs all bins of an edge alike. The published softmax over classes removes the
    absolute score, which measures the quality of a box in these detectors. In short schedules the first gave no
    gain and the second lowered AP. The other kinds of detectors use the same temperature and factor, each with its own
    region and weights.
    """
    terms = ld_full(model, weight=16 * _published(model).weight, temperature=1.0)
    return {name: terms[name] for name in ("ld", "ld_vlr")}


def _published(model: str) -> _Published:
    if model not in _PUBLISHED:
        raise ValueError(f"the kinds of detectors are {', '.join(_PUBLISHED)}; came {model!r}")
    return _PUBLISHED[model]
