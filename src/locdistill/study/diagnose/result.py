"""Result of a diagnosis of a distillation run: numbers, tables, and a summary."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from locdistill.evaluation.agreement import Agreement, Reliability
from locdistill.evaluation.gradients import Pull, shares
from locdistill.evaluation.tables import UNDEFINED, Table
from locdistill.geometry.coding import DISTANCES

TEACHER, STUDENT, ALONE, START = "teacher", "student", "student alone", "student before"
MAIN, VALUABLE, OTHER = "main", "valuable", "other"
REGIONS = (MAIN, VALUABLE, OTHER)
LITTLE, MUCH = 0.05, 0.8  # shares of the gradient below and above which the summary has a remark


@dataclass(frozen=True)
class Diagnosis:
    """Result of a diagnosis.

    Attributes:
        run: Weights of the student.
        teacher: Description or path of the teacher.
        against: Weights of the student trained alone, if given.
        out: Folder of the page.
        images: Number of validation images.
        objects: Number of objects on these images.
        agreement: Agreement with the teacher, by detector (the student, the student alone) and region.
        reliability: Relation of the spread of an edge to its error, by detector, including the teacher.
        gradients: Gradient, mean over the batches, by moment (``student before``, ``student``), target and term.
        taught: Names of the terms that need the teacher.
        batches: Number of training batches for the gradients.
        notes: Omissions, and differences from the original run.
        edges: Names of the predicted numbers of a box.
    """

    run: Path
    teacher: str
    against: Path | None
    out: Path
    images: int
    objects: int
    agreement: dict[str, dict[str, Agreement]]
    reliability: dict[str, Reliability]
    gradients: dict[str, dict[str, dict[str, Pull]]]
    taught: tuple[str, ...]
    batches: int
    notes: tuple[str, ...] = field(default=())
    edges: tuple[str, ...] = DISTANCES.names

    @property
    def page(self) -> Path:
        """Path of the page with tables and pictures."""
        return self.out / "report.html"

    def shares(self, moment: str, target: str) -> dict[str, float]:
        """Return the share of each term in the gradient at a target."""
        return shares({term: pull.norm for term, pull in self.gradients[moment][target].items()})

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON; NaN for undefined values."""
        return {
            "run": str(self.run),
            "teacher": self.teacher,
            "against": None if self.against is None else str(self.against),
            "images": self.images,
            "objects": self.objects,
            "summary": in_words(self),
            "agreement": {
                who: {
                    region: {
                        "locations": found.locations,
                        "mean_edge_kl": found.mean_edge_kl,
                        "edge_kl": dict(zip(self.edges, found.edge_kl, strict=True)),
                        "distance": dict(zip(self.edges, found.distance, strict=True)),
                        "box_iou": found.box_iou,
                        "score_difference": found.score,
                    }
                    for region, found in regions.items()
                }
                for who, regions in self.agreement.items()
            },
            "reliability": {who: dataclasses.asdict(found) for who, found in self.reliability.items()},
            "gradients": {
                moment: {
                    target: {
                        term: {"norm": pull.norm, "share": self.shares(moment, target)[term], "cosine": pull.cosine}
                        for term, pull in of_terms.items()
                    }
                    for target, of_terms in targets.items()
                }
                for moment, targets in self.gradients.items()
            },
            "batches": self.batches,
            "notes": list(self.notes),
        }


def region_table(found: Diagnosis) -> Table:
    """Tabulate the agreement with the teacher by region."""
    rows = [
        (
            f"{who}: {region}",
            str(here.locations),
            _number(here.mean_edge_kl),
            _number(math.fsum(here.distance) / len(here.distance)),
            _number(here.box_iou),
            _number(here.score),
        )
        for region in REGIONS
        for who, regions in found.agreement.items()
        for here in [regions[region]]
    ]
    header = ("region", "locations", "edge KL (nats)", "edge distance (bins)", "box IoU", "score difference")
    return Table("Agreement with the teacher by region", header, tuple(rows))


def edge_table(found: Diagnosis) -> Table:
    """Tabulate the agreement with the teacher by edge."""
    rows = [
        (f"{who}: {region}, {what}", *map(_number, values))
        for region in (MAIN, VALUABLE)
        for who, regions in found.agreement.items()
        for what, values in (
            ("edge KL (nats)", regions[region].edge_kl),
            ("distance (bins)", regions[region].distance),
        )
    ]
    return Table("Agreement with the teacher by edge", ("", *found.edges), tuple(rows))


def reliability_table(found: Diagnosis) -> Table:
    """Tabulate the relation of the spread of an edge to its error."""
    rows = [
        (who, str(r.count), *map(_number, (r.spearman, r.pearson, r.ratio, r.ence)))
        for who, r in found.reliability.items()
    ]
    header = ("", "edges", "rank correlation", "correlation", "error / spread", "calibration error")
    return Table("Spread of the edge distributions and error, main region", header, tuple(rows))


def bins_table(found: Diagnosis) -> Table:
    """Tabulate spread and error of groups of edges, by predicted spread."""
    rows = [
        (f"{who}, group {i + 1}", str(b.count), *map(_number, (b.deviation, b.error, b.rms_error)))
        for who, r in found.reliability.items()
        for i, b in enumerate(r.bins)
    ]
    header = ("edges by predicted spread", "edges", "predicted deviation", "mean error", "root mean square error")
    return Table("Predicted spread and error, in bins", header, tuple(rows))


def gradient_table(found: Diagnosis) -> Table:
    """Tabulate each term's share of the gradient, and its cosine with the gradient of the terms on labels."""
    targets = list(next(iter(found.gradients.values()), {}))
    rows = []
    for moment, of_targets in found.gradients.items():
        for term in next(iter(of_targets.values()), {}):
            cells = []
            for target in targets:
                share = found.shares(moment, target)[term]
                cells += [_percent(share), _number(of_targets[target][term].cosine)]
            rows.append((f"{moment}: {term}", *cells))
    header = ("", *(text for target in targets for text in (target, "cosine")))
    return Table("Share of each term in the gradient, and its cosine with the labels' terms", header, tuple(rows))


def in_words(found: Diagnosis) -> list[str]:
    """Summarise the numbers in plain sentences, without interpretation beyond them."""
    return [*_agreement_words(found), *_spread_words(found), *_gradient_words(found)]


def _agreement_words(found: Diagnosis) -> list[str]:
    own = found.agreement[STUDENT]
    main, valuable = own[MAIN], own[VALUABLE]
    if not main.locations:
        return ["No location of these images is assigned to an object, so there is nothing to compare."]
    text = (
        f"At the objects (main region) the student's edge distributions are {_number(main.mean_edge_kl)} nats from the "
        f"teacher's, and their boxes have an IoU of {main.box_iou:.2f}"
    )
    if valuable.locations:
        text += f"; in the valuable region {_number(valuable.mean_edge_kl)} nats and {valuable.box_iou:.2f}"
    words = [f"{text}."]
    if ALONE in found.agreement:
        alone = found.agreement[ALONE]
        words.append(
            f"The student trained alone is at {_number(alone[MAIN].mean_edge_kl)} nats and {alone[MAIN].box_iou:.2f} "
            f"at the objects: distillation {_change(main, alone[MAIN])}."
        )
        if valuable.locations:
            words.append(
                f"In the valuable region it is at {_number(alone[VALUABLE].mean_edge_kl)} nats: there distillation "
                f"{_change(valuable, alone[VALUABLE])}."
            )
    values = dict(zip(found.edges, main.edge_kl, strict=True))
    worst, best = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
    if values[worst] < 1.25 * values[best]:
        return [*words, "All edges agree about equally well."]
    differ = f"They differ most on the {worst} edge ({_number(values[worst])} nats)"
    return [*words, f"{differ}, least on the {best} one ({_number(values[best])})."]


def _change(taught: Agreement, alone: Agreement) -> str:
    """Describe the effect of distillation on the divergence from the teacher; a change up to 5 % counts as none."""
    if taught.mean_edge_kl < 0.95 * alone.mean_edge_kl:
        return "brought it closer to its teacher"
    away = taught.mean_edge_kl > 1.05 * alone.mean_edge_kl
    return "took it away from its teacher" if away else "made no difference to that"


def _spread_words(found: Diagnosis) -> list[str]:
    words = []
    for who, r in found.reliability.items():
        if math.isnan(r.spearman):
            continue
        strength = next(
            word
            for bound, word in ((0.5, "well"), (0.3, "fairly"), (0.1, "weakly"), (-2, "not"))
            if r.spearman >= bound
        )
        relation = "does not predict its error" if strength == "not" else f"predicts its error {strength}"
        sure = "overconfident" if r.ratio > 1.1 else "underconfident" if r.ratio < 0.9 else "calibrated"
        words.append(
            f"{who.capitalize()}: the spread of an edge distribution {relation} (rank correlation {r.spearman:.2f}); "
            f"errors are {r.ratio:.2f} times the predicted spread, which is {sure}."
        )
    return words


def _gradient_words(found: Diagnosis) -> list[str]:
    words, pull = [], {}
    for target in found.gradients.get(STUDENT, {}):
        of_terms = found.shares(STUDENT, target)
        taught = {term: of_terms[term] for term in found.taught if of_terms.get(term, 0.0) > 0}
        pull[target] = math.fsum(taught.values())
        if taught:
            parts = ", ".join(f"{term} {_percent(share)}" for term, share in taught.items())
            words.append(f"Of the gradient on the {target}, distillation makes up {_percent(pull[target])} ({parts}).")
    if found.taught and pull and max(pull.values()) < LITTLE:
        words.append("That is little: the teacher has almost no effect. Raise the weights of these terms.")
    loud = [target for target, share in pull.items() if share > MUCH]
    if loud:
        words.append(f"On the {' and the '.join(loud)} the labels have little effect beside the teacher.")
    return words


def _number(value: float) -> str:
    if math.isnan(value):
        return UNDEFINED
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _percent(share: float) -> str:
    return UNDEFINED if math.isnan(share) else f"{100 * share:.0f} %" if share >= 0.01 or not share else "<1 %"
