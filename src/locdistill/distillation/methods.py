"""The distillation methods by name: the terms that each adds to the loss of the student alone.

A method is one record of :data:`METHODS`: a function from the kind of detector to terms, and its documentation.
``docs/methods.md`` and ``locdistill methods`` follow from the table. To combine methods, use the terms of both. All of
them are normalised so that the loss does not depend on how a batch is split; the weights are the published ones, or
their equivalents in that normalisation, unless the notes state otherwise. The published normalisations, which depend on
the batch, are those of the recipes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from locdistill.distillation import presets
from locdistill.distillation.fgd import AttentionL1, AttentiveL2, BackgroundCells, ContextL2, ObjectCells
from locdistill.distillation.imitation import Everywhere, FeatureL2, FineGrained, GeneralInstances, OutsideBoxes
from locdistill.distillation.logits import ClassBinary, ClassBinaryKL, EdgeKL, TeacherOverlap
from locdistill.distillation.mgd import MaskedGeneration
from locdistill.distillation.patterns import ChannelKL, Correlation
from locdistill.distillation.regions import ScoreGap, TeacherConfidence
from locdistill.models.kinds import KINDS
from locdistill.objective.normalisers import ImageLevelMean, ImagePositiveCount, ImageWeightSum, PerImage
from locdistill.objective.regions import InsideBoxes, Positives
from locdistill.objective.term import Region, Term

IMITATION_WEIGHT = 2.0
"""Weight of feature imitation in the reference's recipes for ResNet-50 and GFL v2."""
WIDTH = 256
"""Number of channels for which weights of losses summed over channels were published; here losses are means."""
SUM = PerImage(reference_batch=1.0)
"""A sum over the locations of each image, averaged over images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A named method; its detailed requirements on a teacher follow from its terms.

    Attributes:
        terms: Function from the kind of detector to its terms.
        compares: Quantities of student and teacher that are compared.
        where: Regions of the comparison.
        asks: Requirements on the teacher.
        paper: Name and source.
        notes: Further remarks, such as differences from the paper.
        recipe: The recipe of its published number; None where it has none of its own.
    """

    terms: Callable[[str], dict[str, Term]]
    compares: str
    where: str
    asks: str
    paper: str
    notes: str = ""
    recipe: str | None = None

    def __call__(self, model: str) -> dict[str, Term]:
        """Return the terms for a kind of detector."""
        return self.terms(model)

    @property
    def what(self) -> str:
        """Description in one sentence."""
        return f"{self.compares[0].upper()}{self.compares[1:]}; {self.where} ({self.paper})."


def _imitation(region: Region, weight: float = IMITATION_WEIGHT) -> Term:
    return Term(of=FeatureL2(), on=region, norm=ImageLevelMean(), weight=weight)


def _fgd(model: str) -> dict[str, Term]:
    objects, background, attention, context, temperature = (
        (1.6e-3, 8e-4, 8e-4, 8e-6, 0.8) if model == "fcos" else (1e-3, 5e-4, 5e-4, 5e-6, 0.5)
    )
    features, looks = AttentiveL2(temperature=temperature), AttentionL1(temperature=temperature)
    return {
        "fgd_objects": Term(of=features, on=ObjectCells(), norm=SUM, weight=objects * WIDTH),
        "fgd_background": Term(of=features, on=BackgroundCells(), norm=SUM, weight=background * WIDTH),
        "fgd_attention": Term(of=looks, on=Everywhere(), norm=SUM, weight=attention),
        "fgd_context": Term(of=ContextL2(), on=Everywhere(), norm=SUM, weight=context * WIDTH),
    }


def _frs(model: str) -> dict[str, Term]:
    # published for RetinaNet: classes of the nine anchors of a cell are added; here each anchor is a location
    features, classes = (
        (0.01, 0.05) if model == "fcos" else (0.005, 9 * 0.02) if model.endswith("retinanet") else (0.1, 0.05)
    )
    where, norm = TeacherConfidence(), ImageLevelMean()
    return {
        "frs_features": Term(of=FeatureL2(), on=where, norm=norm, weight=features * WIDTH),
        "frs_classes": Term(of=ClassBinaryKL(), on=where, norm=norm, weight=classes),
    }


METHODS: dict[str, Method] = {
    "ld": Method(
        terms=presets.ld_sharp,
        compares="edge distributions",
        where="positives; valuable region",
        asks="distributions",
        paper="LD, Zheng et al. 2022",
        notes=(
            "At temperature 1 and sixteen times the published weight, as it measured best on small data sets, "
            "and without class distillation: the default of 'distill'. The recipes have the published settings."
        ),
        recipe="ld_r50_from_r101",
    ),
    "kd": Method(
        terms=lambda model: {"kd": presets.ld_full(model)["kd"]},
        compares="classes, one softmax",
        where="positives",
        asks="scores",
        paper="Hinton et al. 2015, as in the recipes of LD",
    ),
    "bckd": Method(
        terms=lambda model: {
            "bckd_cls": Term(of=ClassBinary(), on=Everywhere(), norm=ImagePositiveCount()),
            "bckd_box": Term(
                of=TeacherOverlap(kind="gwd" if KINDS[model].rotated else "giou"),
                on=ScoreGap(),
                norm=ImagePositiveCount(),
                weight=4.0,
            ),
        },
        compares="classes one by one; boxes",
        where="everywhere",
        asks="scores, boxes",
        paper="BCKD, Yang et al. 2023",
        notes="Published, both are divided by the number of positives of a batch; here by each image's.",
        recipe="bckd_r50_from_r101",
    ),
    "crosskd": Method(
        terms=lambda _: {
            "cross_cls": Term(of=ClassBinary(head="teacher"), on=Everywhere(), norm=ImagePositiveCount()),
            "cross_edges": Term(
                of=EdgeKL(head="teacher", temperature=1.0, summed=True),
                on=TeacherConfidence(),
                norm=ImageWeightSum(),
                weight=4.0,
            ),
        },
        compares="classes one by one and edges, through the teacher's head",
        where="everywhere",
        asks="its head, distributions",
        paper="CrossKD, Wang et al. 2024",
        notes=(
            "With another temperature of its ``edge_kl`` it is LD through the teacher's head. Published, both "
            "are divided by sums over a batch; here over each image. See ``LiveTeacher.cross`` for how the "
            "features are aligned."
        ),
        recipe="crosskd_r50_from_r101",
    ),
    "fitnets": Method(
        terms=lambda _: {"fitnets": _imitation(Everywhere())},
        compares="features",
        where="everywhere",
        asks="maps",
        paper="FitNets, Romero et al. 2015",
        notes=(
            "The weight is that of the imitation of regions; the reference's own configuration of this row is lost."
        ),
        recipe="fitnets_r50_from_r101",
    ),
    "inside_gt": Method(
        terms=lambda _: {"inside_gt": _imitation(InsideBoxes(positives=True))},
        compares="features",
        where="inside boxes",
        asks="maps",
        paper="a baseline of LD, Zheng et al. 2022",
        recipe="inside_gt_r50_from_r101",
    ),
    "main_region": Method(
        terms=lambda _: {"main_region": _imitation(Positives())},
        compares="features",
        where="positives",
        asks="maps",
        paper="a baseline of LD, Zheng et al. 2022",
        recipe="main_region_r50_from_r101",
    ),
    "fine_grained": Method(
        terms=lambda _: {"fine_grained": _imitation(FineGrained())},
        compares="features",
        where="near objects",
        asks="maps",
        paper="Wang et al. 2019",
        recipe="fine_grained_r50_from_r101",
    ),
    "defeat": Method(
        terms=lambda _: {
            "defeat_objects": _imitation(InsideBoxes(positives=True)),
            "defeat_background": _imitation(OutsideBoxes(), weight=2 * IMITATION_WEIGHT),
        },
        compares="features",
        where="objects; background",
        asks="maps",
        paper="DeFeat, Guo et al. 2021",
        notes=(
            "The background has twice the weight, as the reference means it to have, which compares it with "
            "the teacher's foreground."
        ),
        recipe="defeat_r50_from_r101",
    ),
    "gi": Method(
        terms=lambda _: {"gi": _imitation(GeneralInstances())},
        compares="features",
        where="where scores differ most",
        asks="maps, scores, boxes",
        paper="GI, Dai et al. 2021",
        notes="Ten per level and image; per batch in the reference.",
        recipe="gi_r50_from_r101",
    ),
    "frs": Method(
        terms=_frs,
        compares="features; classes one by one",
        where="everywhere, by the teacher's scores",
        asks="maps, scores",
        paper="FRS, Du et al. 2021",
        notes=(
            "Weights are those of its authors' configurations: for GFL, for FCOS and for RetinaNet. Published, a "
            "learned 3x3 convolution always adapts the student's features, and both terms grow over the first 500 "
            "steps, as in the recipe."
        ),
        recipe="frs_r50_from_r101",
    ),
    "pkd": Method(
        terms=lambda model: {
            "pkd": Term(
                of=Correlation(),
                on=Everywhere(),
                norm=ImageLevelMean(),
                weight=10.0 if model.endswith("retinanet") else 6.0,
            )
        },
        compares="correlation of features",
        where="everywhere",
        asks="maps",
        paper="PKD, Cao et al. 2022",
        notes=(
            "The weight is 10 for RetinaNet, as in MMRazor, and else the 6 with which CrossKD's authors add it to GFL."
        ),
        recipe="pkd_r50_from_r101",
    ),
    "cwd": Method(
        terms=lambda _: {"cwd": Term(of=ChannelKL(what="classes"), on=Everywhere(), norm=SUM, weight=5.0)},
        compares="class maps as distributions",
        where="everywhere",
        asks="scores",
        paper="CWD, Shu et al. 2021",
        notes="The weight is that of MMRazor for GFL.",
        recipe="cwd_r50_from_r101",
    ),
    "mgd": Method(
        terms=lambda _: {"mgd": Term(of=MaskedGeneration(), on=Everywhere(), norm=SUM, weight=2e-5 * WIDTH)},
        compares="features, generated",
        where="everywhere",
        asks="maps",
        paper="MGD, Yang et al. 2022",
        recipe="mgd_r50_from_r101",
    ),
    "fgd": Method(
        terms=_fgd,
        compares="features, attention, context",
        where="objects; background; everywhere",
        asks="maps",
        paper="FGD, Yang et al. 2022",
        notes=(
            "Weights and temperature are those of its authors' configurations: one set for detectors with "
            "anchors, GFL among them, and one for FCOS."
        ),
        recipe="fgd_r50_from_r101",
    ),
    "dist": Method(
        terms=lambda _: {
            "dist_between": Term(
                of=Correlation(what="classes", across="channels"), on=Positives(), norm=ImageLevelMean()
            ),
            "dist_within": Term(of=Correlation(what="classes"), on=Everywhere(), norm=ImageLevelMean()),
        },
        compares="relations of classes",
        where="positives; everywhere",
        asks="scores",
        paper="DIST, Huang et al. 2022",
        notes=(
            "For a teacher that is much stronger. The paper's samples are images, whose classes it scores by "
            "one softmax. Here they are locations, scored class by class as detectors do: relations between "
            "the classes at positives, within a class over each level. Both weights are 1, MMRazor's for "
            "classifiers, and not tuned for detectors. With a single class there is nothing between classes."
        ),
        recipe="dist_r50_from_r101",
    ),
}
