"""The distillation methods by name: what each adds to the loss of the student alone.

A method is a function from the kind of detector to terms. Methods are combined by taking the terms of both. All of
them are normalised so that the loss does not depend on how a batch is split; the weights are the published ones, or
what they amount to in that normalisation, unless the function says otherwise. The published normalisations, which
depend on the batch, are those of the recipes.
"""

from __future__ import annotations

from collections.abc import Callable

from locdistill.distillation import presets
from locdistill.distillation.fgd import AttentionL1, AttentiveL2, BackgroundCells, ContextL2, ObjectCells
from locdistill.distillation.imitation import Everywhere, FeatureL2, FineGrained, GeneralInstances, OutsideBoxes
from locdistill.distillation.logits import ClassBinary, EdgeKL, TeacherOverlap
from locdistill.distillation.mgd import MaskedGeneration
from locdistill.distillation.patterns import ChannelKL, Correlation
from locdistill.distillation.regions import ScoreGap, TeacherConfidence
from locdistill.objective.normalisers import ImageLevelMean, ImagePositiveCount, ImageWeightSum, PerImage
from locdistill.objective.regions import InsideBoxes, Positives
from locdistill.objective.term import Region, Term

Method = Callable[[str], dict[str, Term]]
IMITATION_WEIGHT = 2.0
"""Of feature imitation, in the reference's recipes for ResNet-50 and GFL v2."""
WIDTH = 256
"""Channels for which weights of losses that sum over channels were published; here is their mean."""
SUM = PerImage(reference_batch=1.0)
"""A sum over the locations of each image, averaged over images."""


def _imitation(region: Region) -> Term:
    return Term(of=FeatureL2(), on=region, norm=ImageLevelMean(), weight=IMITATION_WEIGHT)


def ld(model: str) -> dict[str, Term]:
    """Edge distributions, at positives and in the valuable region (LD, Zheng et al. 2022).

    At temperature 1 and sixteen times the published weight, as it measured best on small data sets, and without class
    distillation: what 'distill' does where nothing else is said. The recipes have the published settings.
    """
    return presets.ld_sharp(model)


def kd(model: str) -> dict[str, Term]:
    """A softmax over classes at positives (Hinton et al. 2015, as in the recipes of LD)."""
    return {"kd": presets.ld_full(model)["kd"]}


def bckd(model: str) -> dict[str, Term]:
    """Scores class by class, and boxes by their overlap (BCKD, Yang et al. 2023); asks for no distributions.

    Published, both are divided by the number of positives of a batch; here by each image's.
    """
    scores = Term(of=ClassBinary(), on=Everywhere(), norm=ImagePositiveCount())
    overlap = TeacherOverlap(kind=presets.overlap_of(model))
    boxes = Term(of=overlap, on=ScoreGap(), norm=ImagePositiveCount(), weight=4.0)
    return {"bckd_cls": scores, "bckd_box": boxes}


def crosskd(model: str) -> dict[str, Term]:  # noqa: ARG001
    """The student's features through the teacher's head (CrossKD, Wang et al. 2024): scores and edge distributions.

    With another temperature of its ``edge_kl`` it is LD through the teacher's head. Published, both are divided by sums
    over a batch; here over each image. See ``LiveTeacher.cross`` for how the features are aligned.
    """
    edges = EdgeKL(head="teacher", temperature=1.0, summed=True)
    return {
        "cross_cls": Term(of=ClassBinary(head="teacher"), on=Everywhere(), norm=ImagePositiveCount()),
        "cross_edges": Term(of=edges, on=TeacherConfidence(), norm=ImageWeightSum(), weight=4.0),
    }


def fitnets(model: str) -> dict[str, Term]:  # noqa: ARG001 - one signature for all
    """Features everywhere (Romero et al. 2015).

    The weight is that of the imitation of regions; the reference's own configuration of this row is lost.
    """
    return {"fitnets": _imitation(Everywhere())}


def inside_gt(model: str) -> dict[str, Term]:  # noqa: ARG001
    """Features inside the objects' boxes."""
    return {"inside_gt": _imitation(InsideBoxes(positives=True))}


def main_region(model: str) -> dict[str, Term]:  # noqa: ARG001
    """Features at the positives."""
    return {"main_region": _imitation(Positives())}


def fine_grained(model: str) -> dict[str, Term]:  # noqa: ARG001
    """Features near objects, where anchors overlap them well (Wang et al. 2019)."""
    return {"fine_grained": _imitation(FineGrained())}


def defeat(model: str) -> dict[str, Term]:  # noqa: ARG001
    """Features of objects and of the background apart (DeFeat, Guo et al. 2021).

    The background has twice the weight, as the reference means it to have, which compares it with the teacher's
    foreground.
    """
    background = Term(of=FeatureL2(), on=OutsideBoxes(), norm=ImageLevelMean(), weight=2 * IMITATION_WEIGHT)
    return {"defeat_objects": _imitation(InsideBoxes(positives=True)), "defeat_background": background}


def gi(model: str) -> dict[str, Term]:  # noqa: ARG001
    """Features at general instances, ten per level and image (Dai et al. 2021; per batch in the reference)."""
    return {"gi": _imitation(GeneralInstances())}


def pkd(model: str) -> dict[str, Term]:
    """Correlation of features, channel by channel (PKD, Cao et al. 2022).

    The weight is 10 for RetinaNet, as in MMRazor, and else the 6 with which CrossKD's authors add it to GFL.
    """
    weight = 10.0 if model.endswith("retinanet") else 6.0
    return {"pkd": Term(of=Correlation(), on=Everywhere(), norm=ImageLevelMean(), weight=weight)}


def cwd(model: str) -> dict[str, Term]:  # noqa: ARG001
    """Class logits as distributions over the places of a level (CWD, Shu et al. 2021).

    The weight is that of MMRazor for GFL.
    """
    return {"cwd": Term(of=ChannelKL(what="classes"), on=Everywhere(), norm=SUM, weight=5.0)}


def mgd(model: str) -> dict[str, Term]:  # noqa: ARG001
    """The teacher's features, generated from the student's with holes (MGD, Yang et al. 2022)."""
    return {"mgd": Term(of=MaskedGeneration(), on=Everywhere(), norm=SUM, weight=2e-5 * WIDTH)}


def fgd(model: str) -> dict[str, Term]:
    """Focal and global distillation of features (FGD, Yang et al. 2022).

    Weights and temperature are those of its authors' configurations: one set for detectors with anchors, GFL among
    them, and one for FCOS.
    """
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


def dist(model: str) -> dict[str, Term]:  # noqa: ARG001
    """Relations between classes and within them (DIST, Huang et al. 2022), for a teacher that is much stronger.

    The paper's samples are images, whose classes it scores by one softmax. Here they are locations, scored class by
    class as detectors do: relations between the classes at positives, within a class over each level. Both weights are
    1, MMRazor's for classifiers, and not tuned for detectors. With a single class there is nothing between classes.
    """
    between, within = Correlation(what="classes", across="channels"), Correlation(what="classes")
    return {
        "dist_between": Term(of=between, on=Positives(), norm=ImageLevelMean()),
        "dist_within": Term(of=within, on=Everywhere(), norm=ImageLevelMean()),
    }


METHODS: dict[str, Method] = {
    "ld": ld,
    "kd": kd,
    "bckd": bckd,
    "crosskd": crosskd,
    "fitnets": fitnets,
    "inside_gt": inside_gt,
    "main_region": main_region,
    "fine_grained": fine_grained,
    "defeat": defeat,
    "gi": gi,
    "pkd": pkd,
    "cwd": cwd,
    "mgd": mgd,
    "fgd": fgd,
    "dist": dist,
}
