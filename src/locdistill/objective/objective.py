"""Loss of a run: named terms over one scene."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from locdistill.assign.assignment import Assigner
from locdistill.assign.atss import ATSS
from locdistill.errors import RecipeError, TeacherError
from locdistill.geometry.bins import Bins
from locdistill.geometry.coding import DISTANCES, Coding
from locdistill.geometry.grid import Grid
from locdistill.losses.overlap import OVERLAPS
from locdistill.objective.balance import Balance
from locdistill.objective.learned import NO_RUN, Learned, TrainingProgress, adapters
from locdistill.objective.scene import Scene
from locdistill.objective.term import Learner, Need, Term
from locdistill.types import Dense, Instances

_BOXES = {4: "axis-aligned boxes", 5: "rotated boxes"}
OWNED = frozenset({Need.WEIGHTS, Need.CROSS})
"""Needs that bring weights trained with the student: a divergence's own, or adapters to the teacher's head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Loss as named terms; supervised training is the same objective without a teacher.

    Attributes:
        terms: Summands of the loss by the name under which they are logged.
        bins: Support of the student's edge distributions.
        assigner: Assignment of objects to locations.
        coding: Meaning of the student's predicted numbers.
    """

    terms: Mapping[str, Term]
    bins: Bins = field(default_factory=Bins)
    assigner: Assigner = field(default_factory=ATSS)
    coding: Coding = DISTANCES

    learns: bool = field(init=False, repr=False, compare=False)
    """Whether any term may have weights or a running state; see :meth:`learned`."""
    needs_teacher: bool = field(init=False, repr=False, compare=False)
    """Whether any term uses a teacher; otherwise it need not be loaded."""
    needs_features: bool = field(init=False, repr=False, compare=False)
    """Whether any term uses the maps of the pyramids; otherwise they need not be returned. The gradient of a balanced
    term is measured on them where the term acts on maps instead of predictions.
    """
    needs_towers: bool = field(init=False, repr=False, compare=False)
    """Whether any term uses maps inside the heads, or passes the student's through the teacher's head."""
    needs_cross: bool = field(init=False, repr=False, compare=False)
    """Whether any term uses the predictions of the teacher's head on the student's features."""
    _shared: Mapping[str, str] = field(init=False, repr=False, compare=False)
    """Terms without weights that share their divergence with others, each mapped to the first term with it."""

    def __post_init__(self) -> None:
        """Collect the needs of the terms, and find divergences that several of them share.

        Raises:
            RecipeError: A term needs thresholds that the assigner does not have, or boxes or numbers that the detector
                does not have, or is balanced without supervised terms.
        """
        self._check()
        terms = self.terms.values()
        needs = frozenset(need for term in terms for need in term.needs)
        plain = {name: term.of for name, term in self.terms.items() if not term.learns}
        firsts = {name: next(other for other, of in plain.items() if of == plain[name]) for name in plain}
        counts = Counter(firsts.values())
        derived = {
            "learns": not needs.isdisjoint(OWNED) or any(term.balance is not None for term in terms),
            "needs_teacher": Need.TEACHER in needs,
            "needs_features": Need.FEATURES in needs
            or any(term.balance is not None and term.on_maps for term in terms),
            "needs_towers": not needs.isdisjoint({Need.TOWERS, Need.CROSS}),
            "needs_cross": Need.CROSS in needs,
            "_shared": {name: first for name, first in firsts.items() if counts[first] > 1},
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def _check(self) -> None:
        """Check that assigner and detector have what the terms need; see `__post_init__` for the errors."""
        balanced = {name: term for name, term in self.terms.items() if term.balance is not None}
        if labels := [name for name, term in balanced.items() if not term.needs_teacher]:
            raise RecipeError(
                f"the terms {', '.join(labels)} learn from labels, but balance is for distillation terms only; set a "
                "weight instead"
            )
        if balanced and all(term.needs_teacher for term in self.terms.values()):
            raise RecipeError(
                f"the terms {', '.join(balanced)} are balanced against supervised terms, but there are none; set a "
                "weight instead of balance"
            )
        mine = self.coding.kind.numbers
        for name, term in self.terms.items():
            its = getattr(term.of, "numbers", mine)
            if its != mine:
                raise RecipeError(
                    f"the term {name} compares {_BOXES[its]}, but the detector has {_BOXES[mine]}; set the kind of "
                    f"overlap to one of {', '.join(kind for kind, (numbers, _) in OVERLAPS.items() if numbers == mine)}"
                )
        if (names := self._that(Need.DISTANCES)) and not self.coding.distances:
            raise RecipeError(
                f"the terms {names} compute centerness from distances to four edges, but this detector predicts "
                f"{', '.join(self.coding.names)}; set by: iou or by: ones in their region"
            )
        if not self.assigner.has_thresholds and (names := self._that(Need.THRESHOLDS)):
            raise RecipeError(
                f"the terms {names} take each object's threshold from the assigner, but {type(self.assigner).__name__} "
                "has none; set threshold: adaptive in their region"
            )

    def learned(self, example: Callable[[], tuple[Dense, Dense | None]]) -> Learned:
        """Build the weights and state of the terms, to be trained and saved beside the student.

        Args:
            example: Function that returns predictions of student and teacher, with the maps that the terms need; only
                their shapes are used. Called if a term may have weights.

        Raises:
            TeacherError: A term has weights that depend on a teacher, and none is given.
        """
        balances = {name: term.balance for name, term in self.terms.items() if term.balance is not None}
        balance = Balance(balances) if balances else None
        names = [name for name, term in self.terms.items() if term.needs & OWNED]
        if not names:
            return Learned({}, balance)
        student, teacher = example()
        if teacher is None:
            raise TeacherError(f"the terms {', '.join(names)} compare with a teacher, but none was given")
        learners = {name: cast(Learner, term.of) for name, term in self.terms.items() if term.learns}
        parts = {name: learner.parts(student, teacher) for name, learner in learners.items()}
        cross = adapters(student.towers, teacher.towers) if self.needs_cross else None
        return Learned({name: part for name, part in parts.items() if part is not None}, balance, cross)

    def scene(
        self,
        student: Dense,
        teacher: Dense | None = None,
        *,
        grid: Grid,
        instances: Instances,
        cross: Dense | None = None,
        progress: TrainingProgress = NO_RUN,
        checked: bool = True,
    ) -> Scene:
        """Build the scene of a batch, and check that it has what the terms need.

        Args:
            student: Predictions to train.
            teacher: Predictions to learn from.
            grid: Locations of both predictions.
            instances: Ground truth.
            cross: Predictions of the teacher's head on the student's features.
            progress: Progress of the run, and the weights learned by the terms.
            checked: Whether to check; a scene that is not may be incomplete.

        Raises:
            TeacherError: A term needs a teacher or the predictions of its head, which are not given.
            RecipeError: A term needs a quality beside the class score, which the student does not predict.
        """
        if checked and teacher is None and self.needs_teacher:
            raise TeacherError(f"the terms {self._that(Need.TEACHER)} compare with a teacher, but none was given")
        if checked and student.quality_logits is None and (names := self._that(Need.QUALITY)):
            raise RecipeError(
                f"the terms {names} train a quality beside the class score, which the student does not predict; remove "
                "them, or use a detector that predicts it (atss, fcos)"
            )
        if checked and cross is None and self.needs_cross:
            raise TeacherError(
                f"the terms {self._that(Need.CROSS)} need the predictions of the teacher's head on the student's "
                "features, but none were given; compute them with the teacher's 'cross'"
            )
        scene = Scene.build(
            student,
            teacher,
            grid=grid,
            instances=instances,
            assigner=self.assigner,
            bins=self.bins,
            cross=cross,
            coding=self.coding,
        )
        return replace(scene, progress=progress)

    def losses(self, scene: Scene) -> dict[str, Float[Tensor, ""]]:
        """Compute each term's value, weights included; the loss is their sum.

        A divergence that several terms apply to different regions is computed once.
        """
        learned = scene.progress.learned
        once = {first: self.terms[first].of(scene) for first in dict.fromkeys(self._shared.values())}
        known = {name: once[first] for name, first in self._shared.items()}
        if learned is None:
            return {name: term(scene, None, known.get(name)) for name, term in self.terms.items()}
        if learned.balance is None:
            return {name: term(scene, learned.of(name), known.get(name)) for name, term in self.terms.items()}
        values = {
            name: term.per_location(scene, learned.of(name), known.get(name)).sum() for name, term in self.terms.items()
        }
        supervised = torch.stack([values[name] for name, term in self.terms.items() if not term.needs_teacher]).sum()
        mapped = [name for name in learned.balance.names if self.terms[name].on_maps]
        values |= learned.balance(values, supervised, scene.student, mapped)
        for name, term in self.terms.items():
            if term.schedule is not None:
                values[name] = values[name] * term.schedule(scene.progress.done)
        return values

    def __call__(
        self, student: Dense, teacher: Dense | None = None, *, grid: Grid, instances: Instances
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute the losses of a batch.

        Raises:
            TeacherError: A term needs a teacher, which is not given.
            RecipeError: A term needs a quality beside the class score, which the student does not predict.
        """
        return self.losses(self.scene(student, teacher, grid=grid, instances=instances))

    def _that(self, need: Need) -> str:
        """Return the names of the terms that have a need, as text."""
        return ", ".join(name for name, term in self.terms.items() if need in term.needs)
